"""Every record against today's formulas. A prediction that was exact must stay so."""

from __future__ import annotations

import json

import pytest

from calculator.architectures import ARCHITECTURES
from calculator.checks import write
from calculator.checks.compare import compare_all
from calculator.checks.records import RECORDS, read_records
from calculator.checks.validate import CONTEXTS, ENTRIES, coverage, groups, of
from calculator.datafiles import DATA
from calculator.errors import UnreadableFile
from calculator.quantization import CATALOG, gguf_types

EXACT = [
    ("transformers", "weights"),
    ("transformers", "kv_cache"),
    ("transformers", "activations"),
    ("llama.cpp", "weights"),
    ("llama.cpp", "kv_cache"),
    ("llama.cpp", "model buffer"),
    ("llama.cpp", "model buffer, host"),
    ("llama.cpp", "output buffer"),
]


@pytest.mark.parametrize(("engine", "component"), EXACT, ids=str)
def test_exact_components_are_exact_on_every_record(engine, component):
    cases = [c for c in compare_all()[0] if (c.record.engine, c.component) == (engine, component)]
    wrong = [(c.record.model["id"], c.record.run, c.predicted.point, c.recorded) for c in cases if not c.exact]
    assert cases
    assert not wrong, wrong[:3]


def test_simulated_compute_buffers_are_exact():
    """All but 8 contexts with an IQ4_NL cache on CUDA, which the mock device took into flash attention; CUDA doesn't."""
    cases = [c for c in compare_all()[0] if c.component in ("compute buffer", "compute buffer, host")]
    assert len(cases) > 5_900
    wrong = [c for c in cases if not c.exact]
    assert len({id(c.record) for c in wrong}) == 8
    assert all("iq4_nl" in (c.record.run["settings"]["type_k"], c.record.run["settings"]["type_v"]) for c in wrong)


def test_bands_cover_the_records_and_are_narrow():
    cases = [c for c in compare_all()[0] if c.component == "compute buffer"]
    assert sum(c.covered for c in cases) > 0.98 * len(cases)
    assert sorted(c.width for c in cases)[len(cases) // 2] < 0.01


def test_only_records_without_formulas_are_refused_and_none_is_lost():
    comparisons, refusals = compare_all()
    for r in refusals:
        assert r.record.engine == "transformers"
        assert r.record.suite == "training" or ARCHITECTURES[r.record.model["model_type"]].full_every  # static caches with windows
    assert len({id(c.record) for c in comparisons}) + len(refusals) == len(read_records())


def test_what_was_executed_and_what_fake_tensors_ran_agree_byte_for_byte():
    """Same model, same pass: a CPU really ran the one, a pretend CUDA device the other."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for r in read_records():
        if r.suite == "activations" and "date" in r.environment:
            found.setdefault(json.dumps([r.model["id"], r.run], sort_keys=True), {})[r.evidence] = r.measured
    both = [pair for pair in found.values() if pair.keys() == {"cpu", "fake"}]
    assert len(both) > 100
    assert all(pair["cpu"] == pair["fake"] for pair in both)


def test_every_recipe_of_llama_quantize_is_on_record():
    recipes = {r.run["quant"] for r in read_records() if r.suite == "llama-cpp-recipes"}
    assert recipes == set(gguf_types.RECIPES)


def test_kinds_of_evidence_are_never_pooled():
    for group in groups(compare_all()[0]):
        cases = [c for c in compare_all()[0] if (c.record.engine, c.component, c.record.evidence) == group[:3]]
        assert group.n == len(cases)


def test_the_matrix_has_a_cell_for_every_quantization_and_context_of_both_entries():
    cells = coverage(compare_all()[0])
    assert len(cells) == len(ENTRIES) * len(CATALOG) * len(CONTEXTS)
    assert all(cell.worst_percent or cell.reason.startswith("not checked") for cell in cells)
    checked = {(c.model, c.quant, c.context) for c in cells if c.worst_percent and not c.reason}
    assert {("llama-3.2-1b", "bf16", context) for context in CONTEXTS} <= checked


def test_what_is_committed_is_what_the_records_say():
    """`vram validate --write` was run after the last change of formula or record."""
    assert (DATA / "residuals.json").read_text() == write.residuals_text()
    assert (RECORDS.parent / "report.md").read_text() == write.report(of(*compare_all()), compare_all()[0])


@pytest.mark.parametrize("line", ["", "{", "[]", '{"suite": 1}', json.dumps(dict.fromkeys(
    ("suite", "evidence", "engine", "engine_version", "model", "run", "measured", "environment"), "x"))])  # fmt: skip
def test_a_broken_record_is_named_by_file_and_line(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UnreadableFile, match=r"bad\.jsonl line 1"):
        read_records(tmp_path)


def test_a_wheel_without_records_says_where_they_are(tmp_path):
    with pytest.raises(UnreadableFile, match="checkout"):
        read_records(tmp_path / "none")


def test_an_installed_package_says_where_the_records_are(tmp_path, monkeypatch):
    monkeypatch.setattr("calculator.checks.records.RECORDS", tmp_path / "none")
    with pytest.raises(UnreadableFile, match="an installed package holds no recorded runs; try: vram validate in a checkout"):
        read_records(tmp_path / "none")
