"""Each recorded figure beside what `estimate` says today for the same run."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from typing import NamedTuple

from calculator.catalog import Model, load_model
from calculator.checks.records import Record, read_records
from calculator.engines import ENGINES, describes
from calculator.engines.base import Reserves
from calculator.engines.ranks import shares_of
from calculator.engines.sglang.pool import layers_of, row_bytes
from calculator.engines.sglang.states import PADDING, slot_bytes
from calculator.errors import CalculatorError
from calculator.estimate import Estimate, estimate
from calculator.ledger import Line
from calculator.readers.hf_config import model_from_config
from calculator.units import GIB


class Figure(NamedTuple):
    """Prediction and band [bytes]."""

    point: int
    low: int
    high: int


class Comparison(NamedTuple):
    """One figure of one record, and its prediction."""

    record: Record
    component: str
    predicted: Figure
    recorded: int
    rounding: int = 0
    """Half the last digit of what a log prints [bytes]."""

    @property
    def error(self) -> float:
        """Relative error of the point, against the record; none where they agree to the record's last digit."""
        if self.rounding and self.exact:
            return 0.0
        return self.predicted.point / self.recorded - 1 if self.recorded else float(self.predicted.point != 0)

    @property
    def exact(self) -> bool:
        """Whether the point is what was recorded, as far as the record's digits tell."""
        return abs(self.predicted.point - self.recorded) <= self.rounding

    @property
    def covered(self) -> bool:
        """Whether the band holds the record, to half its last printed digit."""
        return self.predicted.low - self.rounding <= self.recorded <= self.predicted.high + self.rounding

    @property
    def width(self) -> float:
        """Width of the band, as a share of the record."""
        return (self.predicted.high - self.predicted.low) / max(self.recorded, 1)


Sized = list[tuple[str, Figure, int, int]]  # component, prediction, record, rounding
_WORTH_PROCESSES = 256  # records


class Refusal(NamedTuple):
    """A record of a run that the calculator refuses to size."""

    record: Record
    reason: str


def compare(records: Iterable[Record]) -> tuple[list[Comparison], list[Refusal]]:
    """Predict every recorded figure; runs without formulas are told apart, not dropped."""
    comparisons: list[Comparison] = []
    refusals: list[Refusal] = []
    asked = list(records)
    for record, sized in zip(asked, _all_sized(asked), strict=True):
        if isinstance(sized, str):
            refusals.append(Refusal(record, sized))
            continue
        comparisons += [Comparison(record, component, figure, recorded, rounding) for component, figure, recorded, rounding in sized]
    return comparisons, refusals


@lru_cache(maxsize=1)
def compare_all() -> tuple[list[Comparison], list[Refusal]]:
    """Of all records; once a process, as it takes a while."""
    return compare(read_records())


def _all_sized(records: list[Record]) -> Iterable[Sized | str]:
    if len(records) < _WORTH_PROCESSES or multiprocessing.parent_process() is not None:
        return map(_sized, records)
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_sized, records, chunksize=_WORTH_PROCESSES // 4))


def _sized(record: Record) -> Sized | str:
    """A record's figures with their predictions, or why there are none."""
    if record.suite == "training":
        return "training steps have no formulas yet"
    try:
        estimated = _estimate(record)
    except CalculatorError as e:
        return str(e)
    found: Sized = []
    for name, recorded in record.measured.items():
        if name in FIGURES:
            component, pick = FIGURES[name]
            if (figure := pick(estimated)) is not None:
                apart = ", AMD" if record.evidence == "log" and record.engine in ("vllm", "sglang") and estimated.job.vendor == "AMD" else ""
                found.append((component + apart, figure, recorded, _rounding(record, name)))
    return found


def _rounding(record: Record, name: str) -> int:
    if "rounding_bytes" in record.environment:
        return int(record.environment["rounding_bytes"])
    printed = str(record.environment.get("printed", {}).get(name, ""))
    return -(-GIB // (2 * 10 ** len(printed.partition(".")[2]))) if printed else 0


def _lines(*, component: str = "", name: str = "", host: bool = False) -> Callable[[Estimate], Figure]:
    def pick(estimated: Estimate) -> Figure:
        def wanted(line: Line) -> bool:
            place = (line.device == "host") == host
            return place and component in ("", line.component) and name in ("", line.name)

        return _sum(line for line in estimated.ledger.lines if wanted(line))

    return pick


def _model_buffers(*, host: bool) -> Callable[[Estimate], Figure]:
    return lambda e: _sum(line for line in e.ledger.lines if line.name.startswith("model buffer") and (line.device == "host") == host)


def _generate(estimated: Estimate) -> Figure:
    """All tensors of a run of generate(), as a CPU holds them: without CUDA's workspace."""
    return _sum(n for n in estimated.ledger.on_devices if n.component != "overhead" or n.name == "input ids")


def _printed_tokens(estimated: Estimate) -> Figure | None:
    """Tokens of a pool that is printed to 0.01 GiB: the band is what its rounding leaves open."""
    pool = estimated.pool
    if pool is None or not pool.tokens:
        return None
    open_ = GIB // 200 * pool.tokens // pool.nbytes + pool.tokens // pool.blocks
    return Figure(pool.tokens, pool.tokens - open_, pool.tokens + open_)


def _pool_tokens(estimated: Estimate) -> Figure | None:
    pool = estimated.pool
    if pool is None or not pool.tokens:
        return None
    return Figure(pool.tokens, pool.tokens * max(pool.low, 0) // pool.nbytes, pool.tokens * pool.high // pool.nbytes)


def _rank(*, component: str = "", name: str = "") -> Callable[[Estimate], Figure]:
    """On the first rank of the last pipeline stage, which prints a serving engine's figures."""

    def pick(estimated: Estimate) -> Figure:
        deployment = estimated.job.deployment
        ranks = next((int(deployment.settings[s]) for s in ("tensor_parallel_size", "tp_size") if s in deployment.settings), 1)
        lines = estimated.ledger.on(deployment.gpus - ranks).lines
        return _sum(line for line in lines if component in ("", line.component) and name in ("", line.name))

    return pick


def _keys(*, near: bool) -> Callable[[Estimate], Figure]:
    """Of the printed tokens and a page for padded ones, in the layers with a window or in the others: SGLang prints each pool."""

    def pick(estimated: Estimate) -> Figure:
        job, pool = estimated.job, estimated.pool
        layers, tokens = layers_of(job, shares_of(job)[0])[near], pool.tokens if pool else 0
        if near:
            tokens = int(tokens * float(job.deployment.settings["swa_full_tokens_ratio"]))
        tokens += int(job.deployment.settings["page_size"])
        return Figure(*(tokens * layers * row_bytes(job, near=near) // 2,) * 3)

    return pick


def _states(estimated: Estimate) -> Figure:
    """Of as many slots as there are requests, and a padded one."""
    job = estimated.job
    return Figure(*((job.workload.sequences + PADDING) * slot_bytes(job, shares_of(job)[0]),) * 3)


def _levels(*levels: str) -> Callable[[Estimate], Figure]:
    return lambda e: _sum(line for line in e.ledger.on_devices if line.level in levels)


def _sum(lines: Iterable[Line]) -> Figure:
    found = list(lines)
    return Figure(sum(n.nbytes for n in found), sum(n.low_bytes for n in found), sum(n.high_bytes for n in found))


def _tensors(estimated: Estimate) -> Figure:
    return Figure(*(estimated.tensor_bytes,) * 3)


# a record's figure -> the component it is one of, and where an estimate has it
FIGURES: dict[str, tuple[str, Callable[[Estimate], Figure | None]]] = {
    "weights_bytes": ("weights", _lines(component="weights")),
    "kv_bytes": ("kv_cache", _lines(component="kv_cache")),
    "act_bytes": ("activations", _lines(component="activations")),
    "tensor_bytes": ("weights", _tensors),
    "model_buffer_bytes": ("model buffer", _model_buffers(host=False)),
    "host_model_buffer_bytes": ("model buffer, host", _model_buffers(host=True)),
    "lora_bytes": ("LoRA buffer", _lines(name="LoRA buffer")),
    "host_lora_bytes": ("LoRA buffer, host", _lines(name="LoRA buffer", host=True)),
    "host_kv_bytes": ("kv_cache, host", _lines(component="kv_cache", host=True)),
    "compute_bytes": ("compute buffer", _lines(name="compute buffer")),
    "host_compute_bytes": ("compute buffer, host", _lines(name="compute buffer, host", host=True)),
    "output_bytes": ("output buffer", lambda e: _sum(line for line in e.ledger.lines if line.name == "output buffer")),
    "generate_peak_bytes": ("peak of generate()", _generate),
    "rank_weights_bytes": ("weights", _rank(component="weights")),
    "request_table_bytes": ("request table", _rank(name="request table")),
    "peak_activation_bytes": ("activations", _rank(component="activations")),
    "non_torch_bytes": ("non-torch memory", _rank(name="non-torch memory")),
    "cuda_graphs_bytes": ("CUDA graphs", _rank(name="CUDA graphs")),
    "profiled_graphs_bytes": ("CUDA graphs", _rank(name="CUDA graphs, profiled")),
    "pool_bytes": ("kv pool", lambda e: Figure(e.pool.nbytes, e.pool.low, e.pool.high) if e.pool else None),
    "keys_bytes": ("keys of the printed tokens", _keys(near=False)),
    "rows_bytes": ("compressed rows of the printed tokens", lambda e: Figure(*(e.pool.nbytes,) * 3) if e.pool else None),
    "near_keys_bytes": ("keys of the printed tokens, windowed", _keys(near=True)),
    "states_bytes": ("recurrent states of the printed slots", _states),
    "whole_pool_tokens": ("tokens of the whole pool", _pool_tokens),
    "pool_tokens": ("tokens of the printed pool", _printed_tokens),
    "allocated_bytes": ("allocated", _levels("allocated")),
    "reserved_bytes": ("reserved", _levels("allocated", "reserved")),
    "process_bytes": ("process", _levels("allocated", "reserved", "process")),
}


def _estimate(record: Record) -> Estimate:
    run = dict(record.run)
    settings = dict(run.get("settings", {}))
    if "n_ctx" in settings:  # a context of llama.cpp: its cells are what was asked for
        slots = int(settings.get("n_seq_max", 1))
        run |= {"context": max(1, int(settings["n_ctx"]) // slots), "sequences": slots}
    if "output_tokens" in run:  # generate() of a few tokens: the prompt's pass is the peak
        run |= {"context": run["context"] - run["output_tokens"], "phase": "prefill"}
        settings["generate"] = True
    if "phase" in run:
        settings["phase"] = run["phase"]
    if "printed_pool_bytes" in run:  # tokens are held against the pool as printed, not as predicted
        settings["kv_pool_bytes"] = run["printed_pool_bytes"]
    if record.engine == "llama.cpp" and record.evidence != "log":  # files that its own quantizer made
        settings.setdefault("quantizer", "2026")
    version = record.engine_version if describes(ENGINES[record.engine], record.engine_version) else None  # else today's
    return estimate(
        _model(json.dumps(record.model, sort_keys=True)), quant=run.get("quant"), context=run.get("context", 1024),
        sequences=run.get("sequences", 1), kv_dtype=run.get("kv_dtype"), engine=record.engine, settings=settings, gpu=run.get("gpu"),
        gpus=run.get("gpus", 1), engine_version=version, partial=isinstance(ENGINES[record.engine], Reserves) or record.evidence == "log",
    )  # fmt: skip


@lru_cache(maxsize=512)
def _model(text: str) -> Model:
    config = json.loads(text)
    if "hidden_size" not in config:  # a model of the catalog, by name
        return load_model(str(config["id"]))
    spec = model_from_config(config, id=str(config.get("id", "recorded")))
    return Model(spec, {"name": spec.id, "family": spec.model_type, "sources": {"config": "record"}})
