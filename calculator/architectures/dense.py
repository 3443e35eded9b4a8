"""Decoders with grouped-query attention and one feed-forward a layer: llama and its relatives."""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import LAYER, NORMS, attention, decoder, gated, ungated
from calculator.spec import ModelSpec

AROUND = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
GLM = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
PARALLEL = ("input_layernorm",)  # attention and feed-forward read one norm


def dense(model: ModelSpec, *, qk_norm: str = "", qk_names: tuple[str, str] = ("q_norm", "k_norm"), fused_qkv: bool = False, fused_gate_up: bool = False,
          norms: tuple[str, ...] = NORMS, norm_bias: bool = False, final_norm: bool = True) -> Inventory:  # fmt: skip
    """Inventory of a llama-like decoder, in the names of its checkpoint.

    parameters = V h (1 if tied else 2) + h + L (2 h H d + 2 h K d + 3 h f + 2 h + biases)          derived

    `qk_norm`: norms over queries and keys, of each "head", of "all" heads, or "config": of each head with its own weights (Cohere), where the model has them; `fused_qkv`, `fused_gate_up`: matrices in one;
    `norms`: those of a layer; without `final_norm` no norm has weights (OLMo).

    Source: transformers v5.23.0 models/*/modeling_*.py of the rows that name it.
    """
    if not final_norm:
        norms = ()
    qk_norm = ("by head" if model.qk_norm else "") if qk_norm == "config" else qk_norm
    inner = [*attention(model, qk_norm=qk_norm, qk_names=qk_names, fused=fused_qkv), *gated(model, model.intermediate_size, fused=fused_gate_up)]
    return decoder(model, inner, norms=norms, norm_bias=norm_bias, final_norm=final_norm)


def plain(model: ModelSpec, *, names: tuple[str, str] = ("up_proj", "down_proj"), norm_bias: bool = True, qk_norm: str = "",
          norms: tuple[str, ...] = NORMS, activation: bool = False) -> Inventory:  # fmt: skip
    """Inventory of a decoder whose feed-forward has no gate: 2 h f in place of 3 h f (StarCoder 2, Nemotron, Arcee, Apertus).

    `activation`: four numbers of the activation in each layer.

    Source: transformers v5.23.0 models/{starcoder2,nemotron,arcee}/modeling_*.py.
    """
    inner = [*attention(model, qk_norm=qk_norm), *ungated(model, names=names)]
    if activation:
        shapes: tuple[tuple[str, tuple[int, ...]], ...] = (("alpha_n", (1,)), ("alpha_p", (1,)), ("beta", ()), ("eps", ()))
        inner += [TensorGroup(f"{LAYER}mlp.act_fn.{name}", shape, "small", model.num_hidden_layers) for name, shape in shapes]
    return decoder(model, inner, norms=norms, norm_bias=norm_bias)
