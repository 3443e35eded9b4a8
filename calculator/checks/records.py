"""Recorded runs: one JSON object a line, written by `validation/probe.py` or imported with their origin.

A record says what was run (full model dimensions, format, workload, engine settings), what was measured in bytes, where
(versions, device, date), and its kind of evidence: gpu and cpu were really executed, fake ran the real model code under
FakeTensor, mock is an engine's own allocator on a pretend device or a dry run, log is public.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from calculator.errors import UnreadableFile
from calculator.readers.untrusted import shown

RECORDS = Path(__file__).parents[2] / "validation" / "records"  # in a checkout; a wheel carries only the residuals
EVIDENCE = ("gpu", "cpu", "fake", "mock", "log")
_FIELDS = ("suite", "evidence", "engine", "engine_version", "model", "run", "measured", "environment")


class Record(NamedTuple):
    """One run."""

    suite: str
    evidence: str
    engine: str
    engine_version: str
    model: dict[str, Any]
    run: dict[str, Any]
    measured: dict[str, int]
    environment: dict[str, Any]


def read_records(folder: Path = RECORDS) -> list[Record]:
    """All records of a folder, in the order of file names. Raises UnreadableFile with file and line."""
    if not folder.is_dir():
        where = "an installed package" if folder == RECORDS else shown(folder)
        raise UnreadableFile(f"{where} holds no recorded runs", hint="vram validate in a checkout of the repository, which carries them")
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".jsonl", ".jsonl.gz")))
    return [record for path in files for record in _read(path)]


def _read(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            record = Record(*(entry[name] for name in _FIELDS))
        except (ValueError, KeyError, TypeError) as e:
            raise UnreadableFile(f"{path.name} line {number} is not a record ({e})", hint="removing the line") from None
        if record.evidence not in EVIDENCE:
            raise UnreadableFile(f"{path.name} line {number}: evidence {record.evidence!r}", allowed=", ".join(EVIDENCE))
        yield record
