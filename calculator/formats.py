"""Storage formats as two integers: elements in a block, bytes of a block. Never a rounded bits-per-weight."""

from __future__ import annotations

from typing import NamedTuple

from calculator.datafiles import read_json
from calculator.units import ceil_div


class Format(NamedTuple):
    """A storage format: `block_elements` elements take `block_bytes` bytes."""

    name: str
    block_elements: int
    block_bytes: int

    def nbytes(self, elements: int) -> int:
        """Bytes of one contiguous row of elements; a started block counts whole."""
        return ceil_div(elements, self.block_elements) * self.block_bytes

    @property
    def bits(self) -> float:
        """Bits an element: a result to show, never an input."""
        return 8 * self.block_bytes / self.block_elements


_RECORDS = read_json("formats.json")["formats"]
FORMATS: dict[str, Format] = {r["name"]: Format(r["name"], r["block_elements"], r["block_bytes"]) for r in _RECORDS}
SOURCES: dict[str, str] = {r["name"]: r["source"] for r in _RECORDS}
