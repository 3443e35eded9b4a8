"""vram estimate, compare, sweep, recommend, solve."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from calculator.report.schemas.envelope import Document, Envelope


class ModelId(Document):
    """The model and its parameters."""

    id: str
    parameters: int


class DeploymentInForce(Document):
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


class Components(Document):
    """Sums over the accelerators [bytes]."""

    weights: int
    kv_cache: int
    activations: int
    overhead: int


class Memory(Document):
    """The same total at three levels [bytes]."""

    allocated_bytes: int
    reserved_bytes: int
    process_bytes: int


class Peak(Document):
    """Where the activations are largest."""

    phase: str
    step: str


class KvPool(Document):
    """The pool of an engine that reserves: bytes on a GPU, tokens and sequences of the deployment."""

    bytes: int
    low_bytes: int
    high_bytes: int
    blocks: int
    tokens: int
    max_concurrency: float


class LedgerLine(Document):
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


class Device(Document):
    """One accelerator; figures of the GPU are null where none is named. headroom is usable + beside - required."""

    index: int
    gpu: str | None
    usable_bytes: int | None
    required_bytes: int
    beside_bytes: int | None
    headroom_bytes: int | None
    fits: bool | None


class Related(Document):
    """An entry that this one must not be mistaken for."""

    id: str
    why: str
    kv_bytes_per_token: int
    parameters: int
    total_bytes: int


class Estimate(Envelope):
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


class Together(Document):
    """What several estimates hold on one GPU at once; the verdict is null where a sum of lower bounds decides nothing."""

    total_bytes: int
    verdict: Literal["fits", "tight", "does_not_fit"] | None
    devices: list[Device]


class Compare(Envelope):
    """vram compare --json; `sum` with --sum alone."""

    estimates: list[Estimate]
    sum: Together | None = None


class SweepRow(Document):
    """One cell of a sweep."""

    model: str
    quant: str
    engine: str
    context: int
    sequences: int
    total_bytes: int
    total_high_bytes: int
    gpus: str | None = None


class Axes(Document):
    """The axes of a sweep."""

    models: list[str]
    quants: list[str]
    contexts: list[int]
    sequences: list[int]


class Sweep(Envelope):
    """vram sweep --json."""

    axes: Axes
    rows: list[SweepRow]


class CandidateRow(Document):
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


class RejectedRow(Document):
    """One GPU that lost, or one model on the GPU that was asked, and why."""

    gpu: str
    model: str | None
    reason: str


class Recommend(Envelope):
    """vram recommend --json."""

    candidates: list[CandidateRow]
    rejected: list[RejectedRow]


class OffloadRow(Document):
    """What layers on the host cost: memory [bytes], and upper bounds of decode speed [tokens/s]."""

    host_bytes: int
    layers: int
    tokens_per_s_bound: float
    tokens_per_s_bound_low: float
    tokens_per_s_bound_high: float
    tokens_per_s_bound_all_layers: float
    host_bandwidth_bytes_per_s: int
    host_bandwidth_source: str


class Solve(Envelope):
    """vram solve --json."""

    wanted: Literal["context", "sequences", "quant", "n_gpu_layers"] = Field(alias="for")
    value: int | str | None
    binding: str
    next_value_fits: bool
    total_bytes: int | None
    host_bytes: int | None
    quant: str | None
    engine: str | None
    start_command: str | None
    offload: OffloadRow | None
