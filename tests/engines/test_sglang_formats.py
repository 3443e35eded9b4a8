"""Formats that SGLang has no layers for, or none on a card."""

from __future__ import annotations

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.quantization import CATALOG, parse


def sized(model, quant, gpu="H100 SXM5 80GB", version="0.5.12", **options):
    return estimate(model, engine="sglang", engine_version=version, quant=quant, gpu=gpu, context=256, **options)


@pytest.mark.parametrize(
    ("model", "quant", "gpu", "version", "words"),
    [
        ("llama-3.1-8b", "mxfp4", "B200", "0.5.23", "mxfp4 for gpt-oss's experts, not for llama"),
        ("qwen3-30b-a3b", "mxfp4", "B200", "0.5.23", "not for qwen3_moe"),
        ("qwen3-30b-a3b", "bnb-nf4", "H100 SXM5 80GB", "0.5.12", "does not support BitsAndBytes quantization yet."),
        ("llama-3.1-8b", "torchao-int8wo", "H100 SXM5 80GB", "0.5.12", "sglang"),
        ("llama-3.1-8b", "nvfp4", "H100 SXM5 80GB", "0.5.12", "The quantization method modelopt_fp4 is not supported for the current GPU. Minimum capability: 100. Current capability: 90."),
        ("llama-3.1-8b", "fp8", "T4", "0.5.12", "Minimum capability: 80. Current capability: 75."),
        ("llama-3.1-8b", "w4a16-g128", "T4", "0.5.12", "The quantization method compressed-tensors is not supported"),
    ],
)
def test_what_has_no_layer_is_refused_in_the_servers_words(model, quant, gpu, version, words):
    with pytest.raises(CalculatorError, match=words.replace(".", "[.]")):
        sized(model, quant, gpu, version)


def test_nvfp4_runs_before_blackwell_since_0_5_13():
    assert sized("llama-3.1-8b", "nvfp4", version="0.5.13").pool.tokens > 0
    assert sized("llama-3.1-8b", "nvfp4", gpu="B200").pool.tokens > 0


def test_every_format_that_is_listed_for_it_is_sized_for_llama_or_gpt_oss():
    for name in (q for q in CATALOG if "sglang" in parse(q).engines):
        assert sized("gpt-oss-20b" if name == "mxfp4" else "llama-3.1-8b", name, gpu="B200").pool.tokens > 0, name
