"""SGLang's attention backends: which one the server takes, what it holds, the page that it asks for."""

from __future__ import annotations

import pytest

from calculator.engines.sglang.attention import backend_of, page_of
from calculator.errors import Unsupported
from calculator.estimate import estimate
from calculator.units import MIB


def sized(model, gpu, version="0.5.12", tp=1, **settings):
    return estimate(model, engine="sglang", engine_version=version, gpu=gpu, gpus=tp, context=256, partial=True, settings=settings | {"tensor_parallel_size": tp})


def beside(found):
    return {line.name: line for line in found.ledger.on(0).lines if line.component == "overhead"}


@pytest.mark.parametrize(
    ("model", "gpu", "version", "tp", "backend"),
    [
        ("llama-3.1-8b", "RTX 4090", "0.5.12", 1, "flashinfer"), ("llama-3.1-8b", "H100 SXM5 80GB", "0.4.3", 1, "flashinfer"), ("llama-3.1-8b", "H100 SXM5 80GB", "0.4.6", 1, "fa3"),
        ("llama-3.1-8b", "B200", "0.5.6", 1, "flashinfer"), ("llama-3.1-8b", "B200", "0.5.9", 1, "trtllm_mha"), ("deepseek-v3", "H200", "0.5.12", 8, "fa3"),
        ("deepseek-v3", "B200", "0.5.12", 8, "trtllm_mla"), ("gpt-oss-20b", "H100 SXM5 80GB", "0.5.12", 1, "fa3"), ("llama-4-scout-17b-16e-instruct", "A100 SXM4 80GB", "0.5.12", 8, "triton"),
    ],
)  # fmt: skip
def test_the_backend_is_the_servers_choice(model, gpu, version, tp, backend):
    found = sized(model, gpu, version, tp)
    assert backend_of(found.job) == backend
    assert found.engine.resolved_settings(found.job)["attention_backend"] == backend


def test_flashinfer_s_workspace_is_wider_for_qwen_and_near_what_logs_leave_before_capture():
    """0.53 GiB with Llama 3.1 8B on an RTX 4090 and 0.64 with QwQ 32B on L4, between pool and capture; 0.05 with FlashAttention 3."""
    cases = ((sized("llama-3.1-8b", "RTX 4090", "0.4.9"), 0.53), (sized("qwq-32b", "L4", "0.4.3", 4, mem_fraction_static=0.9), 0.64), (sized("llama-3.1-8b", "H200"), 0.05))
    for found, printed in cases:
        lines = [beside(found)[name] for name in ("attention workspace", "kernel buffers")]
        assert sum(line.low_bytes for line in lines) <= printed * 2**30 <= sum(line.high_bytes for line in lines)
    widths = [beside(found)["attention workspace"].nbytes for found, _ in cases]
    assert widths == [(384 + 4 * 8) * MIB, (512 + 4 * 8) * MIB, 0]
    assert beside(sized("llama-3.1-8b", "H200", attention_backend="flashinfer"))["attention workspace"].nbytes == widths[0]


def test_tensorrt_llm_s_kernels_make_pages_of_64():
    found = sized("llama-3.1-8b", "B200")
    assert page_of(found.job) == 64
    assert found.pool.tokens % 64 == 0
    assert page_of(sized("llama-3.1-8b", "B200", page_size=32).job) == 32
    assert "--attention-backend" not in found.start_command
    assert "--attention-backend triton" in sized("llama-3.1-8b", "B200", attention_backend="triton").start_command


@pytest.mark.parametrize(
    ("model", "gpu", "tp", "backend", "words"),
    [("llama-3.1-8b", "H200", 1, "trtllm_mla", "can only be used with MLA models"), ("llama-3.1-8b", "B200", 1, "fa3", "requires SM>=80 and SM<=90"),
     ("llama-3.1-8b", "RTX 4090", 1, "trtllm_mha", "only supported on Blackwell"), ("deepseek-v3", "B200", 8, "trtllm_mha", "latent attention")],
)  # fmt: skip
def test_a_backend_that_cannot_be_is_refused(model, gpu, tp, backend, words):
    with pytest.raises(Unsupported, match=words):
        sized(model, gpu, "0.5.12", tp, attention_backend=backend)


@pytest.mark.parametrize(("model", "gpu", "settings", "printed"), [("qwen3-8b", "B200", {}, 2.32), ("qwen3-30b-a3b", "RTX PRO 6000 Blackwell Workstation Edition", {"max_total_tokens": 4096, "mem_fraction_static": 0.9}, 0.88)])
def test_prefill_graphs_and_the_pass_they_keep_are_what_logs_print(model, gpu, settings, printed):
    """Capture keeps the largest chunk's activations, and some MiB outside torch for each graph."""
    found = sized(model, gpu, "0.5.12", **settings)
    lines = [beside(found)["prefill graphs"], *(line for line in found.ledger.lines if line.name == "peak activation")]
    assert sum(line.low_bytes for line in lines) <= printed * 2**30 <= sum(line.high_bytes for line in lines)
    assert "prefill graphs" not in beside(sized(model, gpu, "0.5.9", **settings))
