"""Gemma 4 E2B and E4B in vLLM: layers that read another's cache have none, inputs by layer have a buffer."""

from __future__ import annotations

import pytest

from calculator.engines.vllm.blocks import blocks_for, groups_of, rows_of
from calculator.errors import NotModelled
from calculator.estimate import estimate
from calculator.units import ceil_div

MIB = 2**20


def run(model, **options):
    settings = {"max_num_batched_tokens": 4096, "kv_pool_bytes": 2**30} | options.pop("settings", {})
    return estimate(model, engine="vllm", engine_version=options.pop("engine_version", "0.19.0"), context=8192, partial=True, settings=settings, **options)


@pytest.mark.parametrize(("model", "groups"), [("gemma-4-e4b-it", (1, 5, 4)), ("gemma-4-e2b-it", (1, 4, 3)), ("gemma-4-26b-a4b-it", (1, 5, 5))])
def test_layers_that_share_a_cache_are_in_no_group(model, groups):
    found = groups_of(run(model).job)
    assert (found.full, found.windowed, found.size) == groups


def test_a_block_has_16_tokens_of_full_layers_and_32_of_windowed_ones():
    """docs.lmcache.ai/recipes/gemma4.html: E4B's block sizes are 32 (sliding) and 16 (full)."""
    found = run("gemma-4-e4b-it")
    full, windowed = rows_of(found.job.model)
    assert full == 2 * windowed
    window = min(512 - 1 + 4096, 8192)
    assert blocks_for(found.job, 8192) == ceil_div(8192, 16) + 5 * (ceil_div(window, 32) + 1)


def test_inputs_by_layer_have_a_buffer_of_one_batch():
    line = next(line for line in run("gemma-4-e4b-it").ledger.lines if line.name == "inputs by layer")
    assert line.nbytes == 4096 * 42 * 256 * 2


def test_keys_of_layers_that_share_are_made_in_0_19_and_not_in_0_33():
    sizes = [sum(line.nbytes for line in run("gemma-4-e4b-it", engine_version=version).ledger.lines if line.name == "linear layers") for version in ("0.19.0", "0.33.0")]
    assert sizes[0] - sizes[1] == 2 * 2560 * 2 * 2 * (15 * 256 + 3 * 512)  # K and V: 15 windowed layers, 3 full ones
    between = next(line for line in run("gemma-4-e4b-it", engine_version="0.26.0").ledger.lines if line.name.startswith("keys and values of layers"))
    norms = 2 * (15 * 256 + 3 * 512)  # of keys
    assert (between.low_bytes, between.nbytes) == (0, sizes[0] - sizes[1] + norms)


def test_values_that_are_keys_are_loaded_twice():
    """Gemma 4 26B: five full layers of 2 heads of 512; with them the printed 48.5 GiB is met to 0.04 %."""
    found = run("gemma-4-26b-a4b-it", engine_version="0.20.0")
    line = next(line for line in found.ledger.lines if line.name == "values that are keys")
    assert line.nbytes == 5 * 2 * 512 * 2816 * 2
    assert found.ledger.component_bytes("weights") / 2**30 == pytest.approx(48.5, rel=0.0005)


@pytest.mark.parametrize(("model", "options", "why"), [("gemma-4-e4b-it", {"gpus": 2}, "on several GPUs"), ("gemma-3n-e4b-it", {}, "gemma3n")])
def test_what_is_not_known_is_refused(model, options, why):
    with pytest.raises(NotModelled, match=why):
        run(model, **options)
