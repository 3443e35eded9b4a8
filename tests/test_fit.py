from __future__ import annotations

import pytest

from calculator.catalog import load_gpu, load_gpus
from calculator.errors import CalculatorError, Unsupported
from calculator.estimate import estimate
from calculator.fit import fit, judge, usable_memory
from calculator.spec import Quantity
from calculator.units import GIB


def quantity(value, low=None):
    return Quantity(value=value, low=low, source="test")


def test_verdicts_follow_the_band():
    assert judge(10, 12, quantity(12)) == "fits"
    assert judge(10, 13, quantity(12)) == "tight"
    assert judge(13, 14, quantity(12)) == "does_not_fit"
    assert judge(10, 12, quantity(12, low=11)) == "tight"  # usable memory is a band too


def test_three_memory_numbers_of_an_h100():
    """nvidia-smi 81,559 MiB; a program sees 79.1 to 79.3 GiB; sold as 80 GB."""
    gpu = load_gpu("H100 SXM5 80GB")
    assert gpu.nvml_total_bytes.value == 81_559 * 2**20
    assert 79.0 * GIB < gpu.cuda_total_bytes.value < 79.4 * GIB
    assert gpu.memory_sold_bytes.value == 80 * GIB


@pytest.mark.parametrize("gpu", load_gpus(), ids=lambda g: g.name)
def test_usable_memory_is_below_what_is_sold(gpu):
    usable = usable_memory(gpu)
    assert usable.low_value <= usable.value <= gpu.memory_sold_bytes.value
    assert usable.source
    if gpu.cuda_total_bytes is None:
        assert usable.low_value < usable.value or gpu.vendor == "Apple"  # derived: a band


def test_a_fit_is_per_device():
    found = estimate("llama-3.1-8b", gpu="rtx 3060 12gb", gpus=2, context=1024)
    held = fit(found, load_gpu("rtx 3060 12gb"))
    assert [d.index for d in held.devices] == [0, 1]
    assert sum(d.required_bytes for d in held.devices) == found.total_bytes
    assert held.binding.headroom_bytes == min(d.headroom_bytes for d in held.devices)


def test_before_ampere_grouped_heads_hold_square_scores():
    """sdp_utils.cpp: flash needs compute capability 8.0; the scores alone of the 1B at 8k are 2 x 32 x 8192^2 x 4 bytes."""
    turing, ada = (estimate("llama-3.2-1b", quant="fp16", gpu=g) for g in ("rtx 2060", "rtx 4060"))
    assert turing.peak.step.name == "attention (math kernel)"
    assert turing.ledger.component_bytes("activations") > 2 * 32 * 8192**2 * 4
    assert fit(turing, load_gpu("rtx 2060")).verdict == "does_not_fit"
    assert ada.peak.step.name == "mlp"
    assert any("math kernel" in w for w in turing.warnings)


def test_a_card_that_lacks_the_format_is_warned_about():
    assert any("8.9" in w for w in estimate("llama-3.2-1b", quant="fp8", gpu="t4").warnings)
    assert any("emulates" in w for w in estimate("llama-3.2-1b", gpu="t4").warnings)
    assert any("CUDA kernels" in w for w in estimate("llama-3.2-1b", gpu="mi300x").warnings)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers"])
@pytest.mark.parametrize("model", ["qwen3-8b", "llama-3.2-1b"])
def test_what_fits_leaves_room_and_what_lies_beside_a_share_is_named(engine, model):
    """Qwen3 8B on an RTX 4000 Ada fits the share of vLLM 0.19 only because its CUDA graphs lie beside it."""
    beside = set()
    for gpu in load_gpus():
        try:
            held = fit(estimate(model, engine=engine, gpu=gpu, engine_version="0.19.0" if engine == "vllm" else None), gpu)
        except CalculatorError:
            continue
        device = held.binding
        beside.add(device.beside_bytes > 0)
        if held.verdict == "fits":
            assert device.headroom_bytes >= 0, gpu.name
        assert device.headroom_bytes == device.usable_bytes + device.beside_bytes - device.required_bytes
    assert beside == {engine != "transformers"}


@pytest.mark.parametrize(("engine", "gpu", "least"), [("vllm", "Tesla P40", "7.0"), ("sglang", "V100 SXM2 32GB", "sm75")])
def test_a_card_without_kernels_is_refused(engine, gpu, least):
    with pytest.raises(Unsupported, match=least):
        estimate("llama-3.2-1b", quant="fp16", engine=engine, gpu=gpu)
