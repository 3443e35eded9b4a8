"""A GGUF header's metadata -> the fields of a Hugging Face config, for the architectures that we have formulas of.

Source: llama.cpp @0c1e57098 src/llama-arch.cpp (keys), src/llama-model.cpp load_hparams, convert_hf_to_gguf.py.
"""

from __future__ import annotations

from typing import Any

from calculator.errors import NotModelled, UnknownArchitecture, UnreadableFile
from calculator.readers.header import Header
from calculator.readers.untrusted import quoted

# llama.cpp's architecture -> model type; llama with experts is mixtral. Mistral's files say llama, too.
MODEL_TYPES: dict[str, str] = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3_text",
}  # fmt: skip

_KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length", "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length", "num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length", "sliding_window": "attention.sliding_window",
}  # fmt: skip
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
# what would change the inventory or the cache, and that none of the architectures above has
_FOREIGN = ("expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "attention.kv_lora_rank", "ssm.state_size")


def config_of(header: Header) -> dict[str, Any]:
    """Fields of a config.json. Raises UnknownArchitecture, NotModelled, UnreadableFile."""
    name, metadata = header.files[0], header.metadata
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise UnreadableFile(f"{name} has no general.architecture", hint="the first part of a model, not an adapter or a tokenizer alone")
    if arch not in MODEL_TYPES:
        what = "a vision or audio projector, not a language model" if arch == "clip" else "an architecture without formulas here; it is not guessed"
        raise UnknownArchitecture(f"{name}: {quoted(arch)} is {what}", allowed=", ".join(MODEL_TYPES), hint="vram inspect, which shows what the file holds")
    if metadata.get("general.type", "model") != "model":
        raise UnreadableFile(f"{name} holds a {quoted(str(metadata['general.type']))}, not a model", hint="the model's own file")
    config = {field: _uniform(metadata.get(f"{arch}.{key}"), key, name) for field, key in _KEYS.items()}
    config = {field: value for field, value in config.items() if value is not None and not (field == "num_experts" and value == 0)}
    if missing := [f"{arch}.{_KEYS[field]}" for field in _REQUIRED if field not in config]:
        raise UnreadableFile(f"{name} lacks {', '.join(missing)}", hint="the model's own file, as published")
    if found := [key for key in _FOREIGN if metadata.get(f"{arch}.{key}")]:
        raise NotModelled(f"{name}: {arch} with {found[0]} has no formulas here", hint="vram inspect, which shows what the file holds")
    value_length = metadata.get(f"{arch}.attention.value_length")
    if value_length is not None and value_length != config.get("head_dim"):
        raise NotModelled(f"{name}: values of {str(value_length)[:20]} elements a head beside keys of {str(config.get('head_dim'))[:20]}", hint="vram inspect")
    shapes = {t.name: t.shape for t in header.tensors}
    config |= {"model_type": MODEL_TYPES[arch], "vocab_size": _vocabulary(header, arch, shapes), "tie_word_embeddings": "output.weight" not in shapes,
               "dtype": "bfloat16" if any(t.type == "BF16" for t in header.tensors) else "float16", "rope_scaling": {"type": _rope(metadata, arch, shapes)}}  # fmt: skip
    if arch == "llama" and config.get("num_experts"):
        config["model_type"] = "mixtral"
    if arch == "llama":
        config |= {"attention_bias": "blk.0.attn_output.bias" in shapes, "mlp_bias": "blk.0.ffn_down.bias" in shapes}
    _check_rotary(config, metadata.get(f"{arch}.rope.dimension_count"), name)
    return config


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


def _rope(metadata: dict[str, Any], arch: str, shapes: dict[str, tuple[int, ...]]) -> str:
    if "rope_freqs.weight" in shapes:
        return "llama3"
    if "rope_factors_long.weight" in shapes:
        return "longrope"
    kind = metadata.get(f"{arch}.rope.scaling.type", "default")
    return kind if isinstance(kind, str) and kind != "none" else "default"


def _check_rotary(config: dict[str, Any], dimensions: Any, name: str) -> None:
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    head_dim = config.get("head_dim") or (hidden // heads if isinstance(heads, int) and isinstance(hidden, int) and heads else None)
    if dimensions is not None and head_dim is not None and dimensions != head_dim:
        raise NotModelled(f"{name}: rotary embeddings over {str(dimensions)[:20]} of {head_dim} elements of a head come in a later version", hint="vram inspect")
