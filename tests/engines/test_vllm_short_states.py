"""Short convolutions (LFM2) and Mamba 1 (Jamba) in vLLM: their states, and what differs from the checkpoint."""

from __future__ import annotations

import pytest

from calculator.engines.vllm.hybrid import block_size, state_bytes
from calculator.errors import CalculatorError
from calculator.estimate import estimate


def run(model, version="0.33.0", **options):
    return estimate(model, engine="vllm", engine_version=version, gpu="h200", context=8192, **options)


def test_a_short_convolution_keeps_two_inputs_a_channel():
    found = run("lfm2-1.2b", "0.19.0")
    assert state_bytes(found.job) == 2 * 2048 * 2  # kernel 3, hidden size 2,048
    assert block_size(found.job) == 16
    assert found.kv_bytes_per_token == 6 * 2 * 8 * 64 * 2


def test_mamba_1_keeps_three_inputs_and_sixteen_numbers_a_channel():
    found = run("jamba-mini-1.6", "0.19.0", gpus=2)
    assert state_bytes(found.job) == 4096 * (3 + 16) * 2  # a rank of two
    assert block_size(found.job) == 80  # 155,648 bytes in rows of 2,048, in whole 16s


def test_mamba_1_s_decay_is_in_float32():
    """v0.19.0 mamba_mixer.py: A is made in float32, 2 bytes more than in the checkpoint."""
    lines = [line for line in run("jamba2-mini").ledger.lines if line.name == "decay in float32"]
    assert [line.nbytes for line in lines] == [2 * 8192 * 16 * 28]


@pytest.mark.parametrize(("model", "version", "settings", "says"), [
    ("lfm2-1.2b", "0.9.2", {}, "has no lfm2"),
    ("lfm2-1.2b", "0.33.0", {"mamba_ssm_cache_dtype": "float32"}, "no such state"),
    ("jamba2-mini", "0.27.0", {"enable_prefix_caching": True}, "enable_prefix_caching=0"),
])  # fmt: skip
def test_what_is_not_known_is_refused(model, version, settings, says):
    with pytest.raises(CalculatorError) as refused:
        run(model, version, settings=settings)
    assert says in f"{refused.value} {refused.value.hint}"
    assert "\n" not in str(refused.value)


def test_jamba_without_prefixes_runs_before_0_31():
    assert run("jamba2-mini", "0.29.0", settings={"enable_prefix_caching": False}).pool is not None
