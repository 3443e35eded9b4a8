"""Decoders from before Llama: learned or ALiBi positions, norms with biases, feed-forwards without a gate, often a fused q, k and v."""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import Groups
from calculator.spec import ModelSpec


def classic(model: ModelSpec, *, layer: str, qkv: tuple[str, ...], out: str, mlp: tuple[str, str], norms: tuple[str, ...], embedding: str,
            final: tuple[str, ...], head: str = "lm_head", positions: str = "", offset: int = 0, norm_bias: bool = True, mlp_bias: bool | None = None,
            head_bias: bool = False) -> Inventory:  # fmt: skip
    """Inventory of a decoder whose names are given: q, k and v in one matrix or in three, two matrices a feed-forward.

    parameters of a layer = 2 h H d + 2 h K d + 2 h f + norms and biases                                     derived

    `layer` holds {layer}; `final` are norms outside the layers; `positions`: table of max_position_embeddings + `offset` rows;
    `mlp_bias`: of the class, where the config doesn't say.

    Source: transformers v5.23.0 models/{gpt2,gpt_neox,falcon,phi,bloom,mpt,opt,gptj,gpt_bigcode}/modeling_*.py.
    """
    h, n, f = model.hidden_size, model.num_hidden_layers, model.intermediate_size
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    groups: Groups = [TensorGroup(embedding + ".weight", (model.vocab_size, h), "embedding")]
    if positions:
        groups.append(TensorGroup(positions + ".weight", (model.max_position_embeddings + offset, h), "position"))
    if len(qkv) == 1:
        groups.append(TensorGroup(f"{layer}{qkv[0]}.weight", (q + 2 * kv, h), "attn_qkv", n))
    else:
        for name, size, role in zip(qkv, (q, kv, kv), ("attn_q", "attn_k", "attn_v"), strict=True):
            groups.append(TensorGroup(f"{layer}{name}.weight", (size, h), role, n))  # type: ignore[arg-type]
    groups += [TensorGroup(f"{layer}{out}.weight", (h, q), "attn_output", n),
               TensorGroup(f"{layer}{mlp[0]}.weight", (f, h), "ffn_up", n), TensorGroup(f"{layer}{mlp[1]}.weight", (h, f), "ffn_down", n)]  # fmt: skip
    if model.attention_bias != "none":
        sizes = (q + 2 * kv,) if len(qkv) == 1 else (q, kv, kv)
        groups += [TensorGroup(f"{layer}{name}.bias", (size,), "bias", n) for name, size in zip((*qkv, out), (*sizes, h), strict=True)]
    if model.mlp_bias if mlp_bias is None else mlp_bias:
        groups += [TensorGroup(f"{layer}{name}.bias", (size,), "bias", n) for name, size in zip(mlp, (f, h), strict=True)]
    parts = ("weight", "bias") if norm_bias else ("weight",)
    groups += [TensorGroup(f"{layer}{name}.{part}", (h,), "norm", n) for name in norms for part in parts]
    groups += [TensorGroup(f"{name}.{part}", (h,), "norm") for name in final for part in parts]
    if not model.tie_word_embeddings:
        groups.append(TensorGroup(head + ".weight", (model.vocab_size, h), "output"))
    if head_bias:
        groups.append(TensorGroup(head + ".bias", (model.vocab_size,), "bias"))
    return Inventory(tuple(groups), model.tie_word_embeddings)


def falcon(model: ModelSpec) -> Inventory:
    """Falcon: attention and feed-forward read one norm (7B), or one each (40B, 180B); one after the other in Falcon-RW.

    Source: transformers v5.23.0 models/falcon/modeling_falcon.py FalconDecoderLayer.
    """
    together = ("ln_attn", "ln_mlp") if model.num_key_value_heads < model.num_attention_heads else ("input_layernorm", "post_attention_layernorm")
    norms = together if model.block_norms == 2 else ("input_layernorm",)
    return classic(model, layer="transformer.h.{layer}.", qkv=("self_attention.query_key_value",), out="self_attention.dense", norms=norms,
                   mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), embedding="transformer.word_embeddings", final=("transformer.ln_f",))  # fmt: skip
