"""Does an estimate fit a GPU? Usable memory, headroom and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from calculator.datafiles import read_json
from calculator.estimate import Estimate
from calculator.spec import GpuSpec, Quantity
from calculator.units import GIB

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

    @property
    def headroom_bytes(self) -> int:
        """Usable less required [bytes]; negative where it doesn't fit."""
        return self.usable_bytes - self.required_bytes


class Fit(NamedTuple):
    """The verdict of the worst device, and all devices."""

    verdict: Verdict
    devices: tuple[DeviceFit, ...]

    @property
    def binding(self) -> DeviceFit:
        """The device with the least headroom."""
        return min(self.devices, key=lambda d: d.headroom_bytes)


def usable_memory(gpu: GpuSpec) -> Quantity:
    """Memory that a program can use on an empty card [bytes]: cuda_total_bytes, or derived with a band.

    Source of the derivation: data/overheads/gpu_memory.json, ratios among the cards where it is known.
    """
    return gpu.cuda_total_bytes or _derived(gpu)


def fit(estimated: Estimate, gpu: GpuSpec) -> Fit:
    """Hold an estimate against a GPU: fits (the band's high end is within usable memory), tight (the point is)."""
    usable = usable_memory(gpu)
    devices = []
    for index in estimated.ledger.devices:
        part = estimated.ledger.on(index)
        verdict = judge(part.total_bytes, part.high_bytes, usable)
        devices.append(DeviceFit(index, gpu.name, usable.value, part.total_bytes, part.high_bytes, verdict))
    return Fit(max((d.verdict for d in devices), key=ORDER.index), tuple(devices))


def judge(point: int, high: int, usable: Quantity) -> Verdict:
    """The verdict for one device; a usable memory that is itself a band counts with its low end for "fits"."""
    if high <= usable.low_value:
        return "fits"
    return "tight" if point <= usable.value else "does_not_fit"


@lru_cache(maxsize=1024)
def _derived(gpu: GpuSpec) -> Quantity:
    rules = {r["id"]: r for r in read_json("overheads/gpu_memory.json")["records"]}
    rule = rules[_rule(gpu)]
    base = getattr(gpu, rule["base"]).value
    if "below" in rule:
        value, low, high = base - rule["below"], base - rule["below_high"], base - rule["below_low"]
    else:
        value, low, high = (round(base * rule[name]) for name in ("share", "share_low", "share_high"))
    return Quantity(value=value, low=low, high=high, verified=False, source=f"derived from {rule['base']}: {rule['source']}")


def _rule(gpu: GpuSpec) -> str:
    if gpu.vendor == "Apple":
        return "apple_small" if gpu.memory_sold_bytes.value < 64 * GIB else "apple_large"
    if gpu.vendor != "NVIDIA":
        return gpu.vendor.lower()
    if gpu.nvml_total_bytes is None:
        return "nvidia_from_sold"
    return "nvidia_small" if gpu.nvml_total_bytes.value <= 24 * GIB else "nvidia_large"
