"""What a GGUF file of each architecture says in its own way: llama.cpp's name -> model type, and fields that only some have.

Source: llama.cpp @0c1e57098 src/llama-arch.cpp (names, keys), src/models/*.cpp load_arch_hparams, conversion/*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Metadata = Mapping[str, Any]  # without the architecture's prefix
Shapes = Mapping[str, tuple[int, ...]]
CHUNK = 8192  # tokens of Llama 4's chunks: src/models/llama4.cpp n_swa, no key of the file


class Family(NamedTuple):
    """A model type, the metadata of its own that is understood, and the fields that these become."""

    model_type: str
    reads: frozenset[str] = frozenset()
    fields: Callable[[Metadata, Shapes], dict[str, Any]] = lambda metadata, shapes: {}  # noqa: ARG005


def _shared(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """First dense layers, shared experts and MTP layers, which count as layers of the file."""
    mtp = metadata.get("nextn_predict_layers") or 0
    shared = metadata.get("expert_shared_count")
    return {
        "first_k_dense_replace": metadata.get("leading_dense_block_count", 0), "moe_layer_start_index": metadata.get("leading_dense_block_count", 0),
        "n_shared_experts": shared, "moe_num_shared_experts": shared, "num_shared_expert": shared,
        "moe_layer_interval": metadata.get("interleave_moe_layer_step", 1), "num_nextn_predict_layers": mtp,
        "num_hidden_layers": metadata["block_count"] - mtp if isinstance(metadata["block_count"], int) and isinstance(mtp, int) else None,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in shapes,
    }  # fmt: skip


def _latent(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Latent attention; a correction of the router's choice is what sets V3 apart from V2."""
    rope, key = metadata.get("rope.dimension_count"), metadata.get("attention.key_length_mla")
    nope = key - rope if isinstance(key, int) and isinstance(rope, int) else None
    corrected = any(name.endswith("exp_probs_b.bias") for name in shapes)
    return _shared(metadata, shapes) | {
        "model_type": "deepseek_v3" if corrected else "deepseek_v2", "q_lora_rank": metadata.get("attention.q_lora_rank"),
        "kv_lora_rank": metadata.get("attention.kv_lora_rank"), "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
        "v_head_dim": metadata.get("attention.value_length_mla"), "num_key_value_heads": None, "head_dim": None,
    }  # fmt: skip


def _llama4(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    dense = metadata.get("feed_forward_length")
    return {"intermediate_size": metadata.get("expert_feed_forward_length"), "intermediate_size_mlp": dense,
            "interleave_moe_layer_step": metadata.get("interleave_moe_layer_step", 1), "attention_chunk_size": CHUNK}  # fmt: skip


_SHARES = frozenset({"expert_shared_count", "leading_dense_block_count", "nextn_predict_layers"})
_LATENT = frozenset({"attention.kv_lora_rank"}) | _SHARES

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", fields=lambda m, _: {"model_type": "mixtral"} if m.get("expert_count") else {}),  # Mistral's files say llama, too
    "qwen2": Family("qwen2"), "qwen3": Family("qwen3"), "qwen3moe": Family("qwen3_moe"), "phi3": Family("phi3"), "gemma": Family("gemma"), "gemma2": Family("gemma2"),
    "gemma3": Family("gemma3_text"), "qwen2vl": Family("qwen2"), "qwen3vl": Family("qwen3"), "qwen3vlmoe": Family("qwen3_moe"),
    "mistral3": Family("ministral3"), "granite": Family("granite"), "smollm3": Family("smollm3"), "seed_oss": Family("seed_oss"), "ernie4_5": Family("ernie4_5"),
    "olmo": Family("olmo"), "olmo2": Family("olmo2", fields=lambda m, _: {"model_type": "olmo3"} if m.get("attention.sliding_window") else {}),
    "exaone4": Family("exaone4"), "glm4": Family("glm4"), "command-r": Family("cohere"), "cohere2": Family("cohere2"), "stablelm": Family("stablelm"),
    "starcoder2": Family("starcoder2"), "nemotron": Family("nemotron"), "arcee": Family("arcee"),
    "phimoe": Family("phimoe", fields=lambda _, s: {"lm_head_bias": "output.bias" in s}),
    "qwen2moe": Family("qwen2_moe", fields=lambda m, _: {"shared_expert_intermediate_size": m.get("expert_shared_feed_forward_length")}),
    "olmoe": Family("olmoe"), "granitemoe": Family("granitemoe"), "gpt-oss": Family("gpt_oss"), "minimax-m2": Family("minimax_m2"),
    "glm4moe": Family("glm4_moe", _SHARES, _shared), "ernie4_5-moe": Family("ernie4_5_moe", _SHARES, _shared),
    "hunyuan-moe": Family("hunyuan_v1_moe", frozenset({"expert_shared_count"}), _shared),
    "llama4": Family("llama4_text", fields=_llama4), "deepseek2": Family("deepseek_v2", _LATENT, _latent),
}  # fmt: skip
