"""Decoders of which some or all layers carry a state in place of keys and values: which layer holds what.

Source: transformers v5.23.0 models/*/modeling_*.py of the rows that name each.
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.architectures import recurrent
from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import (
    LAYER,
    NORMS,
    Groups,
    attention,
    decoder,
    gated,
    latent_attention,
    routed,
    ungated,
)
from calculator.spec import ModelSpec

PRE_FF = ("input_layernorm", "pre_ff_layernorm")
FEED_FORWARD = LAYER + "feed_forward."


def delta_net(model: ModelSpec, *, projections: str = "four") -> Inventory:
    """Qwen3-Next and Qwen3.5: gated delta layers, and attention whose queries carry a gate; dense or with experts.

    The MTP layer, where it is counted, is one that attends, a projection of 2 h to h and three norms.
    """
    attends, others = model.attention_layers, model.recurrent_layers
    mixers = recurrent.delta(model, layers=others, projections=projections) if others else []
    own = attention(model, layers=attends, qk_norm="head", gate=True) if attends else []
    if model.num_experts:
        feed_forward = _experts(model, "shared_expert", gate=True)
    else:
        feed_forward = gated(model, model.intermediate_size)
    inner = [*mixers, *own, *feed_forward]
    return decoder(model, inner, mtp=_qwen_mtp(model, [*own, *feed_forward]))


def olmo_hybrid(model: ModelSpec) -> Inventory:
    """OLMo Hybrid: gated delta layers with a norm before, layers that attend with norms after."""
    attends, others = model.attention_layers, model.recurrent_layers
    inner = gated(model, model.intermediate_size)
    if others:
        inner += [*recurrent.delta(model, layers=others, projections="each"), *_norms(model, ("input_layernorm",), others)]
    if attends:
        inner += [*attention(model, layers=attends, qk_norm="all"), *_norms(model, ("post_feedforward_layernorm",), attends)]
    return decoder(model, inner, norms=("post_attention_layernorm",))


def kimi_linear(model: ModelSpec) -> Inventory:
    """Kimi Linear: Kimi Delta Attention, and latent attention in some layers; experts behind dense layers."""
    attends, others = model.attention_layers, model.recurrent_layers
    own = latent_attention(model, layers=attends) if attends else []
    mixers = recurrent.kda(model, layers=others) if others else []
    dense = tuple(i for i in range(model.num_hidden_layers) if i not in model.expert_layers)
    feed_forward = gated(model, model.intermediate_size, layers=dense) if dense else []
    return decoder(model, [*mixers, *own, *feed_forward, *_experts(model, "shared_experts", correction="gate.e_score_correction_bias")])


def granite_hybrid(model: ModelSpec) -> Inventory:
    """Granite 4: Mamba 2 layers and layers that attend, experts in all or none, a shared feed-forward in all."""
    shared, h, at, n = model.shared_expert_intermediate_size, model.hidden_size, LAYER + "shared_mlp.", model.num_hidden_layers
    inner = [*_mixers(model), TensorGroup(at + "input_linear.weight", (2 * shared, h), "ffn_up", n),
             TensorGroup(at + "output_linear.weight", (h, shared), "ffn_down", n)]  # fmt: skip
    if model.num_experts:
        inner += routed(model, at=LAYER + "block_sparse_moe.", layers=range(n), router="router.layer.weight")
    return decoder(model, inner)


def falcon_h1(model: ModelSpec) -> Inventory:
    """Falcon-H1 (attention and Mamba 2 side by side) and Bamba (one or the other)."""
    return decoder(model, [*_mixers(model), *gated(model, model.intermediate_size, at=FEED_FORWARD)], norms=PRE_FF, last="model.final_layernorm")


def jamba(model: ModelSpec) -> Inventory:
    """Jamba: Mamba 1 layers and layers that attend, experts in every other layer."""
    attends, others, sparse = model.attention_layers, model.recurrent_layers, model.expert_layers
    dense = [i for i in range(model.num_hidden_layers) if i not in set(sparse)]
    inner = recurrent.mamba(model, layers=others, norms=True) if others else []
    inner += attention(model, layers=attends) if attends else []
    inner += gated(model, model.intermediate_size, at=FEED_FORWARD, layers=dense) if dense else []
    inner += routed(model, at=FEED_FORWARD, layers=sparse, router="router.weight") if sparse else []
    return decoder(model, inner, norms=PRE_FF, last="model.final_layernorm")


def state_space(model: ModelSpec) -> Inventory:
    """Mamba and Mamba 2: nothing but state-space layers."""
    kind = recurrent.mamba2 if model.recurrent is not None and model.recurrent.kind == "mamba2" else recurrent.mamba
    mixers = kind(model, layers=model.recurrent_layers, at=LAYER + "mixer.")
    return decoder(model, mixers, norms=("norm",), embedding="model.embeddings", last="model.norm_f", backbone=True)


def nemotron_h(model: ModelSpec) -> Inventory:
    """Nemotron-H, Nano v2 and Nemotron 3: each layer is Mamba 2, attention, a feed-forward or experts, alone.

    Feed-forwards have two matrices; experts may read and write a latent width.
    """
    at, attends, dense, sparse = LAYER + "mixer.", model.attention_layers, _of_kind(model, "dense"), model.expert_layers
    inner = recurrent.mamba2(model, layers=model.recurrent_layers, at=at) if model.recurrent_layers else []
    inner += attention(model, layers=attends, at=at) if attends else []
    inner += ungated(model, at=at, layers=dense) if dense else []
    if sparse:
        inner += routed(model, at=at, layers=sparse, correction="gate.e_score_correction_bias", gate=False)
        inner += ungated(model, at=at + "shared_experts.", width=model.shared_expert_intermediate_size, layers=sparse)
        if w := model.expert_latent_size:
            inner += [TensorGroup(f"{at}{name}_latent_proj.weight", shape, "ssm_in", len(sparse), sparse)
                      for name, shape in (("fc1", (w, model.hidden_size)), ("fc2", (model.hidden_size, w)))]  # fmt: skip
    return decoder(model, inner, norms=("norm",), embedding="model.embeddings", last="model.norm_f", backbone=True, mtp=_nemotron_mtp(model, inner))


def lfm2(model: ModelSpec) -> Inventory:
    """LFM2: gated short convolutions and layers that attend; experts behind dense layers where it has them."""
    attends, sparse = model.attention_layers, model.expert_layers
    dense = [i for i in range(model.num_hidden_layers) if i not in set(sparse)]
    inner = recurrent.short_convolution(model, layers=model.recurrent_layers) if model.recurrent_layers else []
    inner += attention(model, layers=attends, qk_norm="head", qk_names=("q_layernorm", "k_layernorm"), out="out_proj") if attends else []
    inner += gated(model, model.intermediate_size, at=FEED_FORWARD, layers=dense, names=("w1", "w3", "w2")) if dense else []
    inner += routed(model, at=FEED_FORWARD, layers=sparse, correction="expert_bias") if sparse else []
    return decoder(model, inner, norms=("operator_norm", "ffn_norm"), last="model.embedding_norm")


def minimax(model: ModelSpec) -> Inventory:
    """MiniMax-01 and M1: lightning attention and, in some layers, attention; experts in all."""
    attends, others = model.attention_layers, model.recurrent_layers
    inner = recurrent.lightning(model, layers=others) if others else []
    inner += attention(model, layers=attends) if attends else []
    return decoder(model, [*inner, *routed(model, at=LAYER + "block_sparse_moe.", layers=range(model.num_hidden_layers))])


def _mixers(model: ModelSpec) -> Groups:
    """Mamba 2 where there is a state, attention where there are keys and values."""
    attends, others = model.attention_layers, model.recurrent_layers
    groups = recurrent.mamba2(model, layers=others) if others else []
    return groups + (attention(model, layers=attends) if attends else [])


def _experts(model: ModelSpec, shared: str, *, gate: bool = False, correction: str = "") -> Groups:
    """A router, experts and shared ones in the layers that have experts. `gate`: of the shared ones."""
    at, sparse = LAYER + "mlp.", model.expert_layers
    groups = routed(model, at=at, layers=sparse, correction=correction)
    if model.shared_expert_intermediate_size:
        groups += gated(model, model.shared_expert_intermediate_size, at=f"{at}{shared}.", layers=sparse)
        if gate:
            groups.append(TensorGroup(f"{at}{shared}_gate.weight", (1, model.hidden_size), "router", len(sparse), sparse))
    return groups


def _norms(model: ModelSpec, names: Sequence[str], layers: Sequence[int]) -> Groups:
    return [TensorGroup(f"{LAYER}{name}.weight", (model.hidden_size,), "norm", len(layers), tuple(layers)) for name in names]


def _of_kind(model: ModelSpec, kind: str) -> tuple[int, ...]:
    return tuple(i for i, found in enumerate(model.layer_types) if found == kind)


def _qwen_mtp(model: ModelSpec, inner: Groups) -> Groups:
    """A layer that attends, with its feed-forward, two norms of its own and three of the projection (mtp.* of the checkpoint).

    Source: vllm v0.19.0 model_executor/models/qwen3_next_mtp.py; 81,324,862,720 of Qwen3-Next's parameters with it.
    """
    if not model.mtp_layers:
        return []
    h, n, last = model.hidden_size, model.mtp_layers, model.num_hidden_layers - 1
    groups = [TensorGroup(g.name, g.shape, g.role, n) for g in inner if last in g.indices]
    groups += [TensorGroup(f"{LAYER}{name}.weight", (h,), "norm", n) for name in NORMS]
    return [*groups, TensorGroup("mtp.fc.weight", (h, 2 * h), "ffn_up"), *(TensorGroup(f"mtp.{name}.weight", (h,), "norm") for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"))]


def _nemotron_mtp(model: ModelSpec, inner: Groups) -> Groups:
    """An attention and an expert layer, a projection of 2 h to h and five norms (mtp.* of the checkpoint).

    Source: vllm v0.19.0 model_executor/models/nemotron_h_mtp.py; Nemotron 3 Super's 123,611,012,096 parameters with it.
    """
    if not model.mtp_layers or not model.attention_layers or not model.expert_layers:
        return []
    h, n = model.hidden_size, model.mtp_layers
    kept = [g for g in inner if model.attention_layers[0] in g.indices or model.expert_layers[0] in g.indices]
    groups = [TensorGroup(g.name, g.shape, g.role, n) for g in kept]
    groups += [TensorGroup(f"mtp.layers.{{layer}}.{name}.weight", (h,), "norm", n) for name in ("enorm", "hnorm", "attention norm", "experts' norm", "final_layernorm")]
    return [*groups, TensorGroup("mtp.layers.{layer}.eh_proj.weight", (h, 2 * h), "ffn_up", n)]
