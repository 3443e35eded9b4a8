"""What every engine has in common: a job in, lines out; settings under the engine's own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

from calculator.datafiles import read_json
from calculator.errors import BadValue
from calculator.ledger import Basis, Line
from calculator.names import nearest
from calculator.quantization import Scheme, Stored
from calculator.spec import Deployment, GpuSpec, ModelSpec, Quantity, Workload
from calculator.steps import Peak
from calculator.units import MAX_COUNT


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a deployment is sized from."""

    model: ModelSpec
    scheme: Scheme
    stored: Stored
    workload: Workload
    deployment: Deployment
    gpu: GpuSpec | None = None
    from_headers: bool = False  # `stored` is what the checkpoint's own headers say, not what its config implies

    @property
    def weights_basis(self) -> Basis:
        """How the stored tensors are known."""
        return "exact" if self.from_headers else "derived"

    @property
    def vendor(self) -> str:
        """Vendor of the GPU; NVIDIA where none is named."""
        return self.gpu.vendor if self.gpu else "NVIDIA"


Dynamic = Callable[[int, int], tuple[int, int]]
"""(context, sequences) -> point and high end of the bytes that depend on them, over all devices."""


class Engine(Protocol):
    """An engine: its versions and settings, and its lines for a job.

    `dynamic` is the part of the total that depends on context and sequences, without making lines; a test holds it to
    the lines. Jobs with equal `dynamic_key` have equal dynamic functions.
    """

    @property
    def name(self) -> str:
        """The engine's name as its makers write it."""
        ...

    @property
    def versions(self) -> tuple[str, ...]:
        """Modelled versions, oldest first."""
        ...

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The engine's own settings."""
        ...

    def phases(self, job: Job) -> tuple[str, ...]:
        """Phases to size; the largest counts."""
        ...

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:
        """The cache type, settled together with the settings. Raises Unsupported."""
        ...

    def check(self, job: Job) -> None:
        """Refuse what the formulas don't cover."""
        ...

    def weight_lines(self, job: Job) -> list[Line]:
        """Weights, by device."""
        ...

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """KV cache, by device."""
        ...

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """Activations or compute buffers, by device."""
        ...

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:
        """Everything else, by device."""
        ...

    def peak(self, job: Job, phase: str) -> Peak:
        """The largest step of the phase."""
        ...

    def kv_bytes_per_token(self, job: Job) -> int:
        """Growth of the cache for one more token of one sequence, before padding [bytes]."""
        ...

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the dynamic bytes depend on beside model, context and sequences."""
        ...

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """The bytes that depend on context and sequences, as a function of them with all else bound."""
        ...

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """All settings in force, those that follow from the workload filled in."""
        ...


class Pool(NamedTuple):
    """What a serving engine sets aside for the cache on each GPU [bytes], and what fits in: tokens over all GPUs."""

    nbytes: int
    low: int
    high: int
    blocks: int
    tokens: int
    max_concurrency: float
    usable: Quantity
    """What weights, activations, overhead and cache may take on one GPU."""
    reserved_bytes: int
    """What the engine takes over all GPUs."""
    queues: bool = False
    """Fewer sequences at once than the workload has."""
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Reserves(Protocol):
    """An engine that takes a pool at start-up, whatever the workload needs of it."""

    def pool(self, job: Job) -> Pool | None:
        """The pool on the job's GPU; None where nothing says how much memory there is."""
        ...

    def for_one(self, job: Job) -> int:
        """Bytes of cache that one sequence of the context takes on a GPU, in whole blocks."""
        ...


@dataclass(frozen=True, slots=True)
class Real:
    """Allowed values of a setting that is not whole: low < value <= high."""

    low: float
    high: float


class Setting(NamedTuple):
    """One knob: its default and what is allowed: a tuple of words, bool, a range of integers, or of real numbers."""

    default: str | int | bool | float | None
    allowed: tuple[str, ...] | type[bool] | range | Real
    meaning: str

    def parse(self, name: str, value: str | int | bool | float) -> str | int | bool | float:
        """The value in its own type. Raises BadValue with what is allowed."""
        text = str(value).strip()
        if self.allowed is bool:
            if text.lower() in ("1", "true", "on", "yes"):
                return True
            if text.lower() in ("0", "false", "off", "no"):
                return False
            raise BadValue(f"{name}={text[:30]!r}", allowed="true or false")
        if isinstance(self.allowed, range):
            if not re.fullmatch(r"-?[0-9]{1,40}", text) or int(text) not in self.allowed:
                shown = f"{self.allowed.start:,} to {self.allowed.stop - 1:,}"
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"a whole number, {shown}")
            return int(text)
        if isinstance(self.allowed, Real):
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text) or not self.allowed.low < float(text) <= self.allowed.high:
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"above {self.allowed.low:g}, up to {self.allowed.high:g}")
            return float(text)
        assert isinstance(self.allowed, tuple)
        if text.lower() not in self.allowed:
            raise BadValue(f"{name}={text[:30]!r}", allowed=", ".join(self.allowed))
        return text.lower()


COUNT = range(1, MAX_COUNT + 1)


def parse_settings(engine: str, table: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, str | int | bool | float]:
    """The given settings in their types. Raises BadValue for a name that the engine doesn't have."""
    for name in given:
        if name not in table:
            near = nearest(name, table)
            raise BadValue(
                f"{engine} has no setting {name[:40]!r} here", allowed=", ".join(table), hint=near[0] if near else ""
            )
    return {name: table[name].parse(name, value) for name, value in given.items()}


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


class ResidualBand(NamedTuple):
    """What a modelled line's predictions were multiplied by to reach the records [ten-thousandths]."""

    low: int
    high: int
    source: str

    def around(self, nbytes: int) -> tuple[int, int]:
        """Low and high of a prediction [bytes]."""
        return nbytes * self.low // 10_000, -(-nbytes * self.high // 10_000)


@lru_cache(maxsize=64)
def residual_band(key: str) -> ResidualBand:
    """The band that the records have earned for a line, from data/residuals.json (`vram validate --write`)."""
    data = read_json("residuals.json")
    band = data["bands"][key]
    source = f"{data['method']}: {band['n']:,} records, {band['left_out_coverage_percent']} % of left-out ones covered"
    return ResidualBand(band["low"], band["high"], source)
