"""Totals over a grid of models, quantizations, contexts and sequences.

Each part is evaluated once per distinct value of the axes that it depends on, the small tables are added first, then
broadcast. The only module of the core with numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calculator.catalog import Model, load_gpus
from calculator.engines import ENGINES, Engine, Job
from calculator.engines.base import Reserves
from calculator.errors import BadValue, CalculatorError, NotModelled
from calculator.estimate import largest_phase, resolve
from calculator.fit import usable_memory

if TYPE_CHECKING:
    import pandas as pd

Table = npt.NDArray[np.int64]
MAX_CELLS = 20_000_000
INT64_SAFE = 2**62
DEFAULTS: dict[str, Any] = {"kv_dtype": None, "engine": None, "engine_version": None, "gpu": None, "gpus": 1, "settings": {}}


@dataclass(frozen=True)
class Parts:
    """The small tables of a grid [bytes]: the total is static[m, q] + dynamic[m][kind[m, q], c, s]."""

    static: Table  # model x quant
    static_high: Table
    kind: npt.NDArray[np.intp]  # model x quant: row of the model's dynamic table
    dynamic: tuple[Table, ...]  # a model: kind x context x sequences
    dynamic_high: tuple[Table, ...]


@dataclass(frozen=True)
class Sweep:
    """A grid and its totals [bytes] over model x quant x context x sequences."""

    models: tuple[str, ...]
    quants: tuple[str, ...]
    contexts: tuple[int, ...]
    sequences: tuple[int, ...]
    engines: tuple[str, ...]  # a quant
    parts: Parts
    total_bytes: Table

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.total_bytes.size

    def high_bytes(self) -> Table:
        """High ends of the bands."""
        return add(self.parts.static_high, self.parts.dynamic_high, self.parts.kind)

    def frame(self, *, all_gpus: bool = False) -> pd.DataFrame:
        """One row a cell; with `all_gpus` the names of all catalog GPUs on which the cell's verdict is "fits"."""
        import pandas as pd

        shape = self.total_bytes.shape
        m, q, c, s = np.indices(shape).reshape(4, -1)
        columns: dict[str, Any] = {
            "model": pd.Categorical(np.asarray(self.models, dtype=object)[m]),
            "quant": pd.Categorical(np.asarray(self.quants, dtype=object)[q]),
            "engine": pd.Categorical(np.asarray(self.engines)[q]),
            "context": np.asarray(self.contexts)[c],
            "sequences": np.asarray(self.sequences)[s],
            "total_bytes": self.total_bytes.reshape(-1),
            "total_high_bytes": self.high_bytes().reshape(-1),
        }
        if all_gpus:
            if reserving := sorted({name for name in self.engines if isinstance(ENGINES[name], Reserves)}):
                raise NotModelled(f"--all-gpus with {reserving[0]}, whose batch limits follow from the GPU", hint="vram recommend MODEL --engine vllm")
            columns["gpus"] = _gpus_that_hold(columns["total_high_bytes"])
        return pd.DataFrame(columns)


def sweep(models: Sequence[Model], quants: Sequence[str], contexts: Sequence[int], sequences: Sequence[int],
          options: dict[str, Any] | None = None) -> Sweep:  # fmt: skip
    """Totals of every combination, equal to `estimate` cell by cell.

    Raises BadValue for a grid that is too large or whose largest cell doesn't fit 64 bits; and what estimate raises.
    """
    cells = len(models) * len(quants) * len(contexts) * len(sequences)
    if not cells:
        raise BadValue("the grid is empty", hint="at least one value for each axis")
    if cells > MAX_CELLS:
        raise BadValue(f"a grid of {cells:,} cells is too large", allowed=f"{MAX_CELLS:,}", hint="fewer steps")
    corner = {"context": max(contexts), "sequences": max(sequences)}
    jobs = [[resolve(m, **{**DEFAULTS, **(options or {}), **corner, "quant": q}) for q in quants] for m in models]
    parts = _parts(jobs, contexts, sequences)
    engines = tuple(engine.name for _, engine in jobs[0])
    ids = tuple(m.spec.id for m in models)
    total = add(parts.static, parts.dynamic, parts.kind)
    return Sweep(ids, tuple(quants), tuple(contexts), tuple(sequences), engines, parts, total)


def formats_that_run(models: Sequence[Model], quants: Sequence[str], contexts: Sequence[int], sequences: Sequence[int],
                     options: dict[str, Any] | None = None) -> tuple[list[str], dict[str, str]]:  # fmt: skip
    """The formats that every model runs in its engine, and why each of the others is left out of the grid.

    Raises what a model says to the first format where it refuses them all.
    """
    left_out: dict[str, str] = {}
    for model in models:
        refused: dict[str, CalculatorError] = {}
        for name in quants:
            try:
                resolve(model, **{**DEFAULTS, **(options or {}), "context": max(contexts), "sequences": max(sequences), "quant": name})
            except CalculatorError as e:
                refused[name] = e
        if quants and len(refused) == len(quants):
            raise next(iter(refused.values()))
        left_out = {name: e.given for name, e in refused.items()} | left_out
    kept = [name for name in quants if name not in left_out]
    if quants and not kept:
        raise BadValue("no format is one that all these models run", hint="--quants naming some, or one model at a time")
    return kept, left_out


def add(static: Table, dynamic: Sequence[Table], kind: npt.NDArray[np.intp]) -> Table:
    """static[m, q] + dynamic[m][kind[m, q], c, s]: gather the small tables, add the smaller one in place."""
    total = np.empty((*static.shape, *dynamic[0].shape[1:]), dtype=np.int64)
    for m, table in enumerate(dynamic):
        np.take(table, kind[m], axis=0, out=total[m], mode="clip")
        total[m] += static[m, :, None, None]
    return total


def _parts(jobs: list[list[tuple[Job, Engine]]], contexts: Sequence[int], sequences: Sequence[int]) -> Parts:
    shape = (len(jobs), len(jobs[0]))
    static, static_high = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
    kind = np.empty(shape, dtype=np.intp)
    tables: list[Table] = []
    for m, row in enumerate(jobs):
        kinds: dict[Any, int] = {}
        model_tables: list[Table] = []
        for q, (job, engine) in enumerate(row):
            static[m, q], static_high[m, q] = _static(job, engine)
            key = engine.dynamic_key(job)
            if key not in kinds:
                kinds[key] = len(kinds)
                model_tables.append(_dynamic(job, engine, contexts, sequences))
            kind[m, q] = kinds[key]
        tables.append(np.stack(model_tables, axis=1))
    return Parts(static, static_high, kind, tuple(t[0] for t in tables), tuple(t[1] for t in tables))


def _static(job: Job, engine: Engine) -> tuple[int, int]:
    """What doesn't depend on context and sequences: the corner's total less its dynamic part."""
    phase = largest_phase(engine, job)
    lines = [
        *engine.weight_lines(job), *engine.cache_lines(job, phase), *engine.activation_lines(job, phase),
        *engine.overhead_lines(job, phase),
    ]  # fmt: skip
    point = sum(line.nbytes for line in lines if line.device != "host")
    high = sum(line.high_bytes for line in lines if line.device != "host")
    if high > INT64_SAFE:
        raise BadValue("the largest cell of the grid is beyond 64 bits", hint="smaller contexts or fewer sequences")
    work = job.workload
    dynamic, dynamic_high = _larger([engine.dynamic(job, p)(work.context, work.sequences) for p in engine.phases(job)])
    return point - dynamic, high - dynamic_high


def _dynamic(job: Job, engine: Engine, contexts: Sequence[int], sequences: Sequence[int]) -> Table:
    """Point and high: 2 x context x sequences."""
    phases = [engine.dynamic(job, phase) for phase in engine.phases(job)]
    cells = [_larger([size(context, count) for size in phases]) for context in contexts for count in sequences]
    return np.array(cells, dtype=np.int64).T.reshape(2, len(contexts), len(sequences))


def _larger(phases: list[tuple[int, int]]) -> tuple[int, int]:
    """Point and high that hold for every phase."""
    return max(point for point, _ in phases), max(high for _, high in phases)


def _gpus_that_hold(high: Table) -> Any:
    usable = sorted((usable_memory(gpu).low_value, gpu.name) for gpu in load_gpus())
    labels = np.array(["; ".join(name for _, name in usable[i:]) for i in range(len(usable) + 1)], dtype=object)
    return labels[np.searchsorted(np.array([u for u, _ in usable]), high, side="left")]
