"""What decoders are put together from: attention, feed-forwards, experts, norms, and the whole around them.

Names are those of the checkpoint, with {layer} for the layer's number; a matrix of all experts is one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calculator.architectures.inventory import Inventory, Role, TensorGroup
from calculator.spec import ModelSpec

LAYER = "model.layers.{layer}."
NORMS = ("input_layernorm", "post_attention_layernorm")
Groups = list[TensorGroup]


def attention(model: ModelSpec, *, fused: bool = False, qk_norm: str = "", sinks: bool = False, qk_names: tuple[str, str] = ("q_norm", "k_norm"),
              layers: Sequence[int] | None = None, at: str = LAYER + "self_attn.", out: str = "o_proj", gate: bool = False) -> Groups:  # fmt: skip
    """Grouped-query attention: 2 h H d + 2 h K d, its biases, and norms over heads or over all of q and k.

    `qk_norm`: "head": norms of head_dim; "all": norms of all heads together; "by head": of head_dim, weighed for each head. `sinks`: a logit a head. `gate`: queries with a gate of their
    size, in one matrix.
    """
    h, d, place = model.hidden_size, model.head_dim, _place(model, layers)
    q, kv = model.num_attention_heads * d, model.num_key_value_heads * d
    wide = 2 * q if gate else q
    if fused:
        groups = [TensorGroup(at + "qkv_proj.weight", (q + 2 * kv, h), "attn_qkv", *place)]
    else:
        groups = [TensorGroup(at + "q_proj.weight", (wide, h), "attn_q", *place), TensorGroup(at + "k_proj.weight", (kv, h), "attn_k", *place),
                  TensorGroup(at + "v_proj.weight", (kv, h), "attn_v", *place)]  # fmt: skip
    groups.append(TensorGroup(f"{at}{out}.weight", (h, q), "attn_output", *place))
    if qk_norm:
        shapes = {"head": ((d,), (d,)), "all": ((q,), (kv,)), "by head": ((q // d, d), (kv // d, d))}[qk_norm]
        groups += [TensorGroup(at + f"{name}.weight", shape, "norm", *place) for name, shape in zip(qk_names, shapes, strict=True)]
    if sinks:
        groups.append(TensorGroup(at + "sinks", (model.num_attention_heads,), "norm", *place))
    biased = {"none": (), "qkv": ("q", "k", "v"), "qkvo": ("q", "k", "v", "o")}[model.attention_bias]
    groups += [TensorGroup(at + f"{p}_proj.bias", ({"q": wide, "o": h}.get(p, kv),), "bias", *place) for p in biased]
    return groups


def latent_attention(model: ModelSpec, *, layers: Sequence[int] | None = None) -> Groups:
    """Multi-head latent attention: queries and keys and values through low ranks, one rotary key for all heads.

    h q + q H (n + r) + h (c + r) + c H (n + v) + H v h, and norms of q and c      q, c ranks; n, r, v widths of a head

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; transformers v5.23.0 models/deepseek_v3/modeling_deepseek_v3.py.
    """
    mla, h, place, heads = model.mla, model.hidden_size, _place(model, layers), model.num_attention_heads
    assert mla is not None
    at, query = LAYER + "self_attn.", heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank:
        groups = [TensorGroup(at + "q_a_proj.weight", (mla.q_lora_rank, h), "attn_q_a", *place),
                  TensorGroup(at + "q_a_layernorm.weight", (mla.q_lora_rank,), "norm", *place),
                  TensorGroup(at + "q_b_proj.weight", (query, mla.q_lora_rank), "attn_q_b", *place)]  # fmt: skip
    else:
        groups = [TensorGroup(at + "q_proj.weight", (query, h), "attn_q", *place)]
    groups += [
        TensorGroup(at + "kv_a_proj_with_mqa.weight", (mla.kv_lora_rank + mla.qk_rope_head_dim, h), "attn_kv_a", *place),
        TensorGroup(at + "kv_a_layernorm.weight", (mla.kv_lora_rank,), "norm", *place),
        TensorGroup(at + "kv_b_proj.weight", (heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank), "attn_kv_b", *place),
        TensorGroup(at + "o_proj.weight", (h, heads * mla.v_head_dim), "attn_output", *place),
    ]
    if model.indexer:
        groups += _indexer(model, mla.q_lora_rank)
    if model.attention_bias != "none":
        ranks = [("q_a_proj", mla.q_lora_rank)] if mla.q_lora_rank else []
        ranks += [("kv_a_proj_with_mqa", mla.kv_lora_rank + mla.qk_rope_head_dim), ("o_proj", h)]
        groups += [TensorGroup(at + f"{name}.bias", (size,), "bias", *place) for name, size in ranks]
    return groups


def _indexer(model: ModelSpec, rank: int) -> Groups:
    """The indexer of sparse attention in each layer that chooses: q I d + h d + h I, and a norm of 2 d      I heads of d, from queries' rank q

    Source: transformers v5.23.0 models/deepseek_v32/modeling_deepseek_v32.py DeepseekV32Indexer.
    """
    own, h, at, full = model.indexer, model.hidden_size, LAYER + "self_attn.indexer.", model.indexing_layers
    assert own is not None
    place = (len(full), full if own.full else ())
    return [TensorGroup(at + "wq_b.weight", (own.heads * own.head_dim, rank), "projection", *place), TensorGroup(at + "wk.weight", (own.head_dim, h), "attn_k", *place),
            TensorGroup(at + "k_norm.weight", (own.head_dim,), "norm", *place), TensorGroup(at + "k_norm.bias", (own.head_dim,), "norm", *place),
            TensorGroup(at + "weights_proj.weight", (own.heads, h), "projection", *place)]  # fmt: skip


def gated(model: ModelSpec, width: int, *, at: str = LAYER + "mlp.", fused: bool = False, layers: Sequence[int] | None = None,
          names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Groups:  # fmt: skip
    """Gate, up and down of one feed-forward: 3 h f; `fused`: gate and up in one matrix."""
    h, f, place, (gate, up, down) = model.hidden_size, width, _place(model, layers), names
    if fused:
        groups = [TensorGroup(at + "gate_up_proj.weight", (2 * f, h), "ffn_up", *place)]
    else:
        groups = [TensorGroup(f"{at}{gate}.weight", (f, h), "ffn_gate", *place), TensorGroup(f"{at}{up}.weight", (f, h), "ffn_up", *place)]
    groups.append(TensorGroup(f"{at}{down}.weight", (h, f), "ffn_down", *place))
    if model.mlp_bias:
        groups += [TensorGroup(f"{at}{p}.bias", (size,), "bias", *place) for p, size in ((gate, f), (up, f), (down, h))]
    return groups


def ungated(model: ModelSpec, *, names: tuple[str, str] = ("up_proj", "down_proj"), at: str = LAYER + "mlp.", width: int = 0,
            layers: Sequence[int] | None = None) -> Groups:  # fmt: skip
    """Two matrices around an activation: 2 h f."""
    h, f, place, (up, down) = model.hidden_size, width or model.intermediate_size, _place(model, layers), names
    groups = [TensorGroup(at + up + ".weight", (f, h), "ffn_up", *place), TensorGroup(at + down + ".weight", (h, f), "ffn_down", *place)]
    if model.mlp_bias:
        groups += [TensorGroup(at + up + ".bias", (f,), "bias", *place), TensorGroup(at + down + ".bias", (h,), "bias", *place)]
    return groups


def routed(model: ModelSpec, *, at: str, layers: Sequence[int], router: str = "gate.weight", bias: bool = False,
           correction: str = "", gate: bool = True) -> Groups:  # fmt: skip
    """A router and E experts: E h + 3 E h f, f of one expert. `bias`: of router and experts; `correction`: a bias of the choice.

    Without `gate` an expert has two matrices; with a latent size it reads and writes that in place of h.
    """
    h, f, e, place = model.hidden_size, model.expert_intermediate_size, model.num_experts, _place(model, layers)
    w = model.expert_latent_size or h
    groups = [TensorGroup(at + router, (e, h), "router", *place)]
    if correction:
        groups.append(TensorGroup(at + correction, (e,), "bias", *place))
    if bias:  # gpt-oss: one tensor of both, biased
        return [*groups, TensorGroup(at + router.replace("weight", "bias"), (e,), "bias", *place),
                TensorGroup(at + "experts.gate_up_proj", (e, 2 * f, h), "ffn_up", *place), TensorGroup(at + "experts.gate_up_proj_bias", (e, 2 * f), "bias", *place),
                TensorGroup(at + "experts.down_proj", (e, h, f), "ffn_down", *place), TensorGroup(at + "experts.down_proj_bias", (e, h), "bias", *place)]  # fmt: skip
    matrices: tuple[tuple[str, tuple[int, int], Role], ...] = (("gate", (f, w), "ffn_gate"), ("up", (f, w), "ffn_up"), ("down", (w, f), "ffn_down"))
    matrices = matrices if gate else matrices[1:]
    return [*groups, *(TensorGroup(f"{at}experts.{name}_proj.weight", (e, *shape), role, *place) for name, shape, role in matrices)]


def decoder(model: ModelSpec, inner: Groups, *, norms: Sequence[str] = NORMS, norm_bias: bool = False,
            final_norm: bool = True, mtp: Groups | None = None, embedding: str = "model.embed_tokens", last: str = "model.norm",
            backbone: bool = False) -> Inventory:  # fmt: skip
    """Embedding, what the layers hold, a norm of h for each name in each layer, the last norm and an untied head.

    `backbone`: the checkpoint's name of what others call model.
    """
    h, n = model.hidden_size, model.num_hidden_layers
    groups = [TensorGroup(embedding + ".weight", (model.vocab_size, h), "embedding"), *inner]
    parts = ("weight", "bias") if norm_bias else ("weight",)
    groups += [TensorGroup(f"{LAYER}{name}.{part}", (h,), "norm", n) for name in norms for part in parts]
    if final_norm:
        groups += [TensorGroup(f"{last}.{part}", (h,), "norm") for part in parts]
    if not model.tie_word_embeddings:
        groups.append(TensorGroup("lm_head.weight", (model.vocab_size, h), "output"))
    if model.head_bias:
        groups.append(TensorGroup("lm_head.bias", (model.vocab_size,), "bias"))
    if model.vision_parameters:
        groups.append(TensorGroup("vision tower and projector", (model.vision_parameters,), "vision"))
    if backbone:
        groups = [replace(g, name="backbone" + g.name.removeprefix("model")) if g.name.startswith("model.") else g for g in groups]
    return Inventory(tuple(groups), model.tie_word_embeddings, tuple(mtp or ()))


def _place(model: ModelSpec, layers: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """Number of layers, and which where they aren't all."""
    if layers is None or len(layers) == model.num_hidden_layers:
        return model.num_hidden_layers, ()
    return len(layers), tuple(layers)
