"""Latent attention in vLLM 0.6 and 0.7: heads padded to 256, then rows beside absorbed matrices."""

from __future__ import annotations

import pytest

from calculator.errors import CalculatorError, Unsupported
from calculator.estimate import estimate
from calculator.units import GIB

R1 = {"gpus": 8, "settings": {"tensor_parallel_size": 8, "kv_pool_bytes": 10 * GIB}}


def run(model="deepseek-r1", version="0.7.3", **options):
    return estimate(model, engine="vllm", engine_version=version, context=8192, **options)


def weights(found, device=0):
    return sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.device == device)


@pytest.mark.parametrize(
    ("version", "a_rank"),
    [("0.6.6", 2 * 16 * 256), ("0.7.0", 2 * 16 * 256), ("0.7.1", 576), ("0.7.2", 640), ("0.7.3", 640), ("0.8.5", 576)],
)
def test_a_token_takes_padded_heads_then_a_row_then_an_aligned_row(version, a_rank):
    found = run(version=version, **R1)
    assert found.kv_bytes_per_token == 8 * 61 * a_rank * 2
    assert sum(line.nbytes for line in found.ledger.lines if line.component == "kv_cache") == 8192 * found.kv_bytes_per_token
    size = found.engine.resolved_settings(found.job)["block_size"]
    assert found.pool.tokens == 10 * GIB // (61 * a_rank * 2 * size) * size


def test_weights_of_r1_on_three_stages_equal_the_log():
    """vllm#14601, 0.7.4.dev382 on 24 L20: 25.0166 GiB; 0.8 holds 23.61. Found before the formula, which it hasn't changed."""
    options = {"gpus": 24, "gpu": "L20", "settings": {"tensor_parallel_size": 8, "max_num_seqs": 48}}
    assert weights(run(version="0.7.4", **options)) / GIB == pytest.approx(25.0166, rel=0.001)
    assert weights(run(version="0.8.0", **options)) / GIB < 23.7


def test_absorbed_matrices_are_in_the_weights_type_but_for_the_rotary_part():
    line = next(line for line in run(**R1).ledger.lines if line.name == "absorbed query and output matrices")
    heads, blocks = 16, 64 * (12 + 56)
    assert line.nbytes == 61 * (2 * 1536 * heads * 64 + heads * 512 * (1536 + 7168) + 4 * blocks)
    lite = next(line for line in run("deepseek-v2-lite").ledger.lines if line.name == "absorbed query and output matrices")
    assert lite.nbytes == 27 * 2 * 16 * (2048 * 64 + 512 * (2048 + 2048))  # queries aren't compressed there


def test_formats_that_0_7_absorbs_not_are_kept_as_heads():
    found = run(quant="awq-int4-g128", **R1)
    assert found.kv_bytes_per_token == 8 * 61 * 2 * 16 * 256 * 2
    assert not any("absorbed" in line.name for line in found.ledger.lines)


@pytest.mark.parametrize(("options", "kind"), [({"version": "0.7.3", "kv_dtype": "fp8"}, Unsupported), ({"version": "0.6.3"}, CalculatorError)])
def test_what_a_release_lacks_is_refused(options, kind):
    with pytest.raises(kind):
        run(**options, **R1)
