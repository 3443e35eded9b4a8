"""Bands from residuals: what a modelled line's low and high have earned.

Method: quantiles of recorded / predicted that leave 1.5 % outside, with the finite-sample correction of split conformal
prediction (Vovk 2005; Lei et al. 2018, section 2.2), leaving one architecture out in turn; the band is the widest of
those, so no single architecture makes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from calculator.checks.compare import Comparison

MISCOVERAGE = 0.015
PER = 10_000  # ratios are stored as integers, in ten-thousandths
METHOD = "split conformal quantiles of recorded / predicted, 98.5 %, leaving one architecture out; the widest of those"
BANDED = {("llama.cpp", "compute buffer"): "backend"}  # lines with a band from residuals, and the setting that parts them


class Band(NamedTuple):
    """Factors on a prediction, in ten-thousandths."""

    low: int
    high: int
    n: int
    left_out_coverage_percent: float  # of each architecture by the band of the others
    worst_low: int
    worst_high: int


def bands(comparisons: Iterable[Comparison]) -> dict[str, Band]:
    """A band for each banded line and value of its setting: "llama.cpp/compute buffer/cuda"."""
    found: dict[str, dict[str, list[float]]] = {}
    for c in comparisons:
        setting = BANDED.get((c.record.engine, c.component))
        if setting is not None and c.predicted.point:
            key = f"{c.record.engine}/{c.component}/{c.record.run['settings'][setting]}"
            found.setdefault(key, {}).setdefault(str(c.record.model["id"]), []).append(c.recorded / c.predicted.point)
    return {key: _band(by_architecture) for key, by_architecture in sorted(found.items())}


def _band(by_architecture: dict[str, list[float]]) -> Band:
    every = [ratio for ratios in by_architecture.values() for ratio in ratios]
    low, high = _interval(every)
    covered = 0
    for left_out, ratios in by_architecture.items():
        others = [r for name, rs in by_architecture.items() if name != left_out for r in rs]
        if not others:
            continue
        down, up = _interval(others)
        covered += sum(down <= r <= up for r in ratios)
        low, high = min(low, down), max(high, up)
    return Band(
        math.floor(min(low, 1.0) * PER), math.ceil(max(high, 1.0) * PER), len(every), round(100 * covered / len(every), 1),
        math.floor(min(every) * PER), math.ceil(max(every) * PER),
    )  # fmt: skip


def _interval(ratios: list[float]) -> tuple[float, float]:
    """Lower and upper conformal quantile, each at half the miscoverage."""
    ordered = sorted(ratios)
    n = len(ordered)
    rank = math.ceil((n + 1) * (1 - MISCOVERAGE / 2))
    return ordered[max(0, n - rank)], ordered[min(n, rank) - 1]


def residuals(comparisons: Iterable[Comparison]) -> dict[str, Any]:
    """What `data/residuals.json` holds."""
    return {"method": METHOD, "unit": "ten-thousandths of the prediction",
            "bands": {key: band._asdict() for key, band in bands(comparisons).items()}}  # fmt: skip
