"""Sizes of llama.cpp's buffers, in closed form: KV cache (exact), compute buffers (modelled).

The compute buffer is what ggml's graph allocator leaves for a micro-batch; these forms are the maximum over the steps
of a layer and the output, and the allocator can leave up to a fifth more or less on unusual shapes.

Source: llama.cpp @0c1e57098: src/llama-kv-cache.cpp, src/llama-context.cpp, ggml/src/ggml-alloc.c; ggml-cuda.cu
ggml_backend_cuda_buffer_type_get_alloc_size for the padding of quantized rows.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.formats import FORMATS, Format
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step, largest
from calculator.units import align_up

CELL_PADDING = 256
CUDA_ALIGNMENT = 128
HOST_ALIGNMENT = 32
CUDA_ROW_PADDING = 512  # elements that a quantized row is padded to, once a tensor
# types of K and V that flash attention reads as they are; it converts others to 16 bits first
_READ_AS_IS_BY_CUDA = frozenset({"F16"})
_READ_AS_IS_BY_CPU = frozenset(FORMATS) - {"F32"}


class Layout(NamedTuple):
    """How a context lays out its cache."""

    cells: int  # a stream
    streams: int


class Context(NamedTuple):
    """The settings of a llama.cpp context that its buffers depend on."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs: int  # positions with logits that are reserved in a micro-batch
    kv_unified: bool
    flash_attn: bool
    type_k: str
    type_v: str
    cuda: bool
    swa_full: bool = False


def layout(context: Context) -> Layout:
    """Cells and streams of the KV cache.

    unified:    cells = pad256(n_ctx), one stream
    otherwise:  cells = pad256(pad256(n_ctx) // n_seq_max), a stream a sequence

    Source: src/llama-context.cpp n_ctx_seq, @0c1e57098.
    """
    padded = align_up(context.n_ctx, CELL_PADDING)
    if context.kv_unified or context.n_seq_max == 1:
        return Layout(padded, 1)
    return Layout(align_up(padded // context.n_seq_max, CELL_PADDING), context.n_seq_max)


def window_cells(window: int, context: Context) -> int:
    """Cells a stream of the cache of sliding-window layers.

    pad256(min(cells, window x sequences that share a stream + n_ubatch)), or all cells with swa_full

    Source: src/llama-kv-cache-iswa.cpp L70 @0c1e57098.
    """
    cells = layout(context).cells
    if context.swa_full:
        return cells
    sharing = context.n_seq_max if context.kv_unified else 1
    ubatch = min(context.n_ctx, context.n_batch, context.n_ubatch)
    return align_up(min(cells, window * sharing + ubatch), CELL_PADDING)


def row_bytes(model: ModelSpec, fmt: Format) -> int:
    """Bytes that one token adds to one layer's keys, or values: blocks(K d) x block bytes."""
    return fmt.nbytes(model.num_key_value_heads * model.head_dim)


def kv_tensor_bytes(model: ModelSpec, fmt: Format, where: Layout, *, cuda: bool) -> int:
    """Bytes of one layer's K, or V, tensor: streams x cells x row, and CUDA's padding of a quantized last row."""
    nbytes = where.streams * where.cells * row_bytes(model, fmt)
    return cuda_tensor_bytes(nbytes, model.num_key_value_heads * model.head_dim, fmt) if cuda else nbytes


def cuda_tensor_bytes(nbytes: int, row_elements: int, fmt: Format) -> int:
    """Bytes that CUDA reserves for a tensor: aligned to 128; a quantized one whose row isn't a multiple of 512
    elements first gets the missing elements once.

    Source: ggml-cuda.cu ggml_backend_cuda_buffer_type_get_alloc_size, get_alignment @0c1e57098.
    """
    left = row_elements % CUDA_ROW_PADDING
    if left and fmt.block_elements > 1:
        nbytes += fmt.nbytes(CUDA_ROW_PADDING - left)
    return align_up(nbytes, CUDA_ALIGNMENT)


PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES, ggml/src/ggml-backend.cpp @0c1e57098


def pipeline_inputs(context: Context) -> int:
    """Bytes that pipeline parallelism adds to the compute buffer of each of several devices: further copies of the inputs.

    3 (copies) x n c m (mask), the inputs that grow with the context. Modelled: no record has two devices.
    """
    where = layout(context)
    n = min(where.cells * where.streams, context.n_ubatch, context.n_batch)
    return (PIPELINE_COPIES - 1) * n * where.cells * (2 if context.flash_attn else 4)


def compute(model: ModelSpec, context: Context) -> tuple[Peak, int]:
    """Peak of the accelerator's compute buffer, and bytes of the host's.

    Symbols: n micro-batch, c cells, s streams, o outputs, D hidden, A = heads d, K = KV heads d, F feed-forward,
    V vocabulary, H heads, x residual copies (2 on CUDA, 3 on the CPU).
    """
    where = layout(context)
    d, f, v = model.hidden_size, model.intermediate_size, model.vocab_size
    a, k = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    n = min(where.cells * where.streams, context.n_ubatch, context.n_batch)
    o, c, flash = min(context.n_outputs, n), where.cells, context.flash_attn
    x = 2 if context.cuda else 3

    ids = align_up(4 * o, CUDA_ALIGNMENT if context.cuda else HOST_ALIGNMENT)
    mask = Buffer("mask", n * c * (2 if flash else 4), "{n} × {c} × {m}")
    index = 16 * n if flash else 8 * n + 8 * n * k
    inputs = Buffer("positions, indices, output ids", 4 * n + index + ids,
                    "4 × {n} + " + ("16 × {n}" if flash else "8 × {n} + 8 × {n} × {K}") + " + {ids}")  # fmt: skip
    rotation = Buffer("rotation matrices", _rotation(model, context), "{rotation}")
    common = (mask, inputs, rotation)
    steps = [
        Step("ffn", (Buffer("residual, attention, gate, up, product", 4 * n * (x * d + a + 3 * f),
                            "4 × {n} × ({x} × {D} + {A} + 3 × {F})"), *common)),
    ]  # fmt: skip
    qkv = Buffer("residual, q and attention", 4 * n * (x * d + 2 * a), "4 × {n} × ({x} × {D} + 2 × {A})")
    converted = 0
    if flash:
        read_as_is = _READ_AS_IS_BY_CUDA if context.cuda else _READ_AS_IS_BY_CPU
        converted = sum(t not in read_as_is for t in (context.type_k, context.type_v))
        scratch = Buffer("16-bit copy of K, V", 2 * k * c * where.streams * converted, "{q} × 2 × {K} × {c} × {s}")
        steps.append(Step("attention", (qkv, scratch, *common)))
    else:
        scores = Buffer("scores", 4 * n * model.num_attention_heads * c, "4 × {n} × {H} × {c}")
        steps.append(Step("attention", (qkv, scores, *common)))
    kept = 1 if context.cuda else 2 if context.type_v in ("F16", "BF16") or not flash else 3
    steps.append(Step("output", (Buffer("logits and last hidden", 4 * o * (v + kept * d), "4 × {o} × ({V} + {y} × {D})"),
                                 Buffer("output ids", 0 if context.cuda else 4 * n, "4 × {n}"))))  # fmt: skip
    step, nbytes = largest(steps)
    symbols = {"y": kept, "n": n, "c": c, "s": where.streams, "o": o, "D": d, "A": a, "K": k, "F": f, "V": v, "x": x,
               "H": model.num_attention_heads, "m": 2 if flash else 4, "ids": ids,
               "rotation": rotation.nbytes, "q": converted}  # fmt: skip
    host = 8 * n * d + mask.nbytes + 4 * n + 4 * n + index + align_up(4 * o, HOST_ALIGNMENT) + rotation.nbytes if context.cuda else 0
    return Peak("prefill", step, nbytes, symbols), host


def _rotation(model: ModelSpec, context: Context) -> int:
    """Rotation (Hadamard) matrices for quantized keys and values, new in 2026.

    K: 4 r^2, r the largest 64 x 2^i that divides head_dim; V: r is 64, 16 KiB.
    """
    total = 0
    if FORMATS[context.type_k].block_elements > 1 and model.head_dim % 64 == 0:
        r = 64
        while model.head_dim % (2 * r) == 0:
            r *= 2
        total += 4 * r * r
    if FORMATS[context.type_v].block_elements > 1 and model.head_dim % 64 == 0:
        total += 4 * 64 * 64
    return total
