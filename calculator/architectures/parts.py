"""What decoders are put together from: attention, feed-forwards, experts, norms, and the whole around them.

Names are those of the checkpoint, with {layer} for the layer's number; a matrix of all experts is one group.
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.architectures.inventory import Inventory, Role, TensorGroup
from calculator.spec import ModelSpec

LAYER = "model.layers.{layer}."
NORMS = ("input_layernorm", "post_attention_layernorm")
Groups = list[TensorGroup]


def attention(model: ModelSpec, *, fused: bool = False, qk_norm: str = "", sinks: bool = False,
              qk_names: tuple[str, str] = ("q_norm", "k_norm")) -> Groups:  # fmt: skip
    """Grouped-query attention: 2 h H d + 2 h K d, its biases, and norms over heads or over all of q and k.

    `qk_norm`: "head": norms of head_dim; "all": norms of all heads together. `sinks`: a logit a head.
    """
    h, n, d = model.hidden_size, model.num_hidden_layers, model.head_dim
    q, kv = model.num_attention_heads * d, model.num_key_value_heads * d
    at = LAYER + "self_attn."
    if fused:
        groups = [TensorGroup(at + "qkv_proj.weight", (q + 2 * kv, h), "attn_qkv", n)]
    else:
        groups = [TensorGroup(at + "q_proj.weight", (q, h), "attn_q", n), TensorGroup(at + "k_proj.weight", (kv, h), "attn_k", n),
                  TensorGroup(at + "v_proj.weight", (kv, h), "attn_v", n)]  # fmt: skip
    groups.append(TensorGroup(at + "o_proj.weight", (h, q), "attn_output", n))
    if qk_norm:
        sizes = {"head": (d, d), "all": (q, kv)}[qk_norm]
        groups += [TensorGroup(at + f"{name}.weight", (size,), "norm", n) for name, size in zip(qk_names, sizes, strict=True)]
    if sinks:
        groups.append(TensorGroup(at + "sinks", (model.num_attention_heads,), "norm", n))
    biased = {"none": (), "qkv": ("q", "k", "v"), "qkvo": ("q", "k", "v", "o")}[model.attention_bias]
    groups += [TensorGroup(at + f"{p}_proj.bias", ({"q": q, "o": h}.get(p, kv),), "bias", n) for p in biased]
    return groups


def latent_attention(model: ModelSpec) -> Groups:
    """Multi-head latent attention: queries and keys and values through low ranks, one rotary key for all heads.

    h q + q H (n + r) + h (c + r) + c H (n + v) + H v h, and norms of q and c      q, c ranks; n, r, v widths of a head

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1; transformers v5.23.0 models/deepseek_v3/modeling_deepseek_v3.py.
    """
    mla, h, n, heads = model.mla, model.hidden_size, model.num_hidden_layers, model.num_attention_heads
    assert mla is not None
    at, query = LAYER + "self_attn.", heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    if mla.q_lora_rank:
        groups = [TensorGroup(at + "q_a_proj.weight", (mla.q_lora_rank, h), "attn_q_a", n),
                  TensorGroup(at + "q_a_layernorm.weight", (mla.q_lora_rank,), "norm", n),
                  TensorGroup(at + "q_b_proj.weight", (query, mla.q_lora_rank), "attn_q_b", n)]  # fmt: skip
    else:
        groups = [TensorGroup(at + "q_proj.weight", (query, h), "attn_q", n)]
    groups += [
        TensorGroup(at + "kv_a_proj_with_mqa.weight", (mla.kv_lora_rank + mla.qk_rope_head_dim, h), "attn_kv_a", n),
        TensorGroup(at + "kv_a_layernorm.weight", (mla.kv_lora_rank,), "norm", n),
        TensorGroup(at + "kv_b_proj.weight", (heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank), "attn_kv_b", n),
        TensorGroup(at + "o_proj.weight", (h, heads * mla.v_head_dim), "attn_output", n),
    ]
    if model.indexer:
        groups += _indexer(model, mla.q_lora_rank)
    if model.attention_bias != "none":
        ranks = [("q_a_proj", mla.q_lora_rank)] if mla.q_lora_rank else []
        ranks += [("kv_a_proj_with_mqa", mla.kv_lora_rank + mla.qk_rope_head_dim), ("o_proj", h)]
        groups += [TensorGroup(at + f"{name}.bias", (size,), "bias", n) for name, size in ranks]
    return groups


def _indexer(model: ModelSpec, rank: int) -> Groups:
    """The indexer of sparse attention in each layer: q I d + h d + h I, and a norm of 2 d      I heads of d, from queries' rank q

    Source: transformers v5.23.0 models/deepseek_v32/modeling_deepseek_v32.py DeepseekV32Indexer.
    """
    own, h, n, at = model.indexer, model.hidden_size, model.num_hidden_layers, LAYER + "self_attn.indexer."
    assert own is not None
    return [TensorGroup(at + "wq_b.weight", (own.heads * own.head_dim, rank), "projection", n), TensorGroup(at + "wk.weight", (own.head_dim, h), "attn_k", n),
            TensorGroup(at + "k_norm.weight", (own.head_dim,), "norm", n), TensorGroup(at + "k_norm.bias", (own.head_dim,), "norm", n),
            TensorGroup(at + "weights_proj.weight", (own.heads, h), "projection", n)]  # fmt: skip


def gated(model: ModelSpec, width: int, *, at: str = LAYER + "mlp.", fused: bool = False, layers: Sequence[int] | None = None) -> Groups:
    """Gate, up and down of one feed-forward: 3 h f; `fused`: gate and up in one matrix."""
    h, f, place = model.hidden_size, width, _place(model, layers)
    if fused:
        groups = [TensorGroup(at + "gate_up_proj.weight", (2 * f, h), "ffn_up", *place)]
    else:
        groups = [TensorGroup(at + "gate_proj.weight", (f, h), "ffn_gate", *place), TensorGroup(at + "up_proj.weight", (f, h), "ffn_up", *place)]
    groups.append(TensorGroup(at + "down_proj.weight", (h, f), "ffn_down", *place))
    if model.mlp_bias:
        groups += [TensorGroup(at + f"{p}_proj.bias", (size,), "bias", *place) for p, size in (("gate", f), ("up", f), ("down", h))]
    return groups


def ungated(model: ModelSpec, *, names: tuple[str, str] = ("up_proj", "down_proj")) -> Groups:
    """Two matrices around an activation: 2 h f."""
    h, f, n, (up, down), at = model.hidden_size, model.intermediate_size, model.num_hidden_layers, names, LAYER + "mlp."
    groups = [TensorGroup(at + up + ".weight", (f, h), "ffn_up", n), TensorGroup(at + down + ".weight", (h, f), "ffn_down", n)]
    if model.mlp_bias:
        groups += [TensorGroup(at + up + ".bias", (f,), "bias", n), TensorGroup(at + down + ".bias", (h,), "bias", n)]
    return groups


def routed(model: ModelSpec, *, at: str, layers: Sequence[int], router: str = "gate.weight", bias: bool = False,
           correction: str = "") -> Groups:  # fmt: skip
    """A router and E experts: E h + 3 E h f, f of one expert. `bias`: of router and experts; `correction`: a bias of the choice."""
    h, f, e, place = model.hidden_size, model.expert_intermediate_size, model.num_experts, _place(model, layers)
    groups = [TensorGroup(at + router, (e, h), "router", *place)]
    if correction:
        groups.append(TensorGroup(at + correction, (e,), "bias", *place))
    if bias:  # gpt-oss: one tensor of both, biased
        return [*groups, TensorGroup(at + router.replace("weight", "bias"), (e,), "bias", *place),
                TensorGroup(at + "experts.gate_up_proj", (e, 2 * f, h), "ffn_up", *place), TensorGroup(at + "experts.gate_up_proj_bias", (e, 2 * f), "bias", *place),
                TensorGroup(at + "experts.down_proj", (e, h, f), "ffn_down", *place), TensorGroup(at + "experts.down_proj_bias", (e, h), "bias", *place)]  # fmt: skip
    matrices: tuple[tuple[str, tuple[int, int], Role], ...] = (("gate", (f, h), "ffn_gate"), ("up", (f, h), "ffn_up"), ("down", (h, f), "ffn_down"))
    return [*groups, *(TensorGroup(f"{at}experts.{name}_proj.weight", (e, *shape), role, *place) for name, shape, role in matrices)]


def decoder(model: ModelSpec, inner: Groups, *, norms: Sequence[str] = NORMS, norm_bias: bool = False,
            final_norm: bool = True, mtp: Groups | None = None) -> Inventory:  # fmt: skip
    """Embedding, what the layers hold, a norm of h for each name in each layer, the last norm and an untied head."""
    h, n = model.hidden_size, model.num_hidden_layers
    groups = [TensorGroup("model.embed_tokens.weight", (model.vocab_size, h), "embedding"), *inner]
    parts = ("weight", "bias") if norm_bias else ("weight",)
    groups += [TensorGroup(f"{LAYER}{name}.{part}", (h,), "norm", n) for name in norms for part in parts]
    if final_norm:
        groups += [TensorGroup(f"model.norm.{part}", (h,), "norm") for part in parts]
    if not model.tie_word_embeddings:
        groups.append(TensorGroup("lm_head.weight", (model.vocab_size, h), "output"))
    if model.head_bias:
        groups.append(TensorGroup("lm_head.bias", (model.vocab_size,), "bias"))
    if model.vision_parameters:
        groups.append(TensorGroup("vision tower and projector", (model.vision_parameters,), "vision"))
    return Inventory(tuple(groups), model.tie_word_embeddings, tuple(mtp or ()))


def _place(model: ModelSpec, layers: Sequence[int] | None) -> tuple[int, tuple[int, ...]]:
    """Number of layers, and which where they aren't all."""
    if layers is None or len(layers) == model.num_hidden_layers:
        return model.num_hidden_layers, ()
    return len(layers), tuple(layers)
