"""Config fields that single model types name in their own way, or that only they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calculator.errors import NotModelled, UnreadableFile
from calculator.readers.layer_heads import step_fields, windowed_heads
from calculator.spec import ByLayer, Indexer

_HINT = "the model's own config.json, as published"
_GPT = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner"}  # fmt: skip
# our field -> the config's; attribute maps of the config classes in transformers v5.23.0
_NAMES: dict[str, dict[str, str]] = {
    "gpt2": _GPT, "gptj": _GPT, "gpt_bigcode": _GPT, "nomic_bert": _GPT,
    "bloom": {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"},
    "mpt": {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "max_position_embeddings": "max_seq_len"},
    "opt": {"intermediate_size": "ffn_dim"}, "falcon": {"intermediate_size": "ffn_hidden_size"},
}  # fmt: skip
_FOUR_TIMES = ("gpt2", "gptj", "gpt_bigcode", "bloom", "mpt", "falcon", "nomic_bert")  # the feed-forward, where the config doesn't say
_POSITIONS = {"bloom": 2048, "falcon": 2048}  # the context of what was published; ALiBi and rotary positions have no table
_ENCODERS = ("bert", "roberta", "xlm-roberta", "nomic_bert")


def renamed(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """The config with the names and values that this package reads. Raises NotModelled for variants without formulas."""
    kind, found = str(config.get("model_type")), dict(config)
    for ours, theirs in _NAMES.get(kind, {}).items():
        if found.get(ours) is None and found.get(theirs) is not None:
            found[ours] = found[theirs]
    h = found.get("hidden_size")
    if kind in _FOUR_TIMES and found.get("intermediate_size") is None and isinstance(h, int):
        found["intermediate_size"] = 4 * h
    if kind in _POSITIONS and found.get("max_position_embeddings") is None:
        found["max_position_embeddings"] = _POSITIONS[kind]
    if kind == "gpt_bigcode" and found.get("multi_query", True):
        found["num_key_value_heads"] = 1
    if kind == "falcon":
        found["num_key_value_heads"] = _falcon_heads(found)
    if kind in ("gemma3n_text", "gemma4_text"):
        found |= _gemma(found, id)
    if kind in ("roberta", "xlm-roberta"):
        if config.get("pad_token_id", 1) != 1:
            raise NotModelled(f"{id}: positions from another number than 2 on", hint="vram trace, with its config.json")
        if isinstance(found.get("max_position_embeddings"), int):
            found["max_position_embeddings"] -= 2  # those before pad_token_id + 1 are never used
    if kind == "step3p5":
        found |= step_fields(found, id)
    if kind == "hy_v3" and found.get("moe_intermediate_size") is None:
        found["moe_intermediate_size"] = found.get("expert_hidden_dim")
    if kind in ("exaone_moe", "hy_v3"):
        found |= {"n_routed_experts": found.get("num_experts"), "n_shared_experts": found.get("num_shared_experts")}
    refused = _refused(kind, found)
    if refused:
        raise NotModelled(f"{id}: {refused}", hint="vram trace, with its config.json")
    return found


def own_fields(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """Fields of ModelSpec that only some model types have."""
    kind = config["model_type"]
    if kind in ("deepseek_v32", "glm_moe_dsa"):
        return {"indexer": Indexer(heads=_number(config, "index_n_heads", id), head_dim=_number(config, "index_head_dim", id), top_k=_number(config, "index_topk", id), full=_choosing(config))}
    if kind == "falcon":
        return {"block_norms": _falcon_norms(config)}
    if kind in _ENCODERS:
        return {"token_types": _number(config, "type_vocab_size", id), "labels": _labels(config)}
    if kind == "modernbert":
        return {"labels": _labels(config)}
    if kind == "mllama_text_model":
        layers = config.get("cross_attention_layers")
        if not isinstance(layers, list):
            raise UnreadableFile(f"{id}: cross_attention_layers is not a list", hint=_HINT)
        return {"cross_attention_layers": tuple(layers), "image_tokens": config.get("image_tokens", 0)}
    if kind in ("gemma3n_text", "gemma4_text"):
        return _by_layer(config, id)
    if kind == "step3p5":
        return windowed_heads(config, id)
    return {}


def _labels(config: Mapping[str, Any]) -> int:
    """Outputs of a classifier over the whole text, where the config names one: the labels it lists, or two."""
    names, listed = config.get("architectures"), config.get("id2label")
    if not isinstance(names, list) or not any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names):
        return 0
    return len(listed) if isinstance(listed, dict) and listed else 2


def _number(config: Mapping[str, Any], name: str, id: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise UnreadableFile(f"{id}: {name} {str(value)[:30]!r} is not a whole number", hint=_HINT)
    return value


def _falcon_heads(config: Mapping[str, Any]) -> Any:
    """Source: transformers v5.23.0 models/falcon/modeling_falcon.py FalconAttention."""
    if config.get("new_decoder_architecture"):
        return config.get("num_kv_heads") or config.get("num_attention_heads")
    return 1 if config.get("multi_query", True) else config.get("num_attention_heads")


def _falcon_norms(config: Mapping[str, Any]) -> int:
    """One where attention and feed-forward read the same, two where each has its own."""
    if config.get("new_decoder_architecture"):
        return config.get("num_ln_in_parallel_attn") or 2
    return 1 if config.get("parallel_attn", True) else 2


def _gemma(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """The pattern of layer types, one width of all feed-forwards, and no experts where they are off."""
    found: dict[str, Any] = {}
    types = config.get("layer_types")
    if isinstance(types, list) and "full_attention" in types:
        found["sliding_window_pattern"] = types.index("full_attention") + 1
    widths = config.get("intermediate_size")
    if isinstance(widths, list):
        if not widths or any(width != widths[0] for width in widths):
            raise NotModelled(f"{id}: feed-forwards of several widths", hint="vram trace, with its config.json")
        found["intermediate_size"] = widths[0]
    if config["model_type"] == "gemma4_text" and not config.get("enable_moe_block"):
        found |= {"num_experts": None}
    if config["model_type"] == "gemma4_text" and (config.get("num_hidden_layers") == 0 or (isinstance(types, list) and types and types[-1] != "full_attention")):
        raise NotModelled(f"{id}: a last layer with a window", hint="vram trace, with its config.json")
    return found


def _by_layer(config: Mapping[str, Any], id: str) -> dict[str, Any]:
    """What Gemma 3n and 4 have by layer; the experts of Gemma 4."""
    nano = config["model_type"] == "gemma3n_text"
    own: dict[str, Any] = {"input_width": _number(config, "hidden_size_per_layer_input", id), "kv_shared_layers": _number(config, "num_kv_shared_layers", id)}
    own["input_vocab"] = _number(config, "vocab_size_per_layer_input", id) if own["input_width"] else 0
    found: dict[str, Any] = {}
    if nano:
        own |= {"laurel_rank": _number(config, "laurel_rank", id), "altup_inputs": _number(config, "altup_num_inputs", id) if "altup_num_inputs" in config else 4}
    else:
        full = _full_layers(config)
        own |= {"full_head_dim": full.get("head_dim") or config.get("global_head_dim") or 0, "double_wide": bool(config.get("use_double_wide_mlp")),
                "values_are_keys": bool(config.get("attention_k_eq_v"))}  # fmt: skip
        if own["values_are_keys"]:
            own["full_kv_heads"] = full.get("num_key_value_heads") or config.get("num_global_key_value_heads") or 0
        if not own["full_head_dim"]:
            raise UnreadableFile(f"{id}: config lacks global_head_dim", hint=_HINT)
        if config.get("num_experts"):
            found = {"num_experts": config["num_experts"], "num_experts_per_tok": _number(config, "top_k_experts", id),
                     "expert_intermediate_size": _number(config, "moe_intermediate_size", id)}  # fmt: skip
    return found | {"by_layer": ByLayer(**own)}


def _full_layers(config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of one layer that sees everything, as newer configs list them."""
    listed = config.get("per_layer_config")
    first: Any = next(iter(listed.values()), {}) if isinstance(listed, dict) else {}
    return first if isinstance(first, dict) else {}


def _refused(kind: str, config: Mapping[str, Any]) -> str:
    """Variants of a model type that have other tensors, and that nothing popular has."""
    attention = config.get("attn_config")
    if kind == "mpt" and (config.get("no_bias") is False or (isinstance(attention, dict) and (not attention.get("alibi", True) or attention.get("qk_ln")))):
        return "MPT with biases, learned positions or norms of queries comes in a later version"
    if kind == "opt" and (config.get("do_layer_norm_before") is False or config.get("enable_bias") is False or config.get("layer_norm_elementwise_affine") is False
                          or config.get("word_embed_proj_dim") not in (None, config.get("hidden_size"))):  # fmt: skip
        return "OPT with norms after blocks or a narrower embedding (350M) comes in a later version"
    if kind == "phi" and config.get("qk_layernorm"):
        return "Phi with norms of queries and keys comes in a later version"
    if kind == "nomic_bert" and any(config.get(name) for name in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "num_experts")):
        return "Nomic BERT with biases or experts comes in a later version"
    if kind == "modernbert" and any(config.get(name) for name in ("attention_bias", "mlp_bias", "norm_bias")):
        return "ModernBERT with biases comes in a later version"
    types, layers = config.get("indexer_types"), config.get("num_hidden_layers")
    if kind == "glm_moe_dsa" and types is None and (config.get("index_topk_pattern") or (config.get("index_topk_freq") or 1) != 1):
        return "which layers share another layer's choice of tokens (indexer_types) isn't in it"
    if kind == "glm_moe_dsa" and types is not None and not (isinstance(types, list) and len(types) == layers and types[0] == "full" and all(t in ("full", "shared") for t in types)):
        return "indexer_types isn't full or shared for each layer, the first of them full"
    return ""


def _choosing(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The layers with an indexer, where some share the choice of the one before; () for all. Source: transformers v5.23.0 models/glm_moe_dsa."""
    types = config.get("indexer_types")
    found = tuple(i for i, kind in enumerate(types) if kind == "full") if isinstance(types, list) else ()
    return () if len(found) == len(types or ()) else found
