"""The dimensions of a vision tower, from the vision_config beside a text model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calculator.spec import Tower

# the config's outer type -> the tower's kind
_KINDS = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_5_vl", "qwen3_vl": "qwen3_vl", "qwen3_vl_moe": "qwen3_vl", "qwen3_5": "qwen3_vl", "qwen3_5_moe": "qwen3_vl",
          "gemma3": "siglip", "mistral3": "pixtral", "llama4": "llama4", "gemma4": "gemma4"}  # fmt: skip
SIGLIP_TOKENS = 256  # mm_tokens_per_image where a config doesn't say: transformers v5.23.0 models/gemma3/configuration_gemma3.py


def tower_of(config: Mapping[str, Any]) -> Tower | None:
    """The tower's dimensions; None where there is none, its kind has no pass here, or a field is missing or no whole number."""
    kind, vision = _KINDS.get(str(config.get("model_type"))), config.get("vision_config")
    if kind is None or not isinstance(vision, dict):
        return None
    try:
        found = _siglip(vision, config) if kind == "siglip" else _qwen(kind, vision) if kind.startswith("qwen") else _other(kind, vision, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    numbers = (found.hidden_size, found.num_heads, found.intermediate_size, found.patch_size, found.spatial_merge_size, found.temporal_patch_size, found.in_channels)
    whole = all(isinstance(n, int) and 0 < n < 2**31 for n in numbers) and isinstance(found.image_size, int) and 0 <= found.image_size < 2**31
    return found if whole else None


def _qwen(kind: str, v: Mapping[str, Any]) -> Tower:
    """Qwen's towers: patches of pairs of frames, four of them a token, images of any shape.

    Source: transformers v5.23.0 models/{qwen2_vl,qwen2_5_vl,qwen3_vl}/configuration_*.py.
    """
    old = kind == "qwen2_vl"  # hidden_size is the text model's there
    width = v["embed_dim"] if old else v["hidden_size"]
    return Tower(
        kind, hidden_size=width, num_heads=v["num_heads"], intermediate_size=int(width * v["mlp_ratio"]) if old else v["intermediate_size"],
        patch_size=v["patch_size"], spatial_merge_size=v["spatial_merge_size"], temporal_patch_size=v["temporal_patch_size"],
        in_channels=v.get("in_channels", v.get("in_chans", 3)), deep_layers=len(v.get("deepstack_visual_indexes") or ()),
    )  # fmt: skip


def _siglip(v: Mapping[str, Any], config: Mapping[str, Any]) -> Tower:
    """Gemma 3: SigLIP on a square, whose patches are averaged to mm_tokens_per_image tokens.

    Source: transformers v5.23.0 models/siglip/configuration_siglip.py, models/gemma3/modeling_gemma3.py Gemma3MultiModalProjector.
    """
    side, tokens = v["image_size"] // v["patch_size"], int(config.get("mm_tokens_per_image", SIGLIP_TOKENS) ** 0.5)
    return Tower("siglip", hidden_size=v["hidden_size"], num_heads=v["num_attention_heads"], intermediate_size=v["intermediate_size"], patch_size=v["patch_size"],
                 spatial_merge_size=side // tokens, in_channels=v.get("num_channels", 3), image_size=v["image_size"])  # fmt: skip


def _other(kind: str, v: Mapping[str, Any], config: Mapping[str, Any]) -> Tower:
    """Pixtral, Llama 4, Gemma 4: patches of a token along a side by a merger, a pixel shuffle or a pool.

    Source: transformers v5.23.0 models/{mistral3,llama4,gemma4}/configuration_*.py.
    """
    merged = {"pixtral": config.get("spatial_merge_size", 2), "llama4": round(1 / v.get("pixel_shuffle_ratio", 0.5)), "gemma4": v.get("pooling_kernel_size", 3)}[kind]
    return Tower(kind, hidden_size=v["hidden_size"], num_heads=v["num_attention_heads"], intermediate_size=v["intermediate_size"], patch_size=v["patch_size"],
                 spatial_merge_size=merged, in_channels=v.get("num_channels", 3), image_size=v.get("image_size", 0))  # fmt: skip
