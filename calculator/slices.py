"""Parts of a GPU as devices: MIG slices with their own memory, and plain fractions that a scheduler enforces."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from calculator.datafiles import read_json
from calculator.errors import BadValue, Unsupported
from calculator.memory import usable_memory
from calculator.names import key
from calculator.spec import GpuSpec, Quantity

MIG_SOURCE = "NVIDIA MIG User Guide, Supported MIG Profiles: eighths of the memory, sevenths of the multiprocessors"
PRINTED_SHARES = (91, 99, 100)  # least, middle and most that a printed slice has of its part of the card [percent]
_MIG = re.compile(r"(.*?)[\s:/-]*(?:mig)?[\s:-]*(\d)g[.]?(\d{1,3})gb", re.IGNORECASE)
_FRACTION = re.compile(r"(.*\S)\s*:\s*(\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})")


def part_of(name: str, load: Callable[[str], GpuSpec]) -> GpuSpec | None:
    """The part that a name like "H100 MIG 3g.40gb" or "H100:0.5" means; None where it names no part.

    Raises Unsupported with the card's profiles, and whatever `load` raises for the card.
    """
    if match := _MIG.fullmatch(name.strip()):
        return _slice(load(match[1]), f"{match[2]}g.{match[3]}gb")
    if match := _FRACTION.fullmatch(name.strip()):
        return _fraction(load(match[1]), float(match[2]))
    return None


def profiles(gpu: GpuSpec) -> tuple[str, ...]:
    """MIG profiles of a card."""
    return tuple(dict.fromkeys((*_measured(gpu), *_by_fraction(gpu))))


class Slice(NamedTuple):
    """Part of a card's memory and multiprocessors: (part, whole); its usable memory where somebody printed it."""

    memory: tuple[int, int]
    compute: tuple[int, int]
    usable: Quantity | None = None


def _measured(gpu: GpuSpec) -> dict[str, Slice]:
    records = (r for r in read_json("slices.json")["slices"] if key(r["parent"]) == key(gpu.name))
    return {r["profile"]: Slice((r["memory_slices"], 8), (r["compute_slices"], 7), Quantity(**r["cuda_total_bytes"])) for r in records}


def _by_fraction(gpu: GpuSpec) -> dict[str, Slice]:
    tables = (r["profiles"] for r in read_json("slices.json")["by_fraction"] if gpu.name in r["parents"])
    return {name: Slice((a, b), (c, d)) for table in tables for name, (a, b, c, d) in table.items()}


def _slice(gpu: GpuSpec, profile: str) -> GpuSpec:
    known = {**_by_fraction(gpu), **_measured(gpu)}
    if not known:
        raise Unsupported(f"{gpu.name} has no MIG profile here", hint=f"--gpu '{gpu.name}:0.5' for a plain fraction")
    if profile not in known:
        raise Unsupported(f"{gpu.name} has no MIG profile {profile}", allowed=", ".join(profiles(gpu)))
    memory, compute, usable = known[profile]
    return replace(
        gpu, name=f"{gpu.name} MIG {profile}", aliases=(), nvml_total_bytes=None, cuda_total_bytes=usable or _share(gpu, *memory),
        memory_sold_bytes=_times(gpu.memory_sold_bytes, *memory), bandwidth_bytes_per_s=_times(gpu.bandwidth_bytes_per_s, *memory),
        bf16_dense_flops=_times(gpu.bf16_dense_flops, *compute) if gpu.bf16_dense_flops else None,
        fp8_dense_flops=_times(gpu.fp8_dense_flops, *compute) if gpu.fp8_dense_flops else None,
        notes=f"MIG: {memory[0]}/{memory[1]} of the memory, {compute[0]}/{compute[1]} of the multiprocessors; no NVLink between slices",
    )  # fmt: skip


def _share(gpu: GpuSpec, part: int, whole: int) -> Quantity:
    """Usable memory of a slice that nobody printed: by those that were (slices.json), of their part of the card's."""
    card = usable_memory(gpu)
    low, point, high = (quantity * share for quantity, share in zip((card.low_value, card.value, card.high or card.value), PRINTED_SHARES, strict=True))
    return Quantity(value=point * part // whole // 100, low=low * part // whole // 100, high=high * part // whole // 100,
                    source=f"{part}/{whole} of {card.source}; {MIG_SOURCE}", verified=False)  # fmt: skip


def _times(quantity: Quantity, part: int, whole: int) -> Quantity:
    return Quantity(value=quantity.value * part // whole, source=f"{part}/{whole} of {quantity.source}; {MIG_SOURCE}", verified=quantity.verified)


def _fraction(gpu: GpuSpec, share: float) -> GpuSpec:
    """A share of the memory; bandwidth and compute are shared with others and stay the card's, an upper bound."""
    if not 0 < share < 1:
        raise BadValue(f"{share:g} of {gpu.name}", allowed="a share above 0, below 1", hint=f"--gpu '{gpu.name}:0.5', or --gpus {max(2, int(share))} for several")

    def of(quantity: Quantity | None) -> Quantity | None:
        if quantity is None:
            return None
        return Quantity(
            value=int(quantity.value * share), low=None if quantity.low is None else int(quantity.low * share),
            high=None if quantity.high is None else int(quantity.high * share), source=f"{share:g} of {quantity.source}", verified=quantity.verified,
        )  # fmt: skip

    sold = of(gpu.memory_sold_bytes)
    assert sold is not None
    return replace(gpu, name=f"{gpu.name}:{share:g}", aliases=(), memory_sold_bytes=sold, nvml_total_bytes=of(gpu.nvml_total_bytes),
                   cuda_total_bytes=of(gpu.cuda_total_bytes), notes="a share of the memory; bandwidth and compute are shared")  # fmt: skip
