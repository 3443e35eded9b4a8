"""The error table: records against predictions, by engine, component and kind of evidence, which are never pooled."""

from __future__ import annotations

import builtins
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from calculator.catalog import Model, load_model
from calculator.checks.compare import Comparison, Refusal, compare, compare_all
from calculator.checks.records import Record
from calculator.errors import CalculatorError
from calculator.quantization import CATALOG, parse
from calculator.readers.hf_config import model_from_config
from calculator.units import tokens

CONTEXTS = tuple(1024 * 2**i for i in range(8))
ENTRIES = ("llama-3.2-1b", "llama-3.2-1b-card")


class Group(NamedTuple):
    """Statistics of one engine, component and kind of evidence [percent]."""

    engine: str
    component: str
    evidence: str
    n: int
    exact_percent: float
    median_percent: float
    p95_percent: float
    worst_percent: float
    coverage_percent: float
    band_width_percent: float


class Cell(NamedTuple):
    """One quantization and context of an entry: the worst error of what was checked there, or why nothing was."""

    model: str
    quant: str
    context: int
    worst_percent: dict[str, float]  # by kind of evidence
    components: dict[str, list[str]]  # what was checked, by kind of evidence
    reason: str


class Validation(NamedTuple):
    """All of it."""

    groups: tuple[Group, ...]
    coverage: tuple[Cell, ...]
    refusals: tuple[Refusal, ...]


def validate(records: Sequence[Record] | None = None) -> Validation:
    """Compare all records with today's formulas."""
    return of(*(compare_all() if records is None else compare(records)))


def of(comparisons: Sequence[Comparison], refusals: Sequence[Refusal]) -> Validation:
    """The tables of what was compared."""
    return Validation(groups(comparisons), coverage(comparisons), tuple(refusals))


def groups(comparisons: Iterable[Comparison]) -> tuple[Group, ...]:
    """Statistics by engine, component and evidence, in that order."""
    found: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in comparisons:
        found.setdefault((c.record.engine, c.component, c.record.evidence), []).append(c)
    return tuple(_group(key, cases) for key, cases in sorted(found.items()))


def coverage(comparisons: Sequence[Comparison]) -> tuple[Cell, ...]:
    """Quantization by context for both entries of the first model; records without a context count at every one."""
    cells = []
    records = {builtins.id(c.record): c.record for c in comparisons}
    for id in ENTRIES:
        model = load_model(id)
        own = {key for key, record in records.items() if _is(record, model)}
        mine = [c for c in comparisons if builtins.id(c.record) in own]
        for quant in CATALOG:
            name = parse(quant).name
            same = [c for c in mine if parse(c.record.run.get("quant", "bf16"), engine=c.record.engine).name == name]
            for context in CONTEXTS:
                cells.append(_cell(id, name, context, [c for c in same if _context(c) in (None, context)]))
    return tuple(cells)


def _cell(id: str, quant: str, context: int, cases: list[Comparison]) -> Cell:
    worst: dict[str, float] = {}
    components: dict[str, set[str]] = {}
    for c in cases:
        kind = c.record.evidence
        worst[kind] = max(worst.get(kind, 0.0), abs(c.error) * 100)
        components.setdefault(kind, set()).add(c.component)
    if not cases:
        reason = "not checked: no record of this model in this format"
    else:
        reason = "" if any(_context(c) == context for c in cases) else "weights only: no record at this context"
    return Cell(id, quant, context, dict(sorted(worst.items())), {k: sorted(v) for k, v in sorted(components.items())}, reason)


def _is(record: Record, model: Model) -> bool:
    """Whether a record is of this entry: the same dimensions at full depth, whatever it was called."""
    if record.model.get("hidden_size") != model.spec.hidden_size:
        return False
    try:
        spec = model_from_config(record.model, id=model.spec.id)
    except CalculatorError:  # a family without formulas is another model
        return False
    return replace(spec, rope_type=model.spec.rope_type) == model.spec


def _context(c: Comparison) -> int | None:
    settings = c.record.run.get("settings", {})
    if "n_ctx" in settings:
        return int(settings["n_ctx"]) // int(settings.get("n_seq_max", 1))
    context = c.record.run.get("context")
    return int(context) if context is not None else None


def _group(key: tuple[str, str, str], cases: list[Comparison]) -> Group:
    errors = sorted(abs(c.error) * 100 for c in cases)
    exact = sum(c.exact for c in cases)
    covered = sum(c.covered for c in cases)
    return Group(
        *key, len(cases), 100 * exact / len(cases), statistics.median(errors), errors[min(len(errors) - 1, int(0.95 * len(errors)))],
        errors[-1], 100 * covered / len(cases), 100 * statistics.median(c.width for c in cases),
    )  # fmt: skip


def table_rows(found: Validation) -> list[tuple[str, ...]]:
    """The error table for people."""
    return [
        (g.engine, g.component, g.evidence, f"{g.n:,}", f"{g.exact_percent:.1f} %", f"{g.median_percent:.2f} %",
         f"{g.p95_percent:.2f} %", f"{g.worst_percent:.2f} %", f"{g.coverage_percent:.1f} %", f"{g.band_width_percent:.1f} %")
        for g in found.groups
    ]  # fmt: skip


HEADER = ("engine", "component", "evidence", "n", "exact", "median", "p95", "worst", "covered by band", "band width")


def matrix_rows(found: Validation, model: str) -> list[tuple[str, ...]]:
    """The coverage matrix of one entry: worst error and evidence at each context."""
    by_quant: dict[str, list[Cell]] = {}
    for cell in found.coverage:
        if cell.model == model:
            by_quant.setdefault(cell.quant, []).append(cell)
    return [(quant, *(_shown(cell) for cell in cells)) for quant, cells in by_quant.items()]


MATRIX_HEADER = ("quantization", *(tokens(c) for c in CONTEXTS))


def _shown(cell: Cell) -> str:
    if not cell.worst_percent:
        return "not checked"
    errors = ", ".join(f"{kind} {worst:.2f} %" for kind, worst in cell.worst_percent.items())
    return errors + (" (weights)" if cell.reason else "")


def document(found: Validation) -> dict[str, Any]:
    """Groups and coverage as plain data."""
    return {
        "groups": [g._asdict() for g in found.groups],
        "coverage": [c._asdict() for c in found.coverage],
        "refused": [{"suite": r.record.suite, "model": r.record.model.get("id"), "reason": r.reason} for r in found.refusals],
    }
