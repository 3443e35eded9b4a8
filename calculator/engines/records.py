"""Numbers that were fitted or measured: data/overheads, and the bands that recorded runs have earned."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from calculator.datafiles import read_json
from calculator.ledger import Basis, Component, Formula, Level, Line


class Record(NamedTuple):
    """A fitted or measured number with its band and where it comes from."""

    id: str
    value: int
    low: int
    high: int
    unit: str
    source: str
    basis: Basis
    note: str
    hardware: str
    software: str


@lru_cache(maxsize=64)
def record(file: str, id: str) -> Record:
    """One record of data/overheads/FILE.json."""
    for entry in read_json(f"overheads/{file}.json")["records"]:
        if entry["id"] == id:
            return Record(**{name: entry[name] for name in Record._fields})
    raise KeyError(id)


def record_line(r: Record, name: str, device: int, *, component: Component = "overhead", level: Level = "process") -> Line:
    """A line whose value is a record."""
    return Line(component, name, r.value, Formula("{v}", {"v": r.value}), r.source, basis=r.basis, low=r.low, high=r.high,
                device=device, level=level, note=r.note)  # fmt: skip


class ResidualBand(NamedTuple):
    """What a modelled line's predictions were multiplied by to reach the records [ten-thousandths]."""

    low: int
    high: int
    source: str

    def around(self, nbytes: int) -> tuple[int, int]:
        """Low and high of a prediction [bytes]."""
        return nbytes * self.low // 10_000, -(-nbytes * self.high // 10_000)


def band_of(r: Record) -> ResidualBand:
    """The band that a record gives, in ten-thousandths."""
    return ResidualBand(r.low, r.high, r.source)


@lru_cache(maxsize=64)
def residual_band(key: str) -> ResidualBand:
    """The band that the records have earned for a line, from data/residuals.json (`vram validate --write`)."""
    data = read_json("residuals.json")
    band = data["bands"][key]
    source = f"{data['method']}: {band['n']:,} records, {band['left_out_coverage_percent']} % of left-out ones covered"
    return ResidualBand(band["low"], band["high"], source)
