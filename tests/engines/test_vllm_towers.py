"""vLLM's profiling run of images against what start-up logs print: budget and items exactly, passes and pools within a few percent."""

from __future__ import annotations

import json
import shlex

import pytest
from test_contract import value_of

from calculator.catalog import load_model
from calculator.engines.vllm.images import images_of, most_tokens
from calculator.engines.vllm.towers import VISION
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.readers.towers import tower_of
from calculator.units import GIB


def run(model, **options):
    return estimate(model, engine="vllm", **options)



@pytest.mark.parametrize(
    ("model", "version", "context", "settings", "budget", "items", "modality"),
    [
        ("qwen3-vl-30b-a3b-instruct", "0.11.0", 65536, {"max_num_batched_tokens": 2048}, 153_600, 1, "video"),  # text index 42514581982
        ("qwen3-vl-8b-instruct", "0.11.2", 32768, {}, 153_600, 1, "video"),  # vllm#29743
        ("qwen3-vl-30b-a3b-instruct", "0.13.0", 8192, {"max_num_batched_tokens": 8192}, 16_384, 1, "image"),  # 67592774702
        ("qwen3-vl-8b-instruct", "0.19.0", 4096, {"max_num_batched_tokens": 8192, "max_num_seqs": 5, "limit_mm_per_prompt": "image=1", "max_pixels": 1_003_520}, 8192, 5, "image"),  # 56336202239
        ("qwen3-vl-8b-instruct", "0.19.0", 4096, {"max_num_batched_tokens": 2048, "limit_mm_per_prompt": "image=0"}, 12_288, 1, "video"),  # 63123021464, without images
        ("qwen2.5-vl-7b-instruct", "0.23.0", 128_000, {}, 114_688, 1, "video"),  # 55021192520
        ("qwen2.5-vl-7b-instruct", "0.21.0", 8192, {"max_num_batched_tokens": 8192}, 16_384, 1, "video"),  # 54702752420: its Omni sister
        ("qwen3.5-35b-a3b", "0.18.1", 262_144, {}, 16_384, 1, "image"),  # guardkit/guardkit @703734ee
        ("qwen3.6-27b", "0.20.1", 262_144, {"max_num_batched_tokens": 65_536, "max_num_seqs": 128}, 65_536, 4, "image"),  # jethac/dgx-spark-hijinks @2916605
        ("gemma-3-12b-it", "0.11.2", 32_768, {"max_num_batched_tokens": 2048, "max_num_seqs": 64}, 2048, 7, "image"),  # kyuz0/amd-r9700-vllm-toolboxes @18a88f1
        ("gemma-3-27b-it", "0.13.0", 28_900, {"max_num_batched_tokens": 2048, "max_num_seqs": 32}, 2048, 7, "image"),
        ("gemma-3-27b-it", "0.11.0", 4096, {"max_num_batched_tokens": 8192}, 8192, 31, "image"),  # 9297248278
    ],
)  # fmt: skip
def test_budget_and_items_are_those_that_logs_print(model, version, context, settings, budget, items, modality):
    found = run(model, engine_version=version, quant="bf16", context=context, settings=settings, partial=True)
    images = images_of(found.job, context)
    assert (images.budget, images.items, images.modality) == (budget, items, modality)
    line = next(line for line in found.ledger.lines if line.name == "peak activation")
    assert f"{budget:,} tokens, profiled with {items} {modality} items" in line.note


def peak_of(found):
    return next(line for line in found.ledger.lines if line.component == "activations")


def test_a_video_of_114_688_tokens_takes_15_gib_and_leaves_no_pool():
    """Qwen2.5-VL 7B on 0.22 of an A100: -14.28 GiB are left, so the pass is about 15.3 (text index 55021192520)."""
    found = run("qwen2.5-vl-7b-instruct", quant="bf16", engine_version="0.23.0", gpu="A100 SXM4 80GB", context=128_000, settings={"gpu_memory_utilization": 0.22})
    assert peak_of(found).note.startswith(f"profiling run, peak at {VISION}mlp")
    assert found.pool.nbytes / GIB == pytest.approx(-14.28, abs=0.3)
    assert found.pool.low < -14.28 * GIB < found.pool.high
    assert fit(found, found.job.gpu).verdict == "does_not_fit"


def test_an_image_of_16_384_tokens_takes_1_9_gib():
    """Qwen3.5's tower, one sequence, 0.23: 1.9 GiB for peak activation (fakoli/anvil-serving @5f4c763)."""
    settings = {"max_num_seqs": 1, "max_num_batched_tokens": 8192, "total_memory_bytes": int(95.59 * GIB)}
    found = run("qwen3.6-35b-a3b", quant="fp8-block", engine_version="0.23.1", context=262_144, settings=settings, partial=True)
    assert peak_of(found).nbytes / GIB == pytest.approx(1.9, rel=0.01)


@pytest.mark.parametrize(
    ("model", "version", "gpu", "gpus", "context", "settings", "printed", "off"),
    [
        ("qwen3-vl-30b-a3b-instruct", "0.13.0", "H100 NVL 94GB", 1, 8192, {"max_num_batched_tokens": 8192}, 19.40, 0.01),  # 67592774702
        ("qwen3-vl-8b-instruct", "0.19.0", "RTX A6000", 1, 4096, {"max_num_batched_tokens": 8192, "max_num_seqs": 5, "enforce_eager": True, "gpu_memory_utilization": 0.85, "limit_mm_per_prompt": "image=1", "max_pixels": 1_003_520}, 22.46, 0.01),  # 56336202239; the card by its total
        ("qwen3-vl-30b-a3b-instruct", "0.11.0", "RTX 3090", 4, 65_536, {"tensor_parallel_size": 4}, 2.31, 0.10),  # 42514581982
    ],
)  # fmt: skip
def test_pools_are_those_that_logs_print(model, version, gpu, gpus, context, settings, printed, off):
    found = run(model, quant="bf16", engine_version=version, gpu=gpu, gpus=gpus, context=context, settings=settings)
    assert found.pool.low <= printed * GIB <= found.pool.high
    assert found.pool.nbytes / GIB == pytest.approx(printed, rel=off)


def test_outputs_stay_while_the_text_model_runs():
    """With many sequences the sampler is the peak, and the embeddings of the batch come on top of it."""
    with_images, without = (run("qwen3-vl-8b-instruct", quant="bf16", engine_version="0.19.0", context=8192, settings={"max_num_seqs": 1024, "skip_mm_profiling": skip}) for skip in (False, True))
    assert peak_of(with_images).nbytes - peak_of(without).nbytes == 2 * 16_384 * 4096 * 4
    assert "skip_mm_profiling" in peak_of(without).note


def test_each_output_takes_the_whole_budget_in_0_11_and_0_12_alone():
    kept = {v: images_of(run("gemma-3-27b-it", quant="bf16", engine_version=v, context=4096, settings={"max_num_batched_tokens": 8192}).job, 4096).kept for v in ("0.11.0", "0.12.0", "0.13.0")}
    assert kept == {"0.11.0": 31 * 8192, "0.12.0": 31 * 8192, "0.13.0": 31 * 256}


@pytest.mark.parametrize("model", ["qwen2-vl-7b-instruct", "qwen2.5-vl-7b-instruct", "qwen3-vl-8b-instruct", "gemma-3-27b-it"])
def test_a_pass_is_smaller_on_more_ranks_and_with_smaller_images(model):
    one, two = (peak_of(run(model, quant="bf16", context=8192, settings={"max_num_seqs": 1, "tensor_parallel_size": n})).nbytes for n in (1, 2))
    assert two < one
    if model.startswith("qwen"):
        small = run(model, quant="bf16", context=8192, settings={"max_num_seqs": 1, "max_pixels": 1_000_000})
        assert peak_of(small).nbytes < one


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("qwen3-8b", {"settings": {"limit_mm_per_prompt": "image=1"}}, "without a vision tower"),
        ("qwen3-8b", {"settings": {"skip_mm_profiling": True}}, "without a vision tower"),
        ("qwen3-vl-8b-instruct", {"settings": {"language_model_only": True, "max_pixels": 1000}}, "without a vision tower"),
        ("qwen3-vl-8b-instruct", {"settings": {"limit_mm_per_prompt": "audio=1"}}, "items by kind"),
        ("qwen3-vl-8b-instruct", {"settings": {"limit_mm_per_prompt": "image=0,video=0"}}, "language_model_only"),
        ("gemma-3-27b-it", {"settings": {"limit_mm_per_prompt": "video=1"}}, "takes none"),
        ("gemma-3-27b-it", {"settings": {"max_pixels": 1000}}, "896 pixels a side"),
        ("qwen2.5-vl-7b-instruct", {"engine_version": "0.10.2", "settings": {"max_pixels": 1000}, "partial": True}, "changes nothing"),
        ("qwen2.5-vl-7b-instruct", {"engine_version": "0.10.2"}, "profiling run of images"),
        ("qwen2.5-vl-7b-instruct", {"engine_version": "0.9.2", "settings": {"use_v1": False}}, "profiling run of images"),
        ("qwen2.5-vl-7b-instruct", {"quant": "fp16", "gpu": "Tesla T4"}, "profiling run of images"),
        ("mistral-small-3.1-24b-instruct-2503", {}, "profiling run of images"),
    ],
)
def test_what_changes_nothing_or_has_no_formula_is_refused(model, options, why):
    with pytest.raises(CalculatorError, match=why):
        run(model, context=4096, **{"quant": "bf16", **options})


def test_ranks_that_the_tower_is_not_split_over_are_refused_in_the_engines_words():
    with pytest.raises(CalculatorError, match="3420 is not divisible by 8"):
        run("qwen2.5-vl-3b-instruct", quant="bf16", context=4096, settings={"tensor_parallel_size": 8})


def test_the_start_command_carries_what_images_are_limited_to():
    found = run("qwen3-vl-8b-instruct", quant="bf16", gpu="H100 SXM5 80GB", context=4096, settings={"limit_mm_per_prompt": '{"image": 2, "video": 0}', "max_pixels": 1_000_000, "skip_mm_profiling": True})
    words = shlex.split(found.engine.start_command(found.job))
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1]) == {"image": 2, "video": 0}
    assert json.loads(words[words.index("--mm-processor-kwargs") + 1]) == {"max_pixels": 1_000_000}
    assert "--skip-mm-profiling" in words


def test_the_largest_image_has_sides_that_the_processor_takes():
    assert most_tokens(16_384) == 16_384
    assert most_tokens(1283) == 1281  # a prime is a strip, and so is twice one
    assert most_tokens(0) == 1


@pytest.mark.parametrize("vision", [{}, {"hidden_size": "wide"}, {"depth": 2, "hidden_size": 8, "num_heads": 0}, []])
def test_a_tower_that_lacks_dimensions_has_no_pass(vision):
    assert tower_of({"model_type": "qwen3_vl", "vision_config": vision}) is None


def test_every_tower_of_the_catalog_with_a_pass_is_read():
    kinds = {name: load_model(name).spec.tower.kind for name in ("qwen2-vl-2b-instruct", "qwen2.5-vl-72b-instruct", "qwen3-vl-235b-a22b-instruct", "qwen3.5-9b", "gemma-3-4b-it")}
    assert set(kinds.values()) == {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "siglip"}


@pytest.mark.parametrize(("model", "version"), [("gemma-3-27b-it", "0.4.6"), ("mistral-small-3.1-24b-instruct-2503", "0.5.12"), ("qwen2-vl-7b-instruct", "0.5.6")])
def test_sglang_encodes_no_image_at_start_up_so_towers_are_sized_whole(model, version):
    assert not estimate(model, engine="sglang", engine_version=version, gpu="H100 SXM5 80GB", quant="bf16", context=4096).partial


@pytest.mark.parametrize("version", ["0.11.0", "0.12.0", "0.14.0", "0.16.0", "0.19.0", "0.33.0"])
@pytest.mark.parametrize("model", ["qwen2-vl-7b-instruct", "qwen2.5-vl-7b-instruct", "qwen3-vl-8b-instruct", "qwen3-vl-30b-a3b-instruct", "gemma-3-4b-it"])
def test_formulas_of_a_pass_evaluate_and_totals_grow_with_the_context(model, version):
    totals = []
    for context in (1024, 16_384, 32_768):
        for ranks, sequences in ((1, 1), (2, 64)):
            found = run(model, quant="bf16", engine_version=version, context=context, settings={"tensor_parallel_size": ranks, "max_num_seqs": sequences})
            for line in found.ledger.lines:
                assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, (line.name, str(line.formula))
                assert line.low_bytes <= line.nbytes <= line.high_bytes
        totals.append(found.total_bytes)
    assert totals == sorted(totals)


@pytest.mark.parametrize("version", ["0.4.6", "0.4.9", "0.5.6"])
def test_the_share_that_sglang_is_told_is_reduced_once(version):
    options = {"engine": "sglang", "engine_version": version, "gpu": "H100 SXM5 80GB", "quant": "bf16", "context": 4096}
    found = estimate("gemma-3-27b-it", **options)
    words = shlex.split(found.engine.start_command(found.job))
    told = float(words[words.index("--mem-fraction-static") + 1])
    again = estimate("gemma-3-27b-it", **options, settings={"mem_fraction_static": told})
    assert again.pool == found.pool
    given = estimate("gemma-3-27b-it", **options, settings={"mem_fraction_static": 0.9})
    assert given.pool.usable.value / found.pool.usable.value == pytest.approx(0.9 / told, rel=1e-6)
