"""Model types with recurrent layers: totals whose real models on the meta device have this many parameters (`make real`), and which layer is what."""

from __future__ import annotations

import pytest

from calculator.architectures import ARCHITECTURES, build_inventory
from calculator.errors import CalculatorError
from calculator.readers.hf_config import model_from_config

BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "head_dim": 16}  # fmt: skip
REAL = {  # transformers 5.23.0, AutoModelForCausalLM.from_config on the meta device
    "bamba": (159_936, {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "attn_layer_indices": [0, 3], "mamba_proj_bias": True, "tie_word_embeddings": True}),
    "falcon_h1": (195_552, {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 64, "mamba_rms_norm": True, "projectors_bias": True, "attention_bias": True, "mlp_bias": True}),
    "falcon_mamba": (95_424, {"state_size": 8, "conv_kernel": 4, "expand": 2, "head_dim": None}),
    "granitemoehybrid": (463_992, {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 80, "layer_types": ["mamba", "mamba", "attention", "mamba"]}),
    "jamba": (299_260, {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1}),
    "kimi_linear": (232_966, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "linear_num_heads": 2, "linear_head_dim": 12, "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"], "num_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "bos_token_id": None, "eos_token_id": None, "q_lora_rank": 24}),
    "lfm2": (143_712, {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "conv_bias": True}),
    "lfm2_moe": (198_828, {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "num_experts": 4, "num_dense_layers": 1}),
    "mamba": (96_064, {"state_size": 8, "conv_kernel": 4, "expand": 2, "head_dim": None, "use_bias": True, "use_conv_bias": False}),
    "mamba2": (116_032, {"state_size": 8, "conv_kernel": 4, "expand": 2, "head_dim": 16, "num_heads": 8, "n_groups": 1, "use_bias": True, "tie_word_embeddings": True}),
    "minimax": (374_976, {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}),
    "nemotron_h": (81_680, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "layers_block_type": ["mamba", "moe", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 12, "ssm_state_size": 8, "n_groups": 2, "conv_kernel": 4, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 56}),
    "olmo_hybrid": (136_104, {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4, "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]}),
    "qwen3_5_moe_text": (276_316, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4, "num_experts": 4, "shared_expert_intermediate_size": 80}),
    "qwen3_5_text": (137_768, {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4, "tie_word_embeddings": True, "layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]}),
    "qwen3_next": (406_148, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4, "num_experts": 4, "shared_expert_intermediate_size": 80, "num_hidden_layers": 6, "attention_bias": True}),
}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4}


def read(model_type, **config):
    return model_from_config({k: v for k, v in (BASE | {"model_type": model_type} | config).items() if v != "REMOVE"}, id=model_type)


@pytest.mark.parametrize("model_type", REAL)
def test_parameters_of_a_small_model(model_type):
    total, case = REAL[model_type]
    assert build_inventory(read(model_type, **case)).parameters == total


def test_every_hybrid_has_a_total():
    assert {name for name, row in ARCHITECTURES.items() if row.recurrent} == set(REAL)


@pytest.mark.parametrize(("said", "attends"), [
    ({}, (3, 7)), ({"full_attention_interval": 2}, (1, 3, 5, 7)), ({"layer_types": ["full_attention"] + ["linear_attention"] * 7}, (0,)),
])  # fmt: skip
def test_qwen_attends_where_its_config_says_else_in_each_fourth_layer(said, attends):
    spec = read("qwen3_5_text", num_hidden_layers=8, **DELTA, **said)
    assert spec.attention_layers == attends
    assert spec.recurrent_layers == tuple(i for i in range(8) if i not in attends)


def test_nemotron_layers_are_one_thing_each():
    """NVIDIA-Nemotron-Nano-9B-v2's letters: M a state, * attention, - a feed-forward."""
    case = REAL["nemotron_h"][1] | {"layers_block_type": "REMOVE", "hybrid_override_pattern": "M-M*E-"}
    spec = read("nemotron_h", **case)
    assert (spec.num_hidden_layers, spec.recurrent_layers, spec.attention_layers, spec.expert_layers) == (6, (0, 2), (3,), (4,))


def test_falcon_h1_layers_hold_both():
    spec = read("falcon_h1", **REAL["falcon_h1"][1])
    assert spec.attention_layers == spec.recurrent_layers == (0, 1, 2, 3)


def test_mamba_attends_nowhere():
    spec = read("mamba2", **REAL["mamba2"][1])
    assert (spec.attention_layers, spec.num_attention_heads) == ((), 0)


def test_the_mtp_layer_of_qwen_is_apart():
    inventory = build_inventory(read("qwen3_5_text", mtp_num_hidden_layers=1, **DELTA))
    attends = 64 * 2 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 16
    assert inventory.mtp_parameters == attends + 3 * 64 * 96 + 2 * 64 + 64 * 128 + 3 * 64
    assert inventory.parameters == build_inventory(read("qwen3_5_text", **DELTA)).parameters


@pytest.mark.parametrize(("model_type", "config", "words"), [
    ("qwen3_next", {}, "lacks"), ("qwen3_5_text", {}, "lacks linear"), ("qwen3_5_text", DELTA | {"linear_num_key_heads": -1}, "linear_num_key_heads"),
    ("qwen3_5_text", DELTA | {"layer_types": ["linear_attention"]}, "1 layer types for 4 layers"),
    ("qwen3_5_text", DELTA | {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]}, "sliding_attention"),
    ("qwen3_5_text", DELTA | {"num_hidden_layers": 10**9}, "num_hidden_layers"), ("qwen3_5_text", DELTA | {"num_key_value_heads": 0}, "num_key_value_heads"),
    ("nemotron_h", {"hybrid_override_pattern": "M" * 20_000}, "hybrid_override_pattern"), ("nemotron_h", {}, "hybrid_override_pattern"),
    ("falcon_h1", {"mamba_d_state": "8"}, "mamba_d"), ("mamba", {"state_size": 2**40, "conv_kernel": 4}, "state_size"),
    ("lfm2", {"layer_types": ["conv"] * 4}, "conv_L_cache"), ("lfm2", {"conv_L_cache": 3, "full_attn_idxs": [9]}, "list of layers"),
    ("kimi_linear", {}, "lacks kv_lora_rank"), ("jamba", {"attn_layer_period": 0, "attn_layer_offset": 0}, "attn_layer_period"),
])  # fmt: skip
def test_a_config_that_cant_be_is_refused_in_one_line(model_type, config, words):
    with pytest.raises(CalculatorError, match=words) as error:
        read(model_type, **config)
    assert "\n" not in str(error.value)


def test_infinity_that_limits_nothing_is_read_and_nan_is_not(tmp_path):
    """Nemotron's published config.json ends time_step_limit at Infinity."""
    import json

    from calculator.catalog import load_model

    config = BASE | {"model_type": "nemotron_h"} | REAL["nemotron_h"][1]
    (tmp_path / "config.json").write_text(json.dumps(config | {"time_step_limit": [0.0, float("inf")]}))
    assert load_model(str(tmp_path)).spec.recurrent.heads == 4
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": float("inf")}))
    load_model.cache_clear()
    with pytest.raises(CalculatorError, match="lacks hidden_size"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": float("nan")}))
    load_model.cache_clear()
    with pytest.raises(CalculatorError, match="NaN"):
        load_model(str(tmp_path))
