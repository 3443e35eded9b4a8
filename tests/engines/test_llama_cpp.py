from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.compute import compute, device_bytes
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from tests.strategies import models


def test_cache_a_token_of_the_1b():
    """32 KiB f16, 17 KiB q8_0, 9 KiB q4_0 a token: llama.cpp @0c1e57098."""
    sizes = [estimate("llama-3.2-1b", quant="Q8_0", kv_dtype=t).kv_bytes_per_token for t in ("f16", "q8_0", "q4_0")]
    assert sizes == [32 * 1024, 17 * 1024, 9 * 1024]


def test_a_quantized_cache_makes_the_compute_buffer_larger():
    """At 128K: f16 188 MiB, q8_0 400 MiB while the cache falls from 4096 to 2176 MiB (mock CUDA)."""
    f16, q8 = (estimate("llama-3.2-1b", quant="Q4_K_M", context="128k", kv_dtype=t).ledger for t in ("f16", "q8_0"))
    assert round(f16.component_bytes("activations") / 2**20) == 188
    assert round(q8.component_bytes("activations") / 2**20) == 400
    assert q8.component_bytes("kv_cache") == 2176 * 2**20


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"settings": {"flash_attn": "0", "type_v": "q8_0"}}, "needs flash attention"),
        ({"kv_dtype": "fp8"}, "no fp8 cache"),
        ({"settings": {"n_gpu_layers": "-3"}}, "allowed"),
        ({"settings": {"n_gpu_layers": "4", "backend": "cpu"}}, "no GPU"),
        ({"settings": {"n_cpu_moe": "4"}}, "no experts"),
        ({"settings": {"tensor_split": "3,1"}}, "2 shares for 1 GPU"),
        ({"settings": {"tensor_split": "3,-1"}, "gpus": 2}, "allowed"),
        ({"settings": {"tensor_split": "0,0"}, "gpus": 2}, "zeros"),
        ({"settings": {"split_mode": "row"}, "gpus": 2}, "split buffers"),
        ({"settings": {"split_mode": "tensor"}, "gpus": 2}, "experimental"),
        ({"gpus": 17}, "1 to 16"),
        ({"settings": {"n_gpu_layer": "4"}}, "try: n_gpu_layers"),
        ({"sequences": 257}, "1 to 256"),
        ({"settings": {"n_seq_max": "5"}}, "cells a sequence"),
        ({"settings": {"n_ubatch": "²"}}, "allowed"),
        ({"settings": {"n_ubatch": "--1"}}, "allowed"),
        ({"settings": {"n_ubatch": "0"}}, "allowed"),
        ({"settings": {"n_ubatch": "x" * 100}}, "allowed"),
        ({"settings": {"backend": "cpu"}, "gpu": "rtx 4090"}, "doesn't use"),
        ({"engine_version": "b1"}, "not a modelled version"),
    ],
)
def test_what_is_refused(kw, words):
    with pytest.raises(CalculatorError, match=words) as error:
        estimate("llama-3.2-1b", **({"quant": "Q4_K_M"} | kw))
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(models(), st.integers(1, 100_000), st.integers(1, 24), st.booleans(), st.booleans(), st.sampled_from(["F16", "Q8_0"]), st.booleans())
def test_between_two_contexts_of_equal_decisions_the_buffer_is_affine(model, tokens, slots, cuda, flash, k, all_outputs):
    """What a sweep reads between simulated contexts is what the simulation gives there."""
    v = k if flash else "F16"
    context = Context(tokens * slots, 2048, 512, slots, 512 if all_outputs else slots, False, flash, k, v, cuda)
    assert device_bytes(model.spec, context) == compute(model.spec, context).devices[0].nbytes
