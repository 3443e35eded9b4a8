"""Totals of every model type: small configs, whose real models on the meta device have this many parameters (`make real`)."""

from __future__ import annotations

import pytest

from calculator.architectures import ARCHITECTURES, build_inventory
from calculator.catalog import load_model
from calculator.errors import CalculatorError
from calculator.readers.hf_config import model_from_config

BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "head_dim": 16}  # fmt: skip
REAL = {  # transformers 5.23.0, AutoModelForCausalLM.from_config on the meta device
    "arcee": (111_680, {}),
    "cohere": (129_600, {}),
    "cohere2": (136_000, {"sliding_window": 64, "tie_word_embeddings": False}),
    "deepseek_v2": (231_904, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 24}),
    "deepseek_v3": (232_348, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 24, "attention_bias": True}),
    "ernie4_5": (129_856, {}),
    "ernie4_5_moe": (241_228, {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 2, "moe_layer_start_index": 1}),
    "exaone4": (129_984, {"sliding_window": 64, "sliding_window_pattern": 4, "tie_word_embeddings": True}),
    "gemma": (129_856, {}),
    "gemma2": (137_536, {"sliding_window": 64, "attention_bias": True, "tie_word_embeddings": False}),
    "gemma3_text": (136_896, {"sliding_window": 64, "sliding_window_pattern": 2, "tie_word_embeddings": False}),
    "glm4": (161_344, {"attention_bias": False, "head_dim": 24}),
    "glm4_moe": (220_620, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True}),
    "glm4_moe_lite": (231_916, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "n_group": 1, "topk_group": 1, "q_lora_rank": 24}),
    "gpt_oss": (363_360, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}),
    "granite": (136_256, {}),
    "granitemoe": (358_464, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "hunyuan_v1_moe": (432_320, {"num_experts": 4, "moe_topk": 2}),
    "llama": (179_008, {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 24}),
    "llama4_text": (271_680, {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 80, "attention_chunk_size": 64, "interleave_moe_layer_step": 2, "tie_word_embeddings": True}),
    "minimax_m2": (358_864, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "ministral3": (136_256, {}),
    "mistral": (136_256, {}),
    "mixtral": (358_464, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "nemotron": (112_256, {}),
    "olmo": (135_680, {}),
    "olmo2": (136_640, {}),
    "olmo3": (136_640, {"sliding_window": 64}),
    "olmoe": (358_848, {"num_experts": 4, "num_experts_per_tok": 2}),
    "phi3": (129_856, {"tie_word_embeddings": True}),
    "phimoe": (359_908, {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}),
    "qwen2": (136_768, {}),
    "qwen2_moe": (204_992, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "num_experts": 4, "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}),
    "qwen3": (136_384, {}),
    "qwen3_moe": (174_528, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "num_experts": 4, "attention_bias": True, "decoder_sparse_step": 2}),
    "seed_oss": (137_792, {"attention_bias": True, "mlp_bias": True}),
    "smollm3": (129_856, {}),
    "stablelm": (136_832, {}),
    "starcoder2": (112_256, {"use_bias": False, "tie_word_embeddings": False}),
    "apertus": (111_824, {}),
    "bert": (136_512, {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 2, "max_position_embeddings": 130}),
    "bloom": (206_592, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "seq_length": 128}),
    "deepseek_v32": (236_076, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16, "q_lora_rank": 24}),
    "dots1": (247_756, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    "exaone_moe": (220_108, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "num_experts": 4, "num_shared_experts": 1, "sliding_window": 64}),
    "falcon": (123_904, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "ffn_hidden_size": 96, "bias": True, "alibi": True, "multi_query": False, "parallel_attn": False, "new_decoder_architecture": False}),
    "gemma3n_text": (368_016, {"num_hidden_layers": 10, "sliding_window": 64, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 90, "hidden_size_per_layer_input": 8, "laurel_rank": 6, "altup_num_inputs": 3}),
    "gemma4_text": (1_242_122, {"num_hidden_layers": 18, "sliding_window": 64, "global_head_dim": 24, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 90, "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention", "full_attention"], "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}),
    "glm_moe_dsa": (236_076, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16, "q_lora_rank": 24}),
    "gpt2": (132_032, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "n_inner": 80}),
    "gpt_bigcode": (222_848, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "multi_query": False}),
    "gpt_neox": (129_280, {"num_key_value_heads": None, "head_dim": None, "attention_bias": False}),
    "gptj": (211_428, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256, "rotary_dim": 4}),
    "hunyuan_v1_dense": (136_384, {}),
    "mllama_text_model": (136_836, {"cross_attention_layers": [1, 3], "head_dim": None}),
    "modernbert": (146_240, {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 2, "max_position_embeddings": 130, "pad_token_id": 0}),
    "mpt": (203_584, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "d_model": 64, "n_layers": 4, "n_heads": 4, "max_seq_len": 256}),
    "nomic_bert": (146_944, {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 2, "max_position_embeddings": 130, "pad_token_id": 0}),
    "opt": (386_176, {"num_key_value_heads": None, "head_dim": None, "intermediate_size": None, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "phi": (129_892, {"num_key_value_heads": 4, "head_dim": None}),
    "roberta": (136_512, {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 2, "max_position_embeddings": 130, "pad_token_id": 1}),
    "solar_open": (247_888, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "n_routed_experts": 4, "n_shared_experts": 1}),
    "hy_v3": (220_108, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 4, "num_shared_experts": 1, "mlp_layer_types": ["dense"] + 3 * ["sparse"]}),
    "mistral4": (231_904, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None, "n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 24}),
    "step3p5": (224_972, {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "n_routed_experts": 4, "share_expert_dim": 40, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "layer_types": ["full_attention", "sliding_attention"] * 2, "num_sliding_attention_heads": 6, "sliding_window": 64}),
    "xlm-roberta": (136_448, {"num_key_value_heads": None, "head_dim": None, "type_vocab_size": 1, "max_position_embeddings": 130, "pad_token_id": 1}),
}  # fmt: skip


@pytest.mark.parametrize("model_type", REAL)
def test_parameters_of_a_small_model(model_type):
    total, case = REAL[model_type]
    spec = model_from_config(BASE | {"model_type": model_type} | case, id=model_type)
    assert build_inventory(spec).parameters == total


def test_every_model_type_has_a_total():
    hybrids = {name for name, row in ARCHITECTURES.items() if row.recurrent}  # tests/architectures/test_hybrids.py
    assert set(ARCHITECTURES) - hybrids - set(REAL) == {"kimi_k2"}  # deepseek_v3 by another name


def test_total_active_mtp_and_vision_parameters_are_apart():
    """DeepSeek-V3: 671B, 37B active beside 0.9B of embedding, one MTP layer; Gemma 3 4B: SigLIP and its projector."""
    spec = load_model("deepseek-v3").spec
    inventory = build_inventory(spec)
    active = inventory.active_parameters(experts=spec.num_experts, used=spec.num_experts_per_tok)
    assert inventory.parameters == 671_026_419_200
    assert active - spec.vocab_size * spec.hidden_size == pytest.approx(37e9, rel=0.02)
    assert inventory.mtp_parameters == 13_463_426_304
    gemma = build_inventory(load_model("gemma-3-4b-it").spec)
    assert (gemma.parameters, gemma.vision_parameters) == (4_300_079_472, 419_816_304)


def test_experts_are_in_the_layers_that_have_them():
    spec = load_model("llama-4-maverick-17b-128e-instruct").spec
    groups = {g.name: g for g in build_inventory(spec).groups}
    assert groups["model.layers.{layer}.feed_forward.experts.up_proj.weight"].indices == tuple(range(1, 48, 2))
    assert groups["model.layers.{layer}.feed_forward.up_proj.weight"].indices == tuple(range(0, 48, 2))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mllama_text_model"}, "cross_attention_layers"), ({"model_type": "gemma3n_text", "sliding_window": 64}, "hidden_size_per_layer_input"),
        ({"model_type": "gemma4_text", "layer_types": ["full_attention", "sliding_attention"]}, "last layer"), ({"model_type": "opt", "word_embed_proj_dim": 8}, "350M"),
        ({"model_type": "gemma4_text", "sliding_window": 64, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "per_layer_config": {"0": 3}}, "global_head_dim"),
        ({"model_type": "glm_moe_dsa", "indexer_types": [["full"]]}, "indexer_types"),
        ({"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"}, "vision_config": {}, "audio_config": {"subsampling_conv_channels": [1]}}, "vision_config lacks"),
        ({"model_type": "mpt", "no_bias": False}, "MPT with biases"), ({"model_type": "phi", "qk_layernorm": True}, "norms of queries"),
        ({"model_type": "zamba2"}, "has no formulas"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}}, "no formula"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {}}, "vision_config lacks"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}, "vision_config": {"hidden_size": -3}}, "out of range"),
        ({"model_type": "gemma3", "text_config": {"model_type": [1]}}, "no model_type"),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral", "hidden_size": float("inf")},
          "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4, "image_size": 56, "patch_size": 14}}, "misstates"),
        ({"model_type": "deepseek_v3"}, "lacks kv_lora_rank"), ({"model_type": "stablelm", "qk_layernorm": True}, "qk_layernorm"),
        ({"model_type": "qwen2_moe"}, "lacks num_experts"),
        ({"model_type": "deepseek_v3", "kv_lora_rank": 16, "q_lora_rank": -1, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
          "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 1}, "q_lora_rank"),
        ({"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 0}, "expert_every"),
        ({"model_type": "glm4_moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 9}, "no layer"),
        ({"model_type": "glm4_moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": "1"}, "shared experts"),
        ({"model_type": "glm4_moe", "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}, "lacks first_k_dense_replace"),
        ({"model_type": "olmo3", "sliding_window": 64, "sliding_window_pattern": -1}, "sliding_window_pattern"),
    ],
)  # fmt: skip
def test_what_has_no_formula_is_refused_with_its_reason(config, words):
    with pytest.raises(CalculatorError, match=words):
        model_from_config(BASE | config, id="x")
