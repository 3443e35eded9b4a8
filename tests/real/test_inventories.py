"""The inventory of every model type against the real model on the meta device: each tensor's name and shape.

Checkpoints name some tensors otherwise than transformers' modules, and keep experts one by one where the modules stack
them; those few differences are written down here and nowhere else.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter

import pytest

from calculator.architectures import ARCHITECTURES, build_inventory
from calculator.engines.kinds import loaded
from calculator.readers.hf_config import model_from_config

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch isn't installed; make real installs it"),
]
BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "pad_token_id": None, "head_dim": 16}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "num_key_value_heads": 4, "head_dim": None}
DEEPSEEK = EXPERTS | LATENT | {"n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LLAMA4 = {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 80, "attention_chunk_size": 64}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 16}
NO_GROUPS = {"num_key_value_heads": None, "head_dim": None}
GPT = NO_GROUPS | {"intermediate_size": None, "max_position_embeddings": None, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}
FALCON = NO_GROUPS | {"intermediate_size": None, "ffn_hidden_size": 96, "bias": False, "alibi": False, "multi_query": True, "parallel_attn": True,
          "new_decoder_architecture": False}  # fmt: skip
BERT = NO_GROUPS | {"type_vocab_size": 2, "max_position_embeddings": 130}
GEMMA4 = {"num_hidden_layers": 18, "sliding_window": 64, "global_head_dim": 24, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 90,
          "hidden_size_per_layer_input": 8, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3}  # fmt: skip
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 12, "linear_conv_kernel_dim": 4}
KDA = {"linear_num_heads": 2, "linear_head_dim": 12, "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
       "num_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
NEMOTRON = EXPERTS | {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "mamba_num_heads": 4, "mamba_head_dim": 12, "ssm_state_size": 8, "n_groups": 2,
                      "conv_kernel": 4, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 56}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
GRANITE = MAMBA2 | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 80, "layer_types": ["mamba", "mamba", "attention", "mamba"]}
CONV = {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3}
JAMBA = {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "attn_layer_period": 4,
         "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1}  # fmt: skip
STEP = EXPERTS | {"n_routed_experts": 4, "share_expert_dim": 40, "mlp_layer_types": ["dense"] + 3 * ["sparse"], "layer_types": ["full_attention", "sliding_attention"] * 2,
        "num_sliding_attention_heads": 6, "sliding_window": 64, "pad_token_id": 0, "num_key_value_heads": 2}  # fmt: skip
SSM = {"state_size": 8, "conv_kernel": 4, "expand": 2, "head_dim": None}
CASES: dict[str, list[dict]] = {
    "llama": [{}, {"attention_bias": True, "mlp_bias": True}, {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 24}],
    "phi3": [{}, {"tie_word_embeddings": True}],
    "gemma2": [{"sliding_window": 64}, {"sliding_window": 64, "attention_bias": True, "tie_word_embeddings": False}],
    "gemma3_text": [{"sliding_window": 64, "sliding_window_pattern": 2}, {"sliding_window": 64, "sliding_window_pattern": 2, "tie_word_embeddings": False}],
    "olmo3": [{"sliding_window": 64}],
    "exaone4": [{"sliding_window": 64, "sliding_window_pattern": 4}, {"sliding_window": 64, "sliding_window_pattern": 4, "tie_word_embeddings": True}],
    "cohere2": [{"sliding_window": 64}, {"sliding_window": 64, "tie_word_embeddings": False}],
    "starcoder2": [{}, {"use_bias": False, "tie_word_embeddings": False}],
    "seed_oss": [{}, {"attention_bias": False}, {"attention_bias": True, "mlp_bias": True}],
    "glm4": [{"attention_bias": True}, {"attention_bias": False, "head_dim": 24}],
    "mixtral": [{"num_local_experts": 4, "num_experts_per_tok": 2}],
    "phimoe": [{"num_local_experts": 4, "num_experts_per_tok": 2}, {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True}],
    "granitemoe": [{"num_local_experts": 4, "num_experts_per_tok": 2}],
    "minimax_m2": [{"num_local_experts": 4, "num_experts_per_tok": 2}],
    "gpt_oss": [{"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}],
    "olmoe": [{"num_experts": 4, "num_experts_per_tok": 2}],
    "qwen2_moe": [EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 80}, EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 80, "decoder_sparse_step": 2}],
    "qwen3_moe": [EXPERTS | {"num_experts": 4}, EXPERTS | {"num_experts": 4, "attention_bias": True, "decoder_sparse_step": 2}],
    "hunyuan_v1_moe": [{"num_experts": 4, "moe_topk": 2}],
    "ernie4_5_moe": [{"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48, "moe_num_shared_experts": 2, "moe_layer_start_index": 1}],
    "llama4_text": [LLAMA4, LLAMA4 | {"interleave_moe_layer_step": 2, "tie_word_embeddings": True}],
    "glm4_moe": [EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": q, "attention_bias": q} for q in (False, True)],
    "deepseek_v2": [DEEPSEEK | {"q_lora_rank": rank} for rank in (None, 24)],
    "glm4_moe_lite": [DEEPSEEK | {"q_lora_rank": rank, "mlp_layer_types": ["dense"] + 3 * ["sparse"]} for rank in (None, 24)] + [
        {k: v for k, v in DEEPSEEK.items() if k != "first_k_dense_replace"} | {"q_lora_rank": 24}],
    "deepseek_v3": [DEEPSEEK | {"q_lora_rank": rank, "attention_bias": bool(rank)} for rank in (None, 24)],
    "deepseek_v32": [DEEPSEEK | INDEXER | {"q_lora_rank": 24}],
    "glm_moe_dsa": [DEEPSEEK | INDEXER | {"q_lora_rank": 24}, DEEPSEEK | INDEXER | {"q_lora_rank": 24, "indexer_types": ["full", "shared", "shared", "full"]}],
    "dots1": [EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 2, "first_k_dense_replace": 1}],
    "solar_open": [EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 1}],
    "hy_v3": [{"num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_experts": 4, "num_shared_experts": 1, "mlp_layer_types": ["dense"] + 3 * ["sparse"]}],
    "mistral4": [DEEPSEEK | {"q_lora_rank": None}, DEEPSEEK | {"q_lora_rank": 24, "n_shared_experts": 2, "first_k_dense_replace": 0}],
    "step3p5": [STEP, STEP | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"], "mlp_layer_types": ["sparse"] * 4, "num_sliding_attention_heads": 4}],
    "exaone_moe": [EXPERTS | {"num_experts": 4, "num_shared_experts": 1, "sliding_window": 64}],
    "gemma3n_text": [{"num_hidden_layers": 10, "sliding_window": 64, "num_kv_shared_layers": 5, "vocab_size_per_layer_input": 90, "hidden_size_per_layer_input": 8,
                      "laurel_rank": 6, "altup_num_inputs": 3}],
    "gemma4_text": [GEMMA4 | {"num_kv_shared_layers": 6, "use_double_wide_mlp": True},
                    GEMMA4 | {"hidden_size_per_layer_input": 0, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 4,
                              "top_k_experts": 2, "moe_intermediate_size": 48}],
    "mllama_text_model": [{"cross_attention_layers": [1, 3], "head_dim": None}],
    "gpt2": [GPT, GPT | {"n_inner": 80}], "gptj": [GPT | {"rotary_dim": 4}], "gpt_bigcode": [GPT | {"multi_query": True}, GPT | {"multi_query": False}],
    "gpt_neox": [NO_GROUPS, NO_GROUPS | {"attention_bias": False}],
    "falcon": [FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, FALCON | {"multi_query": True, "parallel_attn": True},
               FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
               FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}],
    "phi": [{"num_key_value_heads": 4, "head_dim": None}], "bloom": [GPT | {"seq_length": 128}], "mpt": [NO_GROUPS | {"intermediate_size": None, "d_model": 64, "n_layers": 4, "n_heads": 4, "max_seq_len": 256}],
    "opt": [NO_GROUPS | {"intermediate_size": None, "ffn_dim": 96, "word_embed_proj_dim": 64}],
    "bert": [BERT], "roberta": [BERT | {"pad_token_id": 1}], "xlm-roberta": [BERT | {"pad_token_id": 1, "type_vocab_size": 1}],
    "nomic_bert": [BERT | {"pad_token_id": 0}], "modernbert": [BERT | {"pad_token_id": 0}],
    "qwen3_next": [EXPERTS | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 80}, EXPERTS | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 80, "num_hidden_layers": 6, "attention_bias": True}],
    "qwen3_5_text": [DELTA, DELTA | {"tie_word_embeddings": True, "layer_types": ["full_attention", "linear_attention"] * 2}],
    "qwen3_5_moe_text": [EXPERTS | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 80}],
    "olmo_hybrid": [DELTA, DELTA | {"layer_types": ["full_attention", "linear_attention"] * 2}],
    "kimi_linear": [EXPERTS | LATENT | KDA | {"q_lora_rank": None}, EXPERTS | LATENT | KDA | {"q_lora_rank": 24, "n_shared_experts": 2}],
    "nemotron_h": [NEMOTRON, NEMOTRON | {"layers_block_type": ["mamba", "mlp", "attention", "mlp"], "n_routed_experts": None, "mlp_bias": True, "use_bias": True},
                   NEMOTRON | {"moe_latent_size": 32}],
    "granitemoehybrid": [GRANITE, GRANITE | {"num_local_experts": 0, "tie_word_embeddings": True}, GRANITE | {"layer_types": ["attention"] * 4}],
    "falcon_h1": [MAMBA2 | {"mamba_d_ssm": 128}, MAMBA2 | {"mamba_d_ssm": 64, "mamba_d_head": 8, "mamba_rms_norm": True, "projectors_bias": True, "attention_bias": True, "mlp_bias": True}],
    "bamba": [MAMBA2 | {"attn_layer_indices": [1]}, MAMBA2 | {"attn_layer_indices": [0, 3], "mamba_proj_bias": True, "tie_word_embeddings": True}],
    "lfm2": [CONV, CONV | {"block_auto_adjust_ff_dim": False, "conv_bias": True}],
    "lfm2_moe": [CONV | EXPERTS | {"num_experts": 4, "num_dense_layers": 1}],
    "jamba": [JAMBA, JAMBA | {"num_experts": 1}, JAMBA | {"mamba_proj_bias": True, "tie_word_embeddings": True}],
    "mamba": [SSM, SSM | {"use_bias": True, "use_conv_bias": False}],
    "falcon_mamba": [SSM],
    "mamba2": [SSM | {"num_heads": 8, "head_dim": 16, "n_groups": 2}, SSM | {"num_heads": 8, "head_dim": 16, "n_groups": 1, "use_bias": True, "tie_word_embeddings": True}],
    "minimax": [{"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["linear_attention", "full_attention"] * 2}],
}  # fmt: skip
NULLS = ("sliding_window", "pad_token_id", "q_lora_rank")  # mean something
_TABLES = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")  # of lightning attention: computed, not in the checkpoint
_OTHER_CODE = {"kimi_k2"}  # deepseek_v3 under its own name
_MODULE_NAMES = {"block_sparse_moe.": "mlp.", "mlp.moe_statics.": "mlp.gate.moe_statics."}
_NOMIC = {"encoder.layers": "layers", "emb_ln": "embeddings.LayerNorm", "attn.out_proj": "self_attn.o_proj", "mlp.fc11": "mlp.up_proj", "mlp.fc12": "mlp.gate_proj",
          "mlp.fc2": "mlp.down_proj", "norm1": "post_attention_layernorm", "norm2": "post_mlp_layernorm"}  # fmt: skip
_ROUTER = {"block_sparse_moe.router.layer.weight": "block_sparse_moe.router.weight"}
_OWN_NAMES = {"exaone_moe": {"mlp.e_score": "mlp.gate.e_score"}, "gpt_neox": {"embed_out": "lm_head"}, "nomic_bert": _NOMIC, "nemotron_h": {"backbone.": "model."},
              "step3p5": {"moe.gate.weight": "mlp.gate.weight", "moe.router_bias": "mlp.gate.e_score_correction_bias", "moe.": "mlp.experts.", "share_expert.": "mlp.shared_experts."},
              "granitemoe": _ROUTER, "granitemoehybrid": _ROUTER, "phimoe": {"block_sparse_moe.gate": "mlp.router"}}  # fmt: skip


def of_inventory(spec) -> Counter[tuple[str, tuple[int, ...]]]:
    names = _OWN_NAMES.get(spec.model_type, {}) | ({} if spec.model_type.startswith("granitemoe") else _MODULE_NAMES)
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for group in build_inventory(spec).groups:
        name = group.name
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        parts, shape = [name], group.shape
        if spec.model_type == "nomic_bert" and "Wqkv" in name:
            parts, shape = [name.replace("attn.Wqkv", f"self_attn.{p}_proj") for p in "qkv"], (shape[0] // 3, shape[1])
        for part in parts:
            for layer in group.indices or (None,):
                if spec.by_layer and layer is not None and not loaded(spec.by_layer, part, layer, spec.num_hidden_layers):
                    continue  # in checkpoints, and not in the module
                found[part.replace("{layer}", str(layer)), shape] += 1
    return found


def of_step(config: dict) -> Counter[tuple[str, tuple[int, ...]]]:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        tensors = AutoModelForImageTextToText.from_config(AutoConfig.for_model("step3p7", text_config=config)).state_dict()
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, tensor in tensors.items():
        name, shape = name.replace("language_model.", ""), tuple(tensor.shape)
        if "vision" in name or "multi_modal" in name or (name == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        for part in ("gate", "up") if name.endswith("experts.gate_up_proj") else ():
            found[name.replace("gate_up_proj", f"{part}_proj.weight"), (shape[0], shape[1] // 2, shape[2])] += 1
        if not name.endswith("experts.gate_up_proj"):
            found[name + ".weight" * name.endswith("experts.down_proj"), shape] += 1
    return found


def of_module(model_type: str, config: dict) -> Counter[tuple[str, tuple[int, ...]]]:
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, MllamaForCausalLM
    from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

    own = {k: v for k, v in config.items() if k not in ("torch_dtype", "model_type")}
    if model_type == "step3p5":  # the text model of Step 3.7 alone has a class
        return of_step(own)
    made = AutoConfig.for_model(model_type, **own)
    with torch.device("meta"):
        if model_type in ("mllama_text_model", "mistral4"):
            model = (MllamaForCausalLM if model_type == "mllama_text_model" else Mistral4ForCausalLM)(made)
        else:
            model = (AutoModel if ARCHITECTURES[model_type].encoder else AutoModelForCausalLM).from_config(made)
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    tied = made.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name in ("lm_head.weight", "embed_out.weight") and tied:
            continue
        if model_type == "gpt2" and len(shape) == 2 and ".h." in name:  # Conv1D is a transposed Linear
            shape = shape[::-1]
        if model_type == "gemma4_text" and ".experts." in name:
            found[name, shape] += 1
            continue
        if name.endswith("experts.gate_up_proj") and model_type != "gpt_oss":
            out = shape[1] // 2 if model_type != "llama4_text" else shape[2] // 2
            one = (shape[0], out, config["hidden_size"])
            for part in ("gate", "up"):
                found[name.replace("gate_up_proj", f"{part}_proj.weight"), one] += 1
            continue
        if name.endswith(_TABLES):
            continue
        if name.endswith(("experts.down_proj", "experts.up_proj", "experts.gate_up_proj")):
            if model_type in ("gpt_oss", "llama4_text"):  # transposed in the module
                shape = (shape[0], shape[2], shape[1])
            name += "" if model_type == "gpt_oss" else ".weight"
        if name.endswith("moe_statics.e_score_correction_bias"):
            shape = shape[1:]
        found[name, shape] += 1
    return found


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - _OTHER_CODE))
def test_names_and_shapes_equal_the_real_models(model_type):
    for case in CASES.get(model_type, [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False, "num_key_value_heads": 4}]):
        config = {k: v for k, v in (BASE | {"model_type": model_type} | case).items() if v is not None or k in NULLS}
        ours, theirs = of_inventory(model_from_config(config, id=model_type)), of_module(model_type, config)
        assert ours == theirs, {"only ours": sorted((ours - theirs).elements())[:6], "only theirs": sorted((theirs - ours).elements())[:6]}


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - _OTHER_CODE - {"hunyuan_v1_moe", "hunyuan_v1_dense", "mamba2"}))  # their classes need a head_dim
def test_what_a_config_leaves_unsaid_is_what_its_class_says(model_type):
    """head_dim, tying and biases of a config that doesn't mention them."""
    case = {k: v for k, v in CASES.get(model_type, [{}])[0].items() if not re.search("bias|tie|^head_dim$", k)}
    config = {k: v for k, v in (BASE | {"model_type": model_type} | case).items() if k != "head_dim"}
    config = {k: v for k, v in config.items() if v is not None or k in NULLS}
    assert of_inventory(model_from_config(config, id=model_type)) == of_module(model_type, config)


TOWERS = {
    "gemma3": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_use_head": False},
    "mistral3": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 12, "image_size": 56, "patch_size": 14},
    "qwen3_vl": {"depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
                 "out_hidden_size": 64, "num_position_embeddings": 49, "deepstack_visual_indexes": [1, 2]},
    "qwen3_5": {"depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
                "out_hidden_size": 64, "num_position_embeddings": 49},
    "qwen2_5_vl": {"depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2,
                   "out_hidden_size": 64, "in_channels": 3},
    "qwen2_vl": {"depth": 4, "embed_dim": 48, "mlp_ratio": 2, "hidden_size": 64, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2},
    "llama4": {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "pixel_shuffle_ratio": 0.5,
               "projector_input_dim": 40, "projector_output_dim": 40, "vision_output_dim": 40},
}  # fmt: skip
TOWERS["mllama"] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 4, "image_size": 56, "patch_size": 14,
                    "max_num_tiles": 3, "vision_output_dim": 96, "supported_aspect_ratios": [[1, 1], [1, 2]], "intermediate_layers_indices": [1]}  # fmt: skip
TOWERS["gemma4"] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "patch_size": 8,
                    "position_embedding_size": 50}  # fmt: skip
TOWERS["gemma4_unified"] = {"patch_size": 4, "pooling_kernel_size": 2, "mm_embed_dim": 48, "mm_posemb_size": 50, "output_proj_dims": 56}
TOWERS["step3p7"] = {"width": 48, "layers": 3, "heads": 4, "mlp_ratio": 2.5, "image_size": 56, "patch_size": 14, "num_channels": 3}
TOWERS["qwen3_5_moe"] = TOWERS["qwen3_5"]
TEXTS = {"step3p7": "step3p5", "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "mllama": "mllama_text_model", "gemma4": "gemma4_text", "gemma4_unified": "gemma4_unified_text", "gemma3": "gemma3_text", "mistral3": "mistral", "qwen3_vl": "qwen3_vl_text", "qwen2_5_vl": "qwen2_5_vl_text", "qwen2_vl": "qwen2_vl_text", "llama4": "llama4_text"}


@pytest.mark.parametrize("outer", TOWERS)
def test_a_multimodal_model_is_its_text_and_a_tower(outer):
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = BASE | (GEMMA4 if outer.startswith("gemma4") else CASES.get(TEXTS[outer], [{}])[0]) | {"model_type": TEXTS[outer], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    if outer.startswith("qwen"):
        text["rope_parameters"]["mrope_section"] = [2, 3, 3]
    if outer.startswith("qwen2") or outer == "mllama":  # without a head_dim of its own
        del text["head_dim"]
    if outer.startswith("gemma4"):  # one for each kind of layer
        del text["rope_parameters"]
    if outer == "gemma4_unified":  # no inputs by layer
        del text["hidden_size_per_layer_input"], text["vocab_size_per_layer_input"]
    config = {"text_config": text, "vision_config": TOWERS[outer]}
    made = AutoConfig.for_model(outer, **{"text_config": {k: v for k, v in text.items() if k != "torch_dtype"}, "vision_config": TOWERS[outer]})
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(made)
        real = sum(p.numel() for p in model.parameters()) + sum(b.numel() for name, b in model.named_buffers() if name.endswith(("layer_scalar", "e_score_correction_bias")))
    config |= {"model_type": outer, "tie_word_embeddings": getattr(made, "tie_word_embeddings", False)}
    inventory = build_inventory(model_from_config(config, id=outer))
    assert inventory.parameters == real
    assert 0 < inventory.vision_parameters < real


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "modernbert"])
def test_classifiers_of_encoders_are_the_module_s(model_type):
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    made = AutoConfig.for_model(model_type, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=300,
                                max_position_embeddings=130, type_vocab_size=2, pad_token_id=1, num_labels=3)  # fmt: skip
    with torch.device("meta"):
        module = AutoModelForSequenceClassification.from_config(made)
    spec = model_from_config(made.to_dict() | {"architectures": [type(module).__name__], "dtype": "float32"}, id=model_type)
    real = {(name.partition(".")[2] if name.startswith(("bert.", "roberta.", "model.")) else name, tuple(p.shape)) for name, p in module.named_parameters()}
    assert {(g.name.replace("{layer}", str(i)), g.shape) for g in build_inventory(spec).groups for i in g.indices or (0,)} == real
