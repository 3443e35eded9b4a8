"""Rows of the page's tables and charts: functions of data, without streamlit."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from calculator.audit import audit
from calculator.catalog import Model, load_gpu, load_gpus, load_model
from calculator.charts import LABELS, Mark, Series
from calculator.errors import CalculatorError
from calculator.estimate import KV_DTYPES, Estimate, estimate
from calculator.fit import usable_memory
from calculator.ledger import alike, places
from calculator.quantization import CATALOG, parse, quantize, stored_nbytes
from calculator.recommend import Candidate, recommend
from calculator.report.spec_table import readable, spec_rows
from calculator.spec import GpuSpec
from calculator.units import GIB, gib, tokens

CONTEXTS = tuple(n * 1024 for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128))
# one widespread card for each memory size that people buy
COMMON_CARDS = ("RTX 4060", "RTX 4070", "RTX 4080", "RTX 4090", "RTX 6000 Ada", "H100 SXM5 80GB")
VERDICTS = {"fits": "fits", "tight": "tight", "does_not_fit": "does not fit"}


def contexts(model: Model) -> list[int]:
    """Steps of the context slider up to what the model was trained for [tokens]."""
    limit = min(model.spec.max_position_embeddings, CONTEXTS[-1])
    return sorted({*(n for n in CONTEXTS if n < limit), limit})


def quant_label(model: Model, name: str) -> str:
    """A quantization with its kind, where the name doesn't tell, and the size of this model's weights in it."""
    scheme = parse(name)
    size = stored_nbytes(quantize(model.spec, scheme))
    kind = {"plain": " · unquantized", "gguf": " · GGUF"}.get(scheme.family, "")
    return f"{scheme.name}{kind} · {gib(size)}"


def kv_types(model: Model, options: dict[str, Any]) -> list[str]:
    """The cache types that the engine allows with these options."""
    allowed = []
    for kind in KV_DTYPES:
        try:
            estimate(model, **{**options, "context": 1, "sequences": 1, "kv_dtype": kind})
        except CalculatorError:
            continue
        allowed.append(kind)
    return allowed


def line_rows(estimated: Estimate) -> list[dict[str, Any]]:
    """The ledger for people: GiB, the band, how each line is known and its formula with numbers."""
    return [
        {"component": LABELS[line.component], "line": line.name, "on": _place(on), "GiB": line.nbytes / GIB,
         "low - high": f"{line.low_bytes / GIB:.3f} - {line.high_bytes / GIB:.3f}" if _band(line) else "",
         "basis": line.basis, "formula (bytes)": str(line.formula), "source": line.source, "note": line.note}
        for line, on in alike(estimated.ledger.lines)
    ]  # fmt: skip


def line_paragraphs(estimated: Estimate) -> list[str]:
    """The ledger as a list with nothing cut off."""
    return [
        f"- **{line.name}** ({LABELS[line.component]}, {_place(on)}), {gib(line.nbytes)}, {line.basis}"
        f"{f', {gib(line.low_bytes)} to {gib(line.high_bytes)}' if _band(line) else ''}  \n"
        f"  `{line.formula} bytes`  \n  {plain(line.source)}{plain('. ' + line.note) if line.note else ''}"
        for line, on in alike(estimated.ledger.lines)
    ]


def lines_csv(estimated: Estimate) -> str:
    """The ledger for programs: bytes."""
    out = io.StringIO()
    names = ("component", "name", "device", "bytes", "low_bytes", "high_bytes", "basis", "formula", "source", "note")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for n in estimated.ledger.lines:
        known = (n.basis, str(n.formula), n.source, n.note)
        writer.writerow((n.component, n.name, n.device, n.nbytes, n.low_bytes, n.high_bytes, *known))
    return out.getvalue()


def estimate_json(estimated: Estimate) -> str:
    """The document of `vram estimate --json`."""
    from calculator.report import estimate_document

    return json.dumps(estimate_document(estimated), indent=2, ensure_ascii=False)


def spec_table(model: Model) -> list[dict[str, str]]:
    """The spec table's rows for a data frame."""
    return [
        {"field": r.field, "value": r.value, "contradicted by": r.contradicted_by, "source": r.source} for r in spec_rows(model)
    ]


def claim_rows(model: Model) -> list[dict[str, str]]:
    """The card's own text, claim by claim, against what its dimensions imply and the released checkpoint."""
    records = model.record.get("claims", [])
    claims = audit(model).claims if records else ()
    return [
        {"field": r["field"], "the card says": r["text"], "its dimensions imply": readable(c.implied),
         "released checkpoint": readable(c.released), "verdict": c.verdict, "source": r["source"]}
        for r, c in zip(records, claims, strict=True)
    ]  # fmt: skip


def twin_rows(ids: list[str], options: dict[str, Any]) -> list[dict[str, str]]:
    """Entries that must not be mistaken for each other, side by side in the same deployment."""
    found = [estimate(load_model(id), **options) for id in ids]
    spec = [e.job.model for e in found]
    kind = found[0].job.deployment.kv_dtype
    rows: list[tuple[str, list[str]]] = [
        (f"KV cache a token, {kind} (bytes)", [f"{e.kv_bytes_per_token:,}" for e in found]),
        ("parameters", [f"{e.parameters:,}" for e in found]),
        ("total at this setting", [gib(e.total_bytes) for e in found]),
        ("hidden size / KV heads", [f"{s.hidden_size:,} / {s.num_key_value_heads}" for s in spec]),
    ]
    return [{"": name, **dict(zip(ids, values, strict=True))} for name, values in rows]


def gpu_rows(
    model_id: str, options: dict[str, Any], *, vendor: str | None, segment: str | None, sort: str
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """GPUs that hold the workload, best first, and the others with the reason. Raises what recommend raises."""
    wanted = [g for g in load_gpus() if vendor in (None, g.vendor) and segment in (None, g.segment)]
    found = recommend(load_model(model_id), options, objective=sort, gpus=wanted)
    return [_gpu_row(c) for c in found.candidates], [r._asdict() for r in found.rejected]


def context_series(model_id: str, options: dict[str, Any], steps: tuple[int, ...]) -> list[Series]:
    """Totals over contexts of every quantization that runs; those of the other engine with that engine's defaults."""
    model = load_model(model_id)
    engine = estimate(model, **options).engine.name
    bare = {"sequences": options["sequences"], "gpus": options.get("gpus", 1), "engine": options.get("engine")}
    series = []
    for name in dict.fromkeys((*CATALOG, options["quant"])):
        runner = options.get("engine") or ("llama.cpp" if parse(name).recipe else "transformers")
        chosen = {**(options if runner == engine else bare), "quant": name}
        try:
            found = [estimate(model, **{**chosen, "context": n}) for n in steps]
        except CalculatorError:
            continue
        totals, host = tuple(e.total_bytes for e in found), tuple(e.ledger.host_bytes for e in found)
        series.append(Series(name, found[0].engine.name, steps, totals, host))
    return series


def marks(gpu: str | None, gpus: int = 1) -> list[Mark]:
    """Usable memory of common cards, and of the chosen ones together, which the curves' totals are of."""
    found = []
    for name in COMMON_CARDS:
        card = load_gpu(name)
        if name != gpu:
            found.append(Mark(_mark_label(card), usable_memory(card).value))
    if gpu:
        found.append(Mark(_mark_label(load_gpu(gpu), gpus), usable_memory(load_gpu(gpu)).value * gpus, chosen=True))
    return found


def plain(text: str) -> str:
    """Text that markdown leaves alone: what people type into a URL must not become a link or an image."""
    return re.sub(r"([\\`*_{}\[\]()#+\-!<>$:|~&])", r"\\\1", text)


def _gpu_row(c: Candidate) -> dict[str, Any]:
    return {
        "GPU": c.gpu.name if c.count == 1 else f"{c.count} x {c.gpu.name}",
        "verdict": "fits after a change" if c.changes else VERDICTS[c.fit.verdict], "change": "; ".join(c.changes),
        "needs": c.fit.binding.required_bytes / GIB, "headroom": c.fit.binding.headroom_bytes / GIB,
        "largest context": tokens(c.max_context) if c.max_context else "", "largest concurrency": c.max_sequences,
        "tokens/s": c.tokens_per_s,
    }  # fmt: skip


def _mark_label(card: GpuSpec, count: int = 1) -> str:
    return f"{f'{count} x ' if count > 1 else ''}{card.name} · {count * usable_memory(card).value / GIB:.1f} GiB"


def _band(line: Any) -> bool:
    return bool(line.low_bytes != line.high_bytes)


def _place(devices: Sequence[object]) -> str:
    return places(devices) if devices[0] == "host" else f"GPU {places(devices)}" if len(devices) == 1 else f"GPU {places(devices)}, each"
