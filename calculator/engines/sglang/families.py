"""What SGLang does differently by model type: since which release, rotary tables, windows in the pool, latent attention."""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.releases import Release, dotted
from calculator.errors import NotModelled
from calculator.spec import ModelSpec

MODELS_SOURCE = "sglang srt/models/ of 0.4.1, 0.4.3, 0.4.5 to 0.4.9, 0.5.2 to 0.5.6, 0.5.9, 0.5.10 and 0.5.12"
SWA_SINCE: dict[str, Release] = {"gpt_oss": (0, 5, 8), "llama4_text": (0, 5, 8), "gemma4_text": (0, 5, 10)}  # before, and for Gemma and OLMo still, windowed layers keep all tokens
SWA_SOURCE = "sglang v0.5.9 srt/configs/model_config.py L1320 is_hybrid_swa_model; srt/server_args.py disable_hybrid_swa_memory by model; v0.5.10 model_runner_kv_cache_mixin.py L295-372"
ABSORBED_SOURCE = "sglang v0.5.6 srt/models/deepseek_v2.py post_load_weights L3639-3660: w_kc and w_vc are copies of kv_b_proj in 16 bits"


class Family(NamedTuple):
    """A model type in SGLang."""

    since: Release = (0, 4, 0)
    """First release after the last one read that lacks it. Source: MODELS_SOURCE."""
    rotary: tuple[int, int] = (1, 1)
    """Share of a head that is turned."""
    table: bool = True
    """A table of cosines and sines over all positions; else they are made in each pass."""
    wide_router: bool = False
    """The router's matrix is in float32."""
    dp_attention: bool = False
    """Attention may have ranks of its own, and the embedding is then whole on each."""
    bound: str = ""
    """What of its pass isn't modelled: the total is a lower bound."""


TOWER_LEFT_OUT: dict[str, Release] = {"llama4_text": (0, 4, 10)}  # since when a tower isn't made unless --enable-multimodal asks: srt/models/mllama4.py L436-448
_MOE = Family(dp_attention=True)
_STATES = "the pass of recurrent layers"
FAMILIES: dict[str, Family] = {
    "llama": Family(), "mistral": Family(), "qwen2": Family(), "phi3": Family(), "mixtral": Family(), "qwen3": Family(), "qwen3_moe": _MOE,
    "gemma": Family(), "gemma2": Family(), "gemma3_text": Family((0, 4, 4), table=False), "granite": Family(), "olmo2": Family(), "cohere": Family(),
    "ministral3": Family((0, 5, 7)), "olmo": Family(), "stablelm": Family(rotary=(1, 4)), "hunyuan_v1_dense": Family((0, 4, 9)), "hunyuan_v1_moe": Family((0, 4, 9)),
    "glm4": Family((0, 4, 8), rotary=(1, 2)), "ernie4_5": Family((0, 4, 10)),
    "olmoe": Family(), "qwen2_moe": _MOE, "phimoe": Family((0, 4, 10)), "granitemoe": Family((0, 4, 10)),
    "glm4_moe": _MOE._replace(since=(0, 4, 10), rotary=(1, 2)),
    "minimax_m2": Family((0, 5, 5), rotary=(1, 2), wide_router=True),
    "llama4_text": Family((0, 4, 5)),
    "gpt_oss": Family((0, 5, 1), dp_attention=True),
    "deepseek_v2": _MOE, "deepseek_v3": _MOE, "kimi_k2": _MOE, "glm4_moe_lite": _MOE._replace(since=(0, 5, 7)),
    "deepseek_v32": _MOE._replace(since=(0, 5, 3), bound="the pass of sparse attention"), "glm_moe_dsa": _MOE._replace(since=(0, 5, 9), bound="the pass of sparse attention"),
    "qwen3_next": Family((0, 5, 3), rotary=(1, 4), bound=_STATES), "qwen3_5_text": Family((0, 5, 9), rotary=(1, 4), bound=_STATES),
    "qwen3_5_moe_text": Family((0, 5, 9), rotary=(1, 4), bound=_STATES), "nemotron_h": Family((0, 5, 6), table=False, bound=_STATES),
    "falcon_h1": Family((0, 5, 3), bound=_STATES),
    "gemma4_text": Family((0, 5, 10), bound="the pass of layers of two widths"),
}  # fmt: skip


# towers by kind: the first release after the last one read that lacks the model (0.4.3, 0.4.6, 0.5.2)
TOWERS_SINCE: dict[str, Release] = {"qwen2_5_vl": (0, 4, 4), "siglip": (0, 4, 4), "pixtral": (0, 4, 7), "qwen3_vl": (0, 5, 3)}


def family_of(model: ModelSpec) -> Family:
    """The row of a model's type."""
    return FAMILIES[model.model_type]


def check_family(model: ModelSpec, release: Release, version: str) -> None:
    """Refuse a release that lacks the model type."""
    since = max(family_of(model).since, TOWERS_SINCE.get(model.tower.kind, (0, 0)) if model.tower else (0, 0))
    if release < since:
        name = f"{model.model_type}{' with a vision tower' if model.tower else ''}"
        raise NotModelled(f"sglang {version} has no {name}", allowed=f"{dotted(since)} or later", hint="a later --engine-version")


def tower_left_out(model: ModelSpec, release: Release) -> bool:
    """Whether the server starts without the model's vision tower."""
    return model.model_type in TOWER_LEFT_OUT and release >= TOWER_LEFT_OUT[model.model_type]


def rotary_elements(model: ModelSpec) -> tuple[int, int]:
    """Positions and elements of a row of the rotary table; none where there is no table. Gemma 4: a table for each width of heads.

    Source: sglang srt/models/gemma4_causal.py @03826cdd9 Gemma4Attention: get_rope with rotary_dim head_dim.
    """
    found = family_of(model)
    if model.by_layer is not None:
        return model.max_position_embeddings, model.head_dim + (model.by_layer.full_head_dim or model.head_dim)
    if not found.table:
        return 0, 0
    turned, whole = found.rotary
    own = model.rotary_dim or model.head_dim * turned // whole
    return model.max_position_embeddings, model.mla.qk_rope_head_dim if model.mla else own


def windowed(model: ModelSpec, release: Release) -> bool:
    """Whether windowed layers have a pool of their own. Source: SWA_SOURCE."""
    return model.model_type in SWA_SINCE and release >= SWA_SINCE[model.model_type]


def full_layer(model: ModelSpec, layer: int) -> bool:
    """Whether a layer sees everything."""
    return layer in model.full_indices
