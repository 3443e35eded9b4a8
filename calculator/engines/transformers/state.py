"""Recurrent state of transformers' cache: the last inputs of each convolution, and the state, the same for any context.

Source: transformers v5.23.0 cache_utils.py LinearAttentionLayer, models/minimax/modeling_minimax.py MiniMaxCache; equals the tensors
that small models of every family here really cached (`make real`).
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.ledger import Formula, Line
from calculator.spec import ModelSpec

SOURCE = "transformers v5.23.0 cache_utils.py LinearAttentionLayer"


def attending(model: ModelSpec, layers: Sequence[int]) -> int:
    """How many of these layers keep keys and values."""
    return len(set(layers) & set(model.attention_layers)) if model.layer_types else len(layers)


def state_lines(model: ModelSpec, layers: Sequence[int], *, device: int, sequences: int, element_bytes: int) -> list[Line]:
    """N B (k c e + 4 s): N recurrent layers, a convolution of k inputs and c channels in the model's type, s elements of state in float32.

    Lightning attention keeps its state in the model's type.
    """
    r = model.recurrent
    count = len(set(layers) & set(model.recurrent_layers))
    if r is None or not count:
        return []
    size = element_bytes if r.kind == "lightning" else 4
    nbytes = count * sequences * (r.conv_kernel * r.conv_channels * element_bytes + r.state_elements * size)
    formula = Formula(
        "{N} (layers) × {B} (sequences) × ({k} × {c} (inputs of the convolution) × {e} (bytes) + {s} (state) × {f} (bytes))",
        {"N": count, "B": sequences, "k": r.conv_kernel, "c": r.conv_channels, "e": element_bytes, "s": r.state_elements, "f": size},
    )
    return [Line("kv_cache", "recurrent state", nbytes, formula, SOURCE, device=device, note="the same for any context")]
