"""Tensors as llama.cpp's converter writes them, where a GGUF file holds them otherwise than the checkpoint; and their order.

Source: llama.cpp conversion/{deepseek,gpt_oss,bert,gemma,qwen,mamba,falcon_h1,nemotron,granite,lfm2,kimi_linear}.py @0c1e57098.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from calculator.architectures import Inventory, TensorGroup
from calculator.architectures.inventory import Role
from calculator.spec import ModelSpec, Recurrent

# of these the converter writes KV heads for each layer, so llama-quantize's ratio of heads is that of layer 0
_KV_HEADS_BY_LAYER = frozenset({"nemotron_h", "granitemoehybrid", "bamba", "jamba", "lfm2", "lfm2_moe", "kimi_linear"})


def converted(model: ModelSpec, inventory: Inventory, *, whole: bool = False) -> tuple[TensorGroup, ...]:
    """The tensors as a GGUF file holds them.

    No vision tower, which is a file of its own (mmproj); latent keys turned and apart from values, a matrix a head; what is
    fused in the checkpoint apart; convolutions without their middle dimension. `whole`: attn_kv_b as files before
    ggml-org/llama.cpp#12801 have it.
    """
    return tuple(part for group in inventory.groups for part in ((group,) if whole and group.role == "attn_kv_b" else _converted(model, group)))


WITH_MTP = frozenset({"glm4_moe"})  # whose MTP layers the converter writes, behind the others, as layers like them


def behind(model: ModelSpec, inventory: Inventory) -> tuple[TensorGroup, ...]:
    """The MTP layers as a GGUF file holds them; their own embedding, head and projection are matrices like any other.

    Source: llama.cpp conversion/glm.py, gguf-py NEXTN_* tensors @0c1e57098; 803 tensors of GLM 4.5 Air.
    """
    if model.model_type not in WITH_MTP:
        return ()
    n = model.num_hidden_layers
    layers = tuple(range(n, n + model.mtp_layers))
    plain = ("eh_proj.weight", "embed_tokens.weight", "shared_head.head.weight")
    return tuple(replace(g, which=layers, role="projection" if g.name.endswith(plain) else g.role) for group in inventory.mtp for g in _converted(model, group))


def _converted(model: ModelSpec, group: TensorGroup) -> tuple[TensorGroup, ...]:
    if group.role in ("vision", "pooler") or ".act_fn." in group.name:  # the activation's numbers are metadata
        return ()
    if group.role == "position" and "position_embeddings" in group.name:
        return (replace(group, shape=(model.max_position_embeddings, *group.shape[1:])),)  # positions before the first are left out
    if group.name.startswith("model.altup_") and model.by_layer:  # one tensor of all
        whole = replace(group, shape=(model.by_layer.altup_inputs - 1, *group.shape))
        return (whole,) if ".0." in group.name else ()
    if model.model_type == "gpt_oss" and ".experts.gate_up_proj" in group.name:
        half = (group.shape[0], group.shape[1] // 2, *group.shape[2:])
        gate: Role = "ffn_gate" if group.role == "ffn_up" else group.role
        return (replace(group, name=group.name.replace("gate_up", "gate"), shape=half, role=gate),
                replace(group, name=group.name.replace("gate_up", "up"), shape=half))  # fmt: skip
    if group.role == "attn_kv_b" and model.mla is not None:
        heads, rank = model.num_attention_heads, model.mla.kv_lora_rank
        keys = replace(group, name=group.name.replace("kv_b", "k_b"), shape=(heads, rank, model.mla.qk_nope_head_dim))
        return keys, replace(group, name=group.name.replace("kv_b", "v_b"), shape=(heads, model.mla.v_head_dim, rank))
    return (group,) if model.recurrent is None else _recurrent(model.recurrent, group)


def _recurrent(r: Recurrent, group: TensorGroup) -> tuple[TensorGroup, ...]:
    name, shape = group.name, group.shape
    if name.endswith("in_proj_qkvz.weight"):
        return replace(group, shape=(r.conv_channels, shape[1]), role="attn_qkv"), replace(group, name=name.replace("qkvz", "z"), shape=(r.inner, shape[1]))
    if name.endswith("shared_mlp.input_linear.weight"):
        half = replace(group, shape=(shape[0] // 2, shape[1]))
        return replace(half, role="ffn_gate"), half
    if name.endswith("shared_expert_gate.weight"):
        return (replace(group, shape=shape[1:]),)
    if group.role == "ssm" and len(shape) == 3:
        parts = 3 if r.kind == "kda" else 1  # of queries, keys and values
        return (replace(group, shape=(shape[0] // parts, shape[2])),) * parts
    if r.kind == "mamba2" and name.endswith((".A_log", ".D")):
        return (replace(group, shape=(r.heads, 1)),)
    if r.kind == "mamba2" and name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        return (replace(group, shape=(r.groups, r.inner // r.groups)),)
    if r.kind == "kda" and name.endswith(".A_log"):
        return (replace(group, shape=(r.heads, 1)),)
    return (group,)


def heads_a_kv_head(model: ModelSpec) -> int:
    """Query heads that share a KV head, as llama-quantize sees it: in layer 0; 0 where that doesn't attend.

    Source: src/llama-hparams.cpp n_gqa @0c1e57098.
    """
    if not model.num_key_value_heads or (model.model_type in _KV_HEADS_BY_LAYER and 0 not in model.attention_layers):
        return 0
    return model.num_attention_heads // model.num_key_value_heads


class Order(NamedTuple):
    """Where a tensor stands among those of its category, which some recipes count instead of layers."""

    values: Sequence[int]  # layers with attn_v or attn_qkv
    gates: Sequence[int]  # with ffn_gate
    ups: Sequence[int]
    downs: Sequence[tuple[int, bool]]  # with ffn_down; of two in a layer, False comes first
    dense_first: bool  # names sort so: ffn_down, ffn_down_exps, ffn_down_shexp

    def of(self, role: str, layer: int, *, stacked: bool) -> int:
        """The tensor's number, by order of layers and names."""
        if role == "ffn_down":
            return self.downs.index((layer, stacked == self.dense_first))
        layers = {"attn_v": self.values, "attn_qkv": self.values, "ffn_gate": self.gates, "ffn_up": self.ups}.get(role, ())
        return layers.index(layer) if layer in layers else layer


def order(model: ModelSpec, groups: Sequence[TensorGroup]) -> Order:
    """Of a model's converted tensors.

    Source: src/llama-quant.cpp i_attention_wv, i_ffn_down, i_ffn_gate, i_ffn_up of quantize_state_impl @0c1e57098.
    """

    def layers(*roles: str) -> list[int]:
        return sorted({layer for g in groups if g.role in roles for layer in g.indices})

    dense_first = model.by_layer is not None  # a feed-forward beside experts; elsewhere it is a shared expert
    downs = sorted({(layer, (len(g.shape) == 3) == dense_first) for g in groups if g.role == "ffn_down" for layer in g.indices})
    return Order(layers("attn_v", "attn_qkv"), layers("ffn_gate"), layers("ffn_up"), downs, dense_first)
