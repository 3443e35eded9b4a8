"""What sets a family's forward pass apart from Llama's, as data. A row that is missing has no formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from calculator.engines.transformers import feed_forward, norms, rope
from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor

Norm = Callable[[Run, str, str], Tensor]
Place = Literal["", "projection, heads", "projection", "then, heads", "after, heads", "after, heads, always"]


class Family(NamedTuple):
    """One decoder. Defaults are Llama's."""

    norm: Norm = norms.rms
    norms: Literal["before", "around", "after", "parallel", "kept"] = "before"  # kept: before, and the names of all stay to the end
    rope: rope.Rope = rope.llama
    tables: Literal["own", "float32", "half", "complex"] = "own"
    table_sets: int = 1  # where layers that see everything have tables of their own
    rope_in: Literal["all", "windows", "windows or none"] = "all"  # "windows or none": all layers where the model has no window
    rope_joins: bool = False  # its result is contiguous by heads
    qk_norm: Place = ""  # on the projection itself, after all three of them, after rope; over heads or over all of q and k
    qk_normed: Norm | None = None  # where it isn't the layers' own
    qk_norm_setting: bool = False  # the config says whether there is one
    fused: bool = False  # one product makes q, k and v
    mlp: Callable[..., Tensor] = feed_forward.gated
    route: Callable[[Run], feed_forward.Routing] | None = None
    biased_experts: bool = False
    shared: Literal["", "before", "after", "gated"] = ""  # when shared experts run; gated: before, and weighed after
    embeddings: int = 1  # tensors of embedded tokens that the embedding makes, one after the other
    scaled_embedding: bool = False  # by a number that the model holds
    in_float32: tuple[str, ...] = ()  # ends of names of weights that stay in it
    scaled_residual: bool = False  # outputs are multiplied before they are added
    logits: Literal["", "scaled", "capped"] = ""
    unused_mask: bool = False  # a mask for windows is made where no layer has one
    sinks: bool = False
    softmax_float: bool = True
    sdpa: bool = True


_OLMO2 = Family(norm=norms.rms_float, norms="after", rope=rope.float_tables, tables="float32", qk_norm="projection")
_GEMMA = Family(norm=norms.rms_gemma, embeddings=2, scaled_embedding=True)
_COHERE = Family(norm=norms.layer_cohere, norms="parallel", rope=rope.float_all, logits="scaled", qk_norm="then, heads", qk_norm_setting=True)
_ERNIE = Family(rope=rope.float_parts, tables="float32")
_CORRECTION = ("gate.e_score_correction_bias",)
_DEEPSEEK = Family(rope=rope.joined_halves, route=feed_forward.route_sigmoid, shared="after", in_float32=_CORRECTION)

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(qk_norm="projection, heads"),
    "seed_oss": Family(),
    "smollm3": Family(),
    "granite": Family(embeddings=2, scaled_residual=True, logits="scaled"),
    "ministral3": Family(),
    "phi3": Family(rope=rope.partial_each, rope_joins=True, fused=True, mlp=feed_forward.gated_fused),
    "gemma": _GEMMA,
    "gemma2": _GEMMA._replace(norms="around", logits="capped", sdpa=False),
    "gemma3_text": _GEMMA._replace(norms="around", table_sets=2, qk_norm="then, heads"),
    "olmo": Family(norm=norms.layer_float, rope=rope.float_tables, tables="float32"),
    "olmo2": _OLMO2,
    "olmo3": _OLMO2._replace(table_sets=2),
    "exaone4": Family(norms="after", qk_norm="then, heads", rope_in="windows or none"),
    "glm4": Family(norms="around", rope=rope.partial_pairs, rope_joins=True, mlp=feed_forward.gated_fused),
    "cohere": _COHERE,
    "cohere2": _COHERE._replace(rope_in="windows"),
    "stablelm": Family(norm=norms.layer, norms="kept", rope=rope.partial_kept, rope_joins=True),
    "starcoder2": Family(norm=norms.layer, mlp=feed_forward.plain),
    "nemotron": Family(norm=norms.layer, rope=rope.partial_together, rope_joins=True, mlp=feed_forward.squared),
    "arcee": Family(mlp=feed_forward.squared),
    "ernie4_5": _ERNIE,
    "qwen2_moe": Family(route=feed_forward.route_softmax, shared="gated", unused_mask=True),
    "qwen3_moe": Family(route=feed_forward.route_softmax, qk_norm="projection, heads"),
    "mixtral": Family(route=feed_forward.route_wide),
    "olmoe": Family(route=feed_forward.route_softmax, qk_norm="projection"),
    "granitemoe": Family(route=feed_forward.route_best_float, embeddings=2, scaled_residual=True, logits="scaled"),
    "gpt_oss": Family(norm=norms.rms_float, rope=rope.joined_halves, rope_joins=True, tables="half", route=feed_forward.route_best, biased_experts=True,
                      sinks=True, sdpa=False),
    "glm4_moe": Family(rope=rope.partial, rope_joins=True, qk_norm="then, heads", qk_norm_setting=True, route=feed_forward.route_sigmoid, shared="after",
                       in_float32=_CORRECTION),
    "minimax_m2": Family(rope=rope.partial, rope_joins=True, qk_norm="projection", route=feed_forward.route_minimax),
    "hunyuan_v1_moe": Family(qk_norm="after, heads", route=feed_forward.route_hunyuan, shared="before", in_float32=("gate.wg.weight",)),
    "ernie4_5_moe": _ERNIE._replace(route=feed_forward.route_ernie, shared="before",
                                   in_float32=("gate.weight", "moe_statics.e_score_correction_bias")),
    "deepseek_v2": _DEEPSEEK._replace(rope=rope.as_complex, tables="complex", route=feed_forward.route_deepseek_v2, in_float32=()),
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
}  # fmt: skip
