"""What vLLM does differently by model type: since which release, its rotary tables, routers, latent attention."""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.releases import Release, dotted
from calculator.errors import NotModelled, Unsupported
from calculator.spec import ModelSpec

REGISTRY_SOURCE = "vllm model_executor/models/registry.py of v0.6.6, v0.8.5, v0.9.2, v0.11.0, v0.14.0 and v0.19.0"


class Family(NamedTuple):
    """A model type in vLLM."""

    since: Release = (0, 6, 0)
    """First release after the last one read whose registry lacks it. Source: REGISTRY_SOURCE."""
    held: bool = False
    """The activation peak was held against start-up logs of this type."""
    rotary: tuple[int, int] = (1, 1)
    """Share of a head that is turned."""
    wide_rotary: bool = False
    """The table is in float32."""
    wide_router: Release | None = None
    """Since when the router's matrix is in float32."""
    gated: bool = True
    """The feed-forward has a gate."""


_LOGGED = Family(held=True)
FAMILIES: dict[str, Family] = {
    "llama": _LOGGED, "mistral": _LOGGED, "qwen2": _LOGGED, "phi3": _LOGGED, "gemma2": _LOGGED, "mixtral": _LOGGED,
    "qwen3": _LOGGED._replace(since=(0, 8, 0)), "gemma3_text": _LOGGED._replace(since=(0, 8, 0)), "qwen3_moe": _LOGGED._replace(since=(0, 8, 0)),
    "gemma": Family(), "granite": Family(), "olmo": Family(), "olmo2": Family(), "cohere": Family(), "cohere2": Family(),
    "olmo3": Family((0, 10, 0)), "exaone4": Family((0, 10, 0)), "smollm3": Family((0, 10, 0)), "seed_oss": Family((0, 10, 0)),
    "ernie4_5": Family((0, 9, 0)), "ministral3": Family((0, 12, 0)),
    "glm4": Family((0, 8, 0), rotary=(1, 2)),
    "stablelm": Family(rotary=(1, 4)),
    "opt": Family(rotary=(0, 1), gated=False), "starcoder2": Family(gated=False), "nemotron": Family(rotary=(1, 2), gated=False), "arcee": Family((0, 10, 0), gated=False),
    "phi": Family(rotary=(1, 2), gated=False), "gpt_neox": Family(rotary=(1, 4), gated=False), "gptj": Family(rotary=(1, 4), gated=False), "falcon": Family(gated=False),
    "gpt2": Family(rotary=(0, 1), gated=False), "gpt_bigcode": Family(rotary=(0, 1), gated=False), "bloom": Family(rotary=(0, 1), gated=False), "mpt": Family(rotary=(0, 1), gated=False),
    "hunyuan_v1_dense": Family((0, 10, 0)), "apertus": Family((0, 10, 0), gated=False), "dots1": Family((0, 9, 0)),
    "olmoe": Family(), "granitemoe": Family(), "phimoe": Family(), "qwen2_moe": Family(), "hunyuan_v1_moe": Family((0, 9, 0)),
    "ernie4_5_moe": Family((0, 9, 0), wide_router=(0, 9, 0)),
    "glm4_moe": Family((0, 10, 0), rotary=(1, 2), wide_router=(0, 10, 0)),
    "minimax_m2": Family((0, 11, 1), rotary=(1, 2), wide_router=(0, 11, 1)),
    "llama4_text": Family((0, 8, 0), wide_rotary=True),
    "gpt_oss": Family((0, 10, 0), wide_rotary=True),
    "deepseek_v2": Family(), "deepseek_v3": Family((0, 6, 6)), "kimi_k2": Family((0, 8, 0)), "glm4_moe_lite": Family((0, 14, 1)),
    "deepseek_v32": Family((0, 11, 0)), "glm_moe_dsa": Family((0, 14, 1)),
    "qwen3_next": Family((0, 10, 0), rotary=(1, 4)), "qwen3_5_text": Family((0, 14, 1), rotary=(1, 4)), "qwen3_5_moe_text": Family((0, 14, 1), rotary=(1, 4)),
    "gemma4_text": Family((0, 14, 1)),
    "minimax": Family((0, 11, 0), rotary=(1, 2), wide_rotary=True, wide_router=(0, 11, 0)),
    "exaone_moe": Family((0, 13, 1)),
    "hy_v3": Family((0, 19, 1), wide_router=(0, 19, 1)),  # v0.20.1 models/hy_v3.py L154-159
    "mistral4": Family((0, 16, 1)),  # rows of 320: v0.18.0 layers/attention/mla_attention.py L1154; 576 alone in v0.16.0
    "step3p5": Family((0, 14, 2), wide_router=(0, 14, 2)),
    "lfm2": Family((0, 10, 0)), "lfm2_moe": Family((0, 11, 1)), "jamba": Family((0, 11, 0), rotary=(0, 1)),
    "bert": Family(rotary=(0, 1), gated=False), "roberta": Family(rotary=(0, 1), gated=False), "xlm-roberta": Family(rotary=(0, 1), gated=False),
    "nomic_bert": Family((0, 8, 5)), "modernbert": Family((0, 8, 0)),
    "nemotron_h": Family((0, 11, 0), rotary=(0, 1), gated=False), "granitemoehybrid": Family((0, 11, 0), rotary=(0, 1)), "kimi_linear": Family((0, 11, 1), rotary=(0, 1)),
    "falcon_h1": Family((0, 9, 0)), "bamba": Family((0, 8, 0), rotary=(1, 2)),
}  # fmt: skip
# the first release without it, its class, and the last release with it in vLLM's words: v0.24.0 and v0.33.0 model_executor/models/registry.py _PREVIOUSLY_SUPPORTED_MODELS
REMOVED: dict[str, tuple[Release, str, str]] = {
    "dots1": ((0, 24, 0), "Dots1ForCausalLM", "0.23.0"), "mpt": ((0, 29, 0), "MptForCausalLM", "0.28.0"),
    "bamba": ((0, 24, 0), "BambaForCausalLM", "0.23.0"), "minimax": ((0, 24, 0), "MiniMaxText01ForCausalLM", "0.23.0"),
}  # fmt: skip
# the first release read that runs it by transformers' own code: registry.py _TRANSFORMERS_SUPPORTED_MODELS
WRAPPED: dict[str, Release] = {
    "smollm3": (0, 10, 0), "gpt_bigcode": (0, 27, 0), "olmo": (0, 27, 0), "olmo2": (0, 27, 0), "starcoder2": (0, 27, 0), "hunyuan_v1_dense": (0, 29, 0), "hunyuan_v1_moe": (0, 29, 0),
    "olmo3": (0, 31, 0), "phi": (0, 33, 0), "gpt_neox": (0, 33, 0), "arcee": (0, 33, 0), "seed_oss": (0, 33, 0),
}  # fmt: skip
# towers: the first release after the last one read that lacks the model
TOWERS_SINCE: dict[str, Release] = {"gemma4_text": (0, 14, 1), "qwen3_5_text": (0, 14, 1), "qwen3_5_moe_text": (0, 14, 1), "gemma3_text": (0, 8, 0), "llama4_text": (0, 8, 0), "mistral": (0, 8, 0), "qwen3": (0, 10, 0), "qwen3_moe": (0, 10, 0), "kimi_k2": (0, 14, 1), "step3p5": (0, 22, 1)}


def family_of(model: ModelSpec) -> Family:
    """The row of a model's type."""
    return FAMILIES[model.model_type]


def check_family(model: ModelSpec, release: Release, version: str) -> None:
    """Refuse a release that lacks the model type, or keeps it in a way without formulas."""
    since = family_of(model).since
    if model.model_type in REMOVED and release >= REMOVED[model.model_type][0]:
        _, name, last = REMOVED[model.model_type]
        raise Unsupported(f"Model architecture {name} was supported in vLLM until v{last}, and is not supported anymore. "
                          "Please use an older version of vLLM if you want to use this model architecture.", hint=f"--engine-version {last}")  # fmt: skip
    if model.vision_parameters:
        since = max(since, TOWERS_SINCE.get(model.model_type, since))
    if release < since:
        name = f"{model.model_type}{' with a vision tower' if model.vision_parameters else ''}"
        raise NotModelled(f"vllm {version} has no {name}", allowed=f"{dotted(since)} or later", hint="a later --engine-version")


TURNED_IN_PART = frozenset({"step3p5"})  # layers that see everything are turned in part, those with a window whole: v0.33.0 models/step3p5.py L80-107


def rotary_width(model: ModelSpec) -> int:
    """Elements of a row of the rotary table: what is turned of a head."""
    if model.mla and family_of(model).rotary[0]:
        return model.mla.qk_rope_head_dim
    if model.model_type in TURNED_IN_PART:
        return model.head_dim
    turned, whole = family_of(model).rotary
    if model.model_type == "granitemoehybrid" and model.recurrent is None:  # position_embedding_type rope, where hybrids have nope
        turned = whole = 1
    return model.rotary_dim or model.head_dim * turned // whole


IMAGE_POSITIONS_SINCE = (0, 7, 0)  # the first release after 0.6.6, whose table isn't longer
IMAGE_POSITIONS_ALWAYS = ("qwen3_5_text", "qwen3_5_moe_text")  # mrope_section is in every config


def rotary_rows(model: ModelSpec, release: Release, length: int) -> tuple[int, ...]:
    """Rows of each rotary table.

    Four times the positions where images and videos have positions of their own (M-RoPE; since 0.7); linear scaling stretches them.
    MiniMax-01's ends where max_model_len (`length`) does: v0.19.0 models/minimax_text_01.py L299-304.
    Windowed layers have a table of their own where they are turned by another base (Gemma 3) or without scaling (OLMo 3).

    Source: vllm v0.19.0 layers/rotary_embedding/mrope.py L238, linear_scaling_rope.py _compute_cos_sin_cache; v0.8.5
    layers/rotary_embedding.py L946, models/gemma3.py L147-167; v0.19.0 models/olmo2.py L142-149.
    """
    positions = min(model.max_position_embeddings, length) if model.model_type == "minimax" else model.max_position_embeddings
    if release >= WRAPPED.get(model.model_type, (1000,)):
        return (0,)  # transformers' own code keeps no table
    if release >= IMAGE_POSITIONS_SINCE and (model.model_type in IMAGE_POSITIONS_ALWAYS or (model.vision_parameters and model.model_type in ("qwen2", "qwen3", "qwen3_moe"))):
        return (4 * positions,)
    if model.by_layer and model.by_layer.full_head_dim:  # wider heads where layers see everything: rows of head_dim (Gemma 4)
        return (positions, positions * model.by_layer.full_head_dim // model.head_dim)
    if model.model_type in TURNED_IN_PART:
        return (positions * (model.rotary_dim or model.head_dim) // model.head_dim, positions)
    scaled = int(positions * model.rope_factor)
    apart = model.model_type == "gemma3_text" or (model.model_type == "olmo3" and model.rope_type != "default")
    return (positions, scaled) if apart else (scaled,)


DEEP_LAYERS = 3  # of Qwen3-VL's towers, whose outputs are added to the first layers


def image_buffer_elements(model: ModelSpec, tokens: int) -> int:
    """Elements of the buffers for the tower's deep outputs, made with the model (Qwen3-VL).

    Source: vllm v0.19.0 model_executor/models/qwen3_vl.py L1503-1509: one of max_num_batched_tokens x hidden size each.
    """
    deep = model.vision_parameters and model.model_type in ("qwen3", "qwen3_moe")
    return DEEP_LAYERS * tokens * model.hidden_size if deep else 0
