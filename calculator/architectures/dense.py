"""Dense decoders with grouped-query attention and a gated feed-forward: llama, mistral, qwen2."""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.spec import ModelSpec


def dense(model: ModelSpec) -> Inventory:
    """Inventory of a llama-like decoder, in the names of its checkpoint.

    parameters = V h (1 if tied else 2) + h + L (2 h H d + 2 h K d + 3 h f + 2 h + biases)          derived

    Source: transformers v5.23.0 models/llama/modeling_llama.py, LlamaAttention, LlamaMLP, LlamaDecoderLayer.
    """
    h, f, n = model.hidden_size, model.intermediate_size, model.num_hidden_layers
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    at, mlp = "model.layers.{layer}.self_attn.", "model.layers.{layer}.mlp."
    groups = [
        TensorGroup("model.embed_tokens.weight", (model.vocab_size, h), "embedding"),
        TensorGroup(at + "q_proj.weight", (q, h), "attn_q", n),
        TensorGroup(at + "k_proj.weight", (kv, h), "attn_k", n),
        TensorGroup(at + "v_proj.weight", (kv, h), "attn_v", n),
        TensorGroup(at + "o_proj.weight", (h, q), "attn_output", n),
        TensorGroup(mlp + "gate_proj.weight", (f, h), "ffn_gate", n),
        TensorGroup(mlp + "up_proj.weight", (f, h), "ffn_up", n),
        TensorGroup(mlp + "down_proj.weight", (h, f), "ffn_down", n),
        TensorGroup("model.layers.{layer}.input_layernorm.weight", (h,), "norm", n),
        TensorGroup("model.layers.{layer}.post_attention_layernorm.weight", (h,), "norm", n),
        TensorGroup("model.norm.weight", (h,), "norm"),
    ]
    biased = {"none": (), "qkv": ("q", "k", "v"), "qkvo": ("q", "k", "v", "o")}[model.attention_bias]
    groups += [TensorGroup(at + f"{p}_proj.bias", ({"q": q, "o": h}.get(p, kv),), "bias", n) for p in biased]
    if model.mlp_bias:
        groups += [TensorGroup(mlp + f"{p}_proj.bias", (size,), "bias", n) for p, size in (("gate", f), ("up", f), ("down", h))]
    if not model.tie_word_embeddings:
        groups.append(TensorGroup("lm_head.weight", (model.vocab_size, h), "output"))
    return Inventory(tuple(groups), model.tie_word_embeddings)
