"""Fields of a config that say which layers have experts, how many, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calculator.architectures import Architecture
from calculator.errors import NotModelled, UnknownArchitecture, UnreadableFile
from calculator.spec import Routing

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_USED = ("num_experts_per_tok", "moe_topk", "moe_k")
_FIRST_DENSE = ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe", "glm4_moe_lite", "deepseek_v32", "glm_moe_dsa", "dots1", "solar_open", "exaone_moe", "kimi_linear", "mistral4", "step3p5", "hy_v3")
_BY_LIST = ("glm4_moe_lite", "glm_moe_dsa", "exaone_moe", "hy_v3")  # a list of dense and sparse layers may say which are first
_HINT = "the model's own config.json, as published"


def experts(config: Mapping[str, Any], row: Architecture, id: str) -> dict[str, Any]:
    """Experts, those used for a token, their width, shared ones, and the layers that have them; nothing for a dense model."""
    kind, count = config["model_type"], _first(config, _COUNTS)
    if kind == "gemma4_text":  # beside its feed-forwards: own_fields.py
        return {}
    if not row.expert_width:
        if count:
            raise UnknownArchitecture(f"{id}: a {kind} with experts has no formulas here and is not guessed", hint="vram trace, with its config.json")
        return {}
    if row.recurrent and not count:  # Granite 4, Nemotron-H and Jamba have dense sizes under the same name
        return {"shared_expert_intermediate_size": _shared(config, kind, 0, id)} if kind == "granitemoehybrid" else {}
    if not isinstance(config.get("num_hidden_layers"), int):
        raise UnreadableFile(f"{id}: num_hidden_layers {str(config.get('num_hidden_layers'))[:30]!r} is not a whole number", hint=_HINT)
    width = _same(config.get(row.expert_width) if kind != "hunyuan_v1_moe" else config.get("moe_intermediate_size") or config["intermediate_size"], id)
    found = {"num_experts": count, "num_experts_per_tok": _same(_first(config, _USED), id), "expert_intermediate_size": width}
    if missing := [name for name, value in found.items() if value is None]:
        raise UnreadableFile(f"{id}: config lacks {', '.join(missing)}", hint=_HINT)
    if config.get("mlp_only_layers"):
        raise NotModelled(f"{id}: mlp_only_layers come in a later version", hint="vram trace, with its config.json")
    if kind in ("mixtral", "olmoe", "granitemoe", "phimoe", "gpt_oss", "minimax_m2") and config.get("n_shared_experts"):
        raise NotModelled(f"{id}: shared experts in {kind} come in a later version", hint="vram trace, with its config.json")
    found["routing"] = _routing(config, kind, id)
    found |= {"shared_expert_intermediate_size": _shared(config, kind, width, id), **_layers(config, kind, id)}
    if kind == "llama4_text":  # its intermediate_size is an expert's; dense layers have their own
        found["intermediate_size"] = config.get("intermediate_size_mlp") or config["intermediate_size"]
    if kind == "hunyuan_v1_moe" and width != config["intermediate_size"]:
        raise NotModelled(f"{id}: experts of another width than intermediate_size in {kind}", hint="vram trace, with its config.json")
    return found


def _shared(config: Mapping[str, Any], kind: str, width: Any, id: str) -> Any:
    """Width of all shared experts together."""
    own = {"qwen2_moe": "shared_expert_intermediate_size", "qwen3_next": "shared_expert_intermediate_size", "qwen3_5_moe_text": "shared_expert_intermediate_size",
           "granitemoehybrid": "shared_intermediate_size", "step3p5": "share_expert_dim", "nemotron_h": "moe_shared_expert_intermediate_size"}.get(kind)  # fmt: skip
    if own:
        return config.get(own) or 0
    if kind == "minimax" and config.get("shared_intermediate_size"):
        raise NotModelled(f"{id}: shared experts in {kind} come in a later version", hint="vram trace, with its config.json")
    if kind == "llama4_text":
        return width
    count = {"ernie4_5_moe": config.get("moe_num_shared_experts"), "hunyuan_v1_moe": 1}.get(kind, config.get("n_shared_experts")) or 0
    if kind == "hunyuan_v1_moe" and _same(config.get("num_shared_expert", 1), id) != 1:
        raise NotModelled(f"{id}: several shared experts in {kind}", hint="vram trace, with its config.json")
    if not isinstance(count, int) or not isinstance(width, int):
        raise UnreadableFile(f"{id}: the number of shared experts {str(count)[:30]!r} is not a whole number", hint=_HINT)
    return count * width


def _layers(config: Mapping[str, Any], kind: str, id: str) -> dict[str, Any]:
    if kind == "ernie4_5_moe":
        last = config.get("moe_layer_end_index", -1)
        if last not in (-1, config["num_hidden_layers"] - 1):
            raise NotModelled(f"{id}: moe_layer_end_index {last!r} comes in a later version", hint="vram trace, with its config.json")
        return {"first_dense_layers": config.get("moe_layer_start_index", 1), "expert_every": config.get("moe_layer_interval", 1)}
    if kind == "llama4_text":
        step, listed, count = config.get("interleave_moe_layer_step", 1), config.get("moe_layers"), config["num_hidden_layers"]
        if listed and isinstance(count, int) and isinstance(step, int) and step > 0 and listed != list(range(step - 1, min(count, 10_000), step)):
            raise NotModelled(f"{id}: moe_layers isn't each {step}. layer", hint="vram trace, with its config.json")
        return {"expert_every": step}
    if kind == "jamba":
        period = config.get("expert_layer_period")
        if config.get("expert_layer_offset") != (period - 1 if isinstance(period, int) else None):
            raise NotModelled(f"{id}: expert_layer_offset isn't the last of each expert_layer_period", hint="vram trace, with its config.json")
        return {"expert_every": period}
    if kind == "lfm2_moe":
        return {"first_dense_layers": config.get("num_dense_layers", 0)}
    if kind in ("qwen2_moe", "qwen3_moe", "qwen3_next"):
        return {"expert_every": config.get("decoder_sparse_step", 1)}
    if kind not in _FIRST_DENSE:
        return {}
    if kind == "solar_open":
        return {}
    if kind in _BY_LIST:
        return {"first_dense_layers": _first_dense(config, id), "mtp_layers": config.get("num_nextn_predict_layers") or 0}
    if config.get("first_k_dense_replace") is None:
        raise UnreadableFile(f"{id}: config lacks first_k_dense_replace", hint=_HINT)
    if config.get("moe_layer_freq", 1) != 1:
        raise NotModelled(f"{id}: moe_layer_freq {str(config['moe_layer_freq'])[:20]} comes in a later version", hint="vram trace, with its config.json")
    mtp = config.get("num_nextn_predict_layers") or 0
    return {"first_dense_layers": config.get("first_k_dense_replace") or 0, "mtp_layers": mtp}


def _routing(config: Mapping[str, Any], kind: str, id: str) -> Routing:
    """Of families with a say in it: the config's, and what an absent field means (configuration_deepseek_v3.py)."""
    if not kind.startswith(("deepseek", "kimi", "glm4_moe", "glm_moe", "solar_open", "dots1", "exaone_moe", "mistral4")):
        return Routing()
    normalized, scale = config.get("norm_topk_prob"), config.get("routed_scaling_factor")
    groups, used = config.get("n_group") or 1, config.get("topk_group") or 1
    for name, value, kinds in (("norm_topk_prob", normalized, bool), ("routed_scaling_factor", scale, (int, float)), ("n_group", groups, int), ("topk_group", used, int)):
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)):
            raise UnreadableFile(f"{id}: {name} {str(value)[:30]!r} is not understood", hint=_HINT)
    return Routing(normalized=bool(normalized), scale=float(scale or 1.0), groups=groups, groups_used=used)


def _first_dense(config: Mapping[str, Any], id: str) -> Any:
    """From a list of layer types, dense ones first; one where neither says."""
    types = config.get("mlp_layer_types")
    if types is None:
        return 1 if config.get("first_k_dense_replace") is None else config["first_k_dense_replace"]
    dense = types.count("dense") if isinstance(types, list) else 0
    if types != ["dense"] * dense + ["sparse"] * (config["num_hidden_layers"] - dense):
        raise NotModelled(f"{id}: mlp_layer_types isn't dense layers and then sparse ones", hint="vram trace, with its config.json")
    return dense


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _same(value: Any, id: str) -> Any:
    """A number, or a list of one number for each layer."""
    if isinstance(value, list):
        if len(set(map(str, value))) != 1:
            raise NotModelled(f"{id}: layers that differ in their experts come in a later version", hint="vram trace, with its config.json")
        return value[0]
    return value
