"""Decoders whose windowed layers have heads of their own: Step 3.5 and 3.7."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import LAYER, NORMS, Groups, attention, decoder, gated, routed
from calculator.spec import ModelSpec


def step(model: ModelSpec) -> Inventory:
    """Step 3.5: a gate a head on what is attended, norms of heads, experts stacked in three tensors, a shared one beside them.

    parameters of a layer = 2 h H d + 2 h K d + h H + 2 d + 2 h, and 3 h f or E h + E + 3 E h f + 3 h s        derived
    H heads of layers of its kind, f of the feed-forward or one expert, s of the shared one

    An MTP layer is windowed and dense, with three norms, a projection of 2 h to h and a head of its own: 199,384,301,376 with three.

    Source: transformers v5.23.0 models/step3p7/modeling_step3p7.py; vllm v0.33.0 model_executor/models/step3p5.py, step3p5_mtp.py.
    """
    full = model.full_indices
    near = tuple(i for i in range(model.num_hidden_layers) if i not in full)
    sparse, inner = model.expert_layers, []
    for layers in (full, near):
        inner += gated_heads(model, layers) if layers else []
    at = LAYER + "moe."
    if dense := [i for i in range(model.num_hidden_layers) if i not in set(sparse)]:
        inner += gated(model, model.intermediate_size, layers=dense)
    experts = routed(model, at=at, layers=sparse, correction="router_bias")
    inner += [replace(g, name=g.name.replace("moe.experts.", "moe.")) for g in experts]
    inner += gated(model, model.shared_expert_intermediate_size, at=LAYER + "share_expert.", layers=sparse)
    return decoder(model, inner, mtp=_mtp(model, near or full))


def gated_heads(model: ModelSpec, layers: tuple[int, ...]) -> Groups:
    """Attention of layers of one kind, and a gate of each of their heads."""
    heads = model.windowed if layers[0] not in model.full_indices else None
    own = replace(model, num_attention_heads=heads.num_attention_heads, num_key_value_heads=heads.num_key_value_heads) if heads else model
    return [*attention(own, qk_norm="head", layers=layers),
            TensorGroup(LAYER + "self_attn.g_proj.weight", (own.num_attention_heads, model.hidden_size), "projection", len(layers), layers)]  # fmt: skip


def _mtp(model: ModelSpec, near: tuple[int, ...]) -> Groups:
    if not model.mtp_layers:
        return []
    h, n = model.hidden_size, model.mtp_layers
    block = [*gated_heads(model, near[:1]), *gated(model, model.intermediate_size, layers=near[:1])]
    groups = [TensorGroup(g.name, g.shape, g.role, n) for g in block]
    groups += [TensorGroup(f"{LAYER}{name}.weight", (h,), "norm", n) for name in (*NORMS, "enorm", "hnorm", "transformer.shared_head.norm")]
    return [*groups, TensorGroup(LAYER + "eh_proj.weight", (h, 2 * h), "ffn_up", n),
            TensorGroup(LAYER + "transformer.shared_head.output.weight", (model.vocab_size, h), "output", n)]  # fmt: skip
