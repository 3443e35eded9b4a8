"""Hugging Face config.json -> ModelSpec. Missing fields are refused by name, never filled from a class default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calculator.architectures import Architecture, architecture
from calculator.errors import NotModelled, UnreadableFile
from calculator.readers.feed_forward import experts
from calculator.readers.nested import text_config
from calculator.readers.own_fields import own_fields, renamed
from calculator.readers.recurrent import state, usual
from calculator.readers.towers import tower_of
from calculator.readers.untrusted import LocalFile, inside, read_json, shown
from calculator.spec import LatentAttention, ModelSpec

MAX_BYTES = 2 * 2**20  # a config.json is a few KiB

_REQUIRED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """The object in a config.json, or in a folder that holds one. Raises UnreadableFile."""
    file = inside(path, "config.json") if path.is_dir() else path
    if not file.is_file():
        raise UnreadableFile(f"{shown(file)} is not a file", hint="a config.json or a folder that holds one")
    with LocalFile(file) as source:
        return read_json(source, limit=MAX_BYTES, unlimited=True)


def model_from_config(config: Mapping[str, Any], *, id: str, trusted: bool = False) -> ModelSpec:
    """ModelSpec from the fields of a config.json of a known model type; `trusted`: shipped data, checked by the tests.

    Raises UnreadableFile (missing or impossible field), UnknownArchitecture, NotModelled.
    """
    if not isinstance(config.get("model_type"), str):
        raise UnreadableFile(f"{id}: config has no model_type", hint="the model's own config.json, as published")
    outer = config
    config, vision = text_config(config, id)
    if not isinstance(config["model_type"], str):
        raise UnreadableFile(f"{id}: text_config has no model_type", hint="the model's own config.json, as published")
    row = architecture(config["model_type"])
    config = renamed(config, id)
    if row.recurrent:
        config = usual(config, id)
    if missing := [name for name in _REQUIRED if config.get(name) is None]:
        raise UnreadableFile(f"{id}: config lacks {', '.join(missing)}", hint="the model's own config.json, as published")
    heads, tied = config["num_attention_heads"], config.get("tie_word_embeddings")
    mla = _latent_attention(config)
    head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim if mla else _head_dim(config, row, id)
    fields: dict[str, Any] = {
        **{name: config[name] for name in _REQUIRED},
        "id": id,
        "model_type": config["model_type"],
        # absent means multi-head attention, and hidden_size / heads: configuration_llama.py __post_init__
        "num_key_value_heads": heads if config.get("num_key_value_heads") is None or mla else config["num_key_value_heads"],
        "head_dim": head_dim,
        "rotary_dim": _rotary_dim(config, row, head_dim, id),
        # transformers' base class ties unless told otherwise; each config class says what absence means
        "tie_word_embeddings": False if row.encoder else row.tied if tied is None else tied,
        "dtype": _dtype(config, id, absent="bfloat16" if config.get("quantization_config") else None),
        "attention_bias": _attention_bias(config, row, id),
        "mlp_bias": _switch(config, row.mlp_bias_setting, id, absent=row.mlp_bias_setting == "use_bias" and row.attention_bias != "none"),
        "rope_type": _rope_type(config),
        "rope_factor": _rope_factor(config),
        "qk_norm": _switch(config, "use_qk_norm", id) if config["model_type"] in ("glm4_moe", "cohere") else False,
        "head_bias": _switch(config, "lm_head_bias", id) if config["model_type"] == "phimoe" else False,
        "mla": mla,
        "vision_parameters": vision,
        "vision_layers": config.get("vision_layers", 0) if vision else 0,
        "vision_hidden_size": config.get("vision_hidden_size", 0) if vision else 0,
        "tower": tower_of(outer) if vision else None,
        **_windows(config, row, id),
        **experts(config, row, id),
        **own_fields(config, id),
        **state(config, row, id),
    }
    for name in ("qk_layernorm", "use_parallel_residual"):
        if config["model_type"] == "stablelm" and config.get(name):
            raise NotModelled(f"{id}: {name} in stablelm comes in a later version", hint="vram trace, with its config.json")
    if not trusted:
        from calculator.readers.inputs import check_model

        check_model(fields)
    return ModelSpec(**fields)


def _head_dim(config: Mapping[str, Any], row: Architecture, id: str) -> Any:
    if config.get("head_dim") is not None:
        return config["head_dim"]
    if row.head_dim:
        return row.head_dim
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    for name, value in (("hidden_size", hidden), ("num_attention_heads", heads)):
        if type(value) is not int:
            raise UnreadableFile(f"{id}: {name} {str(value)[:20]!r} is not a whole number", hint="the model's own config.json, as published")
    if heads < 1 or hidden % heads:
        raise UnreadableFile(
            f"{id}: head_dim is absent and num_attention_heads {str(heads)[:20]} doesn't divide "
            f"hidden_size {str(hidden)[:20]}",
            hint="adding head_dim to the config",
        )
    return hidden // heads


def _rotary_dim(config: Mapping[str, Any], row: Architecture, head_dim: Any, id: str) -> int:
    """Elements of a head that rotary embeddings turn; 0: all."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    share = config.get("partial_rotary_factor", rope.get("partial_rotary_factor") if isinstance(rope, dict) else None)
    if share is None and config["model_type"] == "minimax_m2" and isinstance(head_dim, int) and head_dim > 0:
        turned = config.get("rotary_dim")
        share = turned / head_dim if isinstance(turned, int) else None
    share = row.partial_rotary or 1 if share is None else share
    if share in (1, 1.0):
        return 0
    if not row.partial_rotary:
        if "transformers" not in row.engines:
            return 0
        raise NotModelled(f"{id}: rotary embeddings over a part of head_dim come in a later version", hint="vram trace, with its config.json")
    if not isinstance(share, (int, float)) or not isinstance(head_dim, int) or not 0 < share < 1:
        raise UnreadableFile(f"{id}: partial_rotary_factor {str(share)[:30]!r} is not above 0 and up to 1", hint="the config as published")
    return int(head_dim * share + 1e-9)  # 1/49 of 49 is less than 1 in floating point


def _latent_attention(config: Mapping[str, Any]) -> LatentAttention | None:
    if not config["model_type"].startswith(("deepseek", "kimi", "glm4_moe_lite", "glm_moe_dsa", "mistral4")):
        return None
    names = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    if missing := [*(name for name in names if not isinstance(config.get(name), int)), *(["q_lora_rank"] if "q_lora_rank" not in config else [])]:
        raise UnreadableFile(f"config of {config['model_type']} lacks {', '.join(missing)}", hint="the model's own config.json, as published")
    return LatentAttention(q_lora_rank=config.get("q_lora_rank") or 0, **{name: config[name] for name in names})


def _switch(config: Mapping[str, Any], name: str, id: str, *, absent: bool = False) -> bool:
    """A setting that is true or false; absent where the model type has none."""
    value = config.get(name) if name else None
    if value is not None and not isinstance(value, bool):
        raise UnreadableFile(f"{id}: {name} {str(value)[:30]!r} is not true or false", hint="the config as published")
    return absent if value is None else value


def _attention_bias(config: Mapping[str, Any], row: Architecture, id: str) -> str:
    """What the model type always has, or what its setting switches on; where it has no setting the config's is ignored."""
    name, switched = row.bias_setting
    if not name:
        return row.attention_bias
    if config["model_type"] == "seed_oss" and config.get("attention_out_bias"):
        raise NotModelled(f"{id}: attention_out_bias comes in a later version", hint="vram trace, with its config.json")
    return switched if _switch(config, name, id, absent=row.attention_bias != "none") else "none"


def _dtype(config: Mapping[str, Any], id: str, *, absent: str | None) -> str:
    """The type of what isn't quantized; configs of quantized checkpoints often leave it out."""
    dtype = config.get("dtype") or config.get("torch_dtype") or absent
    if dtype is None:
        raise UnreadableFile(f"{id}: config says no dtype", hint='"dtype": "float32" in it, which is what old checkpoints are stored in, or bfloat16, float16')
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnreadableFile(f"{id}: torch_dtype {str(dtype)[:30]!r} is not understood", allowed="float32, bfloat16, float16")
    return str(dtype)


def _windows(config: Mapping[str, Any], row: Architecture, id: str) -> dict[str, Any]:
    """Each n-th layer sees everything, the others a window; a list of layer types that isn't of this form is refused."""
    chunked = config["model_type"] == "llama4_text"
    window = config.get("attention_chunk_size" if chunked else "sliding_window")
    # qwen configs carry a window that is off unless use_sliding_window says so
    if row.windows == "never" or (row.windows == "use_sliding_window" and config.get("use_sliding_window", False) is False):
        window = None
    every = _every(config.get("sliding_window_pattern"), row.full_every, id)
    if not row.full_every:
        return {"sliding_window": window}
    if not window:
        if chunked or config["model_type"].startswith(("gemma", "gpt_oss")):
            raise UnreadableFile(f"{id}: sliding_window is missing or not a number", hint="the config as published")
        return {"sliding_window": None}  # all layers see everything: exaone4, olmo3 and cohere2 without a window
    types, count = config.get("layer_types"), config["num_hidden_layers"]
    near = "chunked_attention" if chunked else "sliding_attention"
    expected = [near if (i + 1) % every else "full_attention" for i in range(min(count, 10_000) if isinstance(count, int) else 0)]
    if row.full_anywhere and isinstance(types, list) and set(map(str, types)) == {near, "full_attention"} and len(types) == count:
        found = tuple(i for i, kind in enumerate(types) if kind != near)
        return {"sliding_window": window, "full_every": every, "full_at": () if types == expected else found}
    if types is not None and types != expected:
        raise NotModelled(f"{id}: layer_types isn't full attention in each {every}. layer", hint="vram trace, with its config.json")
    no_rope = config.get("no_rope_layers") if chunked else None
    if no_rope and no_rope != [int(t == near) for t in expected]:
        raise NotModelled(f"{id}: no_rope_layers isn't full attention in each {every}. layer", hint="vram trace, with its config.json")
    return {"sliding_window": window, "full_every": every}


def _every(pattern: Any, usual: int, id: str) -> int:
    if isinstance(pattern, str) and pattern and set(pattern[:-1]) <= {"L"} and pattern.endswith("G"):
        return len(pattern)  # exaone4: LLLG
    every = pattern or usual
    if usual and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise UnreadableFile(f"{id}: sliding_window_pattern or sliding_window is missing or not a number", hint="the config as published")
    return int(every) if usual else 0


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How positions are scaled; of several kinds of layers, those that see everything."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    inner = rope.get("full_attention") if isinstance(rope, dict) else None
    return inner if isinstance(inner, dict) else rope if isinstance(rope, dict) else {}


def _rope_type(config: Mapping[str, Any]) -> str:
    return str(_rope(config).get("rope_type") or _rope(config).get("type") or "default")


def _rope_factor(config: Mapping[str, Any]) -> float:
    """Of linear scaling alone: the table of other kinds is as long as the positions."""
    factor = _rope(config).get("factor")
    sane = isinstance(factor, (int, float)) and not isinstance(factor, bool) and 1 <= factor <= 4096
    return float(factor) if sane and factor is not None and _rope_type(config) == "linear" else 1.0
