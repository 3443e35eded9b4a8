"""Encoders in vLLM: no cache, no pool, weights as start-up logs print them."""

from __future__ import annotations

import pytest

from calculator.engines.vllm.deployment import version_of
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.units import GIB


def run(model="bge-base-en-v1.5", **options):
    return estimate(model, engine="vllm", **options)


@pytest.mark.parametrize(("model", "version", "printed"), [
    ("bge-base-en-v1.5", "0.9.1", 0.2091),  # vllm#18757
    ("multilingual-e5-small", "0.9.1", 0.2204),  # vllm#18757
])  # fmt: skip
def test_weights_are_what_a_log_prints(model, version, printed):
    """Both were read before the formula was written; nothing was fitted to them."""
    assert run(model, engine_version=version, context=128).ledger.component_bytes("weights") / GIB == pytest.approx(printed, rel=0.002)


def test_weights_without_the_allocator_s_rest_are_what_a_gb10_prints():
    """guardkit's log of 0.13 on a GB10, 0.2551 GiB: its segments expand, so no rest of a block is counted."""
    weights = [line for line in run("nomic-embed-text-v1.5", engine_version="0.13.0").ledger.lines if line.component == "weights"]
    assert sum(line.nbytes for line in weights if line.name != "allocator rounding") / GIB == pytest.approx(0.2551, abs=0.0001)
    assert sum(line.low_bytes for line in weights) / GIB < 0.2551 < sum(line.high_bytes for line in weights) / GIB


def test_a_float32_checkpoint_is_loaded_in_16_bits():
    found = run()
    assert found.job.scheme.name == "fp16"
    assert "--dtype float16" in found.start_command
    assert any("--quant fp32" in text for text in found.warnings)
    assert run(quant="fp32").ledger.component_bytes("weights") > 1.9 * found.ledger.component_bytes("weights")


@pytest.mark.parametrize("version", ["0.6.6", "0.9.2", "0.11.0", "0.33.0"])
def test_no_pool_is_made(version):
    found = run(engine_version=version, gpu="l4")
    assert (found.pool, found.kv_bytes_per_token, found.ledger.component_bytes("kv_cache")) == (None, 0, 0)
    assert fit(found, found.job.gpu).verdict == "fits"
    assert version_of(found.job).v1 == (version in ("0.11.0", "0.33.0"))


def test_the_v0_engine_s_pooling_runner_makes_no_pool_for_decoders_either():
    """v0.8.5 engine/llm_engine.py L277."""
    early, late = (estimate("qwen3-embedding-0.6b", engine="vllm", engine_version=v, gpu="l4", context=1024, settings={"runner": "pooling"}) for v in ("0.8.5", "0.9.2"))
    assert early.pool is None
    assert early.ledger.component_bytes("kv_cache") == 0
    assert late.pool is not None


@pytest.mark.parametrize(("version", "tokens"), [("0.6.6", 32768), ("0.9.2", 32768), ("0.11.0", 512), ("0.14.0", 2048)])
def test_prompts_are_not_cut_in_chunks(version, tokens):
    assert f"--max-num-batched-tokens {tokens} " in run(engine_version=version, gpu="l4").start_command


def test_batches_smaller_than_the_workload_s_are_the_low_end():
    few, many = (run(sequences=n, engine_version="0.14.0").ledger.component_bytes("activations") for n in (1, 4))
    lows = [line.low_bytes for n in (1, 4) for line in run(sequences=n, engine_version="0.14.0").ledger.lines if line.name == "peak activation"]
    assert few == many
    assert 3.9 < lows[1] / lows[0] < 4.1


def test_a_reranker_s_classifier_takes_the_pooler_s_place():
    reranks, embeds = run("bge-reranker-v2-m3"), run("bge-m3")
    line = next(line for line in reranks.ledger.lines if line.name == "classifier")
    assert line.nbytes == 4 * (1024 * 1024 + 1024 + 1024 + 1)
    assert "--task score" in run("bge-reranker-v2-m3", engine_version="0.9.2").start_command
    assert not [line for line in embeds.ledger.lines if line.name in ("classifier", "pooler")]


@pytest.mark.parametrize(("options", "says"), [
    ({"settings": {"runner": "generate"}}, "generates nothing"), ({"quant": "bnb-nf4"}, "of an encoder"), ({"gpus": 2}, "data_parallel_size=2"),
    ({"settings": {"enable_prefix_caching": True}}, "no cache"), ({"kv_dtype": "fp8"}, "keeps none"), ({"settings": {"kv_pool_bytes": 2**30}}, "no cache"),
    ({"context": 1024}, "max_model_len"), ({"settings": {"enable_lora": True}}, "no record"),
])  # fmt: skip
def test_what_changes_nothing_or_is_not_known_is_refused(options, says):
    with pytest.raises(CalculatorError) as refused:
        run(**options)
    assert says in str(refused.value) + str(refused.value.hint)


def test_copies_hold_the_same_and_lines_are_a_gpu_s():
    one, two = run(), run(gpus=2, settings={"data_parallel_size": 2})
    assert two.total_bytes == 2 * one.total_bytes
    assert {line.device for line in two.ledger.lines} == {0, 1}
