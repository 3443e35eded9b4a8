"""Decoders whose feed-forward is a router and experts, in all layers or in some; with or without shared experts."""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import LAYER, NORMS, Groups, attention, decoder, gated, latent_attention, routed
from calculator.spec import ModelSpec


def experts(model: ModelSpec, *, block: str = "mlp", router: str = "gate.weight", bias: bool = False, correction: str = "",
            shared: str = "", shared_gate: bool = False, qk_norm: str = "", qk_names: tuple[str, str] = ("q_norm", "k_norm"),
            sinks: bool = False, norm_bias: bool = False, mtp_copies: bool = True) -> Inventory:  # fmt: skip
    """Inventory of a decoder with experts; attention is latent where the model has its ranks.

    parameters of a layer with experts = E h + 3 E h f + 3 h s      f of one expert, s of the shared ones      derived

    `qk_norm` "config": norms of heads where the model has them; `shared`: name of the shared experts' block; `mtp_copies`: MTP layers bring an embedding and a head of their own.

    Source: transformers v5.23.0 models/*/modeling_*.py of the rows that name it.
    """
    at, sparse = LAYER + block + ".", model.expert_layers
    dense_ones = [i for i in range(model.num_hidden_layers) if i not in set(sparse)]
    qk_norm = ("head" if model.qk_norm else "") if qk_norm == "config" else qk_norm
    own = latent_attention(model) if model.mla else attention(model, qk_norm=qk_norm, qk_names=qk_names, sinks=sinks)
    feed_forward = gated(model, model.intermediate_size, at=at, layers=dense_ones) if dense_ones else []
    feed_forward += routed(model, at=at, layers=sparse, router=router, bias=bias, correction=correction)
    if shared and model.shared_expert_intermediate_size:
        feed_forward += gated(model, model.shared_expert_intermediate_size, at=f"{at}{shared}.", layers=sparse)
        if shared_gate:
            feed_forward.append(TensorGroup(f"{at}{shared}_gate.weight", (1, model.hidden_size), "router", len(sparse), sparse if dense_ones else ()))
    inner = [*own, *feed_forward]
    return decoder(model, inner, norm_bias=norm_bias, mtp=_mtp(model, inner, copies=mtp_copies))


def _mtp(model: ModelSpec, inner: Groups, *, copies: bool) -> Groups:
    """Layers behind the last: one with experts, three norms and a projection of 2 h to h; often with embedding and head copied.

    Source: DeepSeek-V3, arXiv 2412.19437, section 2.2; vllm v0.19.0 model_executor/models/deepseek_mtp.py.
    """
    if not model.mtp_layers:
        return []
    h, n, last = model.hidden_size, model.mtp_layers, model.num_hidden_layers - 1
    groups = [TensorGroup(g.name, g.shape, g.role, n) for g in inner if last in g.indices or ".indexer." in g.name]  # its own, whatever the last layer shares
    groups += [TensorGroup(f"{LAYER}{name}.weight", (h,), "norm", n) for name in (*NORMS, "enorm", "hnorm", "shared_head.norm")]
    groups.append(TensorGroup(LAYER + "eh_proj.weight", (h, 2 * h), "ffn_up", n))
    if copies:
        groups += [TensorGroup(LAYER + "embed_tokens.weight", (model.vocab_size, h), "embedding", n),
                   TensorGroup(LAYER + "shared_head.head.weight", (model.vocab_size, h), "output", n)]  # fmt: skip
    return groups
