"""Hybrids in llama.cpp and transformers: sizes that the library itself prints, and states that transformers really caches (`make real`)."""

from __future__ import annotations

import pytest

from calculator.architectures import ARCHITECTURES
from calculator.catalog import Model, load_model
from calculator.engines.vllm.hybrid import state_bytes
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.readers.hf_config import model_from_config

BIG = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 13, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
       "head_dim": 64, "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}  # fmt: skip
CASES = {
    "qwen3_next": [
        {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "num_experts": 16, "shared_expert_intermediate_size": 256},
    ],
    "qwen3_5_text": [
        {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4},
        {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "tie_word_embeddings": True},
    ],
    "qwen3_5_moe_text": [
        {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "num_experts": 16, "shared_expert_intermediate_size": 256},
    ],
    "nemotron_h": [
        {"hybrid_override_pattern": "M-M-M*-M-M*-M-", "mamba_num_heads": 16, "mamba_head_dim": 64, "ssm_state_size": 64, "n_groups": 2, "conv_kernel": 4},
        {"hybrid_override_pattern": "MEMEM*EMEM*EME", "mamba_num_heads": 16, "mamba_head_dim": 64, "ssm_state_size": 64, "n_groups": 2, "conv_kernel": 4, "n_routed_experts": 16, "moe_shared_expert_intermediate_size": 512, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
        {"hybrid_override_pattern": "MEMEM*EMEM*EME", "mamba_num_heads": 16, "mamba_head_dim": 64, "ssm_state_size": 64, "n_groups": 2, "conv_kernel": 4, "n_routed_experts": 16, "moe_shared_expert_intermediate_size": 512, "moe_latent_size": 256, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
    ],
    "granitemoehybrid": [
        {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "layer_types": ["mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba"], "num_local_experts": 0, "shared_intermediate_size": 768, "tie_word_embeddings": True},
        {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "layer_types": ["mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba", "mamba", "attention", "mamba"], "num_local_experts": 16, "num_experts_per_tok": 2, "shared_intermediate_size": 512, "intermediate_size": 256},
    ],
    "falcon_h1": [
        {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 1024},
        {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 1024, "mamba_rms_norm": True},
    ],
    "bamba": [
        {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "attn_layer_indices": [3, 9]},
    ],
    "lfm2": [
        {"layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv"], "conv_L_cache": 3},
    ],
    "lfm2_moe": [
        {"num_experts_per_tok": 2, "moe_intermediate_size": 256, "layer_types": ["conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv", "full_attention", "conv"], "conv_L_cache": 3, "num_experts": 16, "num_dense_layers": 2},
    ],
    "jamba": [
        {"num_experts": 16, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 32, "attn_layer_period": 4, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    ],
    "mamba": [
        {"state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 1024},
    ],
    "mamba2": [
        {"state_size": 64, "conv_kernel": 4, "expand": 2, "num_heads": 16, "head_dim": 64, "n_groups": 2},
    ],
    "minimax": [
        {"num_local_experts": 16, "num_experts_per_tok": 2, "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"]},
    ],
    "kimi_linear": [
        {"num_experts_per_tok": 2, "moe_intermediate_size": 256, "num_experts": 16, "n_shared_experts": 1, "first_k_dense_replace": 1, "linear_num_heads": 8, "linear_head_dim": 64, "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"], "kv_lora_rank": 128, "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    ],
}  # fmt: skip
# MiB of all tensors: llama_model_quantize of llama.cpp @0c1e57098, dry run, on files of these names and shapes
PRINTED = {
    ("qwen3_next", 0): {"Q8_0": 103.23, "Q4_K_M": 58.92, "Q5_K_S": 67.09, "Q3_K_L": 50.98, "IQ4_XS": 53.22, "IQ3_M": 43.4, "MXFP4_MOE": 61.8},
    ("qwen3_5_text", 0): {"Q8_0": 30.29, "Q4_K_M": 17.39, "Q5_K_S": 19.74, "Q3_K_L": 15.35, "IQ4_XS": 16.26, "IQ3_M": 13.4, "MXFP4_MOE": 30.29},
    ("qwen3_5_text", 1): {"Q8_0": 29.77, "Q4_K_M": 17.11, "Q5_K_S": 19.4, "Q3_K_L": 15.14, "IQ4_XS": 16.0, "IQ3_M": 13.19, "MXFP4_MOE": 29.77},
    ("qwen3_5_moe_text", 0): {"Q8_0": 103.23, "Q4_K_M": 58.92, "Q5_K_S": 67.09, "Q3_K_L": 50.98, "IQ4_XS": 53.22, "IQ3_M": 43.4, "MXFP4_MOE": 61.8},
    ("nemotron_h", 0): {"Q8_0": 17.76, "Q4_K_M": 9.83, "Q5_K_S": 11.63, "Q3_K_L": 8.23, "IQ4_XS": 9.18, "IQ3_M": 7.62, "MXFP4_MOE": 17.76},
    ("nemotron_h", 1): {"Q8_0": 41.85, "Q4_K_M": 24.22, "Q5_K_S": 27.28, "Q3_K_L": 20.99, "IQ4_XS": 21.26, "IQ3_M": 17.43, "MXFP4_MOE": 29.1},
    ("nemotron_h", 2): {"Q8_0": 30.69, "Q4_K_M": 17.54, "Q5_K_S": 20.06, "Q3_K_L": 14.93, "IQ4_XS": 15.68, "IQ3_M": 12.92, "MXFP4_MOE": 24.32},
    ("granitemoehybrid", 0): {"Q8_0": 34.64, "Q4_K_M": 19.22, "Q5_K_S": 22.59, "Q3_K_L": 15.96, "IQ4_XS": 17.67, "IQ3_M": 14.6, "MXFP4_MOE": 34.64},
    ("granitemoehybrid", 1): {"Q8_0": 113.26, "Q4_K_M": 63.94, "Q5_K_S": 73.6, "Q3_K_L": 54.28, "IQ4_XS": 57.48, "IQ3_M": 46.88, "MXFP4_MOE": 71.82},
    ("falcon_h1", 0): {"Q8_0": 48.14, "Q4_K_M": 26.46, "Q5_K_S": 31.34, "Q3_K_L": 22.18, "IQ4_XS": 24.58, "IQ3_M": 20.47, "MXFP4_MOE": 48.14},
    ("falcon_h1", 1): {"Q8_0": 48.19, "Q4_K_M": 26.51, "Q5_K_S": 31.39, "Q3_K_L": 22.23, "IQ4_XS": 24.63, "IQ3_M": 20.52, "MXFP4_MOE": 48.19},
    ("bamba", 0): {"Q8_0": 37.35, "Q4_K_M": 20.67, "Q5_K_S": 24.36, "Q3_K_L": 16.93, "IQ4_XS": 19.06, "IQ3_M": 15.65, "MXFP4_MOE": 37.35},
    ("lfm2", 0): {"Q8_0": 23.2, "Q4_K_M": 12.88, "Q5_K_S": 15.12, "Q3_K_L": 10.8, "IQ4_XS": 11.84, "IQ3_M": 9.84, "MXFP4_MOE": 23.2},
    ("lfm2_moe", 0): {"Q8_0": 85.71, "Q4_K_M": 48.42, "Q5_K_S": 55.68, "Q3_K_L": 41.31, "IQ4_XS": 43.28, "IQ3_M": 35.34, "MXFP4_MOE": 50.64},
    ("jamba", 0): {"Q8_0": 144.22, "Q4_K_M": 82.0, "Q5_K_S": 93.81, "Q3_K_L": 69.44, "IQ4_XS": 72.89, "IQ3_M": 59.41, "MXFP4_MOE": 86.85},
    ("mamba", 0): {"Q8_0": 23.73, "Q4_K_M": 13.3, "Q5_K_S": 15.87, "Q3_K_L": 10.55, "IQ4_XS": 12.62, "IQ3_M": 10.55, "MXFP4_MOE": 23.73},
    ("mamba2", 0): {"Q8_0": 23.99, "Q4_K_M": 13.01, "Q5_K_S": 15.73, "Q3_K_L": 10.13, "IQ4_XS": 12.33, "IQ3_M": 10.13, "MXFP4_MOE": 23.99},
    ("minimax", 0): {"Q8_0": 265.41, "Q4_K_M": 150.95, "Q5_K_S": 171.97, "Q3_K_L": 130.74, "IQ4_XS": 135.23, "IQ3_M": 110.06, "MXFP4_MOE": 141.1},
    ("kimi_linear", 0): {"Q8_0": 98.84, "Q4_K_M": 56.06, "Q5_K_S": 64.32, "Q3_K_L": 48.86, "IQ4_XS": 49.99, "IQ3_M": 41.52, "MXFP4_MOE": 60.39},
}  # fmt: skip
# MiB of its KV and RS buffers on the CPU: 4,096 cells and one sequence; 3,000 cells and three
BUFFERS = {
    "qwen3_next": (6.00, 1.37, 4.50, 4.10), "qwen3_5_moe_text": (6.00, 1.37, 4.50, 4.10), "nemotron_h": (4.00, 1.59, 3.00, 4.76),
    "granitemoehybrid": (8.00, 2.38, 6.00, 7.15), "falcon_h1": (26.00, 3.44, 19.50, 10.32), "bamba": (4.00, 2.91, 3.00, 8.73),
    "lfm2": (8.00, 0.04, 6.00, 0.11), "lfm2_moe": (8.00, 0.04, 6.00, 0.11), "jamba": (6.00, 0.74, 4.50, 2.23), "mamba": (0.0, 0.96, 0.0, 2.89),
    "mamba2": (0.0, 3.44, 0.0, 10.32), "minimax": (6.00, 1.25, 4.50, 3.75), "kimi_linear": (3.75, 1.43, 2.81, 4.28),
}  # fmt: skip


def spec_of(model_type, number=0):
    return model_from_config(BIG | {"model_type": model_type} | CASES[model_type][number], id=model_type)


def model_of(model_type, number=0):
    return Model(spec_of(model_type, number), {"name": model_type, "family": model_type, "sources": {}, "hf_id": None})


def mib(found, name):
    return sum(line.nbytes for line in found.ledger.lines if line.name == name) / 2**20


@pytest.mark.parametrize(("model_type", "number"), PRINTED)
def test_recipes_of_hybrids_as_llama_quantize_sizes_them(model_type, number):
    spec = spec_of(model_type, number)
    ours = {recipe: stored_nbytes(quantize(spec, parse(recipe))) / 2**20 for recipe in PRINTED[model_type, number]}
    assert ours == pytest.approx(PRINTED[model_type, number], abs=0.0051)


@pytest.mark.parametrize("model_type", BUFFERS)
def test_cache_and_state_as_llama_cpp_prints_them(model_type):
    found = []
    for context, sequences in ((4096, 1), (1000, 3)):
        job = estimate(model_of(model_type), quant="F16", context=context, sequences=sequences, engine="llama.cpp", settings={"backend": "cpu"}, partial=True)
        found += [mib(job, "KV buffer"), mib(job, "RS buffer")]
    assert found == pytest.approx(BUFFERS[model_type], abs=0.0051)


def test_every_hybrid_that_llama_cpp_knows_is_held_to_it():
    assert {name for name, row in ARCHITECTURES.items() if row.recurrent} - set(BUFFERS) == {"olmo_hybrid", "falcon_mamba", "qwen3_5_text"}
    with pytest.raises(CalculatorError, match="no graph"):
        estimate("olmo-hybrid-7b", quant="Q4_K_M", context=1024, partial=True)


@pytest.mark.parametrize("id", ["qwen3-next-80b-a3b", "nemotron-nano-9b-v2", "falcon-h1-0.5b-base", "mamba-2.8b", "kimi-linear-48b-a3b-instruct"])
@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_the_state_grows_with_sequences_and_not_with_context(id, engine):
    name = "RS buffer" if engine == "llama.cpp" else "recurrent state"
    options = {"engine": engine, "quant": "F16" if engine == "llama.cpp" else None, "partial": True}
    one, long, three = (estimate(id, context=c, sequences=n, **options) for c, n in ((512, 1), (4096, 1), (512, 3)))
    assert 0 < mib(one, name) == mib(long, name) == mib(three, name) / 3
    assert long.ledger.component_bytes("kv_cache") - one.ledger.component_bytes("kv_cache") == one.kv_bytes_per_token * (4096 - 512)


def test_only_layers_that_attend_cache_keys_and_values():
    """Qwen3-Next: 12 of 48 layers, 2 heads of 256; its state is 36 layers of 32 x 128 x 128 and three inputs of 8,192 channels."""
    found = estimate("qwen3-next-80b-a3b", quant="Q4_K_M", context=8192, partial=True)
    assert found.kv_bytes_per_token == 2 * 12 * 2 * 256 * 2
    assert round(mib(found, "RS buffer"), 2) == 75.38


@pytest.mark.parametrize(("id", "quant", "slots", "printed"), [
    ("qwen3.5-0.8b", "Q8_0", 4, {"model buffer": 763.78, "model buffer, token_embd": 257.66, "KV buffer": 24.00, "RS buffer": 77.06}),  # 2,048 cells
    ("qwen3.5-27b", "Q4_K_M", 4, {"RS buffer": 598.50}),  # with KV of 131,072 cells in q8_0 over 16 layers: 4352.00
    ("falcon-h1-1.5b-instruct", "Q4_K_M", 1, {"RS buffer": 72.98}),  # GeniePod/genie-claw#410; with 32,768 cells of 768.00
    ("qwen3.5-35b-a3b", "Q4_K_M", 4, {"RS buffer": 251.25}), ("qwen3.5-35b-a3b", "Q4_K_M", 1, {"RS buffer": 62.81}),
])  # fmt: skip
def test_buffers_of_public_logs_to_the_last_digit(id, quant, slots, printed):
    """Start-up logs of llama-server on CUDA, May to September 2026; found after the formulas."""
    found = estimate(id, quant=quant, context=2048 // slots, sequences=slots, settings={"kv_unified": True}, partial=True)
    assert {name: round(mib(found, name), 2) for name in printed} == printed


def test_the_27bs_cache_of_a_public_log():
    found = estimate("qwen3.5-27b", quant="Q4_K_M", context=131_072, kv_dtype="q8_0", partial=True)
    assert round(mib(found, "KV buffer"), 2) == 4352.00


def test_layers_on_several_gpus_keep_their_own_state():
    one, two = (estimate("nemotron-nano-9b-v2", quant="Q8_0", context=4096, gpus=n, gpu="h100", engine="llama.cpp", partial=True) for n in (1, 2))
    held = [line.nbytes for line in two.ledger.lines if line.name == "RS buffer"]
    assert len(held) == 2
    assert sum(held) == sum(line.nbytes for line in one.ledger.lines if line.name == "RS buffer")


def test_half_the_state_is_the_hosts_with_half_the_layers():
    found = estimate("mamba-2.8b", quant="Q8_0", context=4096, engine="llama.cpp", settings={"n_gpu_layers": 33}, partial=True)
    places = {line.device: line.nbytes for line in found.ledger.lines if line.name == "RS buffer"}
    assert places[0] == places["host"]


def test_what_libraries_leave_unquantized_in_recurrent_layers_is_not_guessed():
    with pytest.raises(CalculatorError, match="recurrent layers"):
        estimate("qwen3.5-9b", quant="bnb-nf4", context=1024, partial=True)


def test_vllm_keeps_states_whose_type_no_config_has_in_the_type_of_its_release():
    def state(version, **settings):
        return state_bytes(estimate("nemotron-nano-9b-v2", engine="vllm", gpu="h100", engine_version=version, settings=settings).job)

    assert state("0.19.0") == state("0.22.0", mamba_ssm_cache_dtype="float16")
    assert state("0.22.0") == state("0.19.0", mamba_ssm_cache_dtype="float32")


@pytest.mark.parametrize("said", ["int1", ["float32"], {}])
def test_a_state_of_an_unknown_type_is_refused(said):
    config = dict(load_model("qwen3.5-9b").record["config"])
    text = config.get("text_config", config)
    changed = {**config, **({"text_config": {**text, "mamba_ssm_dtype": said}} if "text_config" in config else {"mamba_ssm_dtype": said})}
    if said == {}:
        assert model_from_config(changed, id="x").recurrent.state_bytes == 4  # nothing said: as every published one
        return
    with pytest.raises(CalculatorError, match="recurrent state's type"):
        model_from_config(changed, id="x")
