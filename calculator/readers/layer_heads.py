"""Configs of models whose windowed layers have heads of their own, as published and as transformers writes them.

Source: transformers v5.23.0 models/step3p7/configuration_step3p7.py Step3p7TextConfig, which reads both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calculator.errors import NotModelled, UnreadableFile
from calculator.spec import Windowed

_HINT = "the model's own config.json, as published"
_STEP = {"num_key_value_heads": "num_attention_groups", "n_routed_experts": "moe_num_experts", "num_experts_per_tok": "moe_top_k", "share_expert_dim": "share_expert_dims",
         "num_nextn_predict_layers": "num_mtp_layers"}  # fmt: skip


def step_fields(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """Step 3.5's fields under their usual names; lists by layer without the entries of its MTP layers."""
    found: dict[str, Any] = {ours: config[theirs] for ours, theirs in _STEP.items() if config.get(ours) is None and config.get(theirs) is not None}
    count = config.get("num_hidden_layers")
    if not isinstance(count, int) or not 0 < count < 10_000:
        raise UnreadableFile(f"{id}: num_hidden_layers {str(count)[:30]!r} is not a number of layers", hint=_HINT)
    if config.get("use_head_wise_attn_gate") is False:
        raise NotModelled(f"{id}: step3p5 without a gate a head comes in a later version", hint="vram trace, with its config.json")
    listed = config.get("layer_types")
    if not isinstance(listed, list) or len(listed) < count:
        raise UnreadableFile(f"{id}: config lacks layer_types", hint=_HINT)
    types = found["layer_types"] = listed[:count]
    found["first_k_dense_replace"] = _first_sparse(config, count, id)
    turned = config.get("partial_rotary_factors")
    if isinstance(turned, list) and len(turned) >= count:
        kinds = {kind: {turned[i] for i in range(count) if types[i] == kind} for kind in ("full_attention", "sliding_attention")}
        if kinds["sliding_attention"] not in (set(), {1}) or len(kinds["full_attention"]) > 1:
            raise NotModelled(f"{id}: layers of one kind that are turned differently, or windowed ones in part", hint="vram trace, with its config.json")
        found["partial_rotary_factor"] = next(iter(kinds["full_attention"]), 1)
    rope = config.get("rope_parameters")
    full = rope.get("full_attention") if isinstance(rope, dict) else None
    if isinstance(full, dict) and "partial_rotary_factor" in full:
        found["partial_rotary_factor"] = full["partial_rotary_factor"]
    return found


def windowed_heads(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """Heads of windowed layers, where the config gives them their own."""
    other = config.get("attention_other_setting")
    other = other if isinstance(other, dict) else {}
    heads = config.get("num_sliding_attention_heads") or other.get("num_attention_heads")
    groups = other.get("num_attention_groups") or config.get("num_key_value_heads")
    if heads is None:
        return {}
    if type(heads) is not int or type(groups) is not int or heads < 1 or groups < 1:
        raise UnreadableFile(f"{id}: heads of windowed layers {str(heads)[:20]!r} and {str(groups)[:20]!r} are not whole numbers", hint=_HINT)
    if groups != config.get("num_key_value_heads") or other.get("head_dim", config.get("head_dim")) != config.get("head_dim"):
        raise NotModelled(f"{id}: windowed layers with rows of another width in the cache", hint="vram trace, with its config.json")
    same = heads == config.get("num_attention_heads")
    return {} if same else {"windowed": Windowed(heads, groups)}


def _first_sparse(config: Mapping[str, Any], count: int, id: str) -> int:
    """Layers before those with experts, from either list of layers; all others have them."""
    types, numbers = config.get("mlp_layer_types"), config.get("moe_layers_enum")
    if isinstance(types, list):
        sparse = [i for i, kind in enumerate(types[:count]) if kind == "sparse"]
    elif isinstance(numbers, (str, list)):
        words = numbers.split(",") if isinstance(numbers, str) else numbers
        if not all(str(word).strip().isdigit() for word in words):
            raise UnreadableFile(f"{id}: moe_layers_enum isn't a list of layers", hint=_HINT)
        sparse = sorted(int(str(word)) for word in words)
    else:
        raise UnreadableFile(f"{id}: config lacks moe_layers_enum", hint=_HINT)
    if sparse != list(range(count - len(sparse), count)):
        raise NotModelled(f"{id}: layers with experts that aren't the last ones", hint="vram trace, with its config.json")
    return count - len(sparse)
