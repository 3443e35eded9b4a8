"""vLLM's data parallelism: copies of the model, experts spread over all of them."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from test_contract import value_of

from calculator.cli import vram
from calculator.engines.ranks import rank_of
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.estimate import estimate


def run(model, copies=1, ranks=1, **options):
    more = options.pop("settings", {})
    return estimate(model, **{"engine": "vllm", "context": 1024, "quant": "bf16"} | options, settings={"tensor_parallel_size": ranks, "data_parallel_size": copies} | more)


def named(found, *names):
    return sum(line.nbytes for line in found.ledger.on_devices if line.name in names)


@given(st.sampled_from(["llama-3.1-8b", "qwen2.5-0.5b"]), st.integers(1, 4), st.sampled_from([1, 2]), st.integers(1, 9))
def test_each_copy_of_a_dense_model_is_whole_and_has_its_share_of_the_sequences(model, copies, ranks, sequences):
    one, many = run(model, 1, ranks, sequences=sequences), run(model, copies, ranks, sequences=sequences)
    assert len(many.ledger.devices) == copies * ranks
    assert many.ledger.component_bytes("weights") == copies * one.ledger.component_bytes("weights")
    assert many.ledger.component_bytes("kv_cache") == one.ledger.component_bytes("kv_cache")
    cached = [many.ledger.on(i).component_bytes("kv_cache") for i in many.ledger.devices]
    assert max(cached) - min(cached) <= one.ledger.component_bytes("kv_cache") // sequences // ranks
    for line in many.ledger.lines:
        assert value_of(str(line.formula)) == pytest.approx(line.nbytes, abs=1)


@pytest.mark.parametrize("dealt", [False, True])
@pytest.mark.parametrize(("copies", "ranks"), [(2, 1), (4, 1), (2, 2)])
def test_experts_are_spread_over_all_copies_and_attention_is_not(dealt, copies, ranks):
    """vllm v0.9.2 fused_moe/config.py: expert parallel over dp x tp ranks, or every expert divided by as many."""
    model, more = "qwen3-30b-a3b", {"settings": {"enable_expert_parallel": dealt}}
    one, many = run(model), run(model, copies, ranks, **more)
    experts = 48 * 128 * 3 * 768 * 2048 * 2
    attention = named(one, "linear layers") - experts
    assert named(many, "linear layers") - experts == copies * attention
    batch = {"max_num_seqs": 16, "max_num_batched_tokens": 8192}  # so that the experts are the peak, of the tokens of all copies
    alone, together = (run(model, n, ranks, settings={"enable_expert_parallel": dealt} | batch).ledger.on(0).component_bytes("activations") for n in (1, copies))
    assert together > alone
    for line in many.ledger.lines:
        assert value_of(str(line.formula)) == pytest.approx(line.nbytes, abs=1)


@pytest.mark.parametrize(("version", "copies", "ranks", "dealt", "whole"), [
    ("0.19.0", 2, 8, True, True), ("0.19.0", 2, 8, False, False), ("0.19.0", 16, 1, True, True), ("0.19.0", 1, 16, True, False), ("0.10.2", 2, 8, True, False),
])  # fmt: skip
def test_shared_experts_are_whole_where_ranks_divide_their_tokens(version, copies, ranks, dealt, whole):
    """vllm v0.11.0 models/deepseek_v2.py: disable_tp=is_sequence_parallel, of copies with expert parallelism and several ranks each."""
    found = run("deepseek-v3", copies, ranks, quant="fp8-block", gpus=16, engine_version=version, settings={"enable_expert_parallel": dealt})
    assert rank_of(found.job).shared_expert_intermediate_size == (2048 if whole else 2048 // ranks)


def test_what_cannot_be_spread_is_refused():
    with pytest.raises(BadValue, match="data_parallel_size 4"):
        run("llama-3.1-8b", 4, 1, gpus=6)
    with pytest.raises(Unsupported, match="enable_expert_parallel"):
        run("qwen3-30b-a3b", 5, 1)
    with pytest.raises(NotModelled, match=r"data_parallel_size in vllm 0\.7\.3"):
        run("llama-3.1-8b", 2, engine_version="0.7.3")


def test_gpus_without_more_words_are_copies_of_ranks():
    got = CliRunner().invoke(vram, ["estimate", "deepseek-v3", "--engine", "vllm", "--gpus", "8", "--set", "data_parallel_size=8", "--set", "enable_expert_parallel=1", "--gpu", "h200", "--context", "4k"])
    assert got.exit_code == 0, got.output
    assert "--tensor-parallel-size 1 --pipeline-parallel-size 1" in got.stdout
    assert "--data-parallel-size 8" in got.stdout
    assert "--enable-expert-parallel" in got.stdout


def test_concurrency_is_that_of_a_copy_and_sequences_queue_over_all():
    one, two = (run("llama-3.1-8b", n, gpu="rtx 4090", context=8192, sequences=n * 4) for n in (1, 2))
    assert two.pool.max_concurrency == one.pool.max_concurrency
    assert two.pool.queues == one.pool.queues
