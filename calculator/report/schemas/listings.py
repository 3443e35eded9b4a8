"""vram audit, report, models, gpus, quants, engines, inspect."""

from __future__ import annotations

from typing import Any, Literal

from calculator.report.schemas.envelope import Document, Envelope


class ClaimRow(Document):
    """One published claim."""

    field: str
    claimed: int | float | str
    implied: int | float | None
    released: int | float | str | None
    ratio: float | None
    verdict: Literal["agrees", "contradicts", "not checkable"]
    source: str


class ReconcilingSet(Document):
    """A minimal set of changes."""

    changes: dict[str, int | str]
    parameters: int
    agrees_with_released: bool


class Audit(Envelope):
    """vram audit --json."""

    model: str
    claims: list[ClaimRow]
    reconciling_sets: list[ReconcilingSet]
    notes: list[str]


class SizedModel(Document):
    """One model of a sizing report."""

    model: str
    spec: list[dict[str, str]]
    rows: list[dict[str, int | str]]
    refused: list[dict[str, str]]
    recommendations: list[dict[str, str | list[dict[str, str]]]]


class Report(Envelope):
    """vram report --json."""

    reports: list[SizedModel]


class ModelRow(Document):
    """One model: parameters without MTP layers, those that a token uses, the vision tower's and the MTP layers' apart."""

    id: str
    parameters: int
    active_parameters: int
    vision_parameters: int
    mtp_parameters: int
    family: str
    name: str
    hf_id: str | None
    source: str
    file: str
    unverified: list[str]
    verdict: str | None


class NotSized(Document):
    """A model that a search left out, and why."""

    id: str
    why: str


class Models(Envelope):
    """vram models --json."""

    models: list[ModelRow]
    user_folder: str
    not_sized: list[NotSized]


class GpuRow(Document):
    """One catalog GPU."""

    name: str
    vendor: str
    memory_sold_bytes: int
    nvml_total_bytes: int | None
    cuda_total_bytes: int | None
    bandwidth_bytes_per_s: int
    sources: dict[str, str]
    unverified: list[str]
    segment: str
    compute_capability: str | None
    usable_bytes: int
    usable_low_bytes: int
    usable_source: str


class Gpus(Envelope):
    """vram gpus --json."""

    gpus: list[GpuRow]


class QuantRow(Document):
    """One quantization."""

    name: str
    engines: list[str]
    rule: str
    source: str
    model: str
    tensor_bytes: int
    bits_per_weight: float


class Quants(Envelope):
    """vram quants --json."""

    quants: list[QuantRow]


class SettingRow(Document):
    """One setting of an engine."""

    default: str | int | bool | float | None
    meaning: str


class EngineRow(Document):
    """One engine."""

    name: str
    modelled: bool
    versions: list[str]
    why: str | None
    settings: dict[str, SettingRow]


class Engines(Envelope):
    """vram engines --json."""

    engines: list[EngineRow]


class TypeRow(Document):
    """Tensors of one stored type [bytes]."""

    type: str
    count: int
    elements: int
    bytes: int


class TensorRow(Document):
    """One tensor of a header; shape with rows first, as Hugging Face writes it."""

    name: str
    type: str
    shape: list[int]
    bytes: int


class Inspect(Envelope):
    """vram inspect --json."""

    path: str
    format: Literal["gguf", "safetensors", "config"]
    architecture: str | None
    parameters: int | None
    dimensions: dict[str, int]
    files: list[str]
    file_bytes: int | None
    truncated: bool
    tensor_count: int
    tensor_bytes: int | None
    types: list[TypeRow]
    tensors: list[TensorRow]
    metadata: dict[str, Any]
    sizable: bool
    refused: str | None
    warnings: list[str]
