"""Writes what the records say: validation/report.md, the README's error table, data/residuals.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from calculator.checks.bands import METHOD, residuals
from calculator.checks.compare import compare
from calculator.checks.records import RECORDS, read_records
from calculator.checks.validate import ENTRIES, HEADER, MATRIX_HEADER, Validation, matrix_rows, table_rows, validate
from calculator.datafiles import DATA, read_json
from calculator.engines.base import residual_band
from calculator.errors import UnreadableFile

ROOT = RECORDS.parents[1]
TABLE = re.compile(r"(<!-- error table -->\n)(.*?)(<!-- end of error table -->)", re.DOTALL)


def write_all() -> list[Path]:
    """Bands first, then the tables with those bands. Raises UnreadableFile outside a checkout."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        raise UnreadableFile("--write works in a checkout of the repository only", hint="vram validate")
    written = [DATA / "residuals.json", ROOT / "validation" / "report.md", readme]
    records = read_records()
    written[0].write_text(residuals_text(), encoding="utf-8")
    read_json.cache_clear()
    residual_band.cache_clear()
    found = validate(records)
    written[1].write_text(report(found), encoding="utf-8")
    readme.write_text(TABLE.sub(lambda m: f"{m[1]}{error_table(found)}\n{m[3]}", readme.read_text("utf-8")), "utf-8")
    return written


def residuals_text() -> str:
    """data/residuals.json, from the records."""
    return json.dumps(residuals(compare(read_records())[0]), indent=2) + "\n"


def error_table(found: Validation) -> str:
    """The README's table."""
    return markdown(HEADER, table_rows(found))


def report(found: Validation) -> str:
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
