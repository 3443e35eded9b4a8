from __future__ import annotations

from dataclasses import replace

import pytest
from golden_data import architecture, rows

from calculator.catalog import Model, load_model
from calculator.engines.transformers import cache, steps
from calculator.errors import CalculatorError
from calculator.estimate import estimate

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def estimated(row):
    spec = architecture(row["arch"], int(row["layers"]))
    return estimate(
        Model(spec, {"name": "golden", "family": "golden", "sources": {"config": "golden"}}),
        quant=TYPES[row["dtype"]], context=int(row["seq"]), sequences=int(row["batch"]),
        settings={"phase": row["phase"], "attn_implementation": row["attn"], "logits_to_keep": row["logits_to_keep"],
                  "cache_implementation": row["cache"]},
    )  # fmt: skip


@pytest.mark.parametrize("row", rows("torch_activation.csv"), ids=lambda r: "-".join(list(r.values())[:9]))
def test_activations_and_cache_equal_the_traced_model(row):
    """Evidence fake; 16-bit rows were asked for within 4 KiB, and are exact, as are the float32 ones."""
    ledger = estimated(row).ledger
    assert ledger.component_bytes("activations") == int(row["act_bytes"])
    assert ledger.component_bytes("kv_cache") == int(row["kv_final_bytes"])


@pytest.mark.parametrize("row", rows("torch_kv.csv"), ids=lambda r: "-".join(list(r.values())[:6]))
def test_cache_equals_the_executed_one(row):
    model, tokens = architecture(row["arch"], int(row["layers"])), int(row["seq"])
    shape = {"layers": int(row["layers"]), "sequences": int(row["batch"])}
    if row["cache"].startswith("QuantizedCache"):
        kind = "fp8" if "fp8" in row["cache"] else f"int{row['dtype'].removesuffix('bit')}"
        held = cache.quantized(model, **shape, cached=tokens, new=0, kind=kind, element_bytes=2)
    else:
        size = {"bfloat16": 2, "float32": 4}[row["dtype"]]
        held = cache.plain(model, **shape, tokens=tokens, element_bytes=size, static=row["cache"] == "StaticCache")
    assert held.nbytes == int(row["storage_bytes"])


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


def test_sliding_windows_are_not_guessed():
    spec = replace(load_model("llama-3.2-1b").spec, sliding_window=4096)
    model = Model(spec, {"name": "x", "family": "x", "sources": {"config": "x"}})
    assert estimate(model, context=4096).total_bytes == estimate("llama-3.2-1b", context=4096).total_bytes
    with pytest.raises(CalculatorError, match="sliding-window"):
        estimate(model, context=4097)
