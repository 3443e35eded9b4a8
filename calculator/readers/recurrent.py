"""Configs of models with recurrent layers: which layer is what, and the dimensions of their state.

Each family says the same things in fields of its own. Source: transformers v5.23.0 models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from calculator.architectures import Architecture
from calculator.errors import NotModelled, UnreadableFile
from calculator.readers.untrusted import quoted
from calculator.spec import LayerKind, Recurrent

_HINT = "the model's own config.json, as published"
_KINDS: dict[str, LayerKind] = {
    "full_attention": "attention", "attention": "attention", "linear_attention": "recurrent", "mamba": "recurrent", "conv": "recurrent",
    "hybrid": "both", "mlp": "dense", "moe": "sparse", "*": "attention", "M": "recurrent", "-": "dense", "E": "sparse",
}  # fmt: skip
_WITH_MTP = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
_CHUNKED = ("falcon_h1", "bamba")  # whose published configs differ in mamba_chunk_size, or may
_NOT_ATTENDING = ("mamba", "falcon_mamba", "mamba2")
NO_LIMIT = 2**20  # tokens that llama.cpp's converter writes where a state-space model names no limit: conversion/mamba.py @0c1e57098


class Names(NamedTuple):
    """Fields that hold a state's dimensions."""

    heads: str
    head_dim: str
    groups: str
    state_size: str
    kernel: str
    bias: str = ""  # of the projections
    out_bias: str = ""  # of the one out, where it has a switch of its own
    conv_bias: str = ""


_DELTA = Names("linear_num_value_heads", "linear_value_head_dim", "linear_num_key_heads", "linear_key_head_dim", "linear_conv_kernel_dim")
_MAMBA_2 = Names("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_d_conv", "mamba_proj_bias", "", "mamba_conv_bias")
_NAMES: dict[str, Names] = {
    "qwen3_next": _DELTA, "qwen3_5_text": _DELTA, "qwen3_5_moe_text": _DELTA, "olmo_hybrid": _DELTA,
    "granitemoehybrid": _MAMBA_2, "bamba": _MAMBA_2, "falcon_h1": _MAMBA_2._replace(out_bias="projectors_bias"),
    "nemotron_h": Names("mamba_num_heads", "mamba_head_dim", "n_groups", "ssm_state_size", "conv_kernel", "use_bias", "", "use_conv_bias"),
    "mamba2": Names("num_heads", "mamba_head_dim", "n_groups", "state_size", "conv_kernel", "use_bias", "", "use_conv_bias"),
    "mamba": Names("", "", "", "state_size", "conv_kernel", "use_bias", "", "use_conv_bias"),
    "falcon_mamba": Names("", "", "", "state_size", "conv_kernel", "use_bias", "", "use_conv_bias"),
    "jamba": Names("", "", "", "mamba_d_state", "mamba_d_conv", "mamba_proj_bias", "", "mamba_conv_bias"),
}  # fmt: skip


def usual(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """The config with the fields that all models have under their usual names. Raises UnreadableFile."""
    kind, found = config["model_type"], dict(config)
    if kind in _NOT_ATTENDING:
        inner = config.get("intermediate_size")
        if inner is None or kind == "mamba2":
            inner = _whole(config, "expand", id) * _whole(config, "hidden_size", id)
        found |= {"mamba_head_dim": config.get("head_dim"), "num_attention_heads": 0, "num_key_value_heads": 0, "head_dim": 0, "intermediate_size": inner,
                  "max_position_embeddings": config.get("max_position_embeddings") or NO_LIMIT}  # fmt: skip
    elif kind == "nemotron_h":
        pattern = _nemotron_pattern(config, id)
        found |= {"num_hidden_layers": len(pattern), "head_dim": config.get("head_dim") or config.get("attention_head_dim")}
        if not {"E", "moe"} & set(map(str, pattern)):
            found["n_routed_experts"] = None
    elif kind == "kimi_linear":
        found |= {usual: config[own] for own, usual in _KIMI if config.get(own) is not None}
    elif kind in ("lfm2", "lfm2_moe"):
        found["tie_word_embeddings"] = config.get("tie_embedding", config.get("tie_word_embeddings"))
        found["intermediate_size"] = config.get("block_ff_dim", config.get("intermediate_size"))
        if kind == "lfm2" and config.get("block_auto_adjust_ff_dim", True):
            found["intermediate_size"] = _adjusted(found, id)
    elif kind == "qwen3_5_moe_text":
        found.setdefault("intermediate_size", config.get("moe_intermediate_size"))  # it has no layer that would use one
    if kind == "lfm2_moe" and config.get("use_expert_bias", True) is not True:
        raise NotModelled(f"{id}: lfm2_moe without use_expert_bias comes in a later version", hint="vram trace, with its config.json")
    if kind == "jamba" and config.get("num_experts") == 1:
        found["num_experts"] = 0
    return found


_KIMI = (("num_experts_per_token", "num_experts_per_tok"), ("num_shared_experts", "n_shared_experts"), ("model_max_length", "max_position_embeddings"))


def state(config: Mapping[str, Any], row: Architecture, id: str) -> dict[str, Any]:
    """What each layer is and the state of the recurrent ones; nothing for a model type that has none. Raises UnreadableFile."""
    if not row.recurrent:
        return {}
    count = _whole(config, "num_hidden_layers", id, high=10_000)
    layers = _layers(config, count, id)
    if len(layers) != count:
        raise UnreadableFile(f"{id}: {len(layers)} layer types for {count} layers", hint=_HINT)
    if unknown := [name for name in layers if not isinstance(name, str) or name not in _KINDS]:
        raise NotModelled(f"{id}: a layer of type {str(unknown[0])[:40]!r} has no formula", allowed=", ".join(_KINDS), hint="vram trace, with its config.json")
    if config["model_type"] == "granitemoehybrid" and set(layers) == {"attention"}:  # Granite 4.0 Micro: a hybrid in name
        return {}
    dimensions = _DIMENSIONS.get(config["model_type"], _plain)(config, row, id)
    found: dict[str, Any] = {"layer_types": tuple(_KINDS[name] for name in layers), "recurrent": replace(dimensions, state_bytes=_state_bytes(config))}
    if config["model_type"] in _WITH_MTP:
        found["mtp_layers"] = config.get("mtp_num_hidden_layers") or 0
    if config["model_type"] == "nemotron_h":
        found |= {"expert_latent_size": config.get("moe_latent_size") or 0, "mtp_layers": config.get("num_nextn_predict_layers") or 0}
    return found


_STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def _state_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of an element of the state, as the config asks for it: every published Qwen3.5 says float32."""
    said = config.get("mamba_ssm_dtype") or config.get("mamba_ssm_cache_dtype") or ("float32" if str(config["model_type"]).startswith("qwen3_5") else "")
    if said and str(said) not in _STATE_BYTES:
        raise UnreadableFile(f"the recurrent state's type {quoted(str(said))} in config.json", allowed=", ".join(_STATE_BYTES), hint="the config.json as published")
    return _STATE_BYTES.get(str(said), 0)


def _layers(config: Mapping[str, Any], count: int, id: str) -> list[Any]:
    kind = config["model_type"]
    if kind in _NOT_ATTENDING:
        return ["mamba"] * count
    if kind == "falcon_h1":
        return ["hybrid"] * count
    if kind == "nemotron_h":
        return _nemotron_pattern(config, id)
    if kind == "jamba" and not isinstance(config.get("layers_block_type"), list):
        period, offset = _whole(config, "attn_layer_period", id), _whole(config, "attn_layer_offset", id, low=0)
        return ["attention" if i % period == offset else "mamba" for i in range(count)]
    if kind == "kimi_linear" and isinstance(config.get("linear_attn_config"), dict):
        own = config["linear_attn_config"].get("full_attn_layers")
        return _listed([i - 1 for i in own if isinstance(i, int)] if isinstance(own, list) else own, count, id)  # counted from 1
    listed = config.get("layer_types") or (config.get("layers_block_type") if kind in ("granitemoehybrid", "jamba") else None)
    if isinstance(listed, list):
        return listed
    if kind == "bamba":
        return _listed(config.get("attn_layer_indices") or [], count, id)
    if kind == "lfm2" and config.get("full_attn_idxs") is not None:
        return _listed(config["full_attn_idxs"], count, id)
    if kind == "minimax" and isinstance(config.get("attn_type_list"), list):
        return ["attention" if softmax == 1 else "linear_attention" for softmax in config["attn_type_list"]]
    if kind in (*_WITH_MTP, "olmo_hybrid"):
        every = config.get("full_attention_interval", 4)
        if isinstance(every, int) and not isinstance(every, bool) and every > 0:
            return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    raise UnreadableFile(f"{id}: config lacks layer_types", hint=_HINT)


def _listed(indices: Any, count: int, id: str) -> list[str]:
    if not isinstance(indices, list) or len(indices) > count or not all(isinstance(i, int) and 0 <= i < count for i in indices):
        raise UnreadableFile(f"{id}: the layers that attend aren't a list of layers", hint=_HINT)
    return ["attention" if i in set(indices) else "mamba" for i in range(count)]


def _nemotron_pattern(config: Mapping[str, Any], id: str) -> list[Any]:
    pattern = config.get("layers_block_type") or config.get("layer_types") or config.get("hybrid_override_pattern")
    if not isinstance(pattern, (str, list)) or not pattern or len(pattern) > 10_000:
        raise UnreadableFile(f"{id}: config lacks hybrid_override_pattern", hint=_HINT)
    return list(pattern)


def _plain(config: Mapping[str, Any], row: Architecture, id: str) -> Recurrent:
    """Heads, groups and state under the names of the family; without heads, Mamba 1."""
    kind = config["model_type"]
    names = _NAMES[kind]
    kernel, size = _whole(config, names.kernel, id, high=1024), _whole(config, names.state_size, id)
    bias = _switch(config, names.bias, id)
    biases = {"conv_bias": _switch(config, names.conv_bias, id, absent=True), "in_bias": bias,
              "out_bias": _switch(config, names.out_bias, id) if names.out_bias else bias}  # fmt: skip
    hidden = _whole(config, "hidden_size", id)
    if row.recurrent == "mamba":
        inner = _whole(config, "mamba_expand", id) * hidden if kind == "jamba" else _whole(config, "intermediate_size", id)
        rank = config.get("mamba_dt_rank" if kind == "jamba" else "time_step_rank", "auto")
        return Recurrent("mamba", inner, 1, 0, size, kernel, dt_rank=-(-hidden // 16) if rank == "auto" else _number(rank, "time_step_rank", id), **biases)
    heads, groups = _whole(config, names.heads, id), _whole(config, names.groups, id)
    dim, wide = config.get(names.head_dim), config.get("mamba_d_ssm") if kind == "falcon_h1" else None
    if dim == "auto" or (dim is None and names is not _DELTA):
        dim = (wide or _whole(config, "mamba_expand", id) * hidden) // heads
    if row.recurrent == "delta":
        return Recurrent("delta", heads, _number(dim, names.head_dim, id), groups, size, kernel)
    norm = _switch(config, "mamba_rms_norm", id) if kind == "falcon_h1" else True
    chunk = config.get("mamba_chunk_size") if kind in _CHUNKED else None
    return Recurrent("mamba2", heads, _number(dim, names.head_dim, id), groups, size, kernel, norm=norm, **biases,
                     chunk_size=0 if chunk is None else _number(chunk, "mamba_chunk_size", id, high=2**20))  # fmt: skip


def _conv(config: Mapping[str, Any], row: Architecture, id: str) -> Recurrent:  # noqa: ARG001
    bias = _switch(config, "conv_bias", id)
    return Recurrent("conv", _whole(config, "hidden_size", id), 1, 0, 0, _whole(config, "conv_L_cache", id, high=1024), conv_bias=bias, in_bias=bias, out_bias=bias)


def _lightning(config: Mapping[str, Any], row: Architecture, id: str) -> Recurrent:  # noqa: ARG001
    heads = _whole(config, "num_attention_heads", id)
    dim = _whole(config, "head_dim", id) if config.get("head_dim") is not None else _whole(config, "hidden_size", id) // heads
    return Recurrent("lightning", heads, dim, 0, dim, 0)


def _kda(config: Mapping[str, Any], row: Architecture, id: str) -> Recurrent:  # noqa: ARG001
    own = config.get("linear_attn_config")
    if not isinstance(own, dict):
        own = {"num_heads": config.get("linear_num_heads"), "head_dim": config.get("linear_head_dim"), "short_conv_kernel_size": config.get("linear_conv_kernel_dim")}
    heads, dim = _whole(own, "num_heads", id), _whole(own, "head_dim", id)
    return Recurrent("kda", heads, dim, heads, dim, _whole(own, "short_conv_kernel_size", id, high=1024))


_DIMENSIONS: dict[str, Callable[[Mapping[str, Any], Architecture, str], Recurrent]] = {
    "lfm2": _conv, "lfm2_moe": _conv, "minimax": _lightning, "kimi_linear": _kda,
}  # fmt: skip


def _adjusted(config: Mapping[str, Any], id: str) -> int:
    """LFM2's feed-forward: two thirds of the width, times a factor, up to a multiple.

    Source: transformers v5.23.0 models/lfm2/modeling_lfm2.py Lfm2MLP.
    """
    width, step, factor = 2 * _whole(config, "intermediate_size", id) // 3, _number(config.get("block_multiple_of", 256), "block_multiple_of", id), config.get("block_ffn_dim_multiplier", 1)
    if factor is not None:
        if not isinstance(factor, (int, float)) or not 0 < factor < 1000:
            raise UnreadableFile(f"{id}: block_ffn_dim_multiplier {str(factor)[:30]!r} is not a factor", hint=_HINT)
        width = int(factor * width)
    return -(-width // step) * step


def _whole(config: Mapping[str, Any], name: str, id: str, *, low: int = 1, high: int = 2**31) -> int:
    if config.get(name) is None:
        raise UnreadableFile(f"{id}: config lacks {name}", hint=_HINT)
    return _number(config[name], name, id, low=low, high=high)


def _number(value: Any, name: str, id: str, *, low: int = 1, high: int = 2**31) -> int:
    if type(value) is not int or not low <= value <= high:
        raise UnreadableFile(f"{id}: {name} {str(value)[:30]!r} is not a whole number of {low} to {high:,}", hint=_HINT)
    return value


def _switch(config: Mapping[str, Any], name: str, id: str, *, absent: bool = False) -> bool:
    value = config.get(name) if name else None
    if value is not None and not isinstance(value, bool):
        raise UnreadableFile(f"{id}: {name} {str(value)[:30]!r} is not true or false", hint=_HINT)
    return absent if value is None else value
