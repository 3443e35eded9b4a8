"""Line and Ledger: what an estimate is made of. A line is never without formula, source and basis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Component = Literal["weights", "kv_cache", "activations", "overhead"]
COMPONENTS: tuple[Component, ...] = ("weights", "kv_cache", "activations", "overhead")

Basis = Literal["exact", "derived", "measured", "modelled"]
BASES: tuple[Basis, ...] = ("exact", "derived", "measured", "modelled")  # strongest to weakest

Level = Literal["allocated", "reserved", "process"]
"""Where a line first shows: in what tensors ask for, in what a caching allocator holds, or only in the process."""


@dataclass(frozen=True, slots=True)
class Formula:
    """An expression with its symbols' values; rendered only when somebody reads it.

    `template` is arithmetic over {symbols} with ×, / and +, words in parentheses explain; or a function that makes it.
    A test evaluates the rendered text and holds it to the line's bytes.
    """

    template: str | Callable[[], str]
    values: Mapping[str, int | str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not isinstance(self.template, str):
            return self.template()
        return self.template.format_map(
            {k: f"{v:,}" if isinstance(v, int) else v for k, v in self.values.items()}
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One part of the memory on one device [bytes]. `device` is an index, or "host" for memory beside the GPUs."""

    component: Component
    name: str
    nbytes: int
    formula: Formula
    source: str
    basis: Basis = "derived"
    low: int = -1  # -1: the line is a point
    high: int = -1
    device: int | Literal["host"] = 0
    level: Level = "allocated"
    note: str = ""

    @property
    def low_bytes(self) -> int:
        """Low end of the band [bytes]."""
        return self.nbytes if self.low < 0 else self.low

    @property
    def high_bytes(self) -> int:
        """High end of the band [bytes]."""
        return self.nbytes if self.high < 0 else self.high


@dataclass(frozen=True, slots=True)
class Ledger:
    """The lines of one deployment. Sums are over the accelerators; host memory is apart."""

    lines: tuple[Line, ...]

    @classmethod
    def of(cls, *groups: Iterable[Line]) -> Ledger:
        """Join groups of lines."""
        return cls(tuple(line for group in groups for line in group))

    @property
    def on_devices(self) -> tuple[Line, ...]:
        """The lines that count towards the accelerators."""
        return tuple(line for line in self.lines if line.device != "host")

    @property
    def total_bytes(self) -> int:
        """Sum over the accelerators [bytes]."""
        return sum(line.nbytes for line in self.lines if line.device != "host")

    @property
    def low_bytes(self) -> int:
        """Sum of the low ends [bytes]."""
        return sum(line.low_bytes for line in self.lines if line.device != "host")

    @property
    def high_bytes(self) -> int:
        """Sum of the high ends [bytes]."""
        return sum(line.high_bytes for line in self.lines if line.device != "host")

    @property
    def host_bytes(self) -> int:
        """Memory beside the accelerators [bytes]."""
        return sum(line.nbytes for line in self.lines if line.device == "host")

    @property
    def basis(self) -> Basis:
        """The weakest basis among the lines."""
        return max((line.basis for line in self.on_devices), key=BASES.index, default="exact")

    @property
    def devices(self) -> tuple[int, ...]:
        """Indices of the accelerators that hold something."""
        return tuple(sorted({line.device for line in self.lines if isinstance(line.device, int)}))

    def component_bytes(self, component: Component) -> int:
        """Sum of one component over the accelerators [bytes]."""
        return sum(line.nbytes for line in self.lines if line.component == component and line.device != "host")

    def level_bytes(self, *levels: Level) -> int:
        """Sum over the accelerators of the lines that show at these levels [bytes]."""
        return sum(line.nbytes for line in self.lines if line.level in levels and line.device != "host")

    def on(self, device: int) -> Ledger:
        """The part of one accelerator."""
        return Ledger(tuple(line for line in self.lines if line.device == device))


def alike(lines: Iterable[Line], same: Callable[[Line], object] | None = None) -> list[tuple[Line, list[int | Literal["host"]]]]:
    """Lines that several devices hold alike, as tensor-parallel ranks do, once; with the devices. `same`: what of a line has to be equal, else all."""
    found: dict[object, tuple[Line, list[int | Literal["host"]]]] = {}
    for line in lines:
        key = same(line) if same else (line.component, line.name, line.nbytes, line.low_bytes, line.high_bytes, line.basis, str(line.formula), line.source, line.note, line.device == "host")
        found.setdefault(key, (line, []))[1].append(line.device)
    return list(found.values())


def places(devices: Sequence[object]) -> str:
    """Devices in a few signs: 0, 1 or 0-7 or host."""
    first, last = devices[0], devices[-1]
    if first == "host":
        return "host" if len(devices) == 1 else f"host, {len(devices)} times"
    run = len(devices) > 2 and isinstance(first, int) and isinstance(last, int) and last - first == len(devices) - 1
    return f"{first}-{last}" if run else ", ".join(map(str, devices))
