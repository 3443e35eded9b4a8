"""Configs of multimodal models: their text model's config, and the parameters of the vision tower beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calculator.errors import NotModelled, UnreadableFile

# text model types that are another's under a second name: the same tensors
ALIASES = {"qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe", "qwen2_5_vl_text": "qwen2", "qwen2_vl_text": "qwen2", "kimi_k25": "kimi_k2", "gemma4_unified_text": "gemma4_text",
           "minimax_m1": "minimax", "minimax_text_01": "minimax"}
# fields of the other's that it hasn't
_WITHOUT: dict[str, dict[str, Any]] = {"gemma4_unified_text": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "enable_moe_block": False}}
_FLAT = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2"}  # older configs keep the text model's fields at the top
# not models of text beside a tower: their layers attend to images, share caches, or carry inputs of their own
_REFUSED = {
    "deepseek_v4": "a compressed cache whose layout isn't published in transformers",
}


def text_config(config: Mapping[str, Any], id: str) -> tuple[dict[str, Any], int]:
    """The text model's config and the parameters of the vision tower and its projector; 0 for a text model.

    Raises NotModelled for a kind of multimodal model, or a tower, without formulas; UnreadableFile for missing fields.
    """
    outer = config.get("model_type")
    base = str(outer).removesuffix("_text")
    if base in _REFUSED:
        raise NotModelled(f"{id}: model_type {outer!r} has {_REFUSED[base]}, which comes in a later version", hint="vram trace, with its config.json")
    inner, vision = config.get("text_config"), config.get("vision_config")
    if outer in _FLAT and not isinstance(inner, dict):
        inner = {k: v for k, v in config.items() if k != "vision_config"} | {"model_type": _FLAT[outer]}
    if not isinstance(inner, dict):
        return {**_WITHOUT.get(str(outer), {}), **config, "model_type": ALIASES.get(str(outer), outer)}, 0
    # a type and a tie may stand outside alone
    merged = {k: config[k] for k in ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config") if config.get(k) is not None}
    merged |= _WITHOUT.get(str(inner.get("model_type")), {}) | inner
    merged["model_type"] = ALIASES.get(str(inner.get("model_type")), inner.get("model_type"))
    if str(inner.get("model_type")).removesuffix("_text") in _REFUSED:
        return text_config(merged, id)
    if not isinstance(vision, dict):
        return merged, 0
    if outer not in _TOWERS:
        raise NotModelled(f"{id}: the vision tower of {str(outer)[:40]!r} has no formula", allowed=", ".join(_TOWERS),
                          hint="its text_config as a config.json of its own")  # fmt: skip
    numbers = {k: x for k, x in vision.items() if isinstance(x, (int, float)) and not isinstance(x, bool)}
    if bad := [k for k, x in numbers.items() if not 0 <= x < 2**31]:
        raise UnreadableFile(f"{id}: vision_config.{str(bad[0])[:40]} is out of range", hint="the config as published")
    try:
        count = _TOWERS[outer](vision, inner, config)
        if outer == "mllama":  # rows of an image of the most tiles, which cross-attention caches
            merged["image_tokens"] = vision["max_num_tiles"] * ((vision["image_size"] // vision["patch_size"]) ** 2 + 1)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        raise UnreadableFile(f"{id}: vision_config lacks or misstates {str(e)[:60]}", hint="the config as published") from None
    merged |= {f"vision_{short}": vision[name] for short, name in (("layers", "num_hidden_layers"), ("hidden_size", "hidden_size")) if isinstance(vision.get(name), int)}
    if not isinstance(count, int) or count < 1:
        raise UnreadableFile(f"{id}: vision_config's dimensions aren't whole numbers above 0", hint="the config as published")
    return merged, count


def _siglip(v: Mapping[str, Any], text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """Gemma 3: SigLIP without its head, a projection matrix and a norm.

    Source: transformers v5.23.0 models/siglip/modeling_siglip.py, models/gemma3/modeling_gemma3.py Gemma3MultiModalProjector.
    """
    h, f = v["hidden_size"], v["intermediate_size"]
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    embeddings = v.get("num_channels", 3) * v["patch_size"] ** 2 * h + h + (v["image_size"] // v["patch_size"]) ** 2 * h
    head = 0
    if v.get("vision_use_head", True):
        head = h + 4 * (h * h + h) + 2 * h + 2 * h * f + f + h
    return int(v["num_hidden_layers"] * layer + embeddings + 2 * h + head + h * text["hidden_size"] + h)


def _pixtral(v: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Mistral 3: Pixtral, a patch merger and two matrices.

    Source: transformers v5.23.0 models/pixtral/modeling_pixtral.py, models/mistral3/modeling_mistral3.py.
    """
    h, f, t = v["hidden_size"], v["intermediate_size"], text["hidden_size"]
    merge = config.get("spatial_merge_size", 2)
    bias = 2 * t if config.get("multimodal_projector_bias", False) else 0
    tower = v["num_hidden_layers"] * (4 * h * h + 3 * h * f + 2 * h) + v.get("num_channels", 3) * v["patch_size"] ** 2 * h + h
    return int(tower + h + merge * merge * h * h + h * t + t * t + bias)


def _qwen3_vl(v: Mapping[str, Any], _: Mapping[str, Any], __: Mapping[str, Any]) -> int:
    """Qwen3-VL: blocks with biases, learned positions, a merger and one more for each deep layer; Qwen3.5: no deep ones.

    Source: transformers v5.23.0 models/{qwen3_vl,qwen3_5}/modeling_*.py.
    """
    h, f, out, wide = v["hidden_size"], v["intermediate_size"], v["out_hidden_size"], v["hidden_size"] * v["spatial_merge_size"] ** 2
    block = 4 * h + 3 * h * h + 3 * h + h * h + h + 2 * h * f + f + h
    patch = v.get("in_channels", 3) * v["temporal_patch_size"] * v["patch_size"] ** 2 * h + h
    merger = wide * wide + wide + wide * out + out
    deep = len(v.get("deepstack_visual_indexes", ()))
    return int(v["depth"] * block + patch + v["num_position_embeddings"] * h + merger + 2 * h + deep * (merger + 2 * wide))


def _qwen2_5_vl(v: Mapping[str, Any], _: Mapping[str, Any], __: Mapping[str, Any]) -> int:
    """Qwen2.5-VL: gated blocks with biases, RMS norms and a merger.

    Source: transformers v5.23.0 models/qwen2_5_vl/modeling_qwen2_5_vl.py.
    """
    h, f, out, wide = v["hidden_size"], v["intermediate_size"], v["out_hidden_size"], v["hidden_size"] * v["spatial_merge_size"] ** 2
    block = 2 * h + 3 * h * h + 3 * h + h * h + h + 3 * h * f + 2 * f + h
    patch = v.get("in_channels", v.get("in_chans", 3)) * v["temporal_patch_size"] * v["patch_size"] ** 2 * h
    return int(v["depth"] * block + patch + h + wide * wide + wide + wide * out + out)


def _qwen2_vl(v: Mapping[str, Any], _: Mapping[str, Any], __: Mapping[str, Any]) -> int:
    """Qwen2-VL: blocks with biases and layer norms, and a merger to the text's width.

    Source: transformers v5.23.0 models/qwen2_vl/modeling_qwen2_vl.py.
    """
    h, f, out, wide = v["embed_dim"], int(v["embed_dim"] * v["mlp_ratio"]), v["hidden_size"], v["embed_dim"] * v["spatial_merge_size"] ** 2
    block = 4 * h + 3 * h * h + 3 * h + h * h + h + 2 * h * f + f + h
    patch = v.get("in_channels", v.get("in_chans", 3)) * v["temporal_patch_size"] * v["patch_size"] ** 2 * h
    return int(v["depth"] * block + patch + 2 * h + wide * wide + wide + wide * out + out)


def _llama4(v: Mapping[str, Any], text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """Llama 4: a tower with biases, an adapter after a pixel shuffle, a matrix to the text's width.

    Source: transformers v5.23.0 models/llama4/modeling_llama4.py Llama4VisionModel, Llama4MultiModalProjector.
    """
    h, f = v["hidden_size"], v["intermediate_size"]
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    patches = (v["image_size"] // v["patch_size"]) ** 2 + 1
    outer = h + patches * h + v.get("num_channels", 3) * v["patch_size"] ** 2 * h + 4 * h
    adapter = f * v["projector_input_dim"] + v["projector_input_dim"] * v["projector_output_dim"]
    return int(v["num_hidden_layers"] * layer + outer + adapter + v["vision_output_dim"] * text["hidden_size"])


def _mllama(v: Mapping[str, Any], text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """Llama 3.2 Vision: layers and global layers, tables of positions by tile and aspect ratio, a matrix to the text's width.

    Source: transformers v5.23.0 models/mllama/modeling_mllama.py MllamaVisionModel.
    """
    h, f, tiles, layers = v["hidden_size"], v["intermediate_size"], v["max_num_tiles"], v["num_hidden_layers"] + v["num_global_layers"]
    patches, ratios = (v["image_size"] // v["patch_size"]) ** 2 + 1, len(v["supported_aspect_ratios"]) + 1
    layer = 4 * h * h + 2 * h * f + f + h + 4 * h
    outer = h + v.get("num_channels", 3) * v["patch_size"] ** 2 * h + patches * h + 1 + ratios * tiles * patches * h + 2 * (ratios * tiles * h + 1) + 4 * h
    return int(layers * layer + 2 * v["num_global_layers"] + outer + v["vision_output_dim"] * text["hidden_size"] + text["hidden_size"])


def _gemma4(v: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Gemma 4: gated blocks with norms of heads, two tables of positions, a matrix to the text's width; the audio tower beside it.

    Source: transformers v5.23.0 models/gemma4/modeling_gemma4.py Gemma4VisionModel, Gemma4MultimodalEmbedder.
    """
    audio = config.get("audio_config")
    beside = _conformer(audio, text["hidden_size"]) if isinstance(audio, dict) else 0
    h, f, d = v["hidden_size"], v["intermediate_size"], v["head_dim"]
    q, kv = v["num_attention_heads"] * d, v["num_key_value_heads"] * d
    block = 2 * h * q + 2 * h * kv + 2 * d + 3 * h * f + 4 * h
    scales = 2 * h if v.get("standardize") else 0
    patch = 3 * v["patch_size"] ** 2 * h + 2 * v["position_embedding_size"] * h
    return int(v["num_hidden_layers"] * block + patch + scales + h * text["hidden_size"] + beside)


def _moonvit(v: Mapping[str, Any], text: Mapping[str, Any], _: Mapping[str, Any]) -> int:
    """Kimi K2.5: MoonViT with a square table of positions, and a norm and two matrices over merged patches.

    L (4 h h + 2 h f + f + 9 h) + 3 p p h + 3 h + s s h, and 2 h + (m h + 1) m h + (m h + 1) t        m merged patches, t the text's width

    Meets the published total of K2.5 less that of K2 Thinking to the parameter.

    Source: transformers v5.23.0 models/kimi_k25/modeling_kimi_k25.py; vllm v0.19.0 model_executor/models/kimi_k25_vit.py.
    """
    h, f, merged = v["vt_hidden_size"], v["vt_intermediate_size"], v["merge_kernel_size"][0] * v["merge_kernel_size"][1] * v["mm_hidden_size"]
    layer = 4 * h * h + 2 * h * f + f + 9 * h
    tables = 3 * v["patch_size"] ** 2 * h + h + v["init_pos_emb_height"] * v["init_pos_emb_width"] * h + 2 * h
    projector = 2 * v["mm_hidden_size"] + (merged + 1) * merged + (merged + 1) * text["hidden_size"]
    return int(v["vt_num_hidden_layers"] * layer + tables + projector)


GEMMA3N_TOWERS = 983_281_504  # published totals of E2B (5,439,438,272) and of E4B (7,849,978,192), each less its text model's


def _gemma3n(v: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Gemma 3n: MobileNet V5 and the audio tower, as published; both sizes have the same, and the class needs timm to say more."""
    audio = config.get("audio_config") or {}
    if v.get("architecture", "mobilenetv5_300m_enc") != "mobilenetv5_300m_enc" or text["hidden_size"] != 2048 or audio.get("hidden_size", 1536) != 1536:
        raise KeyError("a tower other than the published one")
    return GEMMA3N_TOWERS


def _conformer(a: Mapping[str, Any], width: int) -> int:
    """Gemma 4's audio tower: two convolutions, Conformer layers, and a matrix to the text's width; without the clips' bounds.

    Source: transformers v5.23.0 models/gemma4/modeling_gemma4.py Gemma4AudioModel; 304,824,608 with the class's defaults.
    """
    h, (first, second), out, bins = a["hidden_size"], a["subsampling_conv_channels"], a["output_proj_dims"], 128
    start = 9 * first + first + 9 * first * second + second + second * (bins // 4) * h
    feed_forward, attention = 2 * (8 * h * h + 2 * h), h // a["num_attention_heads"] + 5 * h * h
    convolution = 3 * h * h + h * a["conv_kernel_size"] + 2 * h
    return int(start + a["num_hidden_layers"] * (feed_forward + attention + convolution + 3 * h) + out * h + out + out * width)


def _gemma4_unified(v: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Gemma 4 12B: no tower, but a matrix for pooled patches between norms, a table of positions, and matrices to the text's width.

    p w + w + 2 p + 4 w + 2 n w + o h (+ a h of sound)        p pixels of a patch, w mm_embed_dim, n mm_posemb_size, o output_proj_dims

    Source: transformers v5.23.0 models/gemma4_unified/modeling_gemma4_unified.py Gemma4UnifiedVisionEmbedder.
    """
    audio = config.get("audio_config")
    pixels, w = 3 * (v.get("patch_size", 16) * v.get("pooling_kernel_size", 3)) ** 2, v.get("mm_embed_dim", 3840)
    beside = audio.get("output_proj_dims", audio.get("audio_embed_dim", 640)) * text["hidden_size"] if isinstance(audio, dict) else 0
    own = pixels * w + w + 2 * pixels + 4 * w + 2 * v.get("mm_posemb_size", 1120) * w
    return int(own + v.get("output_proj_dims", 3840) * text["hidden_size"] + beside)


def _perception(v: Mapping[str, Any], text: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Step 3.7: blocks with biases and scales of their outputs, learned positions, two convolutions that double the width, a matrix to the text's.

    L (4 a a + 2 a f + f + 11 a) + 3 p p a + n a + 2 a + 18 a a + 2 a + 72 a a + 4 a + 4 a t        a width, f = mlp_ratio a, n positions, t the text's width

    Meets the published total of Step 3.7 Flash less that of 3.5 to the parameter.

    Source: transformers v5.23.0 models/step3p7/modeling_step3p7.py Step3p7VisionModel.
    """
    a, layers = v.get("width", v.get("hidden_size")), v.get("layers", v.get("num_hidden_layers"))
    f, p, t = int(a * v["mlp_ratio"]), v["patch_size"], text["hidden_size"]
    block = 4 * a * a + 2 * a * f + f + 11 * a
    tables = v.get("num_channels", 3) * p * p * a + (v["image_size"] // p) ** 2 * a + 2 * a
    projector = 4 * a * t + (t if config.get("projector_bias") else 0)
    return int(layers * block + tables + 18 * a * a + 2 * a + 72 * a * a + 4 * a + projector)


_TOWERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], int]] = {
    "gemma3": _siglip, "mistral3": _pixtral, "qwen3_vl": _qwen3_vl, "qwen3_vl_moe": _qwen3_vl, "qwen3_5": _qwen3_vl, "qwen3_5_moe": _qwen3_vl,
    "qwen2_5_vl": _qwen2_5_vl, "qwen2_vl": _qwen2_vl, "llama4": _llama4, "mllama": _mllama, "gemma4": _gemma4, "gemma4_unified": _gemma4_unified, "gemma3n": _gemma3n, "kimi_k25": _moonvit, "step3p7": _perception,
}  # fmt: skip
