"""Sizes of llama.cpp's KV cache and of its tensors on a device, in closed form; and the settings they follow from.

Source: llama.cpp @0c1e57098: src/llama-kv-cache.cpp, src/llama-context.cpp, ggml/src/ggml-alloc.c; ggml-cuda.cu
ggml_backend_cuda_buffer_type_get_alloc_size for the padding of quantized rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.formats import Format
from calculator.spec import ModelSpec
from calculator.units import align_up, ceil_div

CELL_PADDING = 256
CUDA_ALIGNMENT = 128
HOST_ALIGNMENT = 32
CUDA_ROW_PADDING = 512  # elements that a quantized row is padded to, once a tensor


class Layout(NamedTuple):
    """How a context lays out its cache."""

    cells: int  # a stream
    streams: int


class Release(NamedTuple):
    """What sets a version of llama.cpp apart, as far as buffers depend on it."""

    cell_padding: int = 256  # of cells without flash attention; with it always 256
    least_batch: int = 1  # a smaller one is raised to it
    embedding_input: bool = True  # the vectors that may come in place of tokens are allocated always
    rotates: bool = True  # quantized K and V are rotated
    mask_cast: bool = False  # the mask is float32, its rows padded to 64, and cast for flash attention
    key_before_value: bool = False  # order of the nodes
    scratch: bool = True  # CUDA's 16-bit copies of K and V lie behind the kernel's result, not in a pool
    clamps_weights: bool = True  # the sum of the weights of a token's experts
    streams: bool = True  # sequences have caches of their own unless kv_unified, and so do layers with a window
    row_indices: bool = True  # rows of the cache are written by index, not copied into a view
    fused_glu: bool = True  # the gate's activation and the product are one node
    outputs_by_slots: bool = True  # llama-server reserves one output a slot, not the whole micro-batch
    windows: bool = True  # layers with a window have a cache of their own; before, all layers had all cells
    window_of_batch: bool = False  # that cache holds a logical batch beside the window, not a micro-batch
    latent: Literal["row", "row and values", "heads"] = "row"  # what a token of latent attention keeps; "heads": keys and values of every head
    output_first: bool = True  # of n_gpu_layers the output is one; before it came last
    graph: bool = True  # the order of its nodes is known, so the compute buffers are
    unsure: tuple[str, ...] = ()  # what this build may do either way


NEWEST = Release()
AUGUST_2025 = Release(
    cell_padding=32, least_batch=64, embedding_input=False, rotates=False, mask_cast=True, key_before_value=True, scratch=False,
    clamps_weights=False, outputs_by_slots=False, latent="row and values", output_first=False,
)  # fmt: skip
FEBRUARY_2025 = AUGUST_2025._replace(streams=False, row_indices=False, fused_glu=False, windows=False, latent="heads")


class Override(NamedTuple):
    """Tensors with this pattern in their name, and the place that holds them: a GPU's index; the host's is the number of GPUs."""

    pattern: str
    place: int


class Adapters(NamedTuple):
    """LoRA adapters of one shape, applied together."""

    rank: int
    targets: tuple[str, ...]  # matrices of the layers, or output, by their name in the file
    type: str = "F32"
    number: int = 1


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
    cuda: bool  # layers may be on GPUs, by the rules of CUDA
    swa_full: bool = False
    split: tuple[float, ...] = (1,)  # shares of the layers, a GPU each (--tensor-split)
    n_gpu_layers: int = -1  # layers on GPUs, the last ones first, the output counted as one; -1 all
    n_cpu_moe: int = 0  # first layers whose experts stay on the host
    kv_offload: bool = True  # the cache follows its layer; otherwise it is the host's
    op_offload: bool = True  # large products with weights of the host run on a GPU
    release: Release = NEWEST
    by_rows: bool = False  # --split-mode row: each matrix over all GPUs, while micro-batches are not pipelined
    overrides: tuple[Override, ...] = ()  # --override-tensor
    adapters: Adapters | None = None  # --lora
    no_alloc: bool = False  # as --fit measures: nodes aren't pinned, and a full micro-batch's graph alone is reserved

    @property
    def gpus(self) -> int:
        """Number of GPUs; also the index of the host among the places."""
        return len(self.split) if self.cuda else 0

    @property
    def on_gpus_alone(self) -> bool:
        """Whether nothing that a layer reads is on the host beside GPUs; n_gpu_layers is -1 where it covers all."""
        return not self.cuda or (self.n_gpu_layers < 0 and self.kv_offload and not self.n_cpu_moe and not self.overrides)

    @property
    def pipelined(self) -> bool:
        """Whether micro-batches run on several GPUs at once, each with inputs of its own.

        Source: src/llama-context.cpp L430 @0c1e57098; the build's GGML_SCHED_MAX_COPIES.
        """
        return self.gpus > 1 and self.on_gpus_alone and not self.by_rows


def padding_of(context: Context) -> int:
    """Multiple that the cells of a stream are padded to."""
    return CELL_PADDING if context.flash_attn else context.release.cell_padding


def layout(context: Context) -> Layout:
    """Cells and streams of the KV cache.

    unified:    cells = pad256(n_ctx), one stream
    otherwise:  cells = pad256(pad256(n_ctx) // n_seq_max), a stream a sequence

    Source: src/llama-context.cpp n_ctx_seq, @0c1e57098.
    """
    if not context.release.outputs_by_slots:  # the older rule: src/llama-model.cpp L18091 @4227c9be
        streams = 1 if context.kv_unified or not context.release.streams else context.n_seq_max
        return Layout(align_up(ceil_div(context.n_ctx, streams), padding_of(context)), streams)
    padded = align_up(context.n_ctx, CELL_PADDING)
    if context.kv_unified or context.n_seq_max == 1:
        return Layout(padded, 1)
    return Layout(align_up(padded // context.n_seq_max, CELL_PADDING), context.n_seq_max)


def micro_batch(context: Context) -> int:
    """Tokens of a full micro-batch."""
    n_ctx = context.n_ctx if context.release.streams else align_up(context.n_ctx, padding_of(context))
    return min(max(min(n_ctx, context.n_batch), context.release.least_batch), context.n_ubatch)


def window_cells(window: int, context: Context) -> int:
    """Cells a stream of the cache of sliding-window layers.

    pad256(min(cells, window x sequences that share a stream + n_ubatch)), or all cells with swa_full

    In May 2025 n_batch in place of n_ubatch; before that month all cells.
    Source: src/llama-kv-cache-iswa.cpp L70 @0c1e57098; ggml-org/llama.cpp#13194, #13833.
    """
    cells = layout(context).cells
    if context.swa_full or not context.release.windows:
        return cells
    sharing = context.n_seq_max if context.kv_unified or not context.release.streams else 1
    beside = context.n_batch if context.release.window_of_batch else micro_batch(context)
    return align_up(min(cells, window * sharing + beside), padding_of(context))


def row_elements(model: ModelSpec, release: Release = NEWEST) -> dict[str, int]:
    """Elements that one token adds to one layer's keys and values; of latent attention one row, which is both.

    row              k = kv_lora_rank + qk_rope_head_dim, no v
    row and values   k as above, v = kv_lora_rank
    heads            k = heads x (qk_nope_head_dim + qk_rope_head_dim), v = heads x v_head_dim

    Source: src/llama-kv-cache.cpp @0c1e57098; "row and values" from ggml-org/llama.cpp#12801 (April 2025) to #19067
    (January 2026, a cache without V); before, n_embd_k_gqa and n_embd_v_gqa of src/llama.cpp load_hparams.
    """
    if (mla := model.mla) is not None:
        if release.latent == "heads":
            heads = model.num_attention_heads
            return {"k": heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim), "v": heads * mla.v_head_dim}
        row = {"k": mla.kv_lora_rank + mla.qk_rope_head_dim}
        return row if release.latent == "row" else row | {"v": mla.kv_lora_rank}
    return dict.fromkeys("kv", model.num_key_value_heads * model.head_dim)


def row_bytes(model: ModelSpec, types: dict[str, Format], release: Release = NEWEST) -> dict[str, int]:
    """Bytes that one token adds to one layer's keys and values: blocks of a row x block bytes."""
    return {part: types[part].nbytes(n) for part, n in row_elements(model, release).items()}


def kv_tensor_bytes(elements: int, fmt: Format, where: Layout, *, cuda: bool, rows: bool = True) -> int:
    """Bytes of one layer's K, or V, tensor: streams x cells x row of `elements`, and CUDA's padding of a quantized last row.

    Without `rows` the tensor is one row of all elements, as in February 2025.
    """
    nbytes = where.streams * where.cells * fmt.nbytes(elements)
    row = elements * (1 if rows else where.cells)
    return cuda_tensor_bytes(nbytes, row, fmt) if cuda else nbytes


def cuda_tensor_bytes(nbytes: int, row_elements: int, fmt: Format) -> int:
    """Bytes that CUDA reserves for a tensor: aligned to 128; a quantized one whose row isn't a multiple of 512
    elements first gets the missing elements once.

    Source: ggml-cuda.cu ggml_backend_cuda_buffer_type_get_alloc_size, get_alignment @0c1e57098.
    """
    left = row_elements % CUDA_ROW_PADDING
    if left and fmt.block_elements > 1:
        nbytes += fmt.nbytes(CUDA_ROW_PADDING - left)
    return align_up(nbytes, CUDA_ALIGNMENT)
