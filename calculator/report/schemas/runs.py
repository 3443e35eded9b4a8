"""vram validate, trace, verify."""

from __future__ import annotations

from typing import Any

from calculator.report.schemas.envelope import Document, Envelope


class GroupRow(Document):
    """Statistics of one engine, component and kind of evidence [percent]."""

    engine: str
    component: str
    evidence: str
    n: int
    exact_percent: float
    median_percent: float
    p95_percent: float
    worst_percent: float
    coverage_percent: float
    band_width_percent: float


class CellRow(Document):
    """One quantization and context of an entry."""

    model: str
    quant: str
    context: int
    worst_percent: dict[str, float]
    components: dict[str, list[str]]
    reason: str


class Validate(Envelope):
    """vram validate --json."""

    groups: list[GroupRow]
    coverage: list[CellRow]
    refused: list[dict[str, str | None]]


class TracedPass(Document):
    """One pass of the real model code under FakeTensor [bytes]."""

    model: str
    phase: str
    weights_bytes: int
    kv_bytes: int
    input_bytes: int
    act_bytes: int
    peak_bytes: int
    peak_module: str
    peak_operator: str
    predicted_act_bytes: int | None
    predicted_step: str | None
    reason: str


class Trace(Envelope):
    """vram trace --json."""

    passes: list[TracedPass]


class VerifiedFigure(Document):
    """A measured figure and its prediction [bytes]."""

    component: str
    predicted: int
    low: int
    high: int
    measured: int
    error_percent: float


class VerifiedRun(Document):
    """One run on the user's GPU."""

    record: dict[str, Any] | None
    reason: str
    figures: list[VerifiedFigure]


class Verify(Envelope):
    """vram verify --json."""

    runs: list[VerifiedRun]
