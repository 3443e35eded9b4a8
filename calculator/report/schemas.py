"""The shape of every --json document; `vram schema COMMAND` prints it as JSON Schema, and a test holds documents to it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from calculator.errors import BadValue


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Envelope(_Document):
    schema_version: Literal[1]
    calculator_version: str
    data_version: str


class ModelId(_Document):
    """The model and its parameters."""

    id: str
    parameters: int


class DeploymentInForce(_Document):
    """What was sized, with every default filled in."""

    quant: str
    context: int
    sequences: int
    kv_dtype: str
    engine: str
    engine_version: str
    gpu: str | None
    gpus: int
    settings: dict[str, str | int | bool | float]


class Components(_Document):
    """Sums over the accelerators [bytes]."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int


class Memory(_Document):
    """The same total at three levels [bytes]."""

    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int


class Peak(_Document):
    """Where the activations are largest."""

    phase: str
    step: str


class KvPool(_Document):
    """The pool of an engine that reserves: bytes on a GPU, tokens and sequences of the deployment."""

    bytes: int
    low_bytes: int
    high_bytes: int
    blocks: int
    tokens: int
    max_concurrency: float


class LedgerLine(_Document):
    """One line of the ledger [bytes]."""

    component: Literal["weights", "kv_cache", "activations", "overhead"]
    name: str
    device: int | Literal["host"]
    bytes: int
    low_bytes: int
    high_bytes: int
    basis: Literal["exact", "derived", "measured", "modelled"]
    formula: str
    source: str
    note: str


class Device(_Document):
    """One accelerator; figures of the GPU are null where none is named."""

    index: int
    gpu: str | None
    usable_bytes: int | None
    required_bytes: int
    headroom_bytes: int | None
    fits: bool | None


class Related(_Document):
    """An entry that this one must not be mistaken for."""

    id: str
    why: str
    kv_bytes_per_token: int
    parameters: int
    total_bytes: int


class Estimate(_Envelope):
    """vram estimate --json."""

    model: ModelId
    deployment: DeploymentInForce
    components: Components
    total_bytes: int
    total_low_bytes: int
    total_high_bytes: int
    basis: Literal["exact", "derived", "measured", "modelled"]
    memory: Memory
    host_bytes: int
    tensor_bytes: int
    file_bytes: int | None
    kv_bytes_per_token: int
    peak: Peak
    kv_pool: KvPool | None
    reserved_bytes: int | None
    lines: list[LedgerLine]
    devices: list[Device]
    speed: dict[str, Any] | None
    start_command: str | None
    related: list[Related]
    verdict: Literal["fits", "tight", "does_not_fit"] | None
    warnings: list[str]


class Together(_Document):
    """What several estimates hold on one GPU at once."""

    total_bytes: int
    verdict: Literal["fits", "tight", "does_not_fit"]
    devices: list[Device]


class Compare(_Envelope):
    """vram compare --json; `sum` with --sum alone."""

    estimates: list[Estimate]
    sum: Together | None = None


class SweepRow(_Document):
    """One cell of a sweep."""

    model: str
    quant: str
    engine: str
    context: int
    sequences: int
    total_bytes: int
    total_high_bytes: int
    gpus: str | None = None


class Axes(_Document):
    """The axes of a sweep."""

    models: list[str]
    quants: list[str]
    contexts: list[int]
    sequences: list[int]


class Sweep(_Envelope):
    """vram sweep --json."""

    axes: Axes
    rows: list[SweepRow]


class CandidateRow(_Document):
    """One GPU that holds the workload."""

    gpu: str
    count: int
    model: str
    quant: str
    engine: str
    verdict: Literal["fits", "tight"]
    headroom_bytes: int
    required_bytes: int
    usable_bytes: int
    max_context: int | None
    max_sequences: int | None
    tokens_per_s: float
    tokens_per_s_basis: str
    usd_per_hour: float | None
    changes: list[str]


class RejectedRow(_Document):
    """One GPU that lost, and why."""

    gpu: str
    reason: str


class Recommend(_Envelope):
    """vram recommend --json."""

    candidates: list[CandidateRow]
    rejected: list[RejectedRow]


class OffloadRow(_Document):
    """What layers on the host cost: memory [bytes], and upper bounds of decode speed [tokens/s]."""

    host_bytes: int
    layers: int
    tokens_per_s_bound: float
    tokens_per_s_bound_low: float
    tokens_per_s_bound_high: float
    tokens_per_s_bound_all_layers: float
    host_bandwidth_bytes_per_s: int
    host_bandwidth_source: str


class Solve(_Envelope):
    """vram solve --json."""

    wanted: Literal["context", "sequences", "quant", "n_gpu_layers"] = Field(alias="for")
    value: int | str | None
    binding: str
    next_value_fits: bool
    total_bytes: int | None
    host_bytes: int | None
    start_command: str | None
    offload: OffloadRow | None


class ClaimRow(_Document):
    """One published claim."""

    field: str
    claimed: int | float | str
    implied: int | float | None
    released: int | float | str | None
    ratio: float | None
    verdict: Literal["agrees", "contradicts", "not checkable"]
    source: str


class ReconcilingSet(_Document):
    """A minimal set of changes."""

    changes: dict[str, int | str]
    parameters: int
    agrees_with_released: bool


class Audit(_Envelope):
    """vram audit --json."""

    model: str
    claims: list[ClaimRow]
    reconciling_sets: list[ReconcilingSet]
    notes: list[str]


class SizedModel(_Document):
    """One model of a sizing report."""

    model: str
    spec: list[dict[str, str]]
    rows: list[dict[str, int | str]]
    refused: list[dict[str, str]]
    recommendations: list[dict[str, str | list[dict[str, str]]]]


class Report(_Envelope):
    """vram report --json."""

    reports: list[SizedModel]


class GroupRow(_Document):
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


class CellRow(_Document):
    """One quantization and context of an entry."""

    model: str
    quant: str
    context: int
    worst_percent: dict[str, float]
    components: dict[str, list[str]]
    reason: str


class Validate(_Envelope):
    """vram validate --json."""

    groups: list[GroupRow]
    coverage: list[CellRow]
    refused: list[dict[str, str | None]]


class TracedPass(_Document):
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


class Trace(_Envelope):
    """vram trace --json."""

    passes: list[TracedPass]


class VerifiedFigure(_Document):
    """A measured figure and its prediction [bytes]."""

    component: str
    predicted: int
    low: int
    high: int
    measured: int
    error_percent: float


class VerifiedRun(_Document):
    """One run on the user's GPU."""

    record: dict[str, Any] | None
    reason: str
    figures: list[VerifiedFigure]


class Verify(_Envelope):
    """vram verify --json."""

    runs: list[VerifiedRun]


class ModelRow(_Document):
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


class NotSized(_Document):
    """A model that a search left out, and why."""

    id: str
    why: str


class Models(_Envelope):
    """vram models --json."""

    models: list[ModelRow]
    user_folder: str
    not_sized: list[NotSized]


class GpuRow(_Document):
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


class Gpus(_Envelope):
    """vram gpus --json."""

    gpus: list[GpuRow]


class QuantRow(_Document):
    """One quantization."""

    name: str
    engines: list[str]
    rule: str
    source: str
    model: str
    tensor_bytes: int
    bits_per_weight: float


class Quants(_Envelope):
    """vram quants --json."""

    quants: list[QuantRow]


class SettingRow(_Document):
    """One setting of an engine."""

    default: str | int | bool | float | None
    meaning: str


class EngineRow(_Document):
    """One engine."""

    name: str
    modelled: bool
    versions: list[str]
    why: str | None
    settings: dict[str, SettingRow]


class Engines(_Envelope):
    """vram engines --json."""

    engines: list[EngineRow]


class TypeRow(_Document):
    """Tensors of one stored type [bytes]."""

    type: str
    count: int
    elements: int
    bytes: int


class TensorRow(_Document):
    """One tensor of a header; shape with rows first, as Hugging Face writes it."""

    name: str
    type: str
    shape: list[int]
    bytes: int


class Inspect(_Envelope):
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


DOCUMENTS: dict[str, type[_Envelope]] = {
    "estimate": Estimate, "compare": Compare, "sweep": Sweep, "recommend": Recommend, "solve": Solve, "audit": Audit, "report": Report, "inspect": Inspect, "validate": Validate,
    "trace": Trace, "verify": Verify,
    "models": Models, "gpus": Gpus, "quants": Quants, "engines": Engines,
}  # fmt: skip


def schema_of(command: str) -> dict[str, Any]:
    """JSON Schema of a command's document. Raises BadValue for a command without one."""
    if command not in DOCUMENTS:
        raise BadValue(f"no schema for {command[:40]!r}", allowed=", ".join(DOCUMENTS))
    return DOCUMENTS[command].model_json_schema(by_alias=True)
