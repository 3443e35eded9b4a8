"""vLLM's second model runner: who runs on it, what its sampler keeps, what the profiling run holds."""

from __future__ import annotations

import pytest
from test_contract import value_of

from calculator.engines.vllm.second_runner import second_runner
from calculator.estimate import estimate
from calculator.units import GIB


def run(model, version, quant="bf16", gpu="A100 SXM4 80GB", **settings):
    return estimate(model, quant=quant, engine="vllm", engine_version=version, gpu=gpu, context=8192, settings=settings, partial=True)


@pytest.mark.parametrize(
    ("model", "quant", "since"),
    [
        ("qwen3-8b", "bf16", 22), ("qwen3-8b", "fp8", 24), ("llama-3.1-8b", "bf16", 23), ("llama-3.1-8b", "fp8", 24), ("qwen2.5-7b", "bf16", 27),
        ("qwen3-30b-a3b", "bf16", 29), ("qwen3-next-80b-a3b-instruct", "bf16", 29), ("deepseek-v2-lite", "bf16", 24),
    ],
)  # fmt: skip
def test_a_release_gives_it_to_the_models_that_it_lists(model, quant, since):
    """vllm v0.22.0, v0.23.0, v0.24.0, v0.27.0, v0.29.0 config/vllm.py use_v2_model_runner; a log of MiniCPM5 1B on 0.23.0 names its file."""
    for minor in (19, 22, 23, 24, 27, 29, 33):
        assert second_runner(run(model, f"0.{minor}.0", quant).job) == (minor >= since), minor


def test_counts_of_tokens_are_kept_for_every_sequence():
    """0.31 on an A100 prints 15.26 GiB of weights and memory outside torch, of which 15.00 are weights (text index 70682754770)."""
    found = run("llama-3.1-8b", "0.31.0")
    (states,) = [line for line in found.ledger.lines if line.name == "sampler states"]
    assert states.nbytes == 4 * 256 * (128256 + 128256 // 32) == value_of(str(states.formula))
    held = [line for line in found.ledger.lines if line.component == "weights" or line.name in ("sampler states", "non-torch memory")]
    assert sum(line.nbytes for line in held) == pytest.approx(15.26 * GIB, rel=0.001)
    assert not [line for line in run("llama-3.1-8b", "0.19.0").ledger.lines if line.name == "sampler states"]


def test_stages_before_the_last_and_pooling_keep_none():
    stages = run("llama-3.1-8b", "0.33.0", tensor_parallel_size=1).job
    found = estimate("llama-3.1-8b", engine="vllm", engine_version="0.33.0", gpu="h100", gpus=2, context=8192, settings={"tensor_parallel_size": 1})
    assert second_runner(stages)
    assert [line.device for line in found.ledger.lines if line.name == "sampler states"] == [1]
    assert not [line for line in run("llama-3.1-8b", "0.33.0", runner="pooling").ledger.lines if line.name == "sampler states"]


@pytest.mark.parametrize(("version", "cell_bytes"), [("0.27.0", 6), ("0.29.0", 2), ("0.33.0", 14)])
def test_the_sampler_holds_logits_and_what_a_release_makes_of_them(version, cell_bytes):
    """A large vocabulary beside a small model: the sampler is the peak where it copies."""
    few, many = (run("qwen2.5-0.5b", version, max_num_seqs=n, max_num_batched_tokens=2048) for n in (1024, 2048))
    assert few.peak.step.name == many.peak.step.name == "sampler"
    grown = many.ledger.component_bytes("activations") - few.ledger.component_bytes("activations")
    assert grown == 1024 * (cell_bytes * 151936 + 2 * 2 * 896)
    (line,) = [line for line in many.ledger.lines if line.component == "activations"]
    without_flashinfer = 8 * 2048 * 151936 if version == "0.33.0" else 0
    assert line.nbytes - line.low_bytes >= without_flashinfer
