from __future__ import annotations

import re

import pytest

from calculator.catalog import load_gpu, load_gpus, load_model
from calculator.errors import BadValue, CalculatorError, NotModelled
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.recommend import recommend, runs_on
from calculator.solve import ladder, solve
from calculator.speed import decode_tokens_per_s_bound

LLAMA_8B = load_model("llama-3.1-8b")


@pytest.fixture(scope="module")
def found():
    return recommend(LLAMA_8B, {"context": "128k"})


def test_every_gpu_is_either_a_candidate_or_rejected_with_a_reason(found):
    names = [c.gpu.name for c in found.candidates] + [r.gpu for r in found.rejected]
    assert sorted(names) == sorted(g.name for g in load_gpus())
    assert all("short" in r.reason for r in found.rejected)


def test_candidates_hold_what_they_promise(found):
    for c in found.candidates[::7]:
        held = fit(c.estimate, c.gpu)
        assert held.verdict == c.fit.verdict != "does_not_fit"
        assert c.max_context >= c.estimate.job.workload.context or c.max_context == 131_072
        assert c.max_sequences >= c.estimate.job.workload.sequences


def test_those_that_fit_unchanged_come_first_and_the_smallest_leads(found):
    changes = [len(c.changes) for c in found.candidates]
    assert changes == sorted(changes)
    unchanged = [c.gpu.memory_sold_bytes.value for c in found.candidates if not c.changes and c.fit.verdict == "fits"]
    assert unchanged == sorted(unchanged)


def test_a_near_miss_is_rescued_by_one_named_change(found):
    rtx = next(c for c in found.candidates if c.gpu.name == "RTX 4090")
    assert len(rtx.changes) == 1
    assert rtx.fit.verdict == "fits"
    assert fit(estimate(LLAMA_8B, context="128k"), load_gpu("rtx 4090")).verdict == "does_not_fit"


def test_the_bound_is_bandwidth_over_bytes_read():
    gpu = load_gpu("rtx 4090")
    e = estimate("llama-3.2-1b", quant="Q8_0", context=1024, gpu=gpu)
    read = e.ledger.component_bytes("weights") + e.ledger.component_bytes("kv_cache")
    assert decode_tokens_per_s_bound(e, gpu) == pytest.approx(1008e9 / read, rel=0.01)


def test_objectives_order_the_list():
    gpus = [load_gpu(n) for n in ("rtx 4090", "h100", "l4")]
    fast = recommend(LLAMA_8B, {"quant": "Q4_K_M"}, objective="speed", gpus=gpus).candidates
    assert fast[0].gpu.name == "H100 SXM5 80GB"
    small = recommend(LLAMA_8B, {"quant": "Q4_K_M"}, gpus=gpus).candidates
    assert small[0].gpu.name == "RTX 4090"  # as large as an L4, and faster


def test_what_a_small_card_can_run():
    found = runs_on(load_gpu("rtx 4060"), {})
    by_model = {c.estimate.job.model.id: c for c in found.candidates}
    assert by_model["llama-3.2-1b"].estimate.job.deployment.quant == "BF16"
    assert all(c.fit.verdict == "fits" for c in found.candidates)
    assert any(r.model == "llama-3.3-70b" for r in found.rejected)


@pytest.mark.parametrize("objective", ["smallest", "speed"])
def test_what_needs_few_bits_comes_after_all_others(objective):
    found = runs_on(load_gpu("rtx 4060"), {}, objective=objective).candidates
    narrow = [8 * c.estimate.tensor_bytes < 4 * c.estimate.parameters for c in found]
    assert narrow == sorted(narrow)
    assert 0 < sum(narrow) < len(narrow)
    worth = [c.tokens_per_s if objective == "speed" else c.estimate.parameters for c in found[: -sum(narrow)]]
    assert worth == sorted(worth, reverse=True)


@pytest.mark.parametrize("objective", ["price", "beauty"])
def test_an_objective_without_data_is_refused(objective):
    with pytest.raises(BadValue):
        recommend(LLAMA_8B, {}, objective=objective)


def test_a_change_that_the_engine_refuses_is_passed_over():
    """A float32 cache goes with float32 weights only, so every smaller quantization is refused with it."""
    found = recommend(load_model("llama-3.3-70b"), {"quant": "fp32", "kv_dtype": "f32"}, gpus=[load_gpu("rtx 4090")])
    assert [r.gpu for r in found.rejected] == ["RTX 4090"]


def test_another_engine_comes_before_a_shorter_context():
    """128K of the 1B in transformers needs 15 GiB; llama.cpp holds the same weights and cache in 8 GB."""
    (c,) = recommend(load_model("llama-3.2-1b"), {"context": "128k"}, gpus=[load_gpu("rtx 4060")]).candidates
    assert c.changes == ("llama.cpp, BF16",)
    assert c.estimate.job.workload.context == 131_072
    (kept,) = recommend(load_model("llama-3.2-1b"), {"context": "128k", "engine": "transformers"}, gpus=[load_gpu("rtx 4060")]).candidates
    assert kept.estimate.engine.name == "transformers"


@pytest.mark.parametrize("options", [{"engine": "foo"}, {"engine": "mlx"}, {"quant": "Q8_0"}, {"settings": {"foo": "1"}}])
def test_what_a_gpu_can_run_doesnt_swallow_bad_options(options):
    with pytest.raises(CalculatorError):
        runs_on(load_gpu("rtx 4060"), options)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_card_that_a_server_refuses_loses_and_stops_nothing(engine):
    gpus = [load_gpu(n) for n in ("Tesla P40", "M3 Max (40-core) 48GB", "H100")]
    found = recommend(LLAMA_8B, {"engine": engine}, gpus=gpus)
    assert [c.gpu.name for c in found.candidates] == ["H100 SXM5 80GB"]
    assert {r.gpu for r in found.rejected} == {gpu.name for gpu in gpus[:2]}


@pytest.mark.parametrize(("model", "options", "gpu", "least"), [
    ("gpt-oss-120b", {"quant": "MXFP4_MOE"}, "DGX Spark", 59.5),  # spark-arena/recipe-registry#17
    ("llama-3.3-70b", {"engine": "vllm", "gpus": 4, "settings": {"tensor_parallel_size": 4}}, "h100", 60),
    ("qwen3-30b-a3b", {"quant": "Q4_K_M"}, "rtx 4090", 150),
])  # fmt: skip
def test_the_bound_of_speed_is_above_what_was_measured(model, options, gpu, least):
    """Of experts only those that a token uses are read, and tensor-parallel ranks read at once."""
    card = load_gpu(gpu)
    assert decode_tokens_per_s_bound(estimate(model, context=2048, gpu=card, **options), card) > least


def test_a_limit_is_refused_before_the_search(run, monkeypatch):
    def search(*_, **__):
        raise AssertionError("searched")

    monkeypatch.setattr("calculator.recommend.recommend", search)
    status, out, err = run("recommend", "llama-3.2-1b", "--limit", "abc")
    assert (status, out) == (2, "")
    assert err.startswith("error: --limit 'abc'")


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_a_model_published_in_mxfp4_is_sized_as_the_same_blocks_in_llama_cpp(name):
    found = recommend(load_model(name), {}, gpus=[load_gpu("h100"), load_gpu("rtx 2060")])
    c, *several = found.candidates
    assert (c.estimate.engine.name, c.estimate.job.deployment.quant) == ("llama.cpp", "MXFP4_MOE")
    assert c.changes == ("llama.cpp, MXFP4_MOE",)
    assert all(other.count > 1 for other in several)
    assert [r.gpu for r in found.rejected] == ["RTX 2060"] * (not several)
    solved = solve(load_model(name), load_gpu("h100"), "context", {})
    assert solved.estimate.job.deployment.quant == "MXFP4_MOE"


@pytest.mark.parametrize(("name", "words"), [("gpt-oss-20b", "--quant MXFP4_MOE"), ("deepseek-v3", "--engine vllm")])
def test_a_published_format_without_a_formula_names_where_it_has_one(name, words):
    with pytest.raises(NotModelled, match=words):
        recommend(load_model(name), {"engine": "transformers"})
    with pytest.raises(NotModelled, match=words):
        solve(load_model(name), load_gpu("b200"), "context", {"engine": "transformers"})


def test_formats_that_nobody_publishes_are_not_chosen():
    oss, deepseek, llama = (load_model(name) for name in ("gpt-oss-20b", "deepseek-v3", "llama-3.1-8b"))
    assert [ladder(oss, engine) for engine in ("llama.cpp", "vllm", "sglang")] == [("MXFP4_MOE",), ("mxfp4",), ("mxfp4",)]
    assert ladder(deepseek, "vllm") == ladder(deepseek, "sglang") == ("fp8-block", "gptq-int4-g128")
    assert ladder(deepseek, "llama.cpp") == ladder(llama, "llama.cpp")
    assert "bf16" in ladder(llama, "vllm")
    assert solve(oss, load_gpu("rtx 4090"), "quant", {"engine": "vllm"}).value == "mxfp4"


def test_a_card_without_a_checkpoint_is_not_recommended():
    found = runs_on(load_gpu("rtx 4060"), {})
    assert {r.model: r.reason for r in found.rejected}["llama-3.2-1b-card"] == "no checkpoint of it is published"
    assert "llama-3.2-1b-card" not in {c.estimate.job.model.id for c in found.candidates}


def test_a_shortfall_is_never_negative_and_tight_is_called_tight():
    reasons = {r.model: r.reason for r in runs_on(load_gpu("rtx 4060"), {}).rejected}
    assert not [reason for reason in reasons.values() if re.search(r"-\d[\d.,]* [KMG]?i?B short", reason)]
    assert "Q2_K, is tight: needs" in reasons["codegemma-7b-it"]
    tight = load_model("codegemma-7b-it")
    assert fit(estimate(tight, quant="Q2_K", gpu="rtx 4060"), load_gpu("rtx 4060")).verdict == "tight"


def test_experts_go_to_the_host_before_bits_do():
    model, gpu = load_model("qwen3-30b-a3b"), load_gpu("rtx 4060")
    (c,) = recommend(model, {"quant": "Q4_K_M"}, gpus=[gpu]).candidates
    assert c.changes[0].startswith("fit=1: experts on the host, ")
    assert c.estimate.job.deployment.quant == "Q4_K_M"
    assert c.estimate.ledger.host_bytes > 10 * 2**30
    assert (c.max_context, c.max_sequences) == (None, None)  # the engine makes room as far as the host goes
    (asked,) = recommend(model, {"quant": "Q4_K_M", "settings": {"fit": "1"}}, gpus=[gpu]).candidates
    assert asked.changes == ()


def test_a_loser_names_the_changes_that_were_tried():
    (dense,) = recommend(load_model("llama-3.3-70b"), {"quant": "Q4_K_M"}, gpus=[load_gpu("rtx 2060")]).rejected
    assert dense.reason.endswith("not enough alone: kv-dtype q8_0, q4_0; quant IQ4_XS, Q3_K_M, Q2_K; up to 8 cards; context 1k")
    with_host = recommend(load_model("gpt-oss-20b"), {"settings": {"n_gpu_layers": "25"}}, gpus=[load_gpu("rtx 2060")])
    assert not any("fit=1" in change for c in with_host.candidates for change in c.changes)
    assert not any("fit=1" in r.reason for r in with_host.rejected)


def test_servers_are_given_as_many_cards_as_a_machine_has():
    """Llama 3.1 405B in bf16 is 756 GiB: eight cards of 141 GB hold it, each layer split over them; eight of 80 GB don't."""
    options = {"engine": "vllm", "context": 8192, "quant": "bf16"}
    found = recommend(load_model("llama-3.1-405b"), options, gpus=[load_gpu("h200"), load_gpu("h100"), load_gpu("rtx 4090")])
    (best,) = [c for c in found.candidates if c.estimate.job.deployment.quant == "bf16"]
    assert (best.gpu.name, best.count, best.changes) == ("H200 SXM 141GB", 8, ("8 x H200 SXM 141GB, tensor parallel 8",))
    assert next(r for r in found.rejected if r.gpu == "RTX 4090").reason.endswith("up to 8 cards; context 1k")


def test_fewer_sequences_rescue_a_card_whose_pool_has_too_few_states():
    """vLLM wants a state of the recurrent layers for each of max_num_seqs; 256 are its default here."""
    (found,) = recommend(load_model("qwen3.6-35b-a3b"), {"engine": "vllm", "quant": "nvfp4", "context": "32k"}, gpus=[load_gpu("rtx 5090")]).candidates
    assert found.changes == ("max_num_seqs 64",)
    assert found.fit.verdict == "fits"
    assert "--max-num-seqs 64" in (found.estimate.start_command or "")


def test_an_encoder_runs_as_many_at_once_as_a_batch_holds():
    (found,) = recommend(load_model("bge-m3"), {"engine": "vllm"}, gpus=[load_gpu("rtx 5090")]).candidates
    assert found.max_sequences == 256


def test_what_only_queues_has_the_concurrency_of_its_pool():
    found = recommend(load_model("qwen3.6-27b"), {"engine": "vllm", "settings": {"max_num_seqs": "256"}}, gpus=[load_gpu("h100")]).candidates
    tight = [c for c in found if c.fit.verdict == "tight"]
    assert all(c.max_sequences == int(c.estimate.pool.max_concurrency) for c in tight)
    assert found
    assert all((c.max_sequences or 0) < 1024 for c in found)
