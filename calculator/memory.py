"""Memory of a GPU that a program can use: as a CUDA program sees it, or derived with a band."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from calculator.datafiles import read_json
from calculator.spec import GpuSpec, Quantity
from calculator.units import GIB


def usable_memory(gpu: GpuSpec) -> Quantity:
    """Memory that a program can use on an empty card [bytes]: cuda_total_bytes, or derived with a band.

    Source of the derivation: data/overheads/gpu_memory.json, ratios among the cards where it is known.
    """
    return gpu.cuda_total_bytes or _derived(gpu)


def with_total(gpu: GpuSpec | None, nbytes: int) -> GpuSpec:
    """The card with this total memory, or a nameless one: what an engine's `total_memory_bytes` stands for."""
    total = Quantity(value=nbytes, source="setting total_memory_bytes")
    if gpu is not None:
        return replace(gpu, cuda_total_bytes=total)
    unknown = Quantity(value=0, source="no GPU named", verified=False)
    return GpuSpec(f"GPU of {nbytes:,} bytes", "NVIDIA", "datacenter", total, unknown, cuda_total_bytes=total)


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
