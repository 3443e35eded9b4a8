"""Peaks of whole models as `vram trace` finds them in the real code: torch 2.13.0, transformers 5.23.0, FakeTensor, pretended CUDA."""

from __future__ import annotations

import pytest

from calculator.architectures import ARCHITECTURES
from calculator.catalog import load_model
from calculator.engines.transformers import steps
from calculator.engines.transformers.families import FAMILIES
from calculator.engines.transformers.run import Pass
from calculator.errors import CalculatorError
from calculator.estimate import estimate

TRACED = [
    ("gpt-oss-20b", "prefill", 1, 4096, "eager", "dynamic", 6_683_131_904, 201_326_688),
    ("gemma-2-2b-it", "prefill", 1, 4096, "eager", "dynamic", 1_520_467_968, 436_207_720),
    ("deepseek-v2-lite", "prefill", 1, 4096, "sdpa", "dynamic", 674_300_416, 127_401_984),
    ("deepseek-v2-lite", "decode", 2, 4096, "sdpa", "dynamic", 117_541_384, 254_866_176),
    ("glm-4-9b-0414", "prefill", 1, 4096, "sdpa", "dynamic", 584_089_600, 167_772_160),
    ("olmo-3-7b-instruct", "decode", 1, 8192, "sdpa", "static", 67_164_177, 2_684_485_888),
]


@pytest.mark.parametrize(("model", "phase", "sequences", "context", "attention", "cache", "activations", "kv"), TRACED)
def test_activations_and_cache_are_those_of_the_real_code(model, phase, sequences, context, attention, cache, activations, kv):
    settings = {"phase": phase, "attn_implementation": attention, "cache_implementation": cache}
    found = estimate(model, quant="bf16", engine="transformers", context=context, sequences=sequences, settings=settings).ledger
    assert (found.component_bytes("activations"), found.component_bytes("kv_cache")) == (pytest.approx(activations, abs=4096), kv)


def test_a_row_says_transformers_where_a_family_is_written_down():
    assert {name for name, row in ARCHITECTURES.items() if "transformers" in row.engines} == set(FAMILIES)


def test_a_family_without_sdpa_runs_eager_and_says_so():
    assert estimate("gpt-oss-20b", quant="bf16", context=1024).job.deployment.settings["attn_implementation"] == "eager"
    with pytest.raises(CalculatorError, match="no sdpa"):
        estimate("gpt-oss-20b", quant="bf16", context=1024, settings={"attn_implementation": "sdpa"})


@pytest.mark.parametrize("model", ["llama-3.2-1b", "gemma-2-2b-it", "deepseek-v2-lite", "gpt-oss-20b"])
def test_the_size_alone_is_that_of_the_step_that_is_shown(model):
    spec, how = load_model(model).spec, Pass("eager", 2, 10, 1, False)
    for run, phase in ((steps.prefill, "prefill"), (steps.decode, "decode")):
        for tokens, sequences in ((1, 1), (5, 2), (4097, 1), (9000, 3)):
            peak = run(spec, how, tokens=tokens, sequences=sequences)
            assert peak.nbytes == peak.step.nbytes == steps.sizes(spec, how, phase)(tokens, sequences)
