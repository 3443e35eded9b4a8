from __future__ import annotations

import pytest
from golden_data import architecture, rows

from calculator.catalog import Model
from calculator.engines.llama_cpp import buffers
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.formats import FORMATS


def golden_model(name):
    return Model(architecture(name), {"name": name, "family": "golden", "sources": {"config": "golden"}})


def context_of(row):
    n_ubatch = int(row["n_ubatch"])
    return buffers.Context(
        n_ctx=int(row["n_ctx"]), n_batch=int(row["n_batch"]), n_ubatch=n_ubatch, n_seq_max=int(row["n_seq"]),
        n_outputs=int(row["n_outputs_max"]) or n_ubatch, kv_unified=row["kv_unified"] == "1", flash_attn=row["flash"] == "1",
        type_k=row["kv_k"].upper(), type_v=row["kv_v"].upper(), cuda=row["backend"] == "mockCUDA",
    )  # fmt: skip


CONTEXTS = rows("llama_cpp_context.csv.gz")


def test_kv_buffers_are_exact_in_every_context():
    wrong = []
    for row in CONTEXTS:
        model, context = architecture(row["arch"]), context_of(row)
        where = buffers.layout(context)
        sizes = (buffers.kv_tensor_bytes(model, FORMATS[t], where, cuda=context.cuda) for t in (context.type_k, context.type_v))
        if model.num_hidden_layers * sum(sizes) != int(row["kv_bytes"]):
            wrong.append(row)
    assert not wrong
    assert len(CONTEXTS) > 3_900


def test_compute_buffers_are_within_their_known_error():
    """The closed form: every context within 10 %, most exact; with flash attention and f16 on CUDA all exact."""
    errors = {"exact": 0, "all": 0}
    for row in CONTEXTS:
        truth = int(row["compute_bytes"])
        peak, _ = buffers.compute(architecture(row["arch"]), context_of(row))
        error = abs(peak.nbytes / truth - 1)
        assert error < 0.10, row
        if row["backend"] == "mockCUDA" and row["flash"] == "1" and row["kv_k"] == row["kv_v"] == "f16":
            assert error < 1e-6, row
        errors["all"] += 1
        errors["exact"] += error < 1e-4
    assert errors["exact"] > 0.6 * errors["all"]


def test_host_buffers():
    for row in CONTEXTS:
        if row["backend"] == "mockCUDA":
            _, host = buffers.compute(architecture(row["arch"]), context_of(row))
            assert abs(host / int(row["compute_host_bytes"]) - 1) < 0.01, row


@pytest.mark.parametrize("row", rows("gguf_model_buffers.csv"), ids=lambda r: "-".join(list(r.values())[:3]))
def test_model_buffers_equal_the_loader(row):
    backend = "cpu" if row["backend"] == "CPU" else "cuda"
    found = estimate(golden_model(row["arch"]), quant=row["ftype"], engine="llama.cpp", context=1024, settings={"backend": backend})
    weights = [line for line in found.ledger.lines if line.component == "weights"]
    assert sum(line.nbytes for line in weights if line.device == 0) == int(row["device_bytes"])
    assert sum(line.nbytes for line in weights if line.device == "host") == int(row["host_bytes"])


def test_output_buffer_is_on_the_host():
    for row in CONTEXTS[::97]:
        found = estimate(
            golden_model(row["arch"]), quant="F16", context=max(1, int(row["n_ctx"]) // int(row["n_seq"])), sequences=int(row["n_seq"])
        )
        (line,) = (line for line in found.ledger.lines if line.name == "output buffer")
        assert line.device == "host"
        assert line.nbytes == int(row["output_bytes"])


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
        ({"settings": {"n_gpu_layers": "4"}}, "later version"),
        ({"settings": {"n_gpu_layer": "4"}}, "try: n_gpu_layers"),
        ({"sequences": 257}, "1 to 256"),
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
