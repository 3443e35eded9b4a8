"""transformers' device map: which module goes where, what it takes there, and what an offloaded module brings along.

device_maps.jsonl: maps that transformers 5.23.0's `_get_device_map` made of random models on the meta device, with made-up
free memory (tests/real/test_accelerate.py draws anew). offloaded_passes.jsonl: live bytes of real forward passes under
FakeTensor, torch 2.13.0, in which hooks bring a module's own parameters in before its forward and drop them after it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.engines.settings import Budgets
from calculator.engines.transformers import steps
from calculator.engines.transformers.device_map import CPU_SHARE, DeviceMap, Limits, Sizes, balanced, place
from calculator.engines.transformers.offload import offloaded_matrices, with_hooks
from calculator.engines.transformers.placement import spread
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.estimate import estimate
from calculator.quantization import parse, quantize
from calculator.spec import ModelSpec
from calculator.units import GIB

HERE = Path(__file__).parent
MAPS = [json.loads(line) for line in (HERE / "device_maps.jsonl").read_text().splitlines()]
PASSES = [json.loads(line) for line in (HERE / "offloaded_passes.jsonl").read_text().splitlines()]
AUTO = {"device_map": "auto"}


def test_the_map_is_the_one_that_transformers_makes():
    for drawn in MAPS:
        embedding, layers, norm, rotary, head, tied = drawn["sizes"]
        sizes = Sizes(embedding, tuple(layers), norm, rotary, head, tied)
        given, cpu = drawn["max_memory_given"], drawn["cpu"]
        limits = Limits(tuple(enumerate(drawn["gpus"])), cpu if given or cpu is None else cpu * CPU_SHARE)
        if drawn["device_map"] != "sequential":
            limits = balanced(sizes, limits, given=given, low_zero=drawn["device_map"] == "balanced_low_0")
        first, middle, *rest = drawn["map"]
        assert place(sizes, limits) == DeviceMap(first, tuple(middle), *rest), drawn


def test_an_offloaded_module_weighs_while_it_runs():
    """All exact, but where a norm's own weight is the last byte of the peak: 2 bytes an element of hidden_size."""
    worst = 0
    for ran in PASSES:
        dims = {name: ran[name] for name in ModelSpec.__dataclass_fields__ if name in ran}
        bias = "qkv" if ran["model_type"] == "qwen2" else "none"
        spec = ModelSpec(id="x", tie_word_embeddings=False, max_position_embeddings=4096, dtype="bfloat16", attention_bias=bias, **dims)
        found = DeviceMap(0, tuple("cpu" if f"model.layers.{i}" in ran["offloaded"] else 0 for i in range(spec.num_hidden_layers)), 0, 0,
                          "cpu" if "lm_head" in ran["offloaded"] else 0)  # fmt: skip
        how = steps.Pass(ran["attn_implementation"], 2, 10 if ran["attn_implementation"] == "eager" else 0, 1, static_cache=False)
        prefill = ran["phase"] == "prefill"
        plain = (steps.prefill if prefill else steps.decode)(spec, how, tokens=ran["tokens"], sequences=ran["sequences"])
        new, seen = (ran["tokens"], ran["tokens"]) if prefill else (1, ran["tokens"] + 1)
        matrices = offloaded_matrices(quantize(spec, parse("bf16")), found)
        peak = with_hooks(spec, how, ran["phase"], matrices, plain.nbytes, new=new, seen=seen, sequences=ran["sequences"]) or plain
        assert 0 <= ran["act_bytes"] - peak.nbytes <= 2 * spec.hidden_size, (ran, peak)
        worst += ran["act_bytes"] != peak.nbytes
    assert worst <= len(PASSES) // 20


@given(st.sampled_from(["llama-3.1-8b", "qwen2.5-0.5b", "qwen3-30b-a3b", "phi-3-mini-4k-instruct"]), st.integers(1, 4), st.integers(4, 40), st.integers(8, 400))
def test_devices_host_and_disk_hold_the_whole_model(model, gpus, per_gpu, host):
    try:
        found = estimate(model, quant="bf16", engine="transformers", context=512, gpus=gpus,
                         settings={**AUTO, "max_memory": ",".join([*(f"{i}:{per_gpu}GiB" for i in range(gpus)), f"cpu:{host}GiB"])})  # fmt: skip
    except Unsupported:
        return
    lines = [line for line in found.ledger.lines if line.component == "weights"]
    on_disk = sum(int(line.note.split(": ")[1].split(" ")[0].replace(",", "")) for line in lines if line.name == "on disk")
    assert sum(line.nbytes for line in lines) + on_disk == found.tensor_bytes
    for i in range(gpus):  # the map never fills a GPU beyond its limit
        assert sum(line.nbytes for line in lines if line.device == i) <= per_gpu * GIB
    whole = estimate(model, quant="bf16", engine="transformers", context=512)
    assert found.ledger.component_bytes("kv_cache") == whole.ledger.component_bytes("kv_cache")  # offloaded layers' too
    if found.ledger.host_bytes:
        assert found.ledger.component_bytes("activations") >= whole.ledger.component_bytes("activations")


def test_what_fits_on_one_gpu_is_left_whole():
    one, mapped = (estimate("llama-3.2-1b", quant="bf16", gpu="RTX 4060", settings=settings) for settings in ({}, AUTO))
    assert one.total_bytes == mapped.total_bytes
    assert not mapped.ledger.host_bytes


def test_an_8b_on_an_8_gb_card_leaves_layers_and_head_on_the_host():
    found = estimate("llama-3.1-8b", quant="bf16", gpu="RTX 4060", settings=AUTO)
    placed = spread(found.job)
    assert placed.embedding == 0
    assert placed.head == "cpu"
    here = sum(line.nbytes for line in found.ledger.lines if line.component == "weights" and line.device == 0)
    assert found.ledger.host_bytes == found.tensor_bytes - here
    assert found.peak.step.name == "lm_head, offloaded"


def test_what_the_map_leaves_open_is_said_unless_max_memory_settles_it():
    free, set_ = (estimate("llama-3.1-8b", quant="bf16", gpu="RTX 4060", settings=AUTO | more) for more in ({}, {"max_memory": "0:6GiB,cpu:30GiB"}))
    assert any("of 32 layers stay on the GPU" in w for w in free.warnings)
    assert not any("layers stay on the GPU" in w for w in set_.warnings)


def test_the_host_has_a_limit_and_the_rest_is_on_disk():
    found = estimate("llama-3.1-8b", quant="bf16", gpu="RTX 4060", settings={**AUTO, "host_memory_bytes": 8 * GIB})
    assert found.ledger.host_bytes <= 8 * GIB * CPU_SHARE
    assert [line.nbytes for line in found.ledger.lines if line.name == "on disk"] == [0]
    assert "disk" in spread(found.job).pieces


def test_without_a_host_in_max_memory_the_rest_goes_to_disk():  # accelerate's devices are the keys that are given
    found = estimate("llama-3.1-8b", quant="bf16", settings={**AUTO, "max_memory": "0:6GiB"})
    assert found.ledger.host_bytes == 0
    assert set(spread(found.job).pieces) == {0, "disk"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:10GiB,cpu:30GB", {0: 10 * GIB, "cpu": 30 * 10**9}), ("{0: '1.5GiB', 'cpu': 5}", {0: 3 * GIB // 2, "cpu": 5}), ("0=1MiB", {0: 2**20})],
)
def test_memory_by_device_as_users_write_it(text, expected):
    found = estimate("llama-3.2-1b", quant="bf16", settings={**AUTO, "max_memory": "0:10GiB"}).engine.settings["max_memory"].parse("max_memory", text)
    assert Budgets.of(found) == expected


@pytest.mark.parametrize(
    ("settings", "quant", "error"),
    [({"max_memory": "0:8GiB"}, "bf16", BadValue), ({"host_memory_bytes": 10**9}, "bf16", BadValue), ({**AUTO, "max_memory": "8GiB"}, "bf16", BadValue),
     ({**AUTO, "max_memory": "1:8GiB"}, "bf16", BadValue), ({**AUTO, "max_memory": "0:1GiB,0:2GiB"}, "bf16", BadValue), ({"device_map": "cuda"}, "bf16", BadValue),
     ({**AUTO, "max_memory": "0:1GiB,cpu:90GiB"}, "bf16", Unsupported), ({**AUTO, "max_memory": "0:5GiB,cpu:90GiB"}, "bnb-nf4", Unsupported),
     ({**AUTO, "max_memory": "0:5GiB,cpu:90GiB"}, "gptq-int4-g128", NotModelled)],
)  # fmt: skip
def test_maps_that_are_refused(settings, quant, error):
    with pytest.raises(error) as raised:
        estimate("llama-3.1-8b", quant=quant, settings=settings)
    assert "\n" not in str(raised.value)
