"""What a person reads on a terminal: verdict first, then the lines, then what would help."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from calculator.audit import Audit
from calculator.engines.base import Pool, Reserves
from calculator.estimate import Estimate
from calculator.fit import Fit, fit, why_refused
from calculator.ledger import COMPONENTS, Line, alike, places
from calculator.recommend import Recommendation
from calculator.solve import Solution
from calculator.units import gib, tokens

NAMES = {"weights": "weights", "kv_cache": "KV cache", "activations": "activations", "overhead": "overhead"}
VERDICTS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit"}


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str], right: frozenset[int] = frozenset()) -> str:
    """Columns as wide as their content, the last one free."""
    every = [header, *rows]
    widths = [max(len(row[i]) for row in every) for i in range(len(header))]
    lines = []
    for row in every:
        cells = [cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def describe(estimated: Estimate) -> str:
    """One line that says what was sized."""
    job = estimated.job
    d, work = job.deployment, job.workload
    count = f"{d.gpus} x " if d.gpus > 1 else ""
    where = f" on {count}{d.gpu}" if d.gpu else ""
    many = f"{work.sequences:,} sequence{'s' if work.sequences > 1 else ''}"
    return f"{estimated.model.record['name']}, {d.quant}, {tokens(work.context)} context, {many}, {d.engine}{where}"


def estimate_text(estimated: Estimate, *, explain: bool) -> str:
    """The estimate: components with their lines; with `explain`, each formula with its numbers and its source."""
    ledger, gpu = estimated.ledger, estimated.job.gpu
    held = fit(estimated, gpu) if gpu else None
    verdict = f"{_verdict(estimated, held.verdict):<14} " if held else ""
    indent = " " * len(verdict)
    needs = f"needs more than {gib(ledger.low_bytes)}" if estimated.partial else f"needs {gib(ledger.total_bytes)} ({gib(ledger.low_bytes)} - {gib(ledger.high_bytes)})"
    if held and len(held.devices) > 1:
        needs += f" over {len(held.devices)} GPUs, {gib(held.binding.required_bytes)} on the fullest"
    beside = f" and {gib(held.binding.beside_bytes)} beside it" if held and held.binding.beside_bytes else ""
    usable = f", usable {gib(held.binding.usable_bytes)} a GPU{beside}" if held else ""
    out = [f"{verdict}{describe(estimated)}", f"{indent}{needs}{usable}", ""]
    if held and gpu and held.verdict == "does_not_fit" and held.binding.headroom_bytes >= 0:  # the bytes alone would fit
        out.insert(2, f"{indent}{why_refused(estimated, gpu)}")

    rows = []
    for component in COMPONENTS:
        lines = [line for line in ledger.on_devices if line.component == component]
        rows.append((NAMES[component], gib(ledger.component_bytes(component)), "", ""))
        rows += _rows(lines, len(ledger.devices))
    if host := [line for line in ledger.lines if line.device == "host"]:
        rows.append(("beside the GPU", gib(ledger.host_bytes), "", "host memory, not in the total"))
        rows += [("  " + line.name, gib(line.nbytes), line.basis, _band(line)) for line in host]
    out.append(table(rows, header=("", "memory", "basis", ""), right=frozenset({1})))
    out += ["", f"peak at {estimated.peak.step.name}, {estimated.phase}; the cache grows by {estimated.kv_bytes_per_token:,} bytes a token of one sequence"]
    if (pool := estimated.pool) is not None:
        out.append(pool_text(pool, devices=len(ledger.devices)))
    if estimated.file_bytes is not None:
        how = "by its header" if estimated.job.from_headers else "predicted"
        out.append(f"file {estimated.file_bytes / 1e9:.2f} GB ({estimated.file_bytes:,} bytes, {how})")
    if (command := estimated.start_command) is not None:
        out.append(f"start with  {command}")
    if explain:
        out += ["", *explanations(ledger.lines)]
    out += [f"warning: {text}" for text in estimated.warnings]
    return "\n".join(out)


def _verdict(estimated: Estimate, verdict: str) -> str:
    """A lower bound says that something doesn't fit, never that it does."""
    return VERDICTS[verdict] if estimated.decides(verdict) else "not known"


def pool_text(pool: Pool, *, devices: int) -> str:
    """What the engine sets aside for the cache, and how many sequences that is."""
    each = " a GPU" if devices > 1 else ""
    if pool.nbytes <= 0:
        return f"no memory is left for a cache pool: {gib(-pool.nbytes)}{each} short"
    band = f" ({gib(max(pool.low, 0))} - {gib(pool.high)})" if pool.low != pool.high else ""
    return f"cache pool {gib(pool.nbytes)}{each}{band}: {pool.tokens:,} tokens, {pool.max_concurrency:.2f} sequences of this context at once"


def explanations(lines: Sequence[Line]) -> list[str]:
    """Every line's formula with the numbers substituted, its basis and its source."""
    out = []
    for line, on in alike(lines):
        where = places(on) if line.device == "host" else f"device {on[0]}" if len(on) == 1 else f"devices {places(on)}, each"
        out.append(f"{NAMES[line.component]}: {line.name} ({where})")
        out.append(f"    = {line.formula}")
        out.append(f"    = {line.nbytes:,} bytes, {line.basis}{_band_bytes(line)}")
        out.append(f"    source: {line.source}")
        if line.note:
            out.append(f"    note: {line.note}")
    return out


def compare_text(estimates: Sequence[Estimate], together: Fit | None = None) -> str:
    """Estimates side by side; `together`: on one GPU at once."""
    heads = [chr(ord("A") + i) if i < 26 else str(i) for i in range(len(estimates))]
    out = [f"{head}  {describe(e)}" for head, e in zip(heads, estimates, strict=True)]
    rows = [(NAMES[c], *(gib(e.ledger.component_bytes(c)) for e in estimates)) for c in COMPONENTS]
    rows.append(("total", *(f"more than {gib(e.total_bytes)}" if e.partial else gib(e.total_bytes) for e in estimates)))
    rows.append(("low - high", *("-" if e.partial else f"{gib(e.ledger.low_bytes)} - {gib(e.ledger.high_bytes)}" for e in estimates)))
    rows.append(("cache a token", *(f"{e.kv_bytes_per_token:,} B" for e in estimates)))
    rows.append(("host", *(gib(e.ledger.host_bytes) for e in estimates)))
    if any(e.job.gpu for e in estimates):
        rows.append(("verdict", *(_verdict(e, fit(e, e.job.gpu).verdict) if e.job.gpu else "-" for e in estimates)))
    out += ["", table(rows, header=("", *heads), right=frozenset(range(1, len(heads) + 1)))]
    if together is not None:
        out.append("")
        out += [
            f"together on {d.gpu} {d.index}: {VERDICTS[d.verdict] if all(e.decides(d.verdict) for e in estimates) else 'not known'}, {gib(d.required_bytes)} (up to {gib(d.high_bytes)}) of {gib(d.usable_bytes)}"
            for d in together.devices
        ]
        if any(isinstance(e.engine, Reserves) for e in estimates):
            out.append("a server counts with the share that it reserves, whatever its workload needs of it")
    return "\n".join(out)


def recommend_text(found: Recommendation, *, limit: int) -> str:
    """Candidates best first, then why the others lost."""
    rows = [
        (VERDICTS[c.fit.verdict], f"{c.count} x {c.gpu.name}", c.estimate.job.model.id, c.estimate.job.deployment.quant,
         gib(c.fit.binding.headroom_bytes), f"{c.max_context:,}" if c.max_context else "-",
         f"{c.max_sequences:,}" if c.max_sequences else "-", f"{c.tokens_per_s:,.0f}", ", ".join(c.changes))
        for c in found.candidates[:limit]
    ]  # fmt: skip
    header = ("verdict", "GPU", "model", "quant", "headroom", "max context", "max seqs", "tok/s bound", "after changing")
    out = [table(rows, header=header, right=frozenset({4, 5, 6, 7}))] if rows else ["nothing fits"]
    if len(found.candidates) > limit:
        out.append(f"and {len(found.candidates) - limit} more; --limit shows them")
    out.append("tok/s bound: memory bandwidth over the bytes of one step, an upper bound and not a prediction")
    if found.rejected:
        out += ["", f"rejected ({len(found.rejected)}):"]
        why: dict[str, list[str]] = {}
        for r in found.rejected:
            why.setdefault(r.reason, []).append(r.model or r.gpu)
        out += [f"  {', '.join(names)}: {reason}" for reason, names in islice(why.items(), limit)]
        if len(why) > limit:
            out.append(f"  and {sum(map(len, islice(why.values(), limit, None)))} more")
    return "\n".join(out)


def solve_text(solved: Solution) -> str:
    """The answer and what binds."""
    if solved.value is None:
        return f"nothing fits: {solved.binding}"
    value = f"{solved.value:,}" if isinstance(solved.value, int) else solved.value
    out = [f"largest {solved.wanted} that fits: {value}    bound by {solved.binding}"]
    if solved.estimate:
        out.append(f"{describe(solved.estimate)}: {gib(solved.estimate.total_bytes)}")
    if (o := solved.offload) is not None:
        bandwidth = f"{o.host_bandwidth_bytes_per_s / 1e9:.1f} GB/s"
        out.append(f"of {o.layers} layers, the output counted as one; host memory {gib(o.host_bytes)}")
        out.append(f"at most {o.tokens_per_s_bound:,.1f} tokens/s with host memory of {bandwidth} ({o.tokens_per_s_bound_low:,.1f} - "
                   f"{o.tokens_per_s_bound_high:,.1f}), {o.tokens_per_s_bound_all_layers:,.1f} if the card held all; bounds, not predictions")  # fmt: skip
    if solved.estimate and solved.estimate.start_command:
        out.append(f"start with  {solved.estimate.start_command}")
    return "\n".join(out)


def audit_text(model_id: str, found: Audit) -> str:
    """Every claim with what it implies, then the ways to reconcile them."""
    rows = [
        (c.verdict, c.field, _number(c.claimed), _number(c.implied), _number(c.released), f"{c.ratio:.3f}" if c.ratio else "")
        for c in found.claims
    ]
    header = ("verdict", "claim", "claimed", "dimensions imply", "released", "implied / claimed")
    out = [f"audit of {model_id}", "", table(rows, header=header, right=frozenset({5}))]
    if found.reconciling_sets:
        out += ["", "minimal sets of changes that reconcile the claims:"]
        for i, s in enumerate(found.reconciling_sets, 1):
            changes = ", ".join(f"{k} = {v:,}" if isinstance(v, int) else f"{k}: {v}" for k, v in s.changes.items())
            same = "   (what was released)" if s.agrees_with_released else ""
            out.append(f"  {i}. {changes}: {s.parameters:,} parameters{same}")
    out += [f"note: {note}" for note in found.notes]
    return "\n".join(out)


def _number(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rows(lines: Sequence[Line], devices: int) -> list[tuple[str, str, str, str]]:
    """A row a line; what several GPUs hold alike to the shown digit, as tensor-parallel ranks do, in one row."""
    rows: list[tuple[str, str, str, str]] = []
    for line, on in alike(lines, lambda line: (line.name, gib(line.nbytes), line.basis, _band(line))):
        where = f" [{places(on)}]" if devices > 1 else ""
        rows.append((f"  {line.name}{where}", f"{len(on)} x {gib(line.nbytes)}" if len(on) > 1 else gib(line.nbytes), line.basis, _band(line)))
    return rows


def _band(line: Line) -> str:
    """The band, or a note short enough for a table; --explain prints all of both."""
    if line.low_bytes != line.high_bytes:
        return f"{gib(line.low_bytes)} - {gib(line.high_bytes)}"
    return line.note if len(line.note) < 60 else ""


def _band_bytes(line: Line) -> str:
    return "" if line.low_bytes == line.high_bytes else f", {line.low_bytes:,} to {line.high_bytes:,}"
