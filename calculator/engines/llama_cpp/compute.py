"""The compute buffers of a job's context, as the largest moment of the simulated graph."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from calculator.architectures import architecture
from calculator.engines.llama_cpp import simulation
from calculator.engines.llama_cpp.allocator import Live
from calculator.engines.llama_cpp.buffers import CELL_PADDING, NEWEST, Context, layout
from calculator.engines.llama_cpp.families import FAMILIES, Decoder, Latent, Routes
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step

SOURCE = "llama.cpp src/llama-graph.cpp, ggml/src/ggml-backend.cpp and ggml-alloc.c @0c1e57098, simulated node by node"
NONE_ON_HOST = simulation.Weights()
_LARGE = 2**18  # cells
# whose router has a bias of its choice (exp_probs_b)
_CORRECTED = frozenset({"deepseek_v3", "kimi_k2", "glm4_moe", "glm4_moe_lite", "minimax_m2", "ernie4_5_moe"})


class Compute(NamedTuple):
    """Largest moments of the compute buffers of all GPUs, or of the CPU's alone; bytes of the host's beside GPUs."""

    devices: tuple[Peak, ...]
    host: int

    @property
    def largest(self) -> Peak:
        """The largest of the devices'."""
        return max(self.devices, key=lambda peak: peak.nbytes)


@lru_cache(maxsize=4096)
def compute(model: ModelSpec, context: Context, weights: simulation.Weights = NONE_ON_HOST) -> Compute:
    """The compute buffers of a context; `weights` are the formats of what the host holds."""
    devices = simulation.compute_buffers(decoder(model), context, weights)
    if not context.cuda:
        return Compute((_peak(devices[0]),), 0)
    return Compute(tuple(_peak(d) for d in devices[:-1]), devices[-1].nbytes)


def device_bytes(model: ModelSpec, context: Context) -> int:
    """Bytes of one GPU's (or the CPU's) compute buffer with all layers on it, for many contexts that differ in their cells.

    Sizes of tensors are affine in the number of cells (a multiple of 256, so alignment adds nothing), and the allocator
    only compares sums of them. An inequality of affine functions that holds at both ends of an interval holds inside:
    where all decisions at both ends are the same, they are the same between, and the buffer is affine too. Where they
    aren't, the interval is halved.
    """
    cells, streams = layout(context)
    low = CELL_PADDING
    while low * streams < context.n_ubatch:  # the micro-batch would be smaller
        low *= 2
    if cells < low or context.n_ctx < context.n_ubatch or context.kv_unified or model.full_every or context.release is not NEWEST:
        return compute(model, context).devices[0].nbytes
    known = _intervals(model, context._replace(n_ctx=0))
    for found in known:
        if found.low <= cells <= found.high:
            break
    else:
        found = _interval(model, context, low, max(_LARGE, 1 << cells.bit_length()), cells)
        known.append(found)
    return found.at_low + (found.at_high - found.at_low) * (cells - found.low) // (found.high - found.low)


class _Interval(NamedTuple):
    """Cells between which the buffer is affine, and its bytes at both ends."""

    low: int
    high: int
    at_low: int
    at_high: int


@lru_cache(maxsize=4096)
def _intervals(model: ModelSpec, context: Context) -> list[_Interval]:  # noqa: ARG001  # the key
    """Those found so far of contexts that differ in n_ctx alone."""
    return []


def _interval(model: ModelSpec, context: Context, low: int, high: int, cells: int) -> _Interval:
    while True:
        first, last = (_device(model, context, end) for end in (low, high))
        if first.trail == last.trail or high - low == CELL_PADDING:
            return _Interval(low, high, first.nbytes, last.nbytes)
        middle = low << (high // low).bit_length() // 2 if high > 2 * low else (low + high) // 2
        low, high = (low, middle) if cells <= middle else (middle, high)


def _device(model: ModelSpec, context: Context, cells: int) -> simulation.Buffer:
    return simulation.compute_buffers(decoder(model), context._replace(n_ctx=cells * context.n_seq_max))[0]


@lru_cache(maxsize=256)
def decoder(model: ModelSpec) -> Decoder:
    """What a model's graph is built from."""
    name, mla = architecture(model.model_type).gguf, model.mla
    family = FAMILIES[name]
    return Decoder(
        name, model.num_hidden_layers, model.hidden_size, model.num_attention_heads, 1 if mla else model.num_key_value_heads,
        mla.kv_lora_rank + mla.qk_rope_head_dim if mla else model.head_dim, model.intermediate_size, model.vocab_size, model.num_experts,
        model.num_experts_per_tok, model.expert_intermediate_size, window=model.sliding_window or 0 if model.full_every else 0, full_every=model.full_every or 1,
        qkv_bias=model.attention_bias != "none", output_bias=model.attention_bias == "qkvo", mlp_bias=model.mlp_bias,
        rope_factors=model.rope_type in ("llama3", "longrope", "su"), head_norms=model.qk_norm, head_bias=model.head_bias,
        routes=Routes(
            model.shared_expert_intermediate_size, model.first_dense_layers, model.expert_every,
            model.routing.normalized if family.normalizes is None else family.normalizes, model.routing.scale not in (0.0, 1.0),
            model.model_type in _CORRECTED, model.routing.groups, model.routing.groups_used,
        ),
        latent=Latent(mla.q_lora_rank, mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim) if mla else None,
    )  # fmt: skip


def _peak(buffer: simulation.Buffer) -> Peak:
    """What lives while the node is computed, and the holes that best fit leaves."""
    live = [Buffer(t.name, t.nbytes, _expression(t)) for t in buffer.live]
    step = Step(buffer.node, (*live, Buffer("holes between tensors", buffer.holes, "{holes}")))
    return Peak("prefill", step, buffer.nbytes, {"holes": buffer.holes})


def _expression(tensor: Live) -> str:
    """Elements times bytes; plain bytes where the tensor is padded or stored in blocks."""
    sizes = [*(n for n in tensor.ne if n > 1), tensor.fmt.block_bytes]
    plain = tensor.fmt.block_elements == 1 and prod(sizes) == tensor.nbytes
    return " × ".join(str(n) for n in sizes) if plain else str(tensor.nbytes)
