"""Newer families, towers and releases of vLLM against what their start-up logs print.

Some logs changed a formula when they were compared (the record's `found` says so), so they show that the mechanism holds, not that it was foreseen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from calculator.catalog import load_model
from calculator.engines.vllm.families import FAMILIES, check_family
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.units import GIB


def run(model, **options):
    return estimate(model, engine="vllm", **options)


def first_rank_gib(model, **options):
    found = run(model, partial=True, context=4096, **options)
    first = found.job.deployment.gpus - int(found.job.deployment.settings["tensor_parallel_size"])
    return sum(line.nbytes for line in found.ledger.on(first).lines if line.component == "weights") / GIB


@pytest.mark.parametrize(
    ("model", "options", "printed", "off"),
    [
        ("gpt-oss-120b", {"quant": "mxfp4", "engine_version": "0.10.1", "gpu": "H100 SXM5 80GB"}, 65.9651, 0.0003),  # vllm#23278: Marlin
        ("gpt-oss-20b", {"quant": "mxfp4", "engine_version": "0.19.0", "gpu": "A100 SXM4 80GB"}, 13.72, 0.001),  # Marlin
        ("gpt-oss-120b", {"quant": "mxfp4", "engine_version": "0.14.1", "gpu": "H100 SXM5 80GB"}, 64.38, 0.0003),  # vllm#33155: Triton
        ("gemma-3-27b-it", {"engine_version": "0.8.3", "gpu": "RTX 4090", "settings": {"tensor_parallel_size": 4, "use_v1": 0}}, 13.1664, 0.0001),  # vllm#16380
        ("gemma-3-27b-it", {"engine_version": "0.19.0", "gpu": "A100 SXM4 80GB"}, 51.45, 0.0005),  # id 56408971406
        ("qwen2.5-vl-72b-instruct", {"engine_version": "0.8.3", "gpu": "A100 SXM4 80GB", "settings": {"tensor_parallel_size": 4}}, 34.434, 0.0005),  # vllm#16570
        ("qwen2.5-vl-7b-instruct", {"engine_version": "0.10.1", "gpu": "RTX 5090"}, 15.6269, 0.001),  # vllm#23231
        ("qwen3-vl-8b-instruct", {"engine_version": "0.19.0", "gpu": "A100 SXM4 40GB", "settings": {"max_num_batched_tokens": 8192}}, 16.78, 0.001),
        ("exaone-4.0-32b", {"quant": "fp8-block", "engine_version": "0.11.0", "gpu": "L40S"}, 30.9891, 0.0001),  # id 67319049985
        ("minimax-m2.5", {"quant": "fp8-block", "engine_version": "0.18.0", "gpu": "H100 SXM5 80GB", "gpus": 16, "settings": {"tensor_parallel_size": 4}}, 13.2, 0.004),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_weights_of_newer_families_equal_what_their_logs_print(model, options, printed, off):
    assert first_rank_gib(model, **options) == pytest.approx(printed, rel=off)


def test_latent_attention_is_on_every_rank_and_a_quantized_one_has_a_copy():
    """576 elements a token and layer whatever the ranks; kv_b of a quantized checkpoint again in 16 bits, of another a view."""
    for ranks in (1, 8):
        found = run("deepseek-v3", quant="fp8-block", gpu="H200", engine_version="0.11.0", gpus=ranks, settings={"tensor_parallel_size": ranks})
        cache = found.ledger.on(ranks - 1).component_bytes("kv_cache")
        assert cache == 61 * 576 * 2 * found.job.workload.context
        copies = [line for line in found.ledger.lines if line.name == "absorbed key and value matrices"]
        assert sum(line.nbytes for line in copies) == 61 * 512 * 128 * 256 * 2
    assert not [line for line in run("deepseek-v2-lite", quant="bf16").ledger.lines if line.name.startswith("absorbed")]


def test_ranks_whose_experts_are_not_whole_blocks_are_refused_in_the_engines_words():
    with pytest.raises(CalculatorError, match="weight = 96 is not divisible by weight quantization block_n = 128"):
        run("minimax-m2.5", quant="fp8-block", engine_version="0.18.0", settings={"tensor_parallel_size": 16})


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_a_type_is_refused_before_the_release_that_has_it_and_named(model):
    since = FAMILIES[model].since
    if since > (0, 6, 0):
        spec = replace(load_model("qwen3-8b").spec, model_type=model)
        with pytest.raises(CalculatorError, match=f"vllm 0.6.0 has no {model}"):
            check_family(spec, (0, 6, 0), "0.6.0")


def test_a_tower_without_a_pass_makes_a_lower_bound_that_never_fits():
    with pytest.raises(CalculatorError, match="profiling run of images"):
        run("mistral-small-3.1-24b-instruct-2503", quant="bf16")
    found = run("mistral-small-3.1-24b-instruct-2503", quant="bf16", context=4096, partial=True, gpu="H200")
    assert found.partial
    assert not found.decides("fits")
    assert any("at most this" in said for said in found.pool.warnings)


def test_a_given_pool_of_a_model_with_a_tower_is_exact():
    """Qwen3-VL 8B, 0.19: 22.46 GiB are 163,568 tokens, 39.93 sequences of 4,096 (id 56336202239)."""
    found = run("qwen3-vl-8b-instruct", quant="bf16", engine_version="0.19.0", context=4096, settings={"kv_pool_bytes": int(22.462 * GIB)})
    assert found.pool.tokens == pytest.approx(163_568, abs=40)
    assert f"{found.pool.max_concurrency:.2f}" == "39.93"


@pytest.mark.parametrize(
    ("version", "tokens", "context"),
    [("0.20.0", 16, 16384), ("0.22.0", 1, 4096)],
)
def test_tokens_are_printed_by_blocks_until_0_20_and_by_the_length_since(version, tokens, context):
    """0.22.0: 26.32 GiB of Qwen2.5 7B, 492,912 tokens and 120.34x of 4,096 (text index 67144197265)."""
    found = run("qwen2.5-7b", quant="bf16", engine_version=version, context=context, settings={"kv_pool_bytes": int(26.32 * GIB)})
    assert found.pool.tokens % tokens == 0
    assert found.pool.tokens == pytest.approx(492_912, abs=100)


def test_graphs_are_within_the_share_since_0_20_and_beside_it_before():
    old, new = (run("qwen3-8b", quant="bf16", engine_version=v, gpu="L40S", settings={"gpu_memory_utilization": 0.9}) for v in ("0.19.0", "0.20.0"))
    names = [{line.name for line in e.ledger.lines if line.name.startswith("CUDA graphs")} for e in (old, new)]
    assert names == [{"CUDA graphs"}, {"CUDA graphs, profiled"}]
    assert new.pool.nbytes < old.pool.nbytes
    assert "CUDA graphs" in old.engine.beside


def test_llama_4_scout_on_two_h100_nvl_does_not_fit():
    """vllm#16712: out of memory while loading, 90.63 of 93.02 GiB on a rank."""
    settings = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.99, "total_memory_bytes": int(93.02 * GIB)}
    found = run("llama-4-scout-17b-16e-instruct", quant="bf16", engine_version="0.8.4", context=1000, kv_dtype="fp8", gpus=2, settings=settings, partial=True)
    verdict = fit(found, found.job.gpu).verdict
    assert verdict == "does_not_fit"
    assert found.decides(verdict)


@pytest.mark.parametrize(
    ("version", "quant", "printed"),
    [
        ("0.19.0", "bf16", 14.25),  # id 68717046901
        ("0.22.0", "bf16", 14.29),  # id 67144197265
        ("0.19.0", "awq-int4-g128", 5.2),  # id 53268049166
        ("0.21.0", "awq-int4-g128", 5.29),  # id 58114347083
    ],
)
def test_matrices_of_20_mib_and_more_take_whole_blocks_since_0_21(version, quant, printed):
    """Qwen2.5 7B, whose matrices are no multiples of 2 MiB; the Instruct checkpoint's table is shorter than the base model's."""
    base = load_model("qwen2.5-7b")
    instruct = base._replace(spec=replace(base.spec, max_position_embeddings=32768))
    assert first_rank_gib(instruct, quant=quant, engine_version=version) == pytest.approx(printed, abs=0.006)


@pytest.mark.parametrize(
    ("model", "options", "printed"),
    [
        ("opt-125m", {"engine_version": "0.8.1", "gpu": "H200"}, 0.2389),  # learned positions, no rotary table
        ("gemma-3-1b-it", {"engine_version": "0.13.0"}, 1.9148),
        ("qwen2-vl-7b-instruct", {"quant": "awq-int4-g128", "engine_version": "0.6.5"}, 6.4651),  # its table is four times as long since 0.7
        ("qwen3-coder-30b-a3b-instruct", {"quant": "fp8-block", "engine_version": "0.19.0", "gpu": "A100 SXM4 80GB"}, 29.54),  # Marlin's scales
        ("qwen3-coder-30b-a3b-instruct", {"quant": "gptq-int4-g128", "engine_version": "0.12.0"}, 15.6116),
        ("qwen3-vl-30b-a3b-instruct", {"quant": "bf16", "engine_version": "0.13.0", "gpu": "H100 NVL 94GB"}, 58.2299),
    ],
)  # fmt: skip
def test_weights_of_logs_held_out_until_then(model, options, printed):
    found = run(model, partial=True, context=2048, **options)
    assert found.ledger.component_bytes("weights") / GIB == pytest.approx(printed, rel=0.001)


@pytest.mark.parametrize(("gib", "tokens", "concurrency"), [(40.61, 177_440, "35.75"), (44.03, 192_368, "38.76")])
def test_layers_of_other_heads_share_blocks_of_the_same_bytes(gib, tokens, concurrency):
    """Gemma 4 26B, 0.20: full layers have half the row, so 32 tokens in a block where windowed ones have 16."""
    found = run("gemma-4-26b-a4b-it", partial=True, engine_version="0.20.0", context=8192, settings={"kv_pool_bytes": int(gib * GIB), "max_num_batched_tokens": 4096})
    assert found.pool.tokens == pytest.approx(tokens, abs=20)  # the pool is printed to 0.01 GiB
    assert f"{found.pool.max_concurrency:.2f}" == concurrency
    assert sum(line.nbytes for line in found.ledger.lines if line.component == "weights") / GIB == pytest.approx(48.5, rel=0.001)
