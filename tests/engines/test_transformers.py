from __future__ import annotations

from dataclasses import replace

import pytest

from calculator.catalog import Model, load_model
from calculator.engines.transformers import steps
from calculator.errors import CalculatorError
from calculator.estimate import estimate


def test_the_released_1b_at_128k():
    """8,624,537,600 bytes of activations, 4 GiB of cache: FakeTensor run of the 1B at 131,072 tokens."""
    found = estimate("llama-3.2-1b", context="128k", settings={"phase": "prefill"})
    assert found.ledger.component_bytes("activations") == 8_624_537_600
    assert found.ledger.component_bytes("kv_cache") == 4_294_967_296
    assert found.ledger.component_bytes("weights") == 2_471_629_056
    assert found.peak.step.name == "mlp"


def test_all_logits_move_the_peak_to_the_head():
    found = estimate("llama-3.2-1b", context="4k", settings={"logits_to_keep": 0, "phase": "prefill"})
    assert found.peak.step.name == "lm_head"


def test_decode_counts_the_new_token():
    prefill = estimate("llama-3.2-1b", settings={"phase": "prefill"})
    decode = estimate("llama-3.2-1b", settings={"phase": "decode"})
    grown = decode.ledger.component_bytes("kv_cache") - prefill.ledger.component_bytes("kv_cache")
    assert grown == decode.kv_bytes_per_token == 32768


def test_the_larger_phase_counts_by_default():
    totals = [estimate("llama-3.2-1b", settings={"phase": p}).total_bytes for p in ("prefill", "decode")]
    assert estimate("llama-3.2-1b").total_bytes == max(totals)


def test_compressed_tensors_without_a_kernel_are_decompressed():
    found = estimate("llama-3.2-1b", quant="int8-w8a8")
    extra = [line for line in found.ledger.lines if line.name == "decompressed weights"]
    assert [line.nbytes for line in extra] == [2 * 973_078_528]  # the 112 linear layers in 16 bits


def test_a_dequantized_copy_counts_where_it_is_the_peak():
    short = estimate("llama-3.2-1b", quant="bnb-nf4", context=64, settings={"phase": "prefill"})
    assert short.peak.step.name == "up_proj, dequantized"
    plain = estimate("llama-3.2-1b", quant="bf16", context=64, settings={"phase": "prefill"})
    assert short.ledger.component_bytes("activations") > plain.ledger.component_bytes("activations")


def test_eager_softmax_differs_between_half_and_bfloat16():  # pytorch SoftMax.cpp
    assert steps.softmax_bytes("bfloat16") - steps.softmax_bytes("float16") == 2


@pytest.mark.parametrize(
    "kw",
    [{"kv_dtype": "q8_0"}, {"kv_dtype": "f32"}, {"quant": "Q4_K_M", "engine": "transformers"},
     {"settings": {"flash_attn": "1"}}, {"settings": {"attn_implementation": "flash"}},
     {"settings": {"cache_implementation": "quantized"}, "kv_dtype": "bf16"}, {"gpus": 99}],
)  # fmt: skip
def test_what_transformers_refuses(kw):
    with pytest.raises(CalculatorError) as error:
        estimate("llama-3.2-1b", **kw)
    assert "\n" not in str(error.value)


def test_a_window_that_is_not_full_costs_a_counter_a_layer():
    spec = replace(load_model("llama-3.2-1b").spec, sliding_window=4096)
    model = Model(spec, {"name": "x", "family": "x", "sources": {"config": "x"}})
    before, full = (estimate(model, context=n, settings={"phase": "prefill"}).ledger for n in (4095, 4096))
    plain = estimate("llama-3.2-1b", context=4095, settings={"phase": "prefill"}).ledger
    assert before.component_bytes("kv_cache") - plain.component_bytes("kv_cache") == 8 * 16
    assert before.component_bytes("activations") == plain.component_bytes("activations")
    assert full.component_bytes("activations") > before.component_bytes("activations") + 4096**2  # sdpa gets a mask


def test_windows_of_some_layers_by_a_list_are_not_guessed():
    spec = replace(load_model("qwen2.5-0.5b").spec, sliding_window=4096)
    with pytest.raises(CalculatorError, match="beyond its window"):
        estimate(Model(spec, {"name": "x", "family": "x", "sources": {"config": "x"}}), context=4097)
