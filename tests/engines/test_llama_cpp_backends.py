"""Metal and Vulkan by CUDA's rules: what public logs print of them, and the band that says how little that is."""

from __future__ import annotations

import pytest

from calculator.estimate import estimate
from calculator.sweep import sweep


def lines(found, name):
    return [line for line in found.ledger.lines if line.name == name]


@pytest.mark.parametrize(("backend", "model", "quant", "context", "device", "host"), [
    ("metal", "qwen2.5-1.5b-instruct", "Q4_K_M", 4096, 299.75, 11.01),  # ggml-org/llama.cpp#11083, January 2025
    ("vulkan", "llama-3.2-1b", "Q4_K_M", 4096, 280.00, 12.01),  # #11256, January 2025
    ("metal", "llama-2-7b-chat-hf", "Q4_K_M", 2048, 164.00, 12.01),  # #7060, May 2024: the host's is printed as 12.00
])  # fmt: skip
def test_compute_buffers_of_public_logs(backend, model, quant, context, device, host):
    settings = {"backend": backend, "flash_attn": "0"}
    found = estimate(model, quant=quant, context=context, engine="llama.cpp", engine_version="794fe23f", settings=settings)
    (own,), (beside,) = lines(found, "compute buffer"), lines(found, "compute buffer, host")
    assert (round(own.nbytes / 2**20, 2), round(beside.nbytes / 2**20, 2)) == (device, host)
    assert own.low < 0.9 * own.nbytes < 1.1 * own.nbytes < own.high
    assert own.basis == "modelled"


@pytest.mark.parametrize("backend", ["metal", "vulkan"])
def test_the_start_command_and_sweeps_know_the_backend(backend):
    found = estimate("llama-3.2-1b", quant="Q8_0", context=2048, settings={"backend": backend})
    assert "--device none" not in found.start_command
    grid = sweep([found.model], ["Q8_0"], [2048], [1], {"settings": {"backend": backend}})
    assert grid.total_bytes.item() == found.total_bytes
    assert grid.high_bytes().item() == found.ledger.high_bytes
