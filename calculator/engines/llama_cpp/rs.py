"""The recurrent state as lines: llama.cpp's RS buffer, the same for any context.

Source: llama.cpp src/llama-memory-recurrent.cpp, src/llama-hparams.cpp n_embd_r and n_embd_s, src/llama-model.cpp create_memory @0c1e57098.
"""

from __future__ import annotations

from calculator.engines.llama_cpp import kv
from calculator.engines.llama_cpp.buffers import Context, cuda_tensor_bytes
from calculator.formats import FORMATS
from calculator.ledger import Formula, Line
from calculator.spec import ModelSpec

SOURCE = "llama.cpp src/llama-memory-recurrent.cpp, n_embd_r and n_embd_s of src/llama-hparams.cpp @0c1e57098"
_F32 = FORMATS["F32"]


def lines(model: ModelSpec, context: Context) -> list[Line]:
    """RS buffers: cells (one a sequence) times the inputs of the convolution and the state, in f32, on the place of each layer."""
    r = model.recurrent
    if r is None or not model.recurrent_layers:
        return []
    cells, window = max(1, context.n_seq_max), max(0, r.conv_kernel - 1)
    found = []
    for place, layers in kv.places(model, context, model.recurrent_layers).items():
        sizes = [4 * cells * window * r.conv_channels, 4 * cells * r.state_elements]
        if context.cuda and place != "host":
            sizes = [cuda_tensor_bytes(n, n, _F32) for n in sizes]
        total = len(layers) * sum(sizes)
        symbols = {"L": len(layers), "c": cells, "w": window, "n": r.conv_channels, "s": r.state_elements,
                   "p": total - 4 * len(layers) * cells * (window * r.conv_channels + r.state_elements)}  # fmt: skip
        template = "{L} (layers) × {c} (sequences) × ({w} × {n} (inputs of the convolution) + {s} (state)) × 4 (bytes)" + (" + {p} (alignment)" if symbols["p"] else "")
        found.append(Line("kv_cache", "RS buffer", total, Formula(template, symbols), SOURCE, device=place, note="the same for any context"))
    return found
