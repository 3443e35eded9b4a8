"""Writes what the records say: validation/report.md, the README's error table, data/residuals.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from calculator.checks import peers
from calculator.checks.bands import METHOD, residuals
from calculator.checks.compare import Comparison, compare_all
from calculator.checks.records import RECORDS
from calculator.checks.validate import ENTRIES, HEADER, MATRIX_HEADER, Validation, matrix_rows, of, table_rows
from calculator.datafiles import DATA, read_json
from calculator.engines.records import residual_band
from calculator.errors import UnreadableFile

ROOT = RECORDS.parents[1]
TABLE = re.compile(r"(<!-- error table -->\n)(.*?)(<!-- end of error table -->)", re.DOTALL)
PEERS = re.compile(r"(<!-- peers table -->\n)(.*?)(<!-- end of peers table -->)", re.DOTALL)


def write_all() -> list[Path]:
    """Bands first, then the tables with those bands. Raises UnreadableFile outside a checkout."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        raise UnreadableFile("--write works in a checkout of the repository only", hint="vram validate")
    written = [DATA / "residuals.json", ROOT / "validation" / "report.md", readme]
    written[0].write_text(residuals_text(), encoding="utf-8")
    read_json.cache_clear()
    residual_band.cache_clear()
    compare_all.cache_clear()
    comparisons, refusals = compare_all()
    found = of(comparisons, refusals)
    written[1].write_text(report(found, comparisons), encoding="utf-8")
    readme.write_text(with_tables(readme.read_text("utf-8"), found, comparisons), "utf-8")
    return written


def with_tables(text: str, found: Validation, comparisons: Sequence[Comparison]) -> str:
    """The README with its tables made new."""
    text = TABLE.sub(lambda m: f"{m[1]}{error_table(found)}\n{m[3]}", text)
    return PEERS.sub(lambda m: f"{m[1]}{peers_table(comparisons, brief=True)}\n{m[3]}", text)


def residuals_text() -> str:
    """data/residuals.json, from the records."""
    return json.dumps(residuals(compare_all()[0]), indent=2) + "\n"


def error_table(found: Validation) -> str:
    """The README's table."""
    return markdown(HEADER, table_rows(found))


def peers_table(comparisons: Sequence[Comparison], *, brief: bool = False) -> str:
    """Other people's calculators on the same rows."""
    return markdown(peers.HEADER, peers.table_rows(comparisons, brief=brief))


def peers_section(comparisons: Sequence[Comparison]) -> str:
    """The report's account of the peers: how they are scored, their table, who is missing."""
    scored = peers.scored()
    sources = dict.fromkeys((row["peer"], row["source"]) for row in scored["rows"])
    return "\n".join([
        f"\n## Peers on the same rows\n\nWritten by `python validation/peers`. {scored['method']} Ours are of all rows of "
        "a suite; a peer's n says how many of them it claims.\n", peers_table(comparisons), "\nSources:\n",
        *(f"- {name}: {source}" for name, source in sources), "\nNot held against a record:\n",
        *(f"- {missing['peer']}: {missing['reason']}" for missing in scored["unavailable"]),
    ])  # fmt: skip


def report(found: Validation, comparisons: Sequence[Comparison]) -> str:
    """validation/report.md."""
    out = [
        "# Predictions against records\n\nWritten by `vram validate --write` from the records in `validation/records/`. "
        "Errors are of the point, as a share of the record; *covered* is the share of records within low and high; *band "
        "width* is the median of high less low. Kinds of evidence are never pooled: gpu and cpu were really executed, fake "
        "ran the real model code under FakeTensor, mock is an engine's own allocator on a pretend device or a dry run.\n",
        error_table(found),
        f"\nBands of modelled lines: {METHOD}. Lines that no record covers (CUDA context, allocator slack) keep the wide "
        "bands of their sources.\n\nNo `gpu` record exists yet.\n" if not any(g.evidence == "gpu" for g in found.groups)
        else f"\nBands of modelled lines: {METHOD}.\n",
    ]  # fmt: skip
    if peers.scored():
        out.append(peers_section(comparisons))
    for model in ENTRIES:
        out.append(f"\n## {model}: quantization x context\n\nWorst error of any component at that cell, by kind of evidence. "
                   "*(weights)*: only the weights of this format are checked.\n")  # fmt: skip
        out.append(markdown(MATRIX_HEADER, matrix_rows(found, model)))
    if found.refusals:
        out.append(f"\n{len(found.refusals)} records are of runs that the calculator refuses to size.")
    return "\n".join(out) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
