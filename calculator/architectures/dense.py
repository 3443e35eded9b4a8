"""Decoders with grouped-query attention and a gated feed-forward, dense or of experts: llama and its relatives."""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.spec import ModelSpec

_LAYER = "model.layers.{layer}."


def dense(model: ModelSpec, *, qk_norm: bool = False, fused: bool = False, post_norms: bool = False) -> Inventory:
    """Inventory of a llama-like decoder, in the names of its checkpoint.

    parameters = V h (1 if tied else 2) + h + L (2 h H d + 2 h K d + 3 h f + 2 h + biases)          derived

    `qk_norm`: norms of head_dim over queries and keys; `fused`: q, k and v in one matrix, gate and up in another;
    `post_norms`: norms after attention and after the feed-forward too.

    Source: transformers v5.23.0 models/{llama,mistral,qwen2,qwen3,gemma2,gemma3,phi3}/modeling_*.py.
    """
    h, f, n = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    mlp = _LAYER + "mlp."
    if fused:
        feed_forward = [TensorGroup(mlp + "gate_up_proj.weight", (2 * f, h), "ffn_up", n)]
    else:
        feed_forward = [TensorGroup(mlp + "gate_proj.weight", (f, h), "ffn_gate", n),
                        TensorGroup(mlp + "up_proj.weight", (f, h), "ffn_up", n)]  # fmt: skip
    feed_forward.append(TensorGroup(mlp + "down_proj.weight", (h, f), "ffn_down", n))
    if model.mlp_bias:
        feed_forward += [TensorGroup(mlp + f"{p}_proj.bias", (size,), "bias", n) for p, size in (("gate", f), ("up", f), ("down", h))]
    return _decoder(model, feed_forward, qk_norm=qk_norm, fused=fused, post_norms=post_norms)


def experts(model: ModelSpec, *, qk_norm: bool = False, block: str = "mlp") -> Inventory:
    """Inventory of a decoder whose feed-forward is a router and E experts; each matrix of all experts is one group.

    parameters of a layer's feed-forward = E h + 3 E h f          f of one expert          derived

    Source: transformers v5.23.0 models/mixtral/modeling_mixtral.py, models/qwen3_moe/modeling_qwen3_moe.py.
    """
    h, f, n, e = model.hidden_size, model.expert_intermediate_size, model.num_hidden_layers, model.num_experts
    at = _LAYER + block + "."
    feed_forward = [
        TensorGroup(at + "gate.weight", (e, h), "router", n),
        TensorGroup(at + "experts.gate_proj.weight", (e, f, h), "ffn_gate", n),
        TensorGroup(at + "experts.up_proj.weight", (e, f, h), "ffn_up", n),
        TensorGroup(at + "experts.down_proj.weight", (e, h, f), "ffn_down", n),
    ]
    return _decoder(model, feed_forward, qk_norm=qk_norm)


def _decoder(model: ModelSpec, feed_forward: list[TensorGroup], *, qk_norm: bool = False, fused: bool = False,
             post_norms: bool = False) -> Inventory:  # fmt: skip
    h, n, d = model.hidden_size, model.num_hidden_layers, model.head_dim
    q, kv = model.num_attention_heads * d, model.num_key_value_heads * d
    at = _LAYER + "self_attn."
    groups = [TensorGroup("model.embed_tokens.weight", (model.vocab_size, h), "embedding")]
    if fused:
        groups.append(TensorGroup(at + "qkv_proj.weight", (q + 2 * kv, h), "attn_qkv", n))
    else:
        groups += [TensorGroup(at + "q_proj.weight", (q, h), "attn_q", n), TensorGroup(at + "k_proj.weight", (kv, h), "attn_k", n),
                   TensorGroup(at + "v_proj.weight", (kv, h), "attn_v", n)]  # fmt: skip
    groups += [TensorGroup(at + "o_proj.weight", (h, q), "attn_output", n), *feed_forward]
    norms = ["input_layernorm", "post_attention_layernorm"]
    if post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    groups += [TensorGroup(f"{_LAYER}{name}.weight", (h,), "norm", n) for name in norms]
    if qk_norm:
        groups += [TensorGroup(at + f"{name}.weight", (d,), "norm", n) for name in ("q_norm", "k_norm")]
    groups.append(TensorGroup("model.norm.weight", (h,), "norm"))
    biased = {"none": (), "qkv": ("q", "k", "v"), "qkvo": ("q", "k", "v", "o")}[model.attention_bias]
    groups += [TensorGroup(at + f"{p}_proj.bias", ({"q": q, "o": h}.get(p, kv),), "bias", n) for p in biased]
    if not model.tie_word_embeddings:
        groups.append(TensorGroup("lm_head.weight", (model.vocab_size, h), "output"))
    return Inventory(tuple(groups), model.tie_word_embeddings)
