"""Sparse latent attention in vLLM: rows, the indexer's keys, and what is refused."""

from __future__ import annotations

import math

import pytest

from calculator.engines.vllm.sparse import BLOCK, FP8_ROW, key_bytes
from calculator.errors import CalculatorError, NotModelled
from calculator.estimate import estimate
from calculator.spec import Indexer
from calculator.units import GIB


def run(model="deepseek-v3.2", **options):
    settings = {"kv_pool_bytes": 30 * GIB} | options.pop("settings", {})
    return estimate(model, engine="vllm", context=8192, gpus=8, partial=True, settings=settings, **options)


def test_tokens_of_a_log_of_glm_5_2_are_those_of_its_rows_and_keys():
    """0.23.1 with fp8_ds_mla prints 28.85 GiB and 574,336 tokens; 21 of its 78 layers have an indexer (index_topk_freq 4)."""
    token = 78 * FP8_ROW + 21 * key_bytes(Indexer(heads=32, head_dim=128, top_k=2048))
    assert math.floor(28.85 * GIB / (BLOCK * token)) * BLOCK == pytest.approx(574_336, abs=2 * BLOCK)  # the pool is printed to 0.01 GiB


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, 1152), ({"kv_dtype": "fp8"}, 656), ({"kv_dtype": "fp8", "gpu": "H200 SXM 141GB"}, 656), ({"kv_dtype": "fp8", "gpu": "B200"}, 576),
        ({"kv_dtype": "fp8", "gpu": "B200", "engine_version": "0.14.0"}, 656),
    ],
)  # fmt: skip
def test_rows_are_in_16_bits_or_in_the_layout_of_the_kernel(options, row):
    found = run(**options)
    cache = {line.name: line.nbytes for line in found.ledger.lines if line.component == "kv_cache" and line.device == 0}
    assert cache == {"KV blocks": 8192 * 61 * row, "indexer keys": 8192 * 61 * 132}
    assert found.pool.tokens == 30 * GIB // (64 * 61 * (row + 132)) * 64
    assert found.kv_bytes_per_token == 8 * 61 * (row + 132)


def test_the_cache_type_is_named_in_the_command():
    assert "--kv-cache-dtype bfloat16" in run().start_command
    assert "--kv-cache-dtype fp8" in run(kv_dtype="fp8").start_command


def test_the_total_is_a_lower_bound_without_the_workspaces():
    found = run(gpu="H200 SXM 141GB")
    assert found.partial
    assert any("workspaces of sparse attention" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("deepseek-v3.2", {"engine_version": "0.9.2"}, "0.11.0 or later"),
        ("glm-5", {"engine_version": "0.14.0", "quant": "fp8-block"}, "0.14.1 or later"),
        ("deepseek-v3.2", {"gpu": "RTX PRO 6000 Blackwell Server Edition"}, "compute capability 12"),
        ("deepseek-v3.2", {"settings": {"tensor_parallel_size": 4}}, "pipeline stages"),
    ],
)
def test_what_is_not_known_is_refused(model, options, why):
    with pytest.raises((NotModelled, CalculatorError)) as refused:
        run(model, **options)
    assert why in f"{refused.value} {getattr(refused.value, 'allowed', '')}"


def test_glm_5_2_keeps_keys_in_the_layers_that_choose_alone():
    """A public log of 0.23 prints 574,336 tokens of 28.85 GiB: 78 rows of 656 bytes and 21 keys of 132; the print's rounding is one block."""
    found = estimate("glm-5.2", engine="vllm", engine_version="0.23.0", gpus=4, gpu="h200", kv_dtype="fp8", context=400_000, settings={"kv_pool_bytes": round(28.85 * 2**30)}, partial=True)
    assert abs(found.pool.tokens - 574_336) <= 64
    assert found.kv_bytes_per_token == 4 * (78 * 656 + 21 * 132)
    with pytest.raises(CalculatorError, match=r"before 0\.22"):
        estimate("glm-5.2", engine="vllm", engine_version="0.19.0", gpus=4, gpu="h200", partial=True)
