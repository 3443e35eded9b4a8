"""Hugging Face config.json -> ModelSpec. Missing fields are refused by name, never filled from a class default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calculator.architectures import ARCHITECTURES, architecture
from calculator.errors import NotModelled, UnknownArchitecture, UnreadableFile
from calculator.readers.untrusted import LocalFile, inside, read_json, shown
from calculator.spec import ModelSpec

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
        return read_json(source, limit=MAX_BYTES)


def model_from_config(config: Mapping[str, Any], *, id: str, trusted: bool = False) -> ModelSpec:
    """ModelSpec from the fields of a config.json of a known model type; `trusted`: shipped data, checked by the tests.

    Raises UnreadableFile (missing or impossible field), UnknownArchitecture, NotModelled.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnreadableFile(f"{id}: config has no model_type", hint="the model's own config.json, as published")
    row = architecture(model_type)
    if config.get("quantization_config") is not None:
        raise NotModelled(
            f"{id}: config of an already quantized checkpoint",
            hint="the config.json of the unquantized model, with --quant naming the format",
        )
    if missing := [name for name in _REQUIRED if config.get(name) is None]:
        raise UnreadableFile(f"{id}: config lacks {', '.join(missing)}", hint="the model's own config.json, as published")
    heads = config["num_attention_heads"]
    tied = config.get("tie_word_embeddings")
    fields: dict[str, Any] = {
        **{name: config[name] for name in _REQUIRED},
        "id": id,
        "model_type": model_type,
        # absent means multi-head attention, and hidden_size / heads: configuration_llama.py __post_init__
        "num_key_value_heads": heads if config.get("num_key_value_heads") is None else config["num_key_value_heads"],
        "head_dim": _head_dim(config, id) if config.get("head_dim") is None else config["head_dim"],
        # transformers' base class ties unless told otherwise; all but gemma's configs override it to false
        "tie_word_embeddings": row.tied if tied is None else tied,
        "dtype": _dtype(config, id),
        "sliding_window": _window(config),
        "attention_bias": _attention_bias(config, row.attention_bias, id),
        "mlp_bias": config.get("mlp_bias") or False,
        "rope_type": _rope_type(config),
        "full_every": _full_every(config, row.full_every, id),
        **_experts(config, id),
    }
    if config.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise NotModelled(f"{id}: rotary embeddings over a part of head_dim come in a later version", hint="vram trace, with its config.json")
    if not trusted:
        from calculator.readers.inputs import check_model

        check_model(fields)
    return ModelSpec(**fields)


def _head_dim(config: Mapping[str, Any], id: str) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise UnreadableFile(
            f"{id}: head_dim is absent and num_attention_heads {str(heads)[:20]} doesn't divide "
            f"hidden_size {str(hidden)[:20]}",
            hint="adding head_dim to the config",
        )
    return hidden // heads


def _attention_bias(config: Mapping[str, Any], usual: str, id: str) -> str:
    """A setting of llama alone: mistral and qwen2 ignore it."""
    bias = config.get("attention_bias", False)
    if not isinstance(bias, bool):
        raise UnreadableFile(f"{id}: attention_bias {str(bias)[:30]!r} is not true or false", hint="the config as published")
    return "qkvo" if bias and config["model_type"] == "llama" else usual


def _dtype(config: Mapping[str, Any], id: str) -> str:
    dtype = config.get("dtype") or config.get("torch_dtype")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UnreadableFile(
            f"{id}: torch_dtype {str(dtype)[:30]!r} is not understood", allowed="float32, bfloat16, float16"
        )
    return str(dtype)


def _window(config: Mapping[str, Any]) -> int | None:
    if config["model_type"] == "llama":  # has no windows, whatever its config says
        return None
    # qwen configs carry a window that is off unless use_sliding_window says so
    if config.get("use_sliding_window", not config["model_type"].startswith("qwen")) is False:
        return None
    return config.get("sliding_window")


def _full_every(config: Mapping[str, Any], usual: int, id: str) -> int:
    """Each n-th layer sees everything; a list of layer types that isn't of this form is refused."""
    every = config.get("sliding_window_pattern") or usual
    if not usual:
        return 0
    if not isinstance(every, int) or every < 1 or not config.get("sliding_window"):
        raise UnreadableFile(f"{id}: sliding_window_pattern or sliding_window is missing or not a number", hint="the config as published")
    types = config.get("layer_types")
    count = config["num_hidden_layers"]
    expected = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(min(count, 10_000) if isinstance(count, int) else 0)]
    if types is not None and types != expected:
        raise NotModelled(f"{id}: layer_types isn't full attention in each {every}. layer", hint="vram trace, with its config.json")
    return every


def _experts(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """Experts, those used for a token, and the width of one; none for a dense model."""
    count = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    if config["model_type"] not in ("mixtral", "qwen3_moe"):
        if count:
            raise UnknownArchitecture(f"{id}: a {config['model_type']} with experts has no formulas here and is not guessed",
                                      allowed=", ".join(ARCHITECTURES))  # fmt: skip
        return {}
    width = config.get("moe_intermediate_size") if config["model_type"] == "qwen3_moe" else config["intermediate_size"]
    found = {"num_experts": count, "num_experts_per_tok": config.get("num_experts_per_tok"), "expert_intermediate_size": width}
    if missing := [name for name, value in found.items() if value is None]:
        raise UnreadableFile(f"{id}: config lacks {', '.join(missing)}", hint="the model's own config.json, as published")
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise NotModelled(f"{id}: layers without experts beside layers with them come in a later version", hint="vram trace, with its config.json")
    return found


def _rope_type(config: Mapping[str, Any]) -> str:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return str(rope.get("rope_type") or rope.get("type") or "default") if isinstance(rope, dict) else "default"
