"""Formats that makers give to the routed experts alone."""

from __future__ import annotations

import pytest

from calculator.catalog import load_model
from calculator.checkpoints.quantization_config import scheme_of
from calculator.estimate import estimate
from calculator.quantization import quantize
from calculator.units import GIB

KIMI = load_model("kimi-k2-thinking")
QUANT = KIMI.record["config"]["quantization_config"]


def test_kimi_s_attention_shared_experts_and_first_layer_stay_in_16_bits():
    stored = estimate("kimi-k2-thinking", engine="vllm", gpus=8).job.stored
    four_bits = {g.group.name for g in stored if len(g.parts) > 1}
    assert four_bits == {f"model.layers.{{layer}}.mlp.experts.{p}_proj.weight" for p in ("gate", "up", "down")}


def quantized(ignore):
    scheme = scheme_of(QUANT | {"ignore": ignore}, KIMI.spec, id="x")
    return {g.group.name.removeprefix("model.layers.{layer}.") for g in quantize(KIMI.spec, scheme) if len(g.parts) > 1}


def test_a_config_decides_what_stays():
    experts = {f"mlp.experts.{p}_proj.weight" for p in ("gate", "up", "down")}
    assert quantized(QUANT["ignore"]) == experts
    assert quantized(["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"]) == experts | {f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}


def test_weights_and_pool_are_near_what_logs_print():
    """Found in the exam's logs after the rule was written: SGLang's 72.19 and 72.33 GiB a rank of 8, of which the tower is whole there;
    vLLM's recipe of K2 Thinking on 8 H200, 46.80 GiB left."""
    weights = estimate("kimi-k2.5", engine="sglang", gpus=8, gpu="h200", context=8192, partial=True).ledger.on(0).component_bytes("weights")
    assert weights / GIB == pytest.approx(72.26, rel=0.012)
    pool = estimate("kimi-k2-thinking", engine="vllm", engine_version="0.11.1", gpus=8, gpu="h200").pool
    assert pool.low <= 46.80 * GIB <= pool.high
