"""What `trace`, `verify` and `measure` refuse before any torch is needed, and where torch is missing."""

from __future__ import annotations

import importlib.util

import pytest

from calculator.checks import trace as traces
from calculator.checks import verify as verifies
from calculator.errors import BadValue, CalculatorError, Unsupported


@pytest.mark.parametrize(
    ("kw", "words"),
    [
        ({"quant": "Q4_K_M"}, "bf16, fp16, fp32"),
        ({"context": "-3"}, "whole number"),
        ({"sequences": "x"}, "whole number"),
        ({"settings": {"phase": "x"}}, "prefill, decode"),
        ({"settings": {"cache_implementation": "quantized"}}, "dynamic, static"),
        ({"settings": {"n_ctx": "4"}}, "no setting"),
    ],
)
def test_bad_input_is_one_line(kw, words):
    with pytest.raises(CalculatorError, match=words) as error:
        traces.trace("llama-3.2-1b", **kw)
    assert "\n" not in str(error.value)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for run in (lambda: traces.trace("llama-3.2-1b"), lambda: verifies.verify("llama-3.2-1b"), lambda: verifies.measure("weights", ())):
        with pytest.raises(Unsupported, match="validation"):
            run()


def test_verify_loads_only_what_it_can_fill_with_random_weights():
    with pytest.raises(BadValue, match="bnb-nf4"):
        verifies.verify("llama-3.2-1b", quant="Q4_K_M")
