"""A stored inventory over several devices: which layers and outer tensors each of them holds."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from calculator.errors import BadValue, Unsupported
from calculator.quantization import Stored, StoredGroup
from calculator.spec import ByLayer, ModelSpec, Recurrent, Windowed
from calculator.units import align_up, ceil_div


class Share(NamedTuple):
    """What one device holds."""

    device: int
    layers: range
    first: bool
    last: bool


def share_of(stored: Stored, share: Share, *, head_with_embedding: bool) -> Stored:
    """The part of a stored inventory that one device holds. A tied head stays with the embedding if asked."""
    held: list[StoredGroup] = []
    for group in stored:
        if group.group.layers:
            layers = tuple(layer for layer in group.layers if layer in share.layers)
            if layers:
                held.append(group if len(layers) == len(group.layers) else replace(group, layers=layers))
        elif share.first if group.group.role == "embedding" and head_with_embedding else share.last:
            held.append(group)
    return tuple(held)


def tensor_sizes(model: ModelSpec) -> tuple[int, ...]:
    """Tensor-parallel sizes up to the number of heads that divide everything that is split."""
    return tuple(n for n in range(1, model.num_attention_heads + 1) if _splits(model, n))


def tensor_split(model: ModelSpec, gpus: int) -> int:
    """Ranks that `gpus` GPUs make where nobody says how they are used: the most that each layer can be split over, the rest are stages."""
    return max((n for n in range(1, min(gpus, model.num_attention_heads) + 1) if gpus % n == 0 and _splits(model, n)), default=1)


def expert_rank(model: ModelSpec, size: int, *, vocab_multiple: int, over: int = 0) -> ModelSpec:
    """As `tensor_rank`, but whole experts are dealt out: the first of `over` ranks (default `size`) has ceil(E / over) of them.

    Source: vllm v0.19.0 model_executor/layers/fused_moe/layer.py determine_expert_map.
    """
    over = over or size
    if over > model.num_experts:
        raise Unsupported(f"{model.num_experts} experts over {over} ranks", allowed=f"1 to {model.num_experts}")
    dense = len(model.expert_layers) < model.num_hidden_layers  # layers without experts are divided as ever
    outer = model.intermediate_size if dense else size
    attention = tensor_rank(replace(model, num_experts=0, expert_intermediate_size=0, intermediate_size=outer), size, vocab_multiple=vocab_multiple)
    return replace(
        attention, num_experts=ceil_div(model.num_experts, over), expert_intermediate_size=model.expert_intermediate_size,
        intermediate_size=attention.intermediate_size if dense else model.intermediate_size,
    )  # fmt: skip


def replica_rank(model: ModelSpec, size: int, *, vocab_multiple: int, over: int) -> ModelSpec:
    """A rank of a copy of the model whose experts are divided over `over` ranks, those of all copies.

    Source: vllm v0.9.2 model_executor/layers/fused_moe/config.py L191-290, flatten_tp_across_dp.
    """
    if model.expert_intermediate_size % over:
        raise Unsupported(f"experts of width {model.expert_intermediate_size} over {over} ranks", hint="--set enable_expert_parallel=1, which deals whole experts out")
    dealt = expert_rank(model, size, vocab_multiple=vocab_multiple)
    return replace(dealt, num_experts=model.num_experts, expert_intermediate_size=model.expert_intermediate_size // over)


@lru_cache(maxsize=512)
def tensor_rank(model: ModelSpec, size: int, *, vocab_multiple: int) -> ModelSpec:
    """What one tensor-parallel rank holds, as a model of its own: heads, feed-forward and vocabulary divided.

    Query heads, feed-forward and the vocabulary (padded to a multiple) are divided; KV heads are divided, or held by
    several ranks each where there are fewer than ranks; norms, routers and the biases of row-split layers stay whole.
    Every expert is divided like a feed-forward, shared ones too. Latent attention divides its heads alone: what makes and
    reads the compressed row is on every rank.

    Source: vllm v0.19.0 model_executor/models/llama.py L146-155, deepseek_v2.py DeepseekV2MLAAttention, layers/vocab_parallel_embedding.py L75.
    """
    if not _splits(model, size):
        possible = ", ".join(map(str, tensor_sizes(model)))
        if model.num_attention_heads % size:
            raise Unsupported(f"Total number of attention heads ({model.num_attention_heads}) must be divisible by "
                              f"tensor parallel size ({size})", allowed=possible)  # fmt: skip
        raise Unsupported(f"tensor_parallel_size {size} doesn't split {model.num_key_value_heads} key/value heads, "
                          f"feed-forward {model.expert_intermediate_size or model.intermediate_size} and vocabulary {model.vocab_size}", allowed=possible)  # fmt: skip
    return replace(
        model, num_attention_heads=model.num_attention_heads // size, num_key_value_heads=max(1, model.num_key_value_heads // size),
        intermediate_size=model.intermediate_size // size, expert_intermediate_size=model.expert_intermediate_size // size,
        shared_expert_intermediate_size=model.shared_expert_intermediate_size // size,
        vocab_size=align_up(model.vocab_size, vocab_multiple) // size, vision_parameters=ceil_div(model.vision_parameters, size),
        recurrent=_recurrent_rank(model.recurrent, size), by_layer=_by_layer_rank(model.by_layer, size), windowed=_windowed_rank(model.windowed, size),
    )  # fmt: skip


def _recurrent_rank(whole: Recurrent | None, size: int) -> Recurrent | None:
    """Heads of a recurrent layer divided; groups too, or one a rank where there are fewer than ranks.

    Source: sglang srt/configs/mamba_utils.py @02e208ded Mamba2StateShape.create, extra_groups_for_head_shards.
    """
    if whole is None or size == 1:
        return whole
    if whole.heads % size:
        raise Unsupported(f"tensor_parallel_size {size} doesn't divide {whole.heads} heads of the recurrent layers", hint="a smaller --tp")
    groups = whole.groups if whole.groups % size == 0 else size
    return replace(whole, heads=whole.heads // size, groups=groups // size)


def _by_layer_rank(whole: ByLayer | None, size: int) -> ByLayer | None:
    """Key and value heads of layers that see everything, divided or repeated as the others'."""
    if whole is None or not whole.full_kv_heads:
        return whole
    return replace(whole, full_kv_heads=max(1, whole.full_kv_heads // size))


def _windowed_rank(whole: Windowed | None, size: int) -> Windowed | None:
    """Heads of layers with a window, divided or repeated as the others'."""
    return whole and Windowed(whole.num_attention_heads // size, max(1, whole.num_key_value_heads // size))


def pipeline_stages(layers: int, stages: int) -> tuple[Share, ...]:
    """Runs of layers as vLLM splits them: equal, what is left over to the stages before the last.

    Source: vllm v0.19.0 distributed/utils.py L124-129, get_pp_indices.
    """
    if stages > layers:
        raise BadValue(f"{stages} pipeline stages for {layers} layers", allowed=f"1 to {layers}", hint=f"{layers} or fewer")
    counts = [layers // stages] * stages
    for i in range(2, layers % stages + 2):
        counts[-i] += 1
    first = [sum(counts[:i]) for i in range(stages + 1)]
    return tuple(Share(i, range(first[i], first[i + 1]), i == 0, i == stages - 1) for i in range(stages))


def _splits(model: ModelSpec, size: int) -> bool:
    if model.recurrent and model.recurrent.heads % size:
        return False
    if model.windowed and not _divides(model.windowed.num_attention_heads, model.windowed.num_key_value_heads, size):
        return False
    feed_forward = model.expert_intermediate_size or model.intermediate_size
    even = feed_forward % size == 0 and align_up(model.vocab_size, 64) % size == 0
    return even and _divides(model.num_attention_heads, model.num_key_value_heads, size)


def _divides(heads: int, kv: int, size: int) -> bool:
    """Query heads divide; key and value heads too, or are repeated."""
    return heads % size == 0 and (kv % size == 0 if kv >= size else size % kv == 0)
