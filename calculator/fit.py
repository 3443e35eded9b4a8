"""Does an estimate fit a GPU? Usable memory, headroom and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from calculator.engines.base import Job, Pool, Reserves
from calculator.estimate import Estimate
from calculator.ledger import Ledger
from calculator.memory import usable_memory as usable_memory
from calculator.spec import GpuSpec, Quantity
from calculator.units import gib

Verdict = Literal["fits", "tight", "does_not_fit"]
ORDER: tuple[Verdict, ...] = ("fits", "tight", "does_not_fit")


@dataclass(frozen=True, slots=True)
class DeviceFit:
    """One device: what it needs and what it has [bytes]."""

    index: int
    gpu: str
    usable_bytes: int
    required_bytes: int
    high_bytes: int
    verdict: Verdict
    beside_bytes: int = 0  # of what is required, what has its room beside the usable share: a server's CUDA graphs

    @property
    def headroom_bytes(self) -> int:
        """What is left of the usable memory [bytes]; negative where it doesn't fit."""
        return self.usable_bytes - (self.required_bytes - self.beside_bytes)


class Fit(NamedTuple):
    """The verdict of the worst device, and all devices."""

    verdict: Verdict
    devices: tuple[DeviceFit, ...]

    @property
    def binding(self) -> DeviceFit:
        """The device with the least headroom."""
        return min(self.devices, key=lambda d: d.headroom_bytes)


def fit(estimated: Estimate, gpu: GpuSpec) -> Fit:
    """Hold an estimate against a GPU: fits (the band's high end is within usable memory), tight (the point is)."""
    engine, ledger = estimated.engine, estimated.ledger
    if isinstance(engine, Reserves):
        job = _on(estimated, gpu)
        ledger = _ledger_on(estimated, gpu)
        if (pool := engine.pool(job)) is not None:
            return _fit_reserving(estimated, engine, gpu, pool, ledger)
    usable = usable_memory(gpu)
    devices = []
    for index in ledger.devices:
        part = ledger.on(index)
        verdict = judge(part.total_bytes, part.high_bytes, usable)
        devices.append(DeviceFit(index, gpu.name, usable.value, part.total_bytes, part.high_bytes, verdict))
    return Fit(max((d.verdict for d in devices), key=ORDER.index), tuple(devices))


def _ledger_on(estimated: Estimate, gpu: GpuSpec) -> Ledger:
    """The lines of a server on this GPU: batches follow from its memory."""
    if gpu == estimated.job.gpu:
        return estimated.ledger
    job, runner = _on(estimated, gpu), estimated.engine
    return Ledger.of(runner.weight_lines(job), runner.cache_lines(job, estimated.phase), runner.activation_lines(job, estimated.phase),
                     runner.overhead_lines(job, estimated.phase))  # fmt: skip


def _fit_reserving(estimated: Estimate, engine: Reserves, gpu: GpuSpec, pool: Pool, ledger: Ledger) -> Fit:
    """Weights, activations, overhead and one sequence within what the engine takes; `required` is all the workload's.

    Fewer sequences at once than asked is tight: the others queue. What the engine allocates beside its share (CUDA graphs)
    must find room in the rest of the card. Source: docs/method.md, Serving engines.
    """
    job = _on(estimated, gpu)
    one, devices = engine.for_one(job), []
    given, total = job.deployment.settings.get("kv_pool_bytes"), usable_memory(gpu)
    usable = total if given else pool.usable
    for index in ledger.devices:
        part = ledger.on(index)
        beside = Ledger(tuple(line for line in part.lines if line.name in engine.beside))
        cache = part.component_bytes("kv_cache")
        needed = int(given) if given else one
        verdict = judge(part.total_bytes - beside.total_bytes - cache + needed, part.high_bytes - beside.high_bytes - cache + needed, usable)
        if verdict == "fits" and not given and sum(line.high_bytes for line in beside.lines if line.name != "CUDA context") > pool.room:
            verdict = "tight"
        if pool.nbytes < one or pool.crowded or pool.refusal:
            verdict = "does_not_fit"
        elif verdict == "fits" and pool.queues:
            verdict = "tight"
        outside = 0 if given else min(beside.total_bytes, pool.room)
        devices.append(DeviceFit(index, gpu.name, usable.value, part.total_bytes, part.high_bytes, verdict, outside))
    return Fit(max((d.verdict for d in devices), key=ORDER.index), tuple(devices))


def shortfall(estimated: Estimate, gpu: GpuSpec) -> str:
    """What stops it: "needs X, usable Y: Z short", or how far the band of what is only tight reaches."""
    held = fit(estimated, gpu)
    device = min((d for d in held.devices if d.verdict == held.verdict), key=lambda d: d.headroom_bytes)
    needs = f"needs {gib(device.required_bytes)}"
    if held.verdict == "does_not_fit":
        if device.headroom_bytes < 0:
            return f"{needs}, usable {gib(device.usable_bytes)}: {gib(-device.headroom_bytes)} short"
        return f"{needs}, usable {gib(device.usable_bytes)}: {why_refused(estimated, gpu)}"
    usable = usable_memory(gpu)
    sure = f" (at least {gib(usable.low_value)})" if usable.low_value < usable.value == device.usable_bytes else ""
    return f"is tight: {needs}, up to {gib(device.high_bytes)}, usable {gib(device.usable_bytes)}{sure}"


def _on(estimated: Estimate, gpu: GpuSpec) -> Job:
    """The job on this GPU: the same object where it is its own."""
    return estimated.job if gpu is estimated.job.gpu else replace(estimated.job, gpu=gpu)


def why_refused(estimated: Estimate, gpu: GpuSpec) -> str:
    """What stops a start where all lines have room."""
    pool = estimated.engine.pool(_on(estimated, gpu)) if isinstance(estimated.engine, Reserves) else None
    if pool is None or not pool.refusal:
        return "what is left for the cache holds no sequence"
    fewer = f"; try --set max_num_seqs={1 << pool.blocks.bit_length() - 1}" if pool.short_of_states and pool.blocks else ""
    return pool.refusal.partition(". ")[0] + fewer


def fit_together(estimates: Sequence[Estimate], gpu: GpuSpec) -> Fit:
    """Several processes on the same GPUs, each counted from the first: what they hold adds up on every one.

    An engine that reserves holds its share, whatever the workload needs of it, and what lies beside the share.
    """
    usable = usable_memory(gpu)
    held: dict[int, tuple[int, int]] = {}
    for estimated in estimates:
        for index in estimated.ledger.devices:
            point, high = _held(estimated, index, gpu)
            before = held.get(index, (0, 0))
            held[index] = (before[0] + point, before[1] + high)
    devices = tuple(DeviceFit(i, gpu.name, usable.value, point, high, judge(point, high, usable)) for i, (point, high) in sorted(held.items()))
    alone = [fit(estimated, gpu).verdict for estimated in estimates]
    worst = max((*(d.verdict for d in devices), *alone), key=ORDER.index)
    return Fit(worst, devices)


def _held(estimated: Estimate, index: int, gpu: GpuSpec) -> tuple[int, int]:
    part = estimated.ledger.on(index)
    if not isinstance(estimated.engine, Reserves):
        return part.total_bytes, part.high_bytes
    pool = estimated.engine.pool(_on(estimated, gpu))
    if pool is None:  # an encoder's server makes none
        return part.total_bytes, part.high_bytes
    beside = Ledger(tuple(line for line in part.lines if line.name in estimated.engine.beside))
    if estimated.job.deployment.settings.get("kv_pool_bytes"):
        inside = part.total_bytes - beside.total_bytes - part.component_bytes("kv_cache") + pool.nbytes
        return inside + beside.total_bytes, inside + beside.high_bytes
    return pool.usable.value + beside.total_bytes, (pool.usable.high or pool.usable.value) + beside.high_bytes


def judge(point: int, high: int, usable: Quantity) -> Verdict:
    """The verdict for one device; a usable memory that is itself a band counts with its low end for "fits"."""
    if high <= usable.low_value:
        return "fits"
    return "tight" if point <= usable.value else "does_not_fit"
