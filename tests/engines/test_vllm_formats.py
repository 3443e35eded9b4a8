"""Formats of weights that vLLM has and hadn't, by release."""

from __future__ import annotations

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate


def run(quant, version, model="llama-3.1-8b"):
    return estimate(model, quant=quant, context=4096, engine="vllm", engine_version=version)


@pytest.mark.parametrize(
    ("quant", "version", "why"),
    [
        ("hqq-int4-g64", "0.19.0", "Unknown quantization method: hqq"), ("hqq-int8-g64", "0.11.0", "only supported HQQ group size is 64"),
        ("torchao-int8wo", "0.7.2", "Unknown quantization method: torchao"), ("nvfp4", "0.7.2", "Unknown quantization method: modelopt_fp4"),
        ("mxfp4", "0.11.0", "has it for experts"), ("mxfp4", "0.9.2", "Unknown quantization method: mxfp4"), ("Q4_K_M", "0.19.0", "vllm and GGUF files"),
    ],
)  # fmt: skip
def test_a_release_without_the_format_refuses_it_and_says_what_to_do(quant, version, why):
    with pytest.raises(CalculatorError, match=why) as refused:
        run(quant, version)
    assert "try: " in str(refused.value)


@pytest.mark.parametrize(("quant", "version"), [("hqq-int4-g64", "0.14.0"), ("torchao-int8wo", "0.8.5"), ("nvfp4", "0.9.2"), ("mxfp4", "0.14.0")])
def test_a_release_that_has_it_holds_less_than_in_16_bits(quant, version):
    assert run(quant, version).tensor_bytes < run("bf16", version).tensor_bytes


@pytest.mark.parametrize(("version", "said"), [("0.27.0", False), ("0.28.0", True)])
def test_bitsandbytes_is_a_plugin_since_0_28(version, said):
    notes = [line.note for line in run("bnb-nf4", version).ledger.lines if line.name == "linear layers"]
    assert ["vllm-bnb-plugin" in note for note in notes] == [said]


def weights(model, quant, version, gpu, name=""):
    found = estimate(model, quant=quant, context=4096, engine="vllm", engine_version=version, gpu=gpu)
    return sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and name in line.name)


def test_machete_leaves_what_marlin_drops_of_gptq():
    """On an H100 0.19.0 printed 5.38 GiB for the 8B; zero points and group indices are 29 and 3 MiB of it."""
    hopper, ada = (weights("llama-3.1-8b", "gptq-int4-g128", "0.19.0", gpu) for gpu in ("h100", "rtx 4090"))
    assert round(hopper / 2**30, 2) == 5.38
    assert hopper - ada > 30 * 2**20
    earlier, later = (weights("llama-3.1-8b", "gptq-int4-g128", version, "h100", "linear layers") for version in ("0.19.0", "0.30.0"))
    assert 0 < earlier - later < 6 * 2**20  # without indices


def test_machete_keeps_zero_points_of_awq_in_16_bits_since_0_19():
    parts = sum(p.nbytes * g.count for g in estimate("llama-3.1-8b", quant="awq-int4-g128", context=1024).job.stored for p in g.parts if p.name == "qzeros")
    assert weights("llama-3.1-8b", "awq-int4-g128", "0.19.0", "h100") - weights("llama-3.1-8b", "awq-int4-g128", "0.19.0", "rtx 4090") == 3 * parts
    assert weights("llama-3.1-8b", "awq-int4-g128", "0.14.0", "h100") == weights("llama-3.1-8b", "awq-int4-g128", "0.14.0", "rtx 4090")
