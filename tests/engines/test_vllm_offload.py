"""vLLM's cpu_offload_gb: which weights stay in host memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.errors import BadValue, NotModelled
from calculator.estimate import estimate
from calculator.speed import decode_tokens_per_s_bound
from calculator.units import GIB, MIB


def run(model, **options):
    return estimate(model, **{"engine": "vllm", "context": 1024} | options)


@given(st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b", "qwen2.5-0.5b", "deepseek-v2-lite"]), st.sampled_from([1, 2]), st.floats(0, 80))
def test_offloaded_weights_are_on_the_host_and_none_is_lost(model, tp, gib):
    """vllm v0.19.0 model_executor/offloader/uva.py: whole parameters until the budget is reached, so at most one too many."""
    settings = {"tensor_parallel_size": tp}
    whole, split = (run(model, quant="bf16", settings=settings | more).ledger for more in ({}, {"cpu_offload_gb": round(gib, 2)}))

    def stored(ledger, device):
        return sum(line.nbytes for line in ledger.lines if line.component == "weights" and line.device in device and line.name != "allocator rounding")

    away, layers = stored(split, ["host"]), sum(line.nbytes for line in whole.lines if line.name in ("linear layers", "norms and biases", "routers"))
    assert stored(split, range(tp)) + away == stored(whole, range(tp))
    wanted = tp * int(round(gib, 2) * GIB)
    assert min(wanted, layers - tp * MIB) <= away < wanted + tp * 2 * GIB  # the experts of a layer are the largest
    assert split.component_bytes("kv_cache") == whole.component_bytes("kv_cache")


def test_offloading_is_refused_where_it_would_copy_or_be_undone():
    for version, quant, words in [("0.7.3", "bf16", "V0 engine"), ("0.11.0", "awq-int4-g128", "repacking")]:
        with pytest.raises(NotModelled, match=words):
            run("llama-3.1-8b", quant=quant, engine_version=version, settings={"cpu_offload_gb": 2})
    found = run("llama-3.1-8b", quant="awq-int4-g128", gpu="rtx 4060", settings={"cpu_offload_gb": 2})
    assert found.start_command.endswith("--cpu-offload-gb 2")
    assert 2 * GIB <= found.ledger.host_bytes < 2.1 * GIB
    with pytest.raises(BadValue, match="from 0"):
        run("llama-3.1-8b", settings={"cpu_offload_gb": "-1"})


def test_what_is_read_over_the_bus_slows_the_bound():
    plain, away = (run("llama-3.1-8b", quant="bf16", gpu="rtx 3090", settings={"cpu_offload_gb": gib}) for gib in (0, 4))
    assert decode_tokens_per_s_bound(away, away.job.gpu) < decode_tokens_per_s_bound(plain, plain.job.gpu) / 2
