"""vLLM's pooling runner: embeddings without a head and a sampler."""

from __future__ import annotations

import pytest

from calculator.engines.vllm.deployment import version_of
from calculator.estimate import estimate
from calculator.units import GIB


def run(model, runner="pooling", **options):
    settings = {"runner": runner} | options.pop("settings", {})
    return estimate(model, engine="vllm", context=1024, settings=settings, **options)


def test_weights_of_an_embedder_are_what_a_log_prints():
    """vllm#19964: e5-mistral with bitsandbytes, 3.9099 GiB; 4.15 with a head. Found before this runner was written."""
    found = run("e5-mistral-7b-instruct", quant="bnb-nf4", engine_version="0.9.2")
    assert found.ledger.component_bytes("weights") / GIB == pytest.approx(3.9099, rel=0.001)


def test_a_model_with_a_head_loses_it():
    generates, pools = (run("mistral-7b-v0.1", runner, quant="bf16", engine_version="0.14.0") for runner in ("generate", "pooling"))
    heads = [sum(line.nbytes for line in found.ledger.lines if line.name == "output head") for found in (generates, pools)]
    assert heads == [32000 * 4096 * 2, 0]
    assert generates.ledger.component_bytes("weights") - pools.ledger.component_bytes("weights") == pytest.approx(heads[0], abs=2**21)


def test_no_sampler_is_profiled():
    generates, pools = (run("qwen3-embedding-8b", runner, gpu="H100 SXM5 80GB", engine_version="0.14.0") for runner in ("generate", "pooling"))
    assert (generates.peak.step.name, pools.peak.step.name) == ("sampler", "mlp")
    assert pools.pool.nbytes > generates.pool.nbytes


def test_peaks_of_an_overlong_batch_of_a_narrow_model_are_the_poolers_or_the_feed_forwards():
    found = run("qwen3-embedding-0.6b", engine_version="0.14.0", settings={"max_num_batched_tokens": 4096})
    assert found.peak.nbytes == max(3 * 2 * 4096 * 3072 + 4 * 2 * 4096 * 1024, (2 + 8) * 4096 * 1024) + found.peak.step.buffers[-1].nbytes


@pytest.mark.parametrize(("version", "v1", "flag"), [("0.8.5", False, "--task embed"), ("0.9.2", True, "--task embed"), ("0.14.0", True, "--runner pooling")])
def test_the_engine_and_the_flag_are_the_releases(version, v1, flag):
    found = run("qwen3-embedding-0.6b", engine_version=version)
    assert version_of(found.job).v1 == v1
    assert flag in found.start_command
