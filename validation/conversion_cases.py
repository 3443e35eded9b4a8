"""Configs of the small checkpoints that conversions.py makes, one a model type and structure; `_extra` is what published configs say and transformers doesn't write."""

from __future__ import annotations

from typing import Any

BASE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 4096, "head_dim": 32, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def of(model_type: str, *without: str, **changes: Any) -> dict[str, Any]:
    """The base with changes, and without some of its fields."""
    return {k: v for k, v in (BASE | {"model_type": model_type} | changes).items() if k not in without}


CASES: dict[str, dict[str, Any]] = {
    "llama": of("llama"),
    "mistral": of("mistral"),
    "ministral3": of("ministral3"),
    "qwen2": of("qwen2", "head_dim"),
    "qwen3": of("qwen3"),
    "phi3": of("phi3", "head_dim"),
    "gemma": of("gemma"),
    "gemma2": of("gemma2", sliding_window=64, query_pre_attn_scalar=32),
    "gemma3": of("gemma3_text", sliding_window=64),
    "granite": of("granite", "head_dim"),
    "smollm3": of("smollm3", "head_dim"),
    "seed_oss": of("seed_oss", attention_out_bias=False),
    "ernie4_5": of("ernie4_5"),
    "olmo": of("olmo", "head_dim"),
    "olmo2": of("olmo2", "head_dim"),
    "olmo3": of("olmo3", "head_dim", sliding_window=64),
    "exaone4": of("exaone4", "head_dim", intermediate_size=256, num_hidden_layers=64, sliding_window=64, sliding_window_pattern=4),
    "glm4": of("glm4"),
    "cohere": of("cohere", "head_dim", tie_word_embeddings=True),
    "cohere2": of("cohere2", "head_dim", _extra={"rotary_pct": 1.0, "logit_scale": 1.0}, sliding_window=64, tie_word_embeddings=True),
    "stablelm": of("stablelm", "head_dim"),
    "starcoder2": of("starcoder2", "head_dim"),
    "nemotron": of("nemotron", "head_dim"),
    "arcee": of("arcee", "head_dim"),
    "mixtral": of("mixtral", num_local_experts=8, num_experts_per_tok=2),
    "phimoe": of("phimoe", "head_dim", _extra={"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 4096, "rope_scaling": None}, num_local_experts=4, num_experts_per_tok=2, attention_bias=True, lm_head_bias=True),
    "qwen2_moe": of("qwen2_moe", "head_dim", num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, num_experts=4, shared_expert_intermediate_size=512),
    "qwen3_moe": of("qwen3_moe", num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, num_experts=4),
    "olmoe": of("olmoe", "head_dim", num_experts=4, num_experts_per_tok=2),
    "granitemoe": of("granitemoe", "head_dim", num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": of("gpt_oss", num_local_experts=4, num_experts_per_tok=2, sliding_window=64),
    "glm4_moe": of("glm4_moe", num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1, use_qk_norm=True, attention_bias=True, num_nextn_predict_layers=0),
    "minimax_m2": of("minimax_m2", _extra={"rotary_dim": 16}, num_local_experts=4, num_experts_per_tok=2),
    "hunyuan_v1_moe": of("hunyuan_v1_moe", num_experts=4, moe_topk=[2] * 16, num_shared_expert=[1] * 16, moe_intermediate_size=[512] * 16),
    "ernie4_5_moe": of("ernie4_5_moe", "head_dim", moe_num_experts=4, moe_k=2, moe_intermediate_size=256, moe_num_shared_experts=2, moe_layer_start_index=1),
    "llama4": of("llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=512, attention_chunk_size=64, interleave_moe_layer_step=2),
    "deepseek_v2": of("deepseek_v2", "head_dim", num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, q_lora_rank=256, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1),
    "deepseek_v2_lite": of("deepseek_v2", "head_dim", num_hidden_layers=27, num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, q_lora_rank=None, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1),
    "deepseek_v3": of("deepseek_v3", "head_dim", num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, q_lora_rank=256, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1, num_nextn_predict_layers=0),
    "glm4_moe_lite": of("glm4_moe_lite", "head_dim", num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=256, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, q_lora_rank=256, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1, num_nextn_predict_layers=0),
    "gpt2": {"model_type": "gpt2", "_extra": {"n_ctx": 1024}, "n_embd": 256, "n_layer": 16, "n_head": 8, "vocab_size": 512, "n_positions": 1024},
    "gpt_neox": of("gpt_neox", "num_key_value_heads", "head_dim", _extra={"rotary_pct": 0.25, "x": 1}),
    "falcon7": {"model_type": "falcon", "_extra": {"num_kv_heads": 1}, "hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 8, "vocab_size": 512, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "new_decoder_architecture": False},
    "falcon40": {"model_type": "falcon", "hidden_size": 256, "num_hidden_layers": 16, "num_attention_heads": 8, "num_kv_heads": 2, "vocab_size": 512, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False, "new_decoder_architecture": True},
    "phi": of("phi", "num_key_value_heads", "head_dim", intermediate_size=1024),
    "bloom": {"model_type": "bloom", "hidden_size": 256, "n_layer": 16, "n_head": 8, "vocab_size": 512},
    "mpt": {"model_type": "mpt", "_extra": {"architectures": ["MPTForCausalLM"]}, "d_model": 256, "n_layers": 16, "n_heads": 8, "vocab_size": 512, "max_seq_len": 2048},
    "gpt_bigcode": {"model_type": "gpt_bigcode", "n_embd": 256, "n_layer": 16, "n_head": 8, "vocab_size": 512, "n_positions": 2048, "multi_query": True},
    "gemma3n": of("gemma3n_text", intermediate_size=[512] * 30, num_hidden_layers=30, sliding_window=64, num_kv_shared_layers=10, vocab_size_per_layer_input=512, hidden_size_per_layer_input=256, laurel_rank=64, layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 6),
    "gemma4": of("gemma4_text", num_hidden_layers=18, sliding_window=64, num_kv_shared_layers=6, vocab_size_per_layer_input=512, hidden_size_per_layer_input=64, global_head_dim=64, layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, use_double_wide_mlp=True),
    "gemma4moe": of("gemma4_text", num_hidden_layers=18, sliding_window=64, num_kv_shared_layers=0, hidden_size_per_layer_input=0, global_head_dim=64, num_global_key_value_heads=1, attention_k_eq_v=True, layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=256),
    "dsv32": of("deepseek_v32", "head_dim", num_key_value_heads=8, _extra={"scoring_func": "sigmoid"}, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=256, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1, index_n_heads=4, index_head_dim=128, index_topk=64, num_nextn_predict_layers=0),
    "glmdsa": of("glm_moe_dsa", "head_dim", num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=256, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1, n_group=1, topk_group=1, index_n_heads=4, index_head_dim=128, index_topk=64, num_nextn_predict_layers=0),
    "bert": of("bert", "num_key_value_heads", "head_dim", max_position_embeddings=512, pad_token_id=0, _class="BertModel"),
    "roberta": of("roberta", "num_key_value_heads", "head_dim", max_position_embeddings=514, pad_token_id=1, _class="RobertaModel"),
    "xlmr": of("xlm-roberta", "num_key_value_heads", "head_dim", max_position_embeddings=514, pad_token_id=1, _class="XLMRobertaModel", type_vocab_size=1),
    "nomic": of("nomic_bert", "num_key_value_heads", "head_dim", pad_token_id=0, _extra={"n_positions": 2048, "n_head": 8, "n_embd": 256, "n_layer": 16, "n_inner": 512, "causal": False, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_emb_base": 1000, "layer_norm_epsilon": 1e-05, "activation_function": "swiglu"}, _class="NomicBertModel"),
    "modernbert": of("modernbert", "num_key_value_heads", "head_dim", pad_token_id=0, _extra={"layer_norm_eps": 1e-05}, _class="ModernBertModel", global_attn_every_n_layers=3, local_attention=64),
    "hunyuan": of("hunyuan_v1_dense"),
    "dots1": of("dots1", num_key_value_heads=8, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, n_routed_experts=4, n_shared_experts=2, first_k_dense_replace=1),
    "apertus": of("apertus", "head_dim"),
    "exaone_moe": of("exaone_moe", _extra={"scoring_func": "sigmoid"}, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, num_experts=4),
    "solar_open": of("solar_open", num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True, n_routed_experts=4, n_shared_experts=1),
}  # fmt: skip
