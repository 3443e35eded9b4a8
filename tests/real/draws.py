"""Random configs that transformers builds, and passes over them: `make oracle` holds the closed forms to the real code."""

from __future__ import annotations

import random
from typing import Any

from calculator.architectures import ARCHITECTURES

MODELLED = sorted(name for name, row in ARCHITECTURES.items() if "transformers" in row.engines and name != "kimi_k2")  # deepseek_v3 under a second name
QUANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}

# model types whose config classes have no head_dim
_NO_HEAD_DIM = ("phi3", "granite", "smollm3", "olmo", "olmo2", "olmo3", "stablelm", "starcoder2", "olmoe", "granitemoe", "cohere", "cohere2", "qwen2_moe", "arcee")
_HEADS_DIVIDE_HIDDEN = ("llama", "gemma2", "gemma3_text", "deepseek_v2")
_OPTIONAL_WINDOW = ("mistral", "mixtral", "starcoder2", "phi3", "ministral3")  # all layers, or none
_NEVER_A_WINDOW = ("smollm3", "seed_oss", "minimax_m2")
_WINDOWS = {"gemma2": 2, "gemma3_text": 6, "olmo3": 4, "exaone4": 4, "cohere2": 4, "gpt_oss": 2}
_PARTIAL = {"phi3": 0.75, "glm4": 0.5, "stablelm": 0.25, "nemotron": 0.5, "glm4_moe": 0.5, "minimax_m2": 0.5}
_EAGER_ONLY = ("gemma2", "gpt_oss")
_ACTIVATIONS = {"starcoder2": "gelu_pytorch_tanh", "nemotron": "relu2", "arcee": "relu2", "gemma": "gelu_pytorch_tanh"}


def draw(rng: random.Random, model_type: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config, and a pass over it."""
    dim = rng.choice([32, 64, 80, 96, 128, 256, rng.choice([16, 24, 40, 48, 72, 112, 160, 192])])
    kv_heads, repeats = rng.choice([1, 2, 4, 8, rng.randint(1, 12)]), rng.choice([1, 2, 4, 8, 3, 7])
    heads = kv_heads * repeats
    if heads * dim > 8192:
        return draw(rng, model_type)
    hidden = rng.choice([256, 512, 896, 1024, 1536, 2048, 3072, 4096, 8 * rng.randint(8, 512)])
    hidden = heads * max(1, hidden // heads) if model_type in _HEADS_DIVIDE_HIDDEN else hidden
    hidden = heads * dim if model_type in _NO_HEAD_DIM else hidden
    config: dict[str, Any] = {
        "model_type": model_type, "hidden_size": hidden, "num_hidden_layers": rng.randint(1, 4), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": max(8, rng.choice([hidden // 2, hidden, 2 * hidden, 4 * hidden, 8 * rng.randint(8, 1500)])),
        "vocab_size": rng.choice([100, 1000, 32000, 50257, 128256, rng.randint(100, 150_000)]),
        "tie_word_embeddings": rng.random() < 0.5, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "hidden_act": _ACTIVATIONS.get(model_type, "silu"),
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    if model_type not in _NO_HEAD_DIM:
        config["head_dim"] = dim
    _windows(rng, config)
    if ARCHITECTURES[model_type].expert_width:
        _experts(rng, config)
    if model_type in ("deepseek_v2", "deepseek_v3", "glm4_moe_lite"):
        _latent(rng, config)
    if model_type == "cohere":
        config["use_qk_norm"] = rng.random() < 0.5
    if model_type == "llama":
        config |= {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
    if model_type in _PARTIAL and not (model_type == "phi3" and rng.random() < 0.7):
        config["partial_rotary_factor"] = _PARTIAL[model_type]
        if model_type == "minimax_m2":
            config["rotary_dim"] = dim // 2
    return config, _pass(rng, config)


def _pass(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    run = {
        "phase": rng.choice(["prefill", "decode"]), "batch": rng.choice([1, 1, 2, 3, 4, 8]),
        "seq": rng.choice([1, 5, 17, 128, 333, 1000, 1024, 4096, 16384, rng.randint(1, 20_000)]), "attn": rng.choice(["sdpa", "eager"]),
        "logits_to_keep": rng.choice([0, 1, 7]), "cache": rng.choice(["dynamic", "dynamic", "static"]),
        "dtype": rng.choice(["bfloat16", "bfloat16", "float16", "float32"]),
    }  # fmt: skip
    if "num_experts_per_tok" in config:
        run["dtype"] = "bfloat16"  # torch's grouped product takes no other
    if config["model_type"] in _EAGER_ONLY:
        run["attn"] = "eager"
    return run


def _windows(rng: random.Random, config: dict[str, Any]) -> None:
    """Layers with a window, in each family's own way."""
    kind = config["model_type"]
    if kind.startswith("qwen"):
        config["use_sliding_window"] = False
    elif kind in _NEVER_A_WINDOW:
        config["sliding_window"] = None
    elif kind in _OPTIONAL_WINDOW:
        config["sliding_window"] = rng.choice([None, None, 512, 1024])
    elif kind in _WINDOWS:
        every = rng.choice([2, 6]) if kind == "gemma3_text" else _WINDOWS[kind]
        config |= {"sliding_window": rng.choice([64, 512, 1024]), "num_hidden_layers": rng.randint(1, 14)}
        if kind == "gemma3_text":
            config |= {"hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": every, "query_pre_attn_scalar": config["head_dim"]}
        if kind == "gemma2":
            config |= {"hidden_activation": "gelu_pytorch_tanh"}
        if kind == "exaone4" and rng.random() < 0.3:
            config |= {"sliding_window": None, "layer_types": ["full_attention"] * config["num_hidden_layers"]}


def _experts(rng: random.Random, config: dict[str, Any]) -> None:
    """Routed experts, shared ones, and dense layers before them."""
    kind, layers, width = config["model_type"], config["num_hidden_layers"], rng.choice([128, 256, 768, 1024, 1408])
    count = rng.choice([2, 8, 16, 60, 64, 128])
    used = rng.randint(1, min(count, 8))
    config |= {ARCHITECTURES[kind].expert_width: width, "num_experts_per_tok": used}
    config[{"mixtral": "num_local_experts", "granitemoe": "num_local_experts", "gpt_oss": "num_local_experts", "minimax_m2": "num_local_experts",
            "glm4_moe": "n_routed_experts", "deepseek_v2": "n_routed_experts", "deepseek_v3": "n_routed_experts", "glm4_moe_lite": "n_routed_experts",
            "ernie4_5_moe": "moe_num_experts"}.get(kind, "num_experts")] = count  # fmt: skip
    dense = rng.randint(0, layers - 1)
    if kind == "qwen2_moe":
        config |= {"shared_expert_intermediate_size": rng.choice([256, 1408, 5632]), "decoder_sparse_step": 1, "mlp_only_layers": []}
    if kind == "hunyuan_v1_moe":
        config |= {"moe_topk": used, "moe_intermediate_size": None}
    if kind == "ernie4_5_moe":
        config |= {"moe_k": used, "moe_num_shared_experts": rng.choice([0, 1, 2]), "moe_layer_start_index": dense, "moe_layer_end_index": -1, "moe_layer_interval": 1}
    if kind in ("glm4_moe", "deepseek_v2", "deepseek_v3", "glm4_moe_lite"):
        config |= {"n_shared_experts": rng.choice([1, 2]), "first_k_dense_replace": dense, "n_group": 1, "topk_group": 1}
    if kind == "glm4_moe":
        config["use_qk_norm"] = rng.random() < 0.5
    if kind == "glm4_moe_lite":
        config["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (layers - dense)


def _latent(rng: random.Random, config: dict[str, Any]) -> None:
    """Multi-head latent attention."""
    heads = rng.choice([1, 2, 8, 16, 32])
    config |= {
        "num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": 8 * heads * max(1, config["hidden_size"] // (8 * heads)),
        "q_lora_rank": rng.choice([None, 256, 1536]), "kv_lora_rank": rng.choice([128, 512]), "qk_rope_head_dim": rng.choice([32, 64]),
        "qk_nope_head_dim": rng.choice([64, 128, 192]), "v_head_dim": rng.choice([64, 128, 256]),
    }  # fmt: skip
    config.pop("head_dim", None)
