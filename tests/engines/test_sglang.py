"""SGLang: the server's own choices, and what it refuses."""

from __future__ import annotations

import pytest

from calculator.catalog import load_gpu, load_model
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.recommend import recommend
from calculator.solve import solve


def run(model="llama-3.1-8b", **options):
    return estimate(model, engine="sglang", quant="bf16", **options)


@pytest.mark.parametrize(
    ("version", "gpu", "gpus", "fraction", "chunk"),
    [
        ("0.4.1", "H100 SXM5 80GB", 1, 0.88, 8192),  # printed by docs.sglang.ai's notebook of 2025-01-23
        ("0.4.2", "RTX 3090", 1, 0.88, 2048),  # printed by jerryzsj/my-deepseek-r1
        ("0.4.3", "L4", 4, 0.85, 2048),  # printed, QwQ 32B on 4 x L4
        ("0.5.5", "L40S", 1, 0.851, 4096),  # printed by sgl-project/sglang#13023
        ("0.4.9", "H100 SXM5 80GB", 2, 0.868, 8192),
    ],
)
def test_the_static_fraction_and_the_chunk_are_the_servers_choice(version, gpu, gpus, fraction, chunk):
    settings = run(engine_version=version, gpu=gpu, settings={"tensor_parallel_size": gpus}).engine.resolved_settings
    found = run(engine_version=version, gpu=gpu, settings={"tensor_parallel_size": gpus})
    assert settings(found.job)["mem_fraction_static"] == fraction
    assert settings(found.job)["chunked_prefill_size"] == chunk


def test_the_request_table_is_a_gib_for_a_context_of_128k():
    """63.72 GiB free after loading, 54.26 of cache, 8.34 free after the pool: 1.12 (docs.sglang.ai, 0.4.1)."""
    found = run(engine_version="0.4.1", gpu="H100 SXM5 80GB")
    (table,) = [line for line in found.ledger.lines if line.name == "request table"]
    assert table.nbytes == 4 * 2049 * 131076


def test_tokens_are_whole_pages_of_what_the_fraction_leaves():
    one, paged = (run(gpu="H100 SXM5 80GB", settings={"page_size": p}).pool for p in (1, 64))
    assert one.tokens == one.nbytes // 131072
    assert paged.tokens == one.tokens // 64 * 64
    limited = run(gpu="H100 SXM5 80GB", settings={"max_total_tokens": 1000}).pool
    assert limited.tokens == 1000


def test_a_prompt_beyond_the_pool_does_not_fit_and_says_how_long_one_may_be():
    found = run(gpu="rtx 4090", context="128k")
    assert "exceeds the maximum allowed length" in found.warnings[0]
    assert fit(found, found.job.gpu).verdict == "does_not_fit"
    said = [estimate("llama-3.3-70b", engine="sglang", engine_version=v, quant="bf16", gpu=g).warnings[0] for v, g in (("0.5.13", "rtx 4090"), ("0.5.14", "H200"))]
    assert "Not enough memory" in said[0]
    assert "Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.903. Raise --mem-fraction-static above 0.944" in said[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"tensor_parallel_size": 3}}, "must be divisible by tensor parallel size"),
        ({"context": 131073}, "is greater than the derived context_length"),
        ({"gpu": "MI210"}, "gfx942 and gfx950 alone"),
        ({"gpu": "V100 SXM2 32GB"}, "SGLang only supports sm75 and above."),
        ({"settings": {"speculative_algorithm": "EAGLE"}}, "speculative_algorithm=eagle without a draft for llama-3.1-8b"),
        ({"settings": {"mem_fraction_static": 1.5}}, "above 0, up to 1"),
        ({"settings": {"gpu_memory_utilization": 0.9}}, "sglang has no setting"),
        ({"engine_version": "0.3.6"}, "is not a modelled version"),
        ({"settings": {"page_size": 100}}, "no multiple of page_size"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(CalculatorError) as error:
        run(**options)
    assert words in str(error.value)


def test_solving_and_recommending_go_through_the_static_fraction():
    solved = solve(load_model("llama-3.1-8b"), load_gpu("rtx 4090"), "context", {"engine": "sglang", "engine_version": "0.5.12", "quant": "bf16"})
    assert 20_000 < solved.value < 40_000
    found = recommend(load_model("llama-3.1-8b"), {"engine": "sglang", "engine_version": "0.5.12", "context": "16k"}, gpus=[load_gpu("rtx 4090"), load_gpu("t4")])
    assert found.candidates[0].gpu.name == "RTX 4090"


@pytest.mark.parametrize("version", ["0.4.1", "0.4.9", "0.5.6"])
@pytest.mark.parametrize("total", [1, 10**9])
def test_a_card_too_small_for_anything_is_refused_not_divided_by(version, total):
    found = run(engine_version=version, settings={"total_memory_bytes": total})
    assert found.pool.tokens == 0
    assert fit(found, found.job.gpu).verdict == "does_not_fit"
