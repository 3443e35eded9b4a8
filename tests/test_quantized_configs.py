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
    [{"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]},
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
