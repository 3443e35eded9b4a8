"""vLLM on AMD: what its ROCm build refuses, and that its lines are those of the build, not of CUDA."""

from __future__ import annotations

import pytest

from calculator.catalog import load_gpu, load_gpus, load_model
from calculator.engines.amd import architecture_of
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit


def sized(model="llama-3.1-8b", gpu="MI300X", **options):
    return estimate(load_model(model), engine="vllm", context=options.pop("context", 4096), gpu=gpu, **options)


def lines(found):
    return {line.name: line for line in found.ledger.on(0).lines}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "MI100"}, "no ROCm kernels for MI100"),
        ({"gpu": "RX 6800 XT"}, "no ROCm kernels for RX 6800 XT"),
        ({"engine_version": "0.6.6"}, "vllm 0.6.6 on AMD"),
        ({"quant": "nvfp4"}, "nvfp4 in vllm on AMD"),
        ({"quant": "bnb-nf4"}, "bnb-nf4 in vllm on AMD"),
        ({"gpu": "RX 7900 XTX", "quant": "fp8"}, "fp8 on RX 7900 XTX (gfx1100): it has no FP8 units"),
        ({"model": "deepseek-v3.2", "gpus": 8, "quant": "fp8-block", "partial": True}, "Sparse Attention is not supported on ROCm"),
    ],
)
def test_what_the_rocm_build_does_not_run_is_refused_in_one_line(options, words):
    with pytest.raises(CalculatorError) as error:
        sized(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_every_amd_card_has_a_target_or_a_refusal():
    without = {gpu.name for gpu in load_gpus() if gpu.vendor == "AMD" and not architecture_of(gpu)}
    assert without == {"MI100", "RX 6700 XT", "RX 6800 XT", "RX 6900 XT"}
    assert architecture_of(load_gpu("MI355X")) == "gfx950"
    assert architecture_of(load_gpu("RX 9070 XT")) == "gfx1201"


def test_the_device_loses_whole_segments_and_kernels_in_place_of_what_is_not_split():
    amd, nvidia = lines(sized()), lines(sized(gpu="H100 SXM5 80GB"))
    assert "allocator segments, kernels" in amd
    assert "allocator rounding" not in amd
    assert amd["allocator segments, kernels"].nbytes > nvidia["allocator rounding"].nbytes
    assert amd["linear layers"].nbytes == nvidia["linear layers"].nbytes
    assert amd["allocator segments, kernels"].low_bytes >= 30 * 2**20  # kernels are there, whatever the segments


def test_rows_of_experts_and_of_fp8_matrices_are_padded_by_256_bytes():
    model = load_model("qwen3-30b-a3b")
    e, layers, f, h = model.spec.num_experts, model.spec.num_hidden_layers, model.spec.expert_intermediate_size, model.spec.hidden_size
    assert h * 2 % 512 == 0
    assert f * 2 % 512 == 0
    assert lines(sized("qwen3-30b-a3b"))["padded rows"].nbytes == 256 * layers * e * (2 * f + h)
    blocks = lines(sized("qwen3-8b", quant="fp8-block"))["padded rows"]
    spec = load_model("qwen3-8b").spec
    rows = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim + 2 * spec.intermediate_size + 2 * spec.hidden_size
    assert blocks.nbytes == 256 * spec.num_hidden_layers * rows
    assert "padded rows" not in lines(sized("qwen3-8b", quant="fp8-per-channel"))  # scaled by channel: not padded
    assert "padded rows" not in lines(sized())


def test_mxfp4_is_padded_to_128_and_on_cdna4_and_since_0_19_to_256():
    old, new = (lines(sized("gpt-oss-20b", quant="mxfp4", engine_version=v))["MXFP4 layout"].nbytes for v in ("0.13.0", "0.19.0"))
    wide = lines(sized("gpt-oss-20b", quant="mxfp4", gpu="MI355X", engine_version="0.13.0"))["MXFP4 layout"].nbytes
    assert old < new == wide


def test_latent_attention_keeps_blocks_of_sixteen():
    found = sized("deepseek-r1", quant="fp8-block", gpus=8, engine_version="0.14.0")
    assert found.job.deployment.settings["block_size"] == 16
    assert fit(found, found.job.gpu).verdict == "fits"
