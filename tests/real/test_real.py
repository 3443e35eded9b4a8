"""A short real slice of the suites: torch really runs, and a prediction that was exact must still be.

Needs torch and transformers (`make real` installs them); random weights, since memory doesn't depend on values.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from calculator.estimate import estimate

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch isn't installed; make real installs it"),
]
CONFIGS = json.loads((Path(__file__).parents[2] / "validation" / "architectures.json").read_text())


def predicted(model, **kw):
    said = estimate(model, engine="transformers", **kw)
    return {c: said.ledger.component_bytes(c) for c in ("weights", "kv_cache", "activations")}


@pytest.mark.parametrize(("phase", "attn"), [("prefill", "sdpa"), ("decode", "eager"), ("decode", "sdpa")])
def test_the_true_1b_in_bf16_really_executed(phase, attn):
    """Weights, cache and activation peak, to the byte, at full depth."""
    from calculator.checks import tracing

    ran = tracing.trace(CONFIGS["llama-3.2-1b"], phase=phase, seq=1024, attn=attn, backend="cpu")
    said = predicted("llama-3.2-1b", context=1024, settings={"phase": phase, "attn_implementation": attn})
    assert {"weights": ran["weights_bytes"], "kv_cache": ran["kv_bytes"], "activations": ran["act_bytes"]} == said


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama-3.2-1b-card", "qwen2.5-0.5b"])
def test_caches_really_filled(name, kind):
    import torch
    from transformers import AutoConfig

    from calculator.checks import tracing

    config = AutoConfig.for_model(**{k: v for k, v in CONFIGS[name].items() if k != "torch_dtype"})
    with tracing.backend_of("cpu"):
        cache = tracing.make_cache(config, kind, 4096)
        tracing.fill_cache(config, cache, 2, 4096, torch.bfloat16, "cpu")
        held = tracing.storage_bytes(cache, "cpu")
    assert held == predicted(name, context=4096, sequences=2, settings={"phase": "prefill", "cache_implementation": kind})["kv_cache"]


@pytest.mark.parametrize("context", [1024, 131_072])
@pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-1b-card", "qwen3-0.6b", "phi-3-mini", "gemma-3-1b", "small-mixtral"])
def test_traces_at_both_ends_of_the_range(name, context, tmp_path):
    from calculator.checks.trace import trace

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    for passed in trace(str(tmp_path), context=context):
        assert passed.act_bytes == passed.predicted_act_bytes


@pytest.fixture
def runs(monkeypatch):
    """Loaded as the probe does: a script's neighbour, not a module of the package."""
    from calculator import checks

    monkeypatch.syspath_prepend(checks.__path__[0])
    return importlib.import_module("runs")


@pytest.mark.parametrize("sequences", [1, 3])
def test_generate_really_executed(runs, sequences):
    """All tensors of `generate()`, to the byte but for its special tokens."""
    ran = runs.trace_generate(CONFIGS["qwen2.5-0.5b"], prompt=248, tokens=8, batch=sequences)
    said = estimate("qwen2.5-0.5b", context=248, sequences=sequences, engine="transformers", settings={"generate": True, "phase": "prefill"})
    held = sum(line.nbytes for line in said.ledger.lines if line.component != "overhead" or line.name == "input ids")
    assert 0 <= ran["peak_bytes"] - held <= 24


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_the_same_executed_and_fake(runs, checkpointing):
    config = CONFIGS["llama-3.2-1b-card"] | {"num_hidden_layers": 3}
    fake, cpu = (runs.trace_training(config, checkpointing=checkpointing, seq=128, backend=b) for b in ("fake_cpu", "cpu"))
    assert fake == cpu
    assert cpu["gradient_bytes"] == cpu["trained_bytes"]
    assert cpu["optimizer_bytes"] >= 2 * cpu["trained_bytes"]


def test_a_model_type_without_formulas_is_traced_and_says_so(tmp_path):
    from calculator.checks.trace import trace

    config = {"model_type": "codegen", "n_embd": 256, "n_head": 4, "n_layer": 2, "vocab_size": 1000, "n_positions": 2048, "rotary_dim": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (passed,) = trace(str(tmp_path), context=1024, settings={"phase": "prefill", "attn_implementation": "eager"})
    assert passed.predicted_act_bytes is None
    assert "codegen" in passed.reason
    assert passed.act_bytes > 0
