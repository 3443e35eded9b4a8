"""What a GGUF file of each architecture says in its own way: llama.cpp's name -> model type, and fields that only some have.

Source: llama.cpp @0c1e57098 src/llama-arch.cpp (names, keys), src/models/*.cpp load_arch_hparams, conversion/*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from calculator.readers import gguf_hybrid

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
    shared, layers = metadata.get("expert_shared_count"), metadata.get("block_count")
    return {
        "first_k_dense_replace": metadata.get("leading_dense_block_count", 0), "moe_layer_start_index": metadata.get("leading_dense_block_count", 0),
        "n_shared_experts": shared, "moe_num_shared_experts": shared, "num_shared_expert": shared,
        "moe_layer_interval": metadata.get("interleave_moe_layer_step", 1), "num_nextn_predict_layers": mtp,
        "num_hidden_layers": layers - mtp if isinstance(layers, int) and isinstance(mtp, int) else layers,
        "norm_topk_prob": metadata.get("expert_weights_norm", False), "routed_scaling_factor": metadata.get("expert_weights_scale"),
        "n_group": metadata.get("expert_group_count"), "topk_group": metadata.get("expert_group_used_count"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in shapes,
    }  # fmt: skip


def _latent(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Latent attention; a correction of the router's choice is what sets V3 apart from V2.

    With attn_kv_b whole, as before ggml-org/llama.cpp#12801, the lengths are those of a head.
    """
    of = "attention.{}_length" if "blk.0.attn_kv_b.weight" in shapes else "attention.{}_length_mla"
    rope, key = metadata.get("rope.dimension_count"), metadata.get(of.format("key"))
    nope = key - rope if isinstance(key, int) and isinstance(rope, int) else None
    corrected = any(name.endswith("exp_probs_b.bias") for name in shapes)
    return _shared(metadata, shapes) | {
        "model_type": "deepseek_v3" if corrected else "deepseek_v2", "q_lora_rank": metadata.get("attention.q_lora_rank"),
        "kv_lora_rank": metadata.get("attention.kv_lora_rank"), "qk_nope_head_dim": nope, "qk_rope_head_dim": rope,
        "v_head_dim": metadata.get(of.format("value")), "num_key_value_heads": None, "head_dim": None,
    }  # fmt: skip


def _llama4(metadata: Metadata, _: Shapes) -> dict[str, Any]:
    dense = metadata.get("feed_forward_length")
    return {"intermediate_size": metadata.get("expert_feed_forward_length"), "intermediate_size_mlp": dense,
            "interleave_moe_layer_step": metadata.get("interleave_moe_layer_step", 1), "attention_chunk_size": CHUNK}  # fmt: skip


def _indexed(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Latent attention with an indexer of each layer."""
    return _latent(metadata, shapes) | {"index_n_heads": metadata.get("attention.indexer.head_count"), "index_head_dim": metadata.get("attention.indexer.key_length"), "index_topk": metadata.get("attention.indexer.top_k"),
                                        "indexer_types": ["full" if own else "shared" for own in metadata.get("attention.indexer.types", [])]}  # fmt: skip


def _gemma3n(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    table, rank = shapes.get("per_layer_token_embd.weight", (0,)), shapes.get("blk.0.laurel_l.weight", (0,))
    return {"hidden_size_per_layer_input": metadata.get("embedding_length_per_layer_input"), "vocab_size_per_layer_input": table[0],
            "num_kv_shared_layers": metadata.get("attention.shared_kv_layers", 0), "laurel_rank": rank[0], "altup_num_inputs": metadata.get("altup.num_inputs"),
            "intermediate_size": metadata.get("feed_forward_length")}  # fmt: skip


def _gemma4(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Full layers' heads stand where other families have all of them; what late layers have twice as wide is in a list."""
    table, heads, widths = shapes.get("per_layer_token_embd.weight", (0,)), metadata.get("attention.head_count_kv"), metadata.get("feed_forward_length")
    pattern = metadata.get("attention.sliding_window_pattern")
    listed, wide = heads if isinstance(heads, list) and heads else [heads], widths if isinstance(widths, list) and widths else [widths]
    full = next((i for i, near in enumerate(pattern) if not near), 0) if isinstance(pattern, list) else 0
    return {"hidden_size_per_layer_input": metadata.get("embedding_length_per_layer_input", 0), "vocab_size_per_layer_input": table[0],
            "num_kv_shared_layers": metadata.get("attention.shared_kv_layers", 0), "global_head_dim": metadata.get("attention.key_length"),
            "head_dim": metadata.get("attention.key_length_swa"), "num_key_value_heads": listed[0],
            "num_global_key_value_heads": listed[full] if full < len(listed) else None, "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in shapes,
            "intermediate_size": wide[0], "use_double_wide_mlp": wide[-1] != wide[0], "enable_moe_block": bool(metadata.get("expert_count")),
            "top_k_experts": metadata.get("expert_used_count"), "rope_scaling": {"type": "default"}}  # fmt: skip


def _classic(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    """Heads of keys as the file has them, all of them where it says nothing; positions that the table holds."""
    positions = shapes.get("position_embd.weight")
    found: dict[str, Any] = {"num_key_value_heads": metadata.get("attention.head_count_kv") or metadata.get("attention.head_count"), "multi_query": False}
    if positions:
        found["max_position_embeddings"] = positions[0]
    return found | {"intermediate_size": shapes.get("blk.0.ffn_up.weight", (metadata.get("feed_forward_length"),))[0]}


def _falcon(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    two = "blk.0.attn_norm_2.weight" in shapes
    return {"new_decoder_architecture": True, "num_kv_heads": metadata.get("attention.head_count_kv"), "num_ln_in_parallel_attn": 2 if two else 1,
            "bias": "blk.0.attn_qkv.bias" in shapes}  # fmt: skip


def _bert(metadata: Metadata, shapes: Shapes) -> dict[str, Any]:
    types, positions = shapes.get("token_types.weight", (0,)), shapes.get("position_embd.weight", (0,))
    rows = 1 if len(types) == 1 else types[0]
    return {"type_vocab_size": rows, "max_position_embeddings": positions[0] or metadata.get("context_length")}


_SHARES = frozenset({"expert_shared_count", "leading_dense_block_count", "nextn_predict_layers"})
_INDEX = frozenset({"attention.indexer.head_count"})
_INPUTS = frozenset({"attention.shared_kv_layers", "embedding_length_per_layer_input"})
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
    "gpt2": Family("gpt2", fields=_classic), "starcoder": Family("gpt_bigcode", fields=_classic), "gptneox": Family("gpt_neox", fields=_classic),
    "bloom": Family("bloom", fields=_classic), "mpt": Family("mpt", fields=_classic), "phi2": Family("phi", fields=_classic),
    "falcon": Family("falcon", fields=_falcon), "hunyuan-dense": Family("hunyuan_v1_dense"), "apertus": Family("apertus"),
    "dots1": Family("dots1", _SHARES, _shared), "exaone-moe": Family("exaone_moe", _SHARES, lambda m, s: _shared(m, s) | {"num_shared_experts": m.get("expert_shared_count")}),
    "deepseek32": Family("deepseek_v32", _LATENT | _INDEX, lambda m, s: _indexed(m, s) | {"model_type": "deepseek_v32"}),
    "glm-dsa": Family("glm_moe_dsa", _LATENT | _INDEX, lambda m, s: _indexed(m, s) | {"model_type": "glm_moe_dsa"}),
    "gemma3n": Family("gemma3n_text", _INPUTS, _gemma3n), "gemma4": Family("gemma4_text", _INPUTS, _gemma4),
    **{arch: Family(kind, gguf_hybrid.READS, partial(gguf_hybrid.fields, arch)) for arch, kind in gguf_hybrid.MODEL_TYPES.items()},
    "bert": Family("bert", fields=_bert), "nomic-bert": Family("nomic_bert", fields=_bert), "modern-bert": Family("modernbert"),
}  # fmt: skip
