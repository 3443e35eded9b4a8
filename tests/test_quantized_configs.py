"""A config.json of an already quantized checkpoint names its own format."""

from __future__ import annotations

import json

import pytest

from calculator.architectures import build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.catalog import load_model
from calculator.datafiles import read_json
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.quantization.hf import fp8_block


def write(tmp_path, **config):
    (tmp_path / "config.json").write_text(json.dumps(read_json("models/llama-3.1-8b.json")["config"] | config))
    return str(tmp_path / "config.json")


LINEAR = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "input_activations": {"dynamic": True}}


@pytest.mark.parametrize(
    ("settings", "quant"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq-int4-g128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq-int8-g-1"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, "awq-int4-g128"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "bnb-nf4-dq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-int8"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"]}, "fp8-block"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": LINEAR}, "ignore": ["lm_head"]}, "fp8-per-channel"),
    ],
)  # fmt: skip
def test_its_own_format_is_the_default(tmp_path, settings, quant):
    path = write(tmp_path, quantization_config=settings)
    assert estimate(path, context=1024).job.deployment.quant == quant
    assert estimate(path, quant="bf16", context=1024).job.deployment.quant == "bf16"


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "fp8", "weight_block_size": [64, 64]},
     {"quant_method": "bitsandbytes"}, {"quant_method": "x" * 10_000}],
)  # fmt: skip
def test_a_format_without_a_name_asks_for_one_and_the_model_can_still_be_sized(tmp_path, settings):
    path = write(tmp_path, quantization_config=settings)
    with pytest.raises(CalculatorError, match="try: ") as error:
        estimate(path, context=1024)
    assert len(str(error.value)) < 500
    assert estimate(path, quant="Q4_K_M", context=1024).total_bytes > 0


@pytest.mark.parametrize(("id", "scales"), [("deepseek-v3", 41_540_496), ("minimax-m2.5", 13_880_064)])
def test_fp8_scales_are_what_published_totals_have_beyond_the_parameters(id, scales):
    """One float32 a block; the MTP layer's, which DeepSeek's total counts too, are one layer's with its projection of 2 h to h left out."""
    model = load_model(id)
    assert model.record["difference"]["value"] == scales
    inventory = build_inventory(model.spec)
    groups = [g for g in (*inventory.groups, *inventory.mtp) if g.role in LINEAR_ROLES and "eh_proj" not in g.name]
    matrices = [(g.shape[-2], g.shape[-1], g.elements // (g.shape[-2] * g.shape[-1]) * g.count) for g in groups]
    assert sum(fp8_block(out, in_)[1].nbytes // 4 * count for out, in_, count in matrices) == scales


@pytest.mark.parametrize("settings", [{"bits": 4}, [], "gptq", {"quant_method": 7}])
def test_one_that_does_not_say_how_is_refused(tmp_path, settings):
    with pytest.raises(CalculatorError, match="quantization_config"):
        load_model(write(tmp_path, quantization_config=settings))


def test_gpt_oss_20b_is_the_size_that_its_index_says():
    """model.safetensors.index.json of openai/gpt-oss-20b: total_size 13,761,264,768, experts in MXFP4 and all else in bfloat16."""
    found = estimate("gpt-oss-20b", context=1024, partial=True)
    assert (found.job.deployment.quant, found.tensor_bytes) == ("mxfp4", 13_761_264_768)


def test_deepseek_v3_in_its_own_fp8():
    """671,026,419,200 parameters: linear layers of the decoder a byte each and a float32 a block, all else two bytes."""
    found = estimate("deepseek-v3", context=1024, partial=True)
    assert found.job.deployment.quant == "fp8-block"
    assert 671_026_419_200 < found.tensor_bytes < 1.01 * 671_026_419_200


NVFP4 = {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, "input_activations": {"num_bits": 4}}


def left_out(config):
    """Layers of each module that a config stores apart, and as what."""
    found = load_model(config).checkpoint.scheme
    return {a.group.removesuffix(".weight").rpartition("{layer}.")[2]: (a.layers, a.quant) for a in found.apart}


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.3.mlp.down_proj"]}, {"mlp.down_proj": ((3,), "")}),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": LINEAR}, "ignore": ["model.layers.3.mlp", "model.layers.1.self_attn.o_proj"]},
         {"self_attn.o_proj": ((1,), "")}),  # a name is one module there: compressed-tensors lists parents of quantized modules too
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["layers.3.mlp", "o_proj"]},
         {"self_attn.o_proj": (tuple(range(32)), ""), **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ((3,), ""))}),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": LINEAR}, "ignore": ["re:.*layers.(0|31).mlp.*proj$"]},
         dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), ((0, 31), ""))),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": {**NVFP4, "targets": ["re:.*mlp.*"]}, "b": {**LINEAR, "targets": ["re:.*self_attn.*"]}}, "ignore": ["lm_head"]},
         dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), (tuple(range(32)), "fp8-per-channel"))),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*attn.*": {}, "+:.*down_proj": {"bits": 8, "group_size": 32}, "lm_head": {}}},
         {**dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), (tuple(range(32)), "")),
          "mlp.down_proj": (tuple(range(32)), "gptq-int8-g32")}),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq", "extra_config": {"model.layers.2.mlp.up_proj": {"bits": 16}}},
         {"mlp.up_proj": ((2,), "")}),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {
            **{f"model.layers.{i}.mlp.{m}": {"quant_algo": "W4A16_NVFP4"} for i in range(32) for m in ("gate_proj", "up_proj", "down_proj")},
            **{f"model.layers.{i}.self_attn.o_proj": {"quant_algo": "FP8"} for i in range(32)}, "lm_head": {"quant_algo": "W4A16_NVFP4"}}},
         {"self_attn.o_proj": (tuple(range(32)), "fp8"), **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (tuple(range(32)), "")),
          "lm_head": ((), "nvfp4")}),
    ],
)  # fmt: skip
def test_what_a_config_stores_apart_is_sized_so_in_its_layers_alone(tmp_path, settings, apart):
    path = write(tmp_path, quantization_config=settings)
    assert left_out(path) == apart
    found, whole = estimate(path, context=1024), estimate("llama-3.1-8b", quant=load_model(path).checkpoint.scheme.name, context=1024)
    sizes = {quant: {g.group.name: g.tensor_nbytes for g in estimate("llama-3.1-8b", quant=quant or "bf16", context=1024).job.stored} for quant in {a.quant for a in found.job.scheme.apart}}
    own = {g.group.name: g.tensor_nbytes for g in whole.job.stored}
    linear = {g.name: g.elements for g in build_inventory(found.job.model).groups}
    more = sum((len(a.layers) or 1) * ((sizes[a.quant][a.group] if a.layers else linear[a.group] * 9 // 16 + 8) - own[a.group]) for a in found.job.scheme.apart)
    assert found.tensor_bytes == whole.tensor_bytes + more


def recurrent(tmp_path, id, quantization):
    (tmp_path / "config.json").write_text(json.dumps(load_model(id).record["config"] | {"quantization_config": quantization}))
    return str(tmp_path / "config.json")


REDHAT = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {**NVFP4, "targets": ["Linear"]}},
          "ignore": ["lm_head", "re:visual.*", "re:model.visual.*", "re:.*mlp.gate$", "re:.*embed_tokens$", "re:.*shared_expert_gate$", "re:.*linear_attn.*", "re:^mtp.*"]}  # fmt: skip
NVIDIA = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["mtp*"], "quantized_layers": {
    **{f"model.language_model.layers.{i}.mlp.{m}": {"quant_algo": "W4A16_NVFP4"} for i in range(64) for m in ("gate_proj", "up_proj", "down_proj")},
    **{f"model.language_model.layers.{i}.{m}": {"quant_algo": "FP8"} for i in range(64) for m in (
        [f"self_attn.{x}_proj" for x in "qkvo"] if i % 4 == 3 else [f"linear_attn.{x}" for x in ("in_proj_qkv", "in_proj_z", "out_proj")])},
    "lm_head": {"quant_algo": "W4A16_NVFP4"}}}  # fmt: skip
GATES = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head", "*linear_attn.in_proj_a*", "*linear_attn.in_proj_b*", "*linear_attn.conv1d*"]}


@pytest.mark.parametrize(
    ("id", "settings", "options", "printed_gib"),
    [
        ("qwen3.6-35b-a3b", REDHAT, {"engine_version": "0.20.0"}, 21.86),  # RedHatAI/Qwen3.6-35B-A3B-NVFP4
        ("qwen3.6-27b", NVIDIA, {"engine_version": "0.26.0"}, 19.78),  # nvidia's W4A16_NVFP4 of Qwen3.8-27B, whose dimensions and size are the same
        ("qwen3.6-27b", GATES, {"engine_version": "0.20.0", "settings": {"language_model_only": True}}, 17.62),  # sakamakismile/Qwen3.6-27B-Text-NVFP4-MTP
    ],
)  # fmt: skip
def test_recurrent_models_quantized_by_others_are_the_size_that_vllm_prints(tmp_path, id, settings, options, printed_gib):
    found = estimate(recurrent(tmp_path, id, settings), context=8192, engine="vllm", **options)
    assert sum(line.nbytes for line in found.ledger.lines if line.component == "weights") / 2**30 == pytest.approx(printed_gib, rel=0.003)


@pytest.mark.parametrize("quant", ["nvfp4", "gptq-int4-g128", "awq-int4-g128", "fp8-per-channel"])
@pytest.mark.parametrize("id", ["qwen3.6-27b", "qwen3.6-35b-a3b", "kimi-linear-48b-a3b-instruct", "granite-4.0-h-small"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_format_of_a_recurrent_model_that_is_only_named_is_between_what_publishers_leave(engine, id, quant):
    try:
        found = estimate(id, quant=quant, context=8192, engine=engine, partial=True)
    except CalculatorError:
        assert engine == "sglang"
        return
    line = next(x for x in found.ledger.lines if x.name == "linear layers")
    assert line.low <= line.nbytes <= line.high
    assert line.low < line.high
    assert line.basis == "modelled"
    assert "config.json decides" in line.note
