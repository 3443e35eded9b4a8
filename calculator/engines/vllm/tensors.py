"""The tensors of a layer as vLLM makes them, in their order: fused matrices, then what the family adds."""

from __future__ import annotations

from functools import lru_cache

from calculator.architectures import build_inventory
from calculator.architectures.inventory import TensorGroup
from calculator.engines.ranks import GPTQ_PARTS
from calculator.quantization.hf import Storage
from calculator.spec import ModelSpec

# matrices of one layer that are one tensor in vLLM, in the order in which its modules make them
_FUSED = (
    ("attn_q_a", "attn_kv_a"), ("attn_q", "attn_k", "attn_v", "attn_qkv"), ("attn_q_b",), ("attn_kv_b",), ("attn_output",),
)  # fmt: skip


@lru_cache(maxsize=256)
def layers_made(rank: ModelSpec, size: int, packed: Storage | None = None, *, mxfp4: bool = False, gone: tuple[str, ...] = GPTQ_PARTS) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Sizes of the tensors of every layer [bytes], and after which of them the rotary table is made.

    Attention's matrices and biases, norms of heads, router, experts (gate with up, then down), shared or dense feed-forward,
    norms. `gone`: parts of GPTQ that don't stay. Source: vllm v0.19.0 model_executor/models/llama.py, qwen3_moe.py, deepseek_v2.py, gpt_oss.py.
    """
    groups = build_inventory(rank).groups
    seen: dict[tuple[TensorGroup, ...], tuple[tuple[int, ...], int]] = {}
    layers, at = [], 0
    for index in range(rank.num_hidden_layers):
        own = tuple(g for g in groups if g.layers and index in g.indices)
        if own not in seen:
            seen[own] = _made(own, size, packed, mxfp4=mxfp4, gone=gone)
        sizes, at = seen[own]
        layers.append(sizes)
    return tuple(layers), at


def _made(groups: tuple[TensorGroup, ...], size: int, packed: Storage | None, *, mxfp4: bool, gone: tuple[str, ...]) -> tuple[tuple[int, ...], int]:
    def linear(rows: int, columns: int) -> list[int]:
        if packed is None:
            return [rows * columns * size]
        parts = packed(rows, columns)
        symmetric = parts[-1].name == "g_idx"
        return [part.nbytes for part in parts if not symmetric or part.name not in gone]

    by_role = {g.role: g for g in groups}
    biases = [g for g in groups if g.role == "bias"]
    made: list[int] = []
    for roles in _FUSED:
        if fused := [by_role[role] for role in roles if role in by_role]:
            made += linear(sum(g.rows for g in fused), fused[0].row_length)
            stems = tuple(g.name.removesuffix("weight") for g in fused)
            made += [n * size] if (n := sum(b.elements for b in biases if b.name.startswith(stems))) else []
    attention = len(made) - 1
    norms = [g for g in groups if g.role == "norm"]
    made += [g.elements * size for g in norms if ".self_attn." in g.name]
    made += [g.elements * size for g in groups if g.role == "router"]
    experts = [g for g in groups if len(g.shape) == 3]
    for wanted in (("ffn_gate", "ffn_up"), ("ffn_down",)):
        if fused := [g for g in experts if g.role in wanted]:
            made += _experts(fused, size, packed, mxfp4=mxfp4)
    made += [b.elements * size for b in biases if b.name.partition(".mlp.")[2].startswith("experts")]
    dense = [g for g in groups if len(g.shape) == 2 and g.role in ("ffn_gate", "ffn_up", "ffn_down")]
    for down in (False, True):
        if fused := [g for g in dense if (g.role == "ffn_down") == down]:
            made += linear(sum(g.rows for g in fused), fused[0].row_length)
    return (*made, *(g.elements * size for g in norms if ".self_attn." not in g.name)), attention


def _experts(groups: list[TensorGroup], size: int, packed: Storage | None, *, mxfp4: bool) -> list[int]:
    """One matrix of all experts of a layer: values, and scales where it is stored with them."""
    elements = sum(g.elements for g in groups)
    if mxfp4:
        return [elements // 2, elements // 32]
    if packed is None:
        return [elements * size]
    count = groups[0].shape[0]
    return [part.nbytes * count for part in packed(sum(g.shape[1] for g in groups), groups[0].row_length)]
