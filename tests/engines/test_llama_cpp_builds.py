"""llama.cpp by build number or day: which rules hold, and what is known where the graph isn't."""

from __future__ import annotations

import pytest

from calculator.checks.records import read_records
from calculator.engines.llama_cpp import builds
from calculator.engines.llama_cpp.buffers import AUGUST_2025, FEBRUARY_2025, Context, window_cells
from calculator.engines.llama_cpp.placement import places_of_layers
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import estimate

MIB = 2**20


def of(model, version, *, quant="Q4_K_M", context=4096, partial=True, **options):
    return estimate(model, quant=quant, context=context, engine="llama.cpp", engine_version=version, partial=partial, **options)


def cache(found):
    return sum(line.nbytes for line in found.ledger.lines if line.component == "kv_cache")


@pytest.mark.parametrize("version", ["b4277", "4277", "4277 (c5ede384)", "2024-12-07"])
def test_a_build_is_its_number_or_its_day(version):
    """ROCm log of b4277: 258.50 and 12.01 MiB."""
    found = of("llama-3.1-8b", version, context=2048)
    compute = [f"{line.nbytes / MIB:.2f}" for line in found.ledger.lines if line.name.startswith("compute buffer")]
    assert compute == ["258.50", "12.01"]
    assert any("794fe23f" in said for said in found.warnings)


@pytest.mark.parametrize("version", ["b1999", "b9999", "b12", "2024-02-30", "2023-12-31", "2026-01-01", "c5ede384", "b4277x", ""])
def test_what_is_no_known_build_is_refused_with_what_is(version):
    with pytest.raises(BadValue, match="b2200 to b7445"):
        of("llama-3.1-8b", version)


def test_layers_with_a_window_had_all_cells_before_may_2025():
    """Logs: Gemma 2 2B at 8,192 cells 832 MiB (b3578), Gemma 3 4B at 4,096 544 MiB (b4877) and 80 + 174 MiB (b5787)."""
    assert cache(of("gemma-2-2b-it", "b3578", context=8192)) == 832 * MIB
    assert cache(of("gemma-3-4b-it", "b4877")) == 544 * MIB
    assert cache(of("gemma-3-4b-it", "b5787")) == (80 + 174) * MIB


def test_the_window_cache_held_a_logical_batch_until_the_end_of_may_2025():
    context = Context(32768, 2048, 512, 1, 512, False, True, "F16", "F16", True)
    widths = {version: window_cells(1024, context._replace(release=builds.rules_of(version))) for version in ("b5335", "b5500", "b5636")}
    assert widths == {"b5335": 32768, "b5500": 1024 + 2048, "b5636": 1024 + 512}


def test_latent_attention_cached_every_head_then_row_and_values_then_the_row():
    """Logs: V2 Lite at 4,096 cells 1,080 MiB (b4887), R1 at 32,768 cells 4,148 MiB (b5614)."""
    assert cache(of("deepseek-v2-lite", "b4887")) == 1080 * MIB
    assert cache(of("deepseek-r1", "b5614", context=32768)) == 4148 * MIB
    newest = of("deepseek-r1", None, context=32768)
    assert cache(newest) == 61 * 32768 * 576 * 2
    assert of("deepseek-r1", "b5614", context=32768).kv_bytes_per_token == 61 * (576 + 512) * 2


def test_a_build_near_a_change_is_refused_where_it_matters_alone():
    with pytest.raises(NotModelled, match="12801"):
        of("deepseek-v2-lite", "b5140")
    with pytest.raises(NotModelled, match="13194"):
        of("gemma-3-4b-it", "2025-05-20")
    assert cache(of("llama-3.1-8b", "b5140")) == cache(of("llama-3.1-8b", "b5121"))


def test_a_build_older_than_the_model_is_refused():
    for model, version in (("qwen3-8b", "b4277"), ("gemma-3-4b-it", "b4500"), ("qwen3-8b", "794fe23f"), ("gpt-oss-20b", "b5636")):
        with pytest.raises(Unsupported, match="learned that later"):
            of(model, version)


def test_without_a_graph_weights_and_cache_are_a_lower_bound():
    found = of("deepseek-v2-lite", "b4887", gpu="rtx-4090")
    assert found.partial
    assert not found.decides("fits")
    lines = [line for line in found.ledger.on_devices if line.nbytes]
    assert {line.component for line in lines} == {"weights", "kv_cache"}
    assert [line.name for line in found.ledger.lines if line.component == "activations"] == ["not modelled"]
    with pytest.raises(CalculatorError, match="b4887"):
        of("deepseek-v2-lite", "b4887", partial=False)


def test_a_file_with_attn_kv_b_whole_is_cached_by_heads_in_every_build():
    """Log: R1 with keys in q4_0 and values in f16 at 16,384 cells, 44,408 MiB (b5276)."""
    found = of("deepseek-r1", "b5276", quant="Q2_K", context=16384, settings={"quantizer": "2024", "type_k": "q4_0", "n_gpu_layers": 0})
    assert cache(found) == 44408 * MIB
    now = of("deepseek-v2-lite", None, context=8192, settings={"quantizer": "2024"})
    assert cache(now) == 2160 * MIB
    assert now.kv_bytes_per_token == 276_480


def test_the_output_was_the_last_to_go_to_a_gpu():
    """Log of b4783, 10 of 33 layers: 1,263.13 MiB on the GPU and a cache of ten layers there."""
    context = Context(4096, 2048, 512, 1, 512, False, False, "F16", "F16", True, n_gpu_layers=10)
    assert list(places_of_layers(32, context)) == [1] * 23 + [0] * 10
    assert list(places_of_layers(32, context._replace(release=FEBRUARY_2025))) == [1] * 22 + [0] * 10 + [1]
    assert list(places_of_layers(32, context._replace(release=AUGUST_2025, n_gpu_layers=-1))) == [0] * 33
    found = of("llama-3.1-8b", "b4783", settings={"n_gpu_layers": 10})
    (on_gpu,) = [line.nbytes for line in found.ledger.lines if line.name == "model buffer"]
    assert f"{on_gpu / MIB:.2f}" == "1263.13"
    assert "-ngl 10 " in found.start_command


def test_what_logs_of_older_builds_print_otherwise_is_within_the_band():
    missed = 0
    for r in (r for r in read_records() if r.suite == "llama-cpp-logs" and r.engine_version.startswith("b")):
        left_out = r.environment.get("not_compared", {})
        if "compute_bytes" not in left_out or "within the band" not in left_out["why"]:
            continue
        run = r.run["settings"]
        found = of(r.model["id"], r.engine_version, quant=r.run["quant"], context=run["n_ctx"], settings={k: v for k, v in run.items() if k != "n_ctx"}, gpus=r.run.get("gpus", 1))
        lines = [line for line in found.ledger.lines if line.name == "compute buffer"]
        for line, printed in zip(lines, left_out["compute_bytes"].split(", "), strict=True):
            assert line.low < float(printed) * MIB < line.high
            assert line.basis == "modelled"
        missed += 1
    assert missed == 4


def test_rows_over_all_gpus_end_pipelining_and_are_refused_by_the_newest_build():
    """Log of b4031, three GPUs: compute buffers of 1,079.63 MiB on each, 31.63 MiB on the host."""
    found = of("llama-3.1-70b", "b4031", context=8000, gpus=3, settings={"split_mode": "row"})
    printed = [f"{line.nbytes / MIB:.2f}" for line in found.ledger.lines if line.name.startswith("compute buffer")]
    assert printed == ["1079.63"] * 3 + ["31.63"]
    assert "-sm row" in found.start_command
    with pytest.raises(BadValue, match="split buffers"):
        of("llama-3.1-70b", None, context=8000, gpus=3, settings={"split_mode": "row"})


def test_flash_attention_is_the_default_since_september_2025_and_asked_for_where_that_is_unknown():
    defaults = [of("llama-3.1-8b", version).job.deployment.settings["flash_attn"] for version in ("b6184", "b6500", "2025-08-29", "2025-10-01")]
    assert defaults == [False, True, False, True]
    with pytest.raises(NotModelled, match="flash attention"):
        of("llama-3.1-8b", "b6300")
    assert of("llama-3.1-8b", "b6300", settings={"flash_attn": 0}).job.deployment.engine_version == "b6300"
