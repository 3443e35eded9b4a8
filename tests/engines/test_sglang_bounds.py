"""SGLang's lower bounds: hybrids with a pool of states, Gemma 4's two widths; held against public logs."""

from __future__ import annotations

import pytest

from calculator.engines.ranks import shares_of
from calculator.engines.sglang.attention import backend_of
from calculator.engines.sglang.pool import row_bytes
from calculator.engines.sglang.states import PADDING, slot_bytes, slots_a_request, slots_of
from calculator.errors import CalculatorError, NotModelled, Unsupported
from calculator.estimate import estimate
from calculator.units import GIB


def bounded(model, tp=1, **options):
    settings = {"tensor_parallel_size": tp, "mem_fraction_static": 0.85} | options.pop("settings", {})
    return estimate(model, engine="sglang", engine_version=options.pop("engine_version", "0.5.12"), context=1024, gpus=tp, partial=True, settings=settings, **options)


# model, ranks, slots, printed: conv_state, ssm_state [GiB]; tokens, K and V together [GiB], cache type
HYBRIDS = [
    ("qwen3.5-27b", 1, 360, 0.99, 50.77, 228_520, 6.98, "fp8"),
    ("qwen3.5-397b-a17b", 2, 82, 0.13, 7.29, 580_364, 8.30, None),
    ("nemotron-3-nano-30b-a3b", 4, 2211, 0.44, 24.84, 19_644_177, 28.10, "fp8"),
    ("nemotron-3-nano-30b-a3b", 4, 8, 0.00, 0.10, 1_557_504, 4.46, None),
]


@pytest.mark.parametrize(("model", "tp", "slots", "conv", "ssm", "tokens", "cache", "dtype"), HYBRIDS)
def test_states_and_tokens_of_hybrids_are_what_logs_print(model, tp, slots, conv, ssm, tokens, cache, dtype):
    found = bounded(model, tp, kv_dtype=dtype)
    states = (slots + PADDING) * slot_bytes(found.job, shares_of(found.job)[0])
    assert states / GIB == pytest.approx(conv + ssm, abs=0.0101)
    assert tokens * found.kv_bytes_per_token // tp / GIB == pytest.approx(cache, abs=0.0101)


def test_the_ratio_divides_what_is_left_between_states_and_tokens():
    """82 slots and 8.30 GiB of tokens (Qwen3.5 397B, two ranks): the ratio of 0.9 is that of both pools' bytes."""
    found = bounded("qwen3.5-397b-a17b", 2)
    share = shares_of(found.job)[0]
    rest = int(8.30 * GIB) + 82 * slot_bytes(found.job, share)
    assert slots_of(found.job, share, rest) == pytest.approx(82, abs=1)


def test_slots_are_as_set_or_one_a_request_without_a_radix_tree():
    share = shares_of(bounded("qwen3.5-4b").job)[0]
    assert slots_of(bounded("qwen3.5-4b", settings={"max_mamba_cache_size": 40}).job, share, 0) == 40
    assert slots_of(bounded("qwen3.5-4b", settings={"disable_radix_cache": 1, "max_running_requests": 7}).job, share, 0) == 7


def test_states_come_off_the_pool_of_tokens_and_few_slots_queue():
    roomy = bounded("qwen3.5-4b", gpu="RTX 4090", settings={"max_mamba_cache_size": 30})
    tight = bounded("qwen3.5-4b", gpu="RTX 4090", settings={"max_mamba_cache_size": 60})
    assert roomy.pool is not None
    assert tight.pool is not None
    assert roomy.pool.nbytes - tight.pool.nbytes == 30 * slot_bytes(roomy.job, shares_of(roomy.job)[0])
    assert bounded("qwen3.5-4b", gpu="RTX 4090", sequences=11, settings={"max_mamba_cache_size": 30}).pool.queues


@pytest.mark.parametrize(("version", "slots", "padding"), [("0.5.13", 3, 0), ("0.5.14", 5, 0), ("0.5.16", 5, 0), ("0.5.17", 5, 1), ("0.5.23", 5, 1)])
def test_a_request_has_snapshots_since_0_5_14_and_the_padded_slot_is_paid_since_0_5_17(version, slots, padding):
    found = bounded("qwen3.5-4b", gpu="RTX 4090", engine_version=version)
    job, share = found.job, shares_of(found.job)[0]
    assert slots_a_request(job) == slots
    size = slot_bytes(job, share)
    assert slots_of(job, share, 19 * size) == 9 - padding  # 0.9 / 1.9 of 19 slots
    (states,) = [line for line in found.ledger.lines if line.name == "recurrent states"]
    assert states.nbytes == (slots + PADDING) * size


def test_the_request_table_has_no_rows_beyond_the_requests_that_states_allow():
    found = bounded("qwen3.5-4b", gpu="RTX 4090", settings={"max_mamba_cache_size": 30, "context_length": 4096})
    (table,) = [line for line in found.ledger.lines if line.name == "request table"]
    assert found.pool.states == 30
    assert table.nbytes == 4 * (30 // 3 + 1) * (4096 + 4)


# printed K and V of each pool [GiB]: windowed layers' tokens and bytes, the others'
GEMMA4 = [
    ("gemma-4-26b-a4b-it", 2, 24_474, 2.34, 815_815, 7.78, 0.03), ("gemma-4-26b-a4b-it", 2, 75_754, 7.22, 303_017, 2.88, 0.25),
    ("gemma-4-12b-it", 2, 81_675, 12.46, 102_094, 1.56, 0.8), ("gemma-4-12b-it", 2, 35_340, 5.40, 565_446, 8.62, 0.0625),
    ("gemma-4-31b-it", 2, 5_036, 1.92, 167_877, 6.40, 0.03), ("gemma-4-31b-it", 2, 15_588, 5.94, 62_354, 2.38, 0.25),
]  # fmt: skip


@pytest.mark.parametrize(("model", "tp", "near", "near_gib", "full", "full_gib", "ratio"), GEMMA4)
def test_gemma_4_has_two_pools_of_two_widths(model, tp, near, near_gib, full, full_gib, ratio):
    found = bounded(model, tp, quant="awq-int4-g128", settings={"swa_full_tokens_ratio": ratio})
    layers = found.job.model.num_hidden_layers
    every = found.job.model.full_layers
    assert near * row_bytes(found.job, near=True) * (layers - every) / GIB == pytest.approx(near_gib, abs=0.0101)
    assert full * row_bytes(found.job) * every / GIB == pytest.approx(full_gib, abs=0.0101)
    assert full * found.kv_bytes_per_token // tp / GIB == pytest.approx(near_gib + full_gib, abs=0.0201)


def test_layers_that_read_anothers_cache_have_rows_in_sglang():
    """Gemma 4 E4B on a DGX Spark: 798,276 and 997,846 tokens in 79.94 GiB, over all of its 42 layers."""
    found = bounded("gemma-4-e4b-it")
    near, full = row_bytes(found.job, near=True) * 35, row_bytes(found.job) * 7
    assert (798_276 * near + 997_846 * full) / GIB == pytest.approx(79.94, abs=0.01)


@pytest.mark.parametrize(("model", "tp", "printed", "within"), [("qwen3.5-4b", 1, 8.62, 0.01), ("nemotron-3-nano-30b-a3b", 4, 14.76, 0.0125), ("gemma-4-e4b-it", 1, 15.56, 0.015)])
def test_weights_of_bounds_are_near_what_logs_print(model, tp, printed, within):
    found = bounded(model, tp)
    held = sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.device == 0)
    assert held / GIB == pytest.approx(printed, rel=within)


@pytest.mark.parametrize("model", ["qwen3-next-80b-a3b-instruct", "nemotron-3-nano-30b-a3b", "gemma-4-31b-it"])
def test_a_bound_never_fits_and_is_refused_where_an_answer_is_needed(model):
    found = bounded(model, 8)
    assert found.partial
    assert not found.decides("fits")
    with pytest.raises(NotModelled):
        estimate(model, engine="sglang", engine_version="0.5.12", context=1024, settings={"mem_fraction_static": 0.85})


def test_ranks_that_do_not_divide_recurrent_heads_are_refused():
    with pytest.raises(Unsupported):
        bounded("qwen3.5-27b", 5)


def test_falcon_h1_s_states_lie_beside_rows_of_every_layer():
    """v0.5.12 srt/configs/falcon_h1.py: all layers are in both pools; convolutions in 16 bits, states in float32."""
    found = bounded("falcon-h1-7b-instruct", gpu="H100 SXM5 80GB")
    assert slot_bytes(found.job, shares_of(found.job)[0]) == 44 * (2 * 3 * 3584 + 4 * 24 * 128 * 256)
    assert found.kv_bytes_per_token == 44 * 2 * 2 * 128 * 2
    assert backend_of(found.job) == "fa3"
    assert backend_of(bounded("falcon-h1-7b-instruct", gpu="B200").job) == "triton"


@pytest.mark.parametrize(("version", "tp", "model", "options", "says"), [
    ("0.5.2", 1, "falcon-h1-7b-base", {}, "has no falcon_h1"),
    ("0.5.12", 4, "falcon-h1-34b-base", {}, "num_groups must equal 1"),
    ("0.5.12", 2, "falcon-h1-7b-base", {"quant": "fp8"}, "quantized models only"),
])  # fmt: skip
def test_ranks_that_mamba_2_s_groups_refuse(version, tp, model, options, says):
    with pytest.raises(CalculatorError, match=says):
        bounded(model, tp, engine_version=version, **options)
    assert bounded("falcon-h1-7b-base", 2, engine_version="0.5.3", quant="fp8").job  # not checked there yet


@pytest.mark.parametrize(("gpu", "version"), [("B200 SXM 180GB", "0.5.23"), ("MI300X", "0.5.16"), ("MI355X", "0.5.23")])
def test_a_pool_s_band_holds_its_point(gpu, version):
    """States and tokens share what is left in whole slots, so less room may leave more tokens."""
    pool = estimate("falcon-h1-34b-instruct", engine="sglang", engine_version=version, gpu=gpu, context=4096, partial=True).pool
    assert pool.low <= pool.nbytes <= pool.high
