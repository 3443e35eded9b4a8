"""GGUF files of models with recurrent layers: what is read of them is the model that they were made of."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from calculator.catalog import load_model
from calculator.checkpoints.gguf import FILE_TYPES
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.readers.gguf import TYPES
from calculator.readers.hf_config import model_from_config

pytest.importorskip("gguf")
from readers.files import gguf_bytes, text

NAMES = {  # ends of the checkpoint's names -> the file's
    "embed_tokens.weight": "token_embd.weight", "embeddings.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight",
    "norm_f.weight": "output_norm.weight", "final_layernorm.weight": "output_norm.weight", "embedding_norm.weight": "token_embd_norm.weight",
    "in_proj_qkvz.weight": "attn_qkv.weight", "in_proj_z.weight": "attn_gate.weight", "in_proj_qkv.weight": "attn_qkv.weight", "in_proj_ba.weight": "ssm_ba.weight",
    "in_proj_a.weight": "ssm_alpha.weight", "in_proj_b.weight": "ssm_beta.weight", "linear_attn.out_proj.weight": "ssm_out.weight", "conv1d.weight": "ssm_conv1d.weight",
    "conv1d.bias": "ssm_conv1d.bias", "dt_bias": "ssm_dt.bias", "A_log": "ssm_a", ".D": "ssm_d", "linear_attn.norm.weight": "ssm_norm.weight", "x_proj.weight": "ssm_x.weight",
    "dt_proj.weight": "ssm_dt.weight", "dt_proj.bias": "ssm_dt.bias", "dt_layernorm.weight": "ssm_dt_norm.weight", "b_layernorm.weight": "ssm_b_norm.weight",
    "c_layernorm.weight": "ssm_c_norm.weight", "mixer.in_proj.weight": "ssm_in.weight", "mixer.out_proj.weight": "ssm_out.weight", "mixer.norm.weight": "ssm_norm.weight",
    "mamba.in_proj.weight": "ssm_in.weight", "mamba.out_proj.weight": "ssm_out.weight", "mamba.norm.weight": "ssm_norm.weight", "conv.conv.weight": "shortconv.conv.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight", "conv.out_proj.weight": "shortconv.out_proj.weight", "q_proj.weight": "attn_q.weight", "k_proj.weight": "attn_k.weight",
    "v_proj.weight": "attn_v.weight", "o_proj.weight": "attn_output.weight", "self_attn.out_proj.weight": "attn_output.weight", "q_norm.weight": "attn_q_norm.weight",
    "k_norm.weight": "attn_k_norm.weight", "q_layernorm.weight": "attn_q_norm.weight", "k_layernorm.weight": "attn_k_norm.weight", "experts.gate_proj.weight": "ffn_gate_exps.weight",
    "experts.up_proj.weight": "ffn_up_exps.weight", "experts.down_proj.weight": "ffn_down_exps.weight", "shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "shared_expert.up_proj.weight": "ffn_up_shexp.weight", "shared_expert.down_proj.weight": "ffn_down_shexp.weight", "shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "shared_experts.down_proj.weight": "ffn_down_shexp.weight", "shared_expert_gate.weight": "ffn_gate_inp_shexp.weight", "mixer.up_proj.weight": "ffn_up.weight",
    "mixer.down_proj.weight": "ffn_down.weight", "mlp.gate.weight": "ffn_gate_inp.weight", "mixer.gate.weight": "ffn_gate_inp.weight", "feed_forward.gate.weight": "ffn_gate_inp.weight",
    "router.weight": "ffn_gate_inp.weight", "router.layer.weight": "ffn_gate_inp.weight", "e_score_correction_bias": "exp_probs_b.bias", "expert_bias": "exp_probs_b.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight", "feed_forward.gate_proj.weight": "ffn_gate.weight",
    "feed_forward.up_proj.weight": "ffn_up.weight", "feed_forward.down_proj.weight": "ffn_down.weight", "w1.weight": "ffn_gate.weight", "w3.weight": "ffn_up.weight",
    "w2.weight": "ffn_down.weight", "output_linear.weight": "ffn_down_shexp.weight", "input_layernorm.weight": "attn_norm.weight", "operator_norm.weight": "attn_norm.weight",
    "pre_ff_layernorm.weight": "ffn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight", "ffn_norm.weight": "ffn_norm.weight", "norm.weight": "attn_norm.weight",
}  # fmt: skip
BASE = {"hidden_size": 512, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
        "head_dim": 64, "max_position_embeddings": 4096, "torch_dtype": "float16", "tie_word_embeddings": False}  # fmt: skip
DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4}
MOE = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
MAMBA2 = {"mamba_n_heads": 16, "mamba_d_head": 64, "mamba_n_groups": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_ssm": 1024}
NEMOTRON = {"mamba_num_heads": 16, "mamba_head_dim": 64, "ssm_state_size": 64, "n_groups": 2, "conv_kernel": 4}
FILES = {
    "qwen3next": {"model_type": "qwen3_next", "intermediate_size": 256, "shared_expert_intermediate_size": 256, **DELTA, **MOE},
    "qwen35": {"model_type": "qwen3_5_text", **DELTA},
    "qwen35moe": {"model_type": "qwen3_5_moe_text", "intermediate_size": 256, "shared_expert_intermediate_size": 256, **DELTA, **MOE},
    "nemotron_h": {"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-M", **NEMOTRON},
    "nemotron_h_moe": {"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*EM", "intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 2,
                       "moe_intermediate_size": 256, "moe_shared_expert_intermediate_size": 512, **NEMOTRON},
    "granitehybrid": {"model_type": "granitemoehybrid", "layer_types": ["mamba", "mamba", "attention"] * 2, "num_local_experts": 16, "num_experts_per_tok": 2,
                      "shared_intermediate_size": 512, "intermediate_size": 256, **MAMBA2},
    "falcon-h1": {"model_type": "falcon_h1", **MAMBA2},
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "conv", "full_attention"] * 2, "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
    "lfm2moe": {"model_type": "lfm2_moe", "layer_types": ["conv", "conv", "full_attention"] * 2, "conv_L_cache": 3, "num_dense_layers": 2, **MOE},
    "jamba": {"model_type": "jamba", "num_experts": 16, "num_experts_per_tok": 2, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 32,
              "attn_layer_period": 3, "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    "mamba": {"model_type": "mamba", "state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 1024},
    "mamba2": {"model_type": "mamba2", "state_size": 64, "conv_kernel": 4, "expand": 2, "num_heads": 16, "head_dim": 64, "n_groups": 2},
}  # fmt: skip
U32, STR, ARR, I32 = 4, 8, 9, 5
BY_LAYER = ("nemotron_h", "nemotron_h_moe", "granitehybrid", "lfm2", "lfm2moe", "jamba")


def in_file(group, layer: int | None) -> str:
    if "input_linear" in group.name:  # Granite's gate and up, apart in the file
        return f"blk.{layer}.{group.role}_shexp.weight"
    end = max((end for end in NAMES if group.name.endswith(end)), key=len)
    return NAMES[end] if layer is None else f"blk.{layer}.{NAMES[end]}"


def header(arch, spec, stored, recipe, *, extra=(), layers=0):
    """The header that llama.cpp's converter would write."""
    r, at, n = spec.recurrent, set(spec.attention_layers), spec.num_hidden_layers
    keys: dict[str, int | list[int]] = {"embedding_length": spec.hidden_size, "block_count": layers or n, "context_length": 4096,
                                        "attention.head_count": spec.num_attention_heads}  # fmt: skip
    if at:
        keys |= {"attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim,
                 "attention.head_count_kv": [spec.num_key_value_heads * (i in at) for i in range(n)] if arch in BY_LAYER else spec.num_key_value_heads}  # fmt: skip
    if arch.startswith("nemotron"):
        keys["feed_forward_length"] = [spec.intermediate_size * (kind in ("dense", "sparse")) for kind in spec.layer_types]
    else:
        keys["feed_forward_length"] = spec.intermediate_size if at else 0
    if spec.num_experts:
        keys |= {"expert_count": spec.num_experts, "expert_used_count": spec.num_experts_per_tok, "expert_feed_forward_length": spec.expert_intermediate_size,
                 "expert_shared_feed_forward_length": spec.shared_expert_intermediate_size, "leading_dense_block_count": spec.first_dense_layers}  # fmt: skip
    if r.kind == "conv":
        keys["shortconv.l_cache"] = r.conv_kernel
    else:
        keys |= {"ssm.conv_kernel": r.conv_kernel, "ssm.inner_size": r.inner, "ssm.state_size": r.state_size, "ssm.group_count": r.groups,
                 "ssm.time_step_rank": r.dt_rank or r.heads}  # fmt: skip
    said = [("general.architecture", STR, text(arch)), ("general.file_type", U32, struct.pack("<I", {v: k for k, v in FILE_TYPES.items()}[recipe]))]
    for key, value in {**keys, **dict(extra)}.items():
        raw = struct.pack("<I", value) if isinstance(value, int) else struct.pack(f"<IQ{len(value)}i", I32, len(value), *value)
        said.append((f"{arch}.{key}", U32 if isinstance(value, int) else ARR, raw))
    tensors, offset, numbers = [], 0, {v: k for k, v in TYPES.items()}
    for g in stored:
        for layer in g.layers or (None,):
            tensors.append((in_file(g.group, layer), tuple(reversed(g.group.shape)), numbers[g.format], offset))
            offset += -(-g.tensor_nbytes // 32) * 32
    return gguf_bytes(keys=said, tensors=tensors)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16", "MXFP4_MOE"])
@pytest.mark.parametrize("arch", FILES)
def test_a_file_of_a_hybrid_gives_the_model_that_it_was_made_of(tmp_path, arch, recipe):
    spec = model_from_config({k: v for k, v in (BASE | FILES[arch]).items() if arch not in ("mamba", "mamba2") or k in FILES[arch] or k not in ("head_dim", "intermediate_size")}, id="made")
    stored = quantize(spec, parse(recipe))
    (tmp_path / "m.gguf").write_bytes(header(arch, spec, stored, recipe))
    found = load_model(str(tmp_path / "m.gguf"))
    assert replace(found.spec, id="made", max_position_embeddings=spec.max_position_embeddings, tie_word_embeddings=spec.tie_word_embeddings) == spec
    assert [w for w in found.checkpoint.warnings if "ends before" not in w] == []
    job = estimate(found, context=1024, engine="llama.cpp", partial=True)
    assert job.tensor_bytes == stored_nbytes(stored)
    assert {x.basis for x in job.ledger.lines if x.component == "weights"} == {"exact"}


def test_layers_that_predict_further_tokens_are_not_loaded_and_said(tmp_path):
    spec = model_from_config(BASE | FILES["qwen35"], id="made")
    stored = quantize(spec, parse("F16"))
    more = tuple(replace(g, layers=(*g.layers, 6), group=replace(g.group, layers=len(g.layers) + 1)) if "self_attn.q_proj" in g.group.name else g for g in stored)
    (tmp_path / "m.gguf").write_bytes(header("qwen35", spec, more, "F16", extra={"nextn_predict_layers": 1}, layers=7))
    found = load_model(str(tmp_path / "m.gguf"))
    assert stored_nbytes(found.checkpoint.stored) == stored_nbytes(stored) < stored_nbytes(more)
    assert any("(MTP)" in w for w in found.checkpoint.warnings)


@pytest.mark.parametrize(("extra", "words"), [
    ({"block_count": 2**31}, "out of range"), ({"nextn_predict_layers": 99}, "num_hidden_layers"), ({"ssm.time_step_rank": 0}, "out of range"),
    ({"attention.recurrent_layers": [1]}, "for each of 6 layers"), ({"attention.head_count_kv": [2, 4, 2, 2, 2, 2]}, "differs between layers"),
])  # fmt: skip
def test_a_header_that_cant_be_is_refused_in_one_line(tmp_path, extra, words):
    spec = model_from_config(BASE | FILES["qwen35"], id="made")
    (tmp_path / "m.gguf").write_bytes(header("qwen35", spec, quantize(spec, parse("F16")), "F16", extra=extra))
    with pytest.raises(CalculatorError, match=words) as error:
        load_model(str(tmp_path / "m.gguf"))
    assert "\n" not in str(error.value)
