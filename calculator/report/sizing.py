"""The sizing report: spec table, audit, every quantization by eight contexts, recommended GPUs; HTML, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from calculator import __version__
from calculator.audit import audit
from calculator.catalog import Model, data_version, load_gpus
from calculator.errors import CalculatorError
from calculator.estimate import Estimate, estimate
from calculator.fit import usable_memory
from calculator.ledger import COMPONENTS
from calculator.quantization import CATALOG
from calculator.recommend import Recommendation, recommend
from calculator.report.documents import envelope
from calculator.report.spec_table import SpecRow, spec_rows
from calculator.report.text import NAMES, VERDICTS, audit_text, explanations
from calculator.units import GIB, gib, tokens

CONTEXTS = tuple(1024 * 2**i for i in range(8))  # 1K to 128K
RECOMMENDED = ("bf16", "Q4_K_M")
RECOMMENDED_CONTEXTS = (8192, 131072)


class Sizing(NamedTuple):
    """Everything in the report of one model."""

    model: Model
    spec: tuple[SpecRow, ...]
    estimates: tuple[Estimate, ...]
    refused: tuple[tuple[str, str], ...]  # quantization and why
    recommendations: tuple[tuple[str, Recommendation], ...]


def size(model: Model, *, contexts: Sequence[int] = CONTEXTS, quants: Sequence[str] = CATALOG) -> Sizing:
    """Estimate every quantization at every context that the model was trained for, and recommend GPUs."""
    limit = model.spec.max_position_embeddings
    within = [c for c in contexts if c <= limit] or [limit]
    estimates: list[Estimate] = []
    refused: list[tuple[str, str]] = []
    for quant in quants:
        for context in within:
            try:
                estimates.append(estimate(model, quant=quant, context=context))
            except CalculatorError as e:
                refused.append((f"{quant}, {tokens(context)}", str(e)))
    recommendations = []
    for quant in RECOMMENDED:
        for context in dict.fromkeys(min(c, limit) for c in RECOMMENDED_CONTEXTS):
            try:
                found = recommend(model, {"quant": quant, "context": context})
            except CalculatorError as e:
                refused.append((f"GPUs for {quant}, {tokens(context)}", str(e)))
                continue
            recommendations.append((f"{quant}, {tokens(context)} context", found))
    return Sizing(model, spec_rows(model), tuple(estimates), tuple(refused), tuple(recommendations))


def rows_of(sizing: Sizing) -> list[dict[str, Any]]:
    """One row an estimate: every component, the band, and the smallest GPU that surely holds it."""
    usable = sorted(((usable_memory(g).low_value, g.memory_sold_bytes.value, g.name) for g in load_gpus()), key=lambda t: t[1:])
    rows = []
    for e in sizing.estimates:
        job, ledger = e.job, e.ledger
        holds = next((name for memory, _, name in usable if memory >= ledger.high_bytes), "")
        rows.append({
            "model": job.model.id, "quant": job.deployment.quant, "engine": job.deployment.engine,
            "kv_dtype": job.deployment.kv_dtype, "context": job.workload.context, "sequences": job.workload.sequences,
            **{f"{c}_bytes": ledger.component_bytes(c) for c in COMPONENTS},
            "total_bytes": ledger.total_bytes, "total_low_bytes": ledger.low_bytes, "total_high_bytes": ledger.high_bytes,
            "host_bytes": ledger.host_bytes, "tensor_bytes": e.tensor_bytes, "file_bytes": e.file_bytes or "",
            "basis": ledger.basis, "peak_phase": e.phase, "peak_step": e.peak.step.name, "smallest_gpu": holds,
        })  # fmt: skip
    return rows


def as_csv(sizings: Sequence[Sizing]) -> str:
    """All rows as CSV, sizes in bytes."""
    rows = [row for sizing in sizings for row in rows_of(sizing)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_document(sizings: Sequence[Sizing]) -> dict[str, Any]:
    """The report as one JSON object."""
    return envelope(reports=[
        {"model": s.model.spec.id, "spec": [r._asdict() for r in s.spec], "rows": rows_of(s),
         "refused": [{"quant": q, "reason": why} for q, why in s.refused],
         "recommendations": [{"workload": name, "gpus": [_gpu_row(c) for c in found.candidates[:10]]}
                             for name, found in s.recommendations]}
        for s in sizings
    ])  # fmt: skip


def as_markdown(sizings: Sequence[Sizing]) -> str:
    """The report for reading in a repository."""
    out = [f"# Sizing report\n\nvram-calculator {__version__}, data of {data_version()}. Sizes in GiB, one sequence."]
    for s in sizings:
        out.append(f"\n## {s.model.record['name']} (`{s.model.spec.id}`)\n")
        out += [f"> {r['id']}: {r['why']}\n" for r in s.model.related]
        out.append(_md(("field", "value", "source", "contradicted by"), s.spec))
        out.append("\n### Memory by quantization and context\n")
        contexts, grid = _grid(s)
        out.append(_md(("quantization", "engine", *(tokens(c) for c in contexts)),
                       [(q, e, *(f"{x.total_bytes / GIB:.2f}" for x in row)) for q, e, row in grid]))  # fmt: skip
        out.append(f"\n### Components at {tokens(contexts[-1])}, or the largest context that runs\n")
        out.append(_md(("quantization", *NAMES.values(), "total", "low - high", "peak"), [_parts(q, row[-1]) for q, _, row in grid]))
        for name, found in s.recommendations:
            out.append(f"\n### Recommended GPUs: {name}\n")
            out.append(_md(_GPU_HEADER, [tuple(_gpu_row(c).values()) for c in found.candidates[:10]]))
        if s.model.record.get("claims"):
            out.append(f"\n### Audit\n\n```\n{audit_text(s.model.spec.id, audit(s.model))}\n```")
    return "\n".join(out) + "\n"


def as_html(sizings: Sequence[Sizing]) -> str:
    """The report as one self-contained page."""
    body = []
    for s in sizings:
        body.append(f"<h2>{escape(s.model.record['name'])} <code>{escape(s.model.spec.id)}</code></h2>")
        body += [f'<p class="note">See also <code>{escape(r["id"])}</code>: {escape(r["why"])}</p>' for r in s.model.related]
        body.append(_html(("field", "value", "source", "contradicted by"), s.spec))
        contexts, grid = _grid(s)
        body.append("<h3>Memory by quantization and context [GiB]</h3>" + _heat(contexts, grid))
        for i, context in enumerate(contexts):
            rows = [_parts(q, row[i]) for q, _, row in grid if i < len(row)]
            body.append(f"<details><summary>Every component at {tokens(context)}</summary>"
                        + _html(("quantization", *NAMES.values(), "total", "low - high", "peak"), rows) + "</details>")  # fmt: skip
        body.append("<h3>Recommended GPUs</h3>")
        for name, found in s.recommendations:
            rows = [tuple(_gpu_row(c).values()) for c in found.candidates[:10]]
            body.append(f"<h4>{escape(name)}</h4>" + _html(_GPU_HEADER, rows))
        if s.model.record.get("claims"):
            body.append(f"<h3>Audit of the published card</h3><pre>{escape(audit_text(s.model.spec.id, audit(s.model)))}</pre>")
        example = next((e for e in s.estimates if e.job.workload.context == 8192), s.estimates[0])
        text = "\n".join(explanations(example.ledger.lines))
        body.append(f"<details><summary>How a total is made: {escape(example.job.deployment.quant)} at "
                    f"{tokens(example.job.workload.context)}, every formula and source</summary><pre>{escape(text)}</pre></details>")  # fmt: skip
        if s.refused:
            body.append("<h4>Not sized</h4>" + _html(("quantization", "why"), s.refused))
    foot = f"vram-calculator {__version__}, data of {data_version()}. One sequence; largest of prefill and decode; no GPU run stands behind these figures yet."
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>Sizing report</title><style>{_CSS}</style><h1>Sizing report</h1><p>{foot}</p>{''.join(body)}</html>\n"


_GPU_HEADER = ("verdict", "GPU", "headroom", "largest context", "largest concurrency", "tokens/s, upper bound", "after changing")
_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 1em;color:#1d2733}"
    "table{border-collapse:collapse;margin:.6em 0;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2em .6em;border-bottom:1px solid #e3e8ee;text-align:left;font-size:13px}"
    "td.n{text-align:right}.note{background:#fff4d6;padding:.5em .8em;border-left:3px solid #d9a400}"
    "pre{background:#f6f8fa;padding:.8em;overflow:auto;font-size:12px}summary{cursor:pointer;margin:.3em 0}"
)


def _grid(s: Sizing) -> tuple[list[int], list[tuple[str, str, list[Estimate]]]]:
    contexts = sorted({e.job.workload.context for e in s.estimates})
    rows: dict[tuple[str, str], list[Estimate]] = {}
    for e in s.estimates:
        rows.setdefault((e.job.deployment.quant, e.job.deployment.engine), []).append(e)
    return contexts, [(quant, engine, row) for (quant, engine), row in rows.items()]


def _parts(quant: str, e: Estimate) -> tuple[str, ...]:
    band = f"{gib(e.ledger.low_bytes)} - {gib(e.ledger.high_bytes)}"
    parts = (gib(e.ledger.component_bytes(c)) for c in COMPONENTS)
    return (quant, *parts, gib(e.total_bytes), band, f"{e.peak.step.name}, {e.phase}")


def _gpu_row(c: Any) -> dict[str, str]:
    return {
        "verdict": VERDICTS[c.fit.verdict], "gpu": f"{c.count} x {c.gpu.name}", "headroom": gib(c.fit.binding.headroom_bytes),
        "max_context": f"{c.max_context:,}" if c.max_context else "", "max_sequences": f"{c.max_sequences:,}" if c.max_sequences else "",
        "tokens_per_s_bound": f"{c.tokens_per_s:,.0f}", "changes": ", ".join(c.changes),
    }  # fmt: skip


def _md(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows])


def _html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    lines = ("<tr>" + "".join(f"<td>{escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _heat(contexts: Sequence[int], grid: Sequence[tuple[str, str, Sequence[Estimate]]]) -> str:
    """Totals with a shade by the card size that they need."""
    head = "".join(f"<th>{tokens(c)}</th>" for c in contexts)
    lines = []
    for quant, engine, row in grid:
        cells = "".join(f'<td class=n style="background:{_shade(e.total_bytes)}">{e.total_bytes / GIB:.2f}</td>' for e in row)
        lines.append(f"<tr><td>{escape(quant)}</td><td>{escape(engine)}</td>{cells}</tr>")
    return f"<table><tr><th>quantization</th><th>engine</th>{head}</tr>{''.join(lines)}</table>"


def _shade(nbytes: int) -> str:
    for limit, colour in ((2, "#eaf6ec"), (4, "#d8efdc"), (8, "#fdf6d8"), (16, "#fbe6c8"), (24, "#f8d2bf")):
        if nbytes <= limit * GIB:
            return colour
    return "#f1b8b1"
