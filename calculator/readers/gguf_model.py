"""A GGUF header's metadata -> the fields of a Hugging Face config, for the architectures that we have formulas of.

Source: llama.cpp @0c1e57098 src/llama-arch.cpp (keys), src/llama-model.cpp load_hparams, convert_hf_to_gguf.py.
"""

from __future__ import annotations

from typing import Any

from calculator.architectures import architecture
from calculator.errors import NotModelled, UnknownArchitecture, UnreadableFile
from calculator.readers.gguf_families import FAMILIES
from calculator.readers.header import Header
from calculator.readers.untrusted import quoted

_KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length", "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length", "sliding_window": "attention.sliding_window",
}  # fmt: skip
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
# what would change the inventory or the cache, and is understood only where a family reads it
_FOREIGN = ("expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "attention.kv_lora_rank", "attention.indexer.head_count",
            "attention.shared_kv_layers", "embedding_length_per_layer_input", "ssm.state_size")  # fmt: skip


def config_of(header: Header) -> dict[str, Any]:
    """Fields of a config.json. Raises UnknownArchitecture, NotModelled, UnreadableFile."""
    name, metadata = header.files[0], header.metadata
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise UnreadableFile(f"{name} has no general.architecture", hint="the first part of a model, not an adapter or a tokenizer alone")
    if arch not in FAMILIES:
        what = "a vision or audio projector, not a language model" if arch == "clip" else "an architecture without formulas here; it is not guessed"
        raise UnknownArchitecture(f"{name}: {quoted(arch)} is {what}", allowed=", ".join(FAMILIES), hint="vram inspect, which shows what the file holds")
    if metadata.get("general.type", "model") != "model":
        raise UnreadableFile(f"{name} holds a {quoted(str(metadata['general.type']))}, not a model", hint="the model's own file")
    family, own = FAMILIES[arch], {k.removeprefix(f"{arch}."): v for k, v in metadata.items() if k.startswith(f"{arch}.")}
    shapes = {t.name: t.shape for t in header.tensors}
    try:
        said = family.fields(own, shapes)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise UnreadableFile(f"{name}: metadata of {arch} that can't be: {str(e)[:60]}", hint="the model's own file, as published") from None
    config = {field: said[field] if field in said else _uniform(own.get(key), key, name) for field, key in _KEYS.items()}
    config = {field: value for field, value in config.items() if value is not None and not (field in ("num_experts", "sliding_window") and value == 0)}
    if missing := [f"{arch}.{_KEYS[field]}" for field in _REQUIRED if field not in config]:
        raise UnreadableFile(f"{name} lacks {', '.join(missing)}", hint="the model's own file, as published")
    if found := [key for key in _FOREIGN if own.get(key) and key not in family.reads]:
        raise NotModelled(f"{name}: {arch} with {found[0]} has no formulas here", hint="vram inspect, which shows what the file holds")
    config |= {"model_type": family.model_type, "vocab_size": _vocabulary(header, arch, shapes), "tie_word_embeddings": "output.weight" not in shapes,
               "dtype": "bfloat16" if any(t.type == "BF16" for t in header.tensors) else "float16", "rope_scaling": {"type": _rope(own, shapes)},
               "head_dim": _head_dim(config), **_biases(shapes), **_windows(own, family.model_type)}  # fmt: skip
    config |= said
    if "kv_lora_rank" in config:
        return config
    key_length, value_length = own.get("attention.key_length", config.get("head_dim")), own.get("attention.value_length")
    if value_length is not None and value_length != key_length:
        raise NotModelled(f"{name}: values of {str(value_length)[:20]} elements a head beside keys of {str(key_length)[:20]}", hint="vram inspect")
    return config | _rotary(config, own.get("rope.dimension_count"), name)


def _head_dim(config: dict[str, Any]) -> Any:
    """The file's, or as llama.cpp takes it where the file says nothing: whatever a config class would say."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if "head_dim" in config or not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return config.get("head_dim")
    return hidden // heads


def _biases(shapes: dict[str, tuple[int, ...]]) -> dict[str, bool]:
    """The switches of config classes, as the file's first layer has them."""
    attention = any(f"blk.0.{name}.bias" in shapes for name in ("attn_q", "attn_qkv", "attn_output"))
    inner = any(f"blk.0.{name}.bias" in shapes for name in ("ffn_down", "ffn_up"))
    return {"attention_bias": attention, "mlp_bias": inner, "use_bias": attention or inner}


def _windows(own: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Which layers have a window, where the file lists them."""
    pattern = own.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if near else "full_attention" for near in pattern]} if architecture(model_type).full_every else {}
    return {"sliding_window_pattern": pattern} if pattern else {}


def _uniform(value: Any, key: str, name: str) -> Any:
    """A number, or the one that a per-layer array repeats."""
    if not isinstance(value, list):
        return value
    if not value or any(v != value[0] for v in value):
        raise NotModelled(f"{name}: {key} differs between layers", hint="vram inspect, which shows what the file holds")
    return value[0]


def _vocabulary(header: Header, arch: str, shapes: dict[str, tuple[int, ...]]) -> int:
    """Rows of the embedding: what is stored, whatever the metadata says."""
    shape = shapes.get("token_embd.weight")
    if shape is None or len(shape) != 2:
        raise UnreadableFile(f"{header.files[0]} has no token_embd.weight of two dimensions", hint=f"a complete {arch} model")
    return shape[0]


def _rope(own: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> str:
    if "rope_freqs.weight" in shapes:
        return "llama3"
    if "rope_factors_long.weight" in shapes:
        return "longrope"
    kind = own.get("rope.scaling.type", "default")
    return kind if isinstance(kind, str) and kind != "none" else "default"


def _rotary(config: dict[str, Any], dimensions: Any, name: str) -> dict[str, float]:
    """The share of a head that is turned, where a model type may turn a part."""
    head_dim, row = config.get("head_dim"), architecture(config["model_type"])
    if not isinstance(dimensions, int) or not isinstance(head_dim, int) or head_dim < 1 or dimensions == head_dim:
        return {}
    if row.partial_rotary:
        return {"partial_rotary_factor": dimensions / head_dim}
    if "transformers" in row.engines:
        raise NotModelled(f"{name}: rotary embeddings over {str(dimensions)[:20]} of {head_dim} elements of a head come in a later version", hint="vram inspect")
    return {}
