"""Hugging Face config.json -> ModelSpec. Missing fields are refused by name, never filled from a class default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calculator.architectures import ARCHITECTURES, architecture
from calculator.errors import NotModelled, UnknownArchitecture, UnreadableFile
from calculator.spec import ModelSpec

MAX_BYTES = 4 * 2**20  # a config.json is a few KiB

_REQUIRED = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """The object in a config.json, or in a folder that holds one. Raises UnreadableFile."""
    try:
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise UnreadableFile(f"{file} is not a file", hint="a config.json or a folder that holds one")
        if file.stat().st_size > MAX_BYTES:
            raise UnreadableFile(f"{file} is larger than 4 MiB", hint="the model's config.json")
        config = json.loads(file.read_bytes(), parse_constant=lambda c: _refuse(file, f"holds {c}"))
    except (OSError, ValueError, RecursionError) as e:
        raise UnreadableFile(f"{str(path)[-80:]} is not readable JSON ({str(e)[:80]})", hint="the model's config.json") from None
    if not isinstance(config, dict):
        raise UnreadableFile(f"{file} doesn't hold a JSON object", hint="the model's config.json")
    return config


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
    if any(config.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise UnknownArchitecture(f"{id}: a {model_type} with experts has no formulas here and is not guessed",
                                  allowed=", ".join(ARCHITECTURES))  # fmt: skip
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
        # transformers' base class ties unless told otherwise; llama, mistral and qwen2 configs override it to false
        "tie_word_embeddings": False if tied is None else tied,
        "dtype": _dtype(config, id),
        "sliding_window": _window(config),
        "attention_bias": _attention_bias(config, row.attention_bias, id),
        "mlp_bias": config.get("mlp_bias") or False,
        "rope_type": _rope_type(config),
    }
    if not trusted:
        from calculator.readers.inputs import check_model

        check_model(fields)
    return ModelSpec(**fields)


def _refuse(file: Path, what: str) -> None:
    raise UnreadableFile(f"{file} {what}", hint="the model's config.json")


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
    # qwen2 configs carry a window that is off unless use_sliding_window says so
    if config.get("use_sliding_window", config["model_type"] != "qwen2") is False:
        return None
    return config.get("sliding_window")


def _rope_type(config: Mapping[str, Any]) -> str:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return str(rope.get("rope_type") or rope.get("type") or "default") if isinstance(rope, dict) else "default"
