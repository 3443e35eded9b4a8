"""Weights and cache of model types whose activations have no formula: to the printed digit of public logs, and never a verdict that they fit."""

from __future__ import annotations

import pytest

from calculator.catalog import load_gpu, load_model
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.report.documents import estimate_document
from calculator.report.text import estimate_text
from calculator.sweep import sweep


def mib(found, name: str) -> float:
    return round(sum(line.nbytes for line in found.ledger.lines if line.name == name) / 2**20, 2)


def test_gpt_oss_20b_as_llama_cpp_prints_it():
    """ggml-org gpt-oss-20b-mxfp4.gguf, build 8243 on ROCm: ROCm0 model buffer 10949.38 MiB, CPU_Mapped 586.82 MiB."""
    found = estimate("gpt-oss-20b", quant="MXFP4_MOE", context=8192, partial=True)
    assert (mib(found, "model buffer"), mib(found, "model buffer, token_embd")) == (10949.38, 586.82)


def test_glm_4_32b_cache_as_llama_cpp_prints_it():
    """ikawrakow/ik_llama.cpp#344: 5,120 cells, q8_0, K and V 81.02 MiB each."""
    found = estimate("glm-4-32b-0414", quant="Q4_0", context=5120, kv_dtype="q8_0", settings={"backend": "cpu"}, partial=True)
    assert mib(found, "KV buffer") == pytest.approx(162.03, abs=0.02)


def test_deepseek_v2_lite_in_llama_cpp():
    """A file of Q4_0 has 108 tensors of F32 and one of Q6_K (ollama/ollama#5113, before kv_b was split in two); the cache has no V."""
    found = estimate("deepseek-v2-lite", quant="Q4_0", context=4096, partial=True)
    count = {name: sum(g.count for g in found.job.stored if g.format == name) for name in ("F32", "Q4_0", "Q6_K")}
    assert count == {"F32": 108, "Q4_0": 268 + 27, "Q6_K": 1}
    assert found.ledger.component_bytes("kv_cache") == 27 * 4096 * (512 + 64) * 2


def test_latent_attention_caches_one_row_a_token():
    """27 layers x (512 + 64) x 2 bytes, not 27 x 16 heads x (192 + 128)."""
    found = estimate("deepseek-v2-lite", quant="bf16", context=4096, partial=True)
    assert found.kv_bytes_per_token == 31_104
    assert found.ledger.component_bytes("kv_cache") == 4096 * 31_104


@pytest.mark.parametrize(("cells", "printed"), [(2048, 540), (4096, 1080), (8192, 2160)])
def test_a_file_with_whole_kv_b_is_warned_of_with_the_bytes_that_ollama_logs(cells, printed):
    """deepseek-coder-v2:16b-lite-instruct-q5_K_M, ollama 0.32.13: MiB of the CUDA0 KV buffer."""
    found = estimate("deepseek-v2-lite", quant="Q5_K_M", context=cells, partial=True)
    (said,) = [w for w in found.warnings if "attn_kv_b" in w]
    nbytes = int(said.split("caches ")[1].split(" ")[0].replace(",", ""))
    assert nbytes * cells == printed * 2**20
    assert nbytes > found.kv_bytes_per_token


def test_no_other_engine_or_family_is_warned_of_kv_b():
    for options in ({"quant": "bf16", "engine": "transformers"}, {"quant": "Q4_0"}):
        model = "deepseek-v2-lite" if "engine" in options else "llama-3.2-1b"
        assert not any("attn_kv_b" in w for w in estimate(model, context=1024, partial=True, **options).warnings)


@pytest.mark.parametrize(("cells", "n_ubatch", "full", "window"), [
    (2048, 256, 48, 48), (4096, 256, 96, 96), (8192, 256, 192, 96), (16384, 256, 384, 96),
    (8192, 128, 192, 48), (8192, 512, 192, 144), (8192, 1024, 192, 192),
])  # fmt: skip
def test_gpt_oss_20b_caches_as_llama_cpp_prints_them(cells, n_ubatch, full, window):
    """-np 8, not unified, September 2026 [MiB]: 12 layers of all cells, 12 of window + micro-batch, padded to 256, at most the slot's."""
    found = estimate("gpt-oss-20b", quant="MXFP4_MOE", context=cells // 8, sequences=8, settings={"n_ubatch": n_ubatch}, partial=True)
    assert (mib(found, "KV buffer"), mib(found, "KV buffer, sliding window")) == (full, window)


@pytest.mark.parametrize(("model", "quant", "gpu", "verdict"), [
    ("gpt-oss-20b", "mxfp4", "h100", None), ("gpt-oss-120b", "mxfp4", "rtx 4090", "does_not_fit"), ("glm-4-9b-0414", "bf16", "h100", None),
])  # fmt: skip
def test_a_lower_bound_never_fits(model, quant, gpu, verdict):
    found = estimate(model, quant=quant, context=4096, gpu=gpu, partial=True)
    document = estimate_document(found)
    assert document["verdict"] == verdict
    assert all(d["fits"] in (None, False) for d in document["devices"])
    assert document["components"]["activations"] == 0
    assert any("lower bound" in w for w in document["warnings"])
    assert all(line["bytes"] or line["note"] for line in document["lines"])
    assert ("not known" if verdict is None else "does not fit") in estimate_text(found, explain=False).splitlines()[0]


def test_only_a_single_estimate_takes_half_an_answer():
    with pytest.raises(CalculatorError, match="activations have no formula"):
        estimate("gpt-oss-20b", quant="mxfp4")
    with pytest.raises(CalculatorError, match="activations have no formula"):
        sweep([load_model("gpt-oss-20b")], ["mxfp4"], [1024], [1])


def test_what_isnt_known_of_the_cache_or_the_file_is_refused():
    for options in ({"quant": "Q4_K_M", "settings": {"type_k": "q8_0", "type_v": "f16"}}, {"quant": "bf16", "settings": {"cache_implementation": "static"}}, {"quant": "bnb-nf4"}, {"quant": "bf16", "engine": "sglang"}):
        with pytest.raises(CalculatorError):
            estimate("deepseek-v2-lite", **options, partial=True)


def test_every_catalog_model_has_a_size_in_some_engine():
    """Each one's weights, whatever is known of the rest."""
    for id in ("llama-4-scout-17b-16e-instruct", "glm-4.5-air", "olmo-3-7b-instruct", "starcoder2-7b", "qwen2-57b-a14b-instruct", "gemma-2b-it", "minimax-m2"):
        found = estimate(id, quant="bf16", context=2048, gpu=load_gpu("h100"), partial=True)
        assert found.ledger.component_bytes("weights") > found.parameters
