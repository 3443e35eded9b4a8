"""Sparse latent attention in SGLang: rows, the indexer's keys, pages."""

from __future__ import annotations

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.units import GIB


def run(model, version="0.5.13", **options):
    return estimate(model, engine="sglang", engine_version=version, gpus=8, context=8192, partial=True, **{"gpu": "h200", "quant": "fp8-block", **options})


def test_a_token_takes_what_a_log_of_glm_5_gives():
    """MI355X, 8 bits: 186.77 GiB for 3,262,823 tokens. Found before this was written; its bytes are those of the source."""
    found = run("glm-5", kv_dtype="fp8")
    assert found.kv_bytes_per_token == 8 * 78 * (656 + 132)
    assert found.kv_bytes_per_token / 8 * 3_262_823 / GIB == pytest.approx(186.77, abs=0.01)


def test_weights_are_what_that_log_prints():
    """89.58 GiB a rank of 8."""
    assert run("glm-5", kv_dtype="fp8").ledger.on(0).component_bytes("weights") / GIB == pytest.approx(89.58, rel=0.004)


@pytest.mark.parametrize(("version", "layers"), [("0.5.13", 78), ("0.5.17", 78), ("0.5.23", 21)])
def test_layers_that_share_a_choice_keep_no_keys_since_0_5_20(version, layers):
    lines = [line for line in run("glm-5.2", version, kv_dtype="fp8").ledger.lines if line.name == "indexer keys"]
    assert [line.nbytes for line in lines] == [8192 * 132 * layers] * 8


def test_pages_are_of_64_and_the_command_names_the_type():
    """Blackwell takes 8 bits unless told otherwise: v0.5.9 srt/server_args.py L1144."""
    found = run("deepseek-v3.2", quant=None)
    assert "--page-size 64" in found.start_command
    assert "--kv-cache-dtype bfloat16" in found.start_command
    assert found.pool.tokens % 64 == 0


@pytest.mark.parametrize(("options", "says"), [({"gpu": "rtx pro 6000 blackwell server"}, "compute capability"), ({"version": "0.5.2"}, "has no deepseek_v32")])
def test_what_is_not_known_is_refused(options, says):
    with pytest.raises(CalculatorError, match=says):
        run("deepseek-v3.2", **options)
