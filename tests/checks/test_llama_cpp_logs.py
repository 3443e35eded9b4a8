"""Public start-up logs of llama.cpp and ollama: every figure of a build that is modelled is met to its last printed digit."""

from __future__ import annotations

from functools import cache

from calculator.checks.compare import compare
from calculator.checks.records import read_records


@cache
def logs():
    return [r for r in read_records() if r.suite == "llama-cpp-logs"]


def test_every_figure_is_met_to_its_last_digit_and_no_log_is_refused():
    comparisons, refusals = compare(logs())
    assert not refusals
    assert len(comparisons) == sum(len(r.measured) for r in logs())
    assert [(c.record.model["id"], c.component, c.predicted.point, c.recorded) for c in comparisons if not c.exact] == []


def test_a_log_names_its_source_and_build_and_why_a_figure_is_left_out():
    for r in logs():
        assert r.evidence == "log"
        assert r.environment["source"]
        assert r.environment["llama.cpp"]
        left_out = r.environment.get("not_compared") or {}
        assert not left_out.keys() & r.measured.keys()
        assert left_out.keys() <= {"why"} or "why" in left_out
