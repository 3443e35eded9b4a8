"""Our figures beside those of other people's calculators, which `validation/peers` scores without importing us."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from calculator.checks.compare import Comparison, Figure
from calculator.checks.records import RECORDS
from calculator.checks.validate import groups

PEERS = RECORDS.parent / "peers.json"  # in a checkout; a wheel has none
OURS = "this calculator"
HEADER = ("quantity", "engine", "records", "calculator", "n", "exact", "median", "p95", "worst", "doesn't count or claim")
NOT_ASKED = ("llama-cpp-offload", "llama-cpp-2025", "llama-cpp", "llama-cpp-logs", "vllm-logs", "sglang-logs")  # suites that no peer is held against
BYPRODUCTS = {("weights", "activations"), ("kv_cache", "activations")}  # figures that another suite is about


def scored() -> dict[str, Any]:
    """validation/peers.json, or nothing where there is none."""
    return dict(json.loads(PEERS.read_text("utf-8"))) if PEERS.is_file() else {}


def table_rows(comparisons: Sequence[Comparison], *, brief: bool = False) -> list[tuple[str, ...]]:
    """Ours, then the peers, for each quantity, engine, suite and kind of evidence that a peer claims.

    In brief: of a quantity and engine, only the suite and evidence with the most records.
    """
    ours: dict[tuple[str, ...], list[Comparison]] = {}
    for c in [*comparisons, *totals(comparisons)]:
        ours.setdefault((c.component, c.record.engine, c.record.suite, c.record.evidence), []).append(c)
    rows = scored().get("rows", [])
    places = list(dict.fromkeys((row["quantity"], row["engine"], row["suite"], row["evidence"]) for row in rows))
    if brief:
        about = [place for place in places if place[::2] not in BYPRODUCTS]
        largest = {place[:2]: place for place in sorted(about, key=lambda place: len(ours.get(place, [])))}
        places = [place for place in places if largest[place[:2]] == place]
    out: list[tuple[str, ...]] = []
    for place in places:
        out += [_cells(place, OURS, group._asdict(), "") for group in groups(ours.get(place, []))]
        mine = [row for row in rows if (row["quantity"], row["engine"], row["suite"], row["evidence"]) == place]
        out += [_cells(place, row["peer"], row, row["not_counted"]) for row in mine]
    return out


def totals(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """The totals that peers are held against: of a transformers pass, and of llama.cpp on a CUDA device."""
    runs: dict[int, dict[str, Comparison]] = {}
    buffers: dict[str, Comparison] = {}
    for c in comparisons:
        if c.record.suite in NOT_ASKED:
            continue
        runs.setdefault(id(c.record), {})[c.component] = c
        if c.component == "model buffer" and c.record.run["settings"]["backend"] == "cuda":
            buffers[_model(c)] = c
    out = []
    for found in runs.values():
        parts = [found[name] for name in ("weights", "kv_cache", "activations") if name in found]
        compute = found.get("compute buffer")
        if compute and compute.record.run["settings"]["backend"] == "cuda":
            parts = [buffers[_model(compute)], found["kv_cache"], compute]
        if len(parts) == 3:
            out.append(_sum(parts))
    return out


def _sum(parts: Sequence[Comparison]) -> Comparison:
    predicted = Figure(*(sum(figures) for figures in zip(*(c.predicted for c in parts), strict=True)))
    return Comparison(parts[-1].record, "total", predicted, sum(c.recorded for c in parts))


def _model(c: Comparison) -> str:
    return json.dumps([c.record.model, c.record.run["quant"]], sort_keys=True)


def _cells(place: Sequence[str], name: str, row: dict[str, Any], not_counted: str) -> tuple[str, ...]:
    quantity, engine, suite, evidence = place
    figures = (f"{row[key]:.2f} %" for key in ("median_percent", "p95_percent", "worst_percent"))
    return (quantity, engine, f"{suite}, {evidence}", name, f"{row['n']:,}", f"{row['exact_percent']:.1f} %", *figures, not_counted)
