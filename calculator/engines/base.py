"""What every engine has in common: a job in, lines out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from calculator.engines.settings import Setting
from calculator.ledger import Basis, Line
from calculator.quantization import Scheme, Stored
from calculator.spec import Deployment, GpuSpec, ModelSpec, Quantity, Workload
from calculator.steps import Peak


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that a deployment is sized from."""

    model: ModelSpec
    scheme: Scheme
    stored: Stored
    workload: Workload
    deployment: Deployment
    gpu: GpuSpec | None = None
    from_headers: bool = False  # `stored` is what the checkpoint's own headers say, not what its config implies
    hf_id: str | None = None
    published: bool = False  # the checkpoint of that id is in this format

    @property
    def checkpoint(self) -> str:
        """What a server is told to load: the Hugging Face id; the name here for a folder, or for a quantization that somebody has to make."""
        return self.hf_id or self.model.id.removesuffix("/config.json")

    @property
    def weights_basis(self) -> Basis:
        """How the stored tensors are known."""
        return "exact" if self.from_headers else "derived"

    @property
    def vendor(self) -> str:
        """Vendor of the GPU; NVIDIA where none is named."""
        return self.gpu.vendor if self.gpu else "NVIDIA"


Dynamic = Callable[[int, int], tuple[int, int]]
"""(context, sequences) -> point and high end of the bytes that depend on them, over all devices."""


class Engine(Protocol):
    """An engine: its versions and settings, and its lines for a job.

    `dynamic` is the part of the total that depends on context and sequences, without making lines; a test holds it to
    the lines. Jobs with equal `dynamic_key` have equal dynamic functions.
    """

    @property
    def name(self) -> str:
        """The engine's name as its makers write it."""
        ...

    @property
    def versions(self) -> tuple[str, ...]:
        """Modelled versions, oldest first."""
        ...

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The engine's own settings."""
        ...

    def phases(self, job: Job) -> tuple[str, ...]:
        """Phases to size; the largest counts."""
        ...

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any], version: str) -> str:
        """The cache type, settled together with the settings. Raises Unsupported."""
        ...

    def check(self, job: Job) -> None:
        """Refuse what the formulas don't cover."""
        ...

    def weight_lines(self, job: Job) -> list[Line]:
        """Weights, by device."""
        ...

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """KV cache, by device."""
        ...

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """Activations or compute buffers, by device."""
        ...

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:
        """Everything else, by device."""
        ...

    def peak(self, job: Job, phase: str) -> Peak:
        """The largest step of the phase."""
        ...

    def kv_bytes_per_token(self, job: Job) -> int:
        """Growth of the cache for one more token of one sequence, before padding [bytes]."""
        ...

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the dynamic bytes depend on beside model, context and sequences."""
        ...

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """The bytes that depend on context and sequences, as a function of them with all else bound."""
        ...

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """All settings in force, those that follow from the workload filled in."""
        ...


class Pool(NamedTuple):
    """What a serving engine sets aside for the cache on each GPU [bytes], and what fits in: tokens over all GPUs."""

    nbytes: int
    low: int
    high: int
    blocks: int
    tokens: int
    max_concurrency: float
    usable: Quantity
    """What weights, activations, overhead and cache may take on one GPU."""
    reserved_bytes: int
    """What the engine takes over all GPUs."""
    room: int = 0
    """What is left of the card beside that, at least, for the lines that are not in it [bytes]."""
    queues: bool = False
    """Fewer sequences at once than the workload has, or the engine may refuse to start."""
    warnings: tuple[str, ...] = ()
    states: int | None = None
    """Slots of recurrent states on each GPU, where layers have them."""
    crowded: bool = False
    """What is sure to be allocated beside the share finds no room on the card."""
    refusal: str = ""
    """What the engine says at start-up where it refuses; the first warning too."""
    short_of_states: bool = False
    """It wants a state of recurrent layers for each of its sequences, and may not have them."""


@runtime_checkable
class Reserves(Protocol):
    """An engine that takes a pool at start-up, whatever the workload needs of it."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of lines that are outside of what the engine reserves; a CUDA context is taken off the card before."""
        ...

    def pool(self, job: Job) -> Pool | None:
        """The pool on the job's GPU; None where nothing says how much memory there is."""
        ...

    def for_one(self, job: Job) -> int:
        """Bytes of cache that one sequence of the context takes on a GPU, in whole blocks."""
        ...


@runtime_checkable
class HasFamilies(Protocol):
    """An engine that keeps the model types it runs itself."""

    @property
    def families(self) -> frozenset[str]:
        """Model types with formulas, beside those whose row in the architectures names the engine."""
        ...


@runtime_checkable
class LacksSteps(Protocol):
    """An engine that runs some model types without having formulas for all of their pass."""

    def lacking(self, model: ModelSpec) -> str:
        """What isn't modelled of the model's pass; empty for nothing."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """An engine whose start-up encodes images, or leaves room for them, with formulas for some towers and deployments."""

    def images_missing(self, model: ModelSpec) -> str:
        """What of a model's images has no formula in any release; empty for nothing."""
        ...

    def images_encoded(self, job: Job) -> str:
        """What start-up encodes, in a few words; empty for nothing."""
        ...

    def images_without_formula(self, job: Job) -> str:
        """What of the images isn't modelled in a deployment; empty for nothing."""
        ...


@runtime_checkable
class Starts(Protocol):
    """An engine with a command line that gives the estimated deployment."""

    def start_command(self, job: Job) -> str | None:
        """The command; None where no flag gives one of the settings."""
        ...


@runtime_checkable
class Releases(Protocol):
    """An engine whose releases between the modelled ones are known to behave like the one before."""

    def covers(self, version: str) -> bool:
        """Whether a release is described by the formulas."""
        ...


@runtime_checkable
class KnowsLess(Protocol):
    """An engine that knows weights and cache of more deployments than peaks."""

    def without_peak(self, job: Job) -> str | None:
        """What it is whose activations have no formula; None where they have one."""
        ...

    def check_bound(self, job: Job) -> None:
        """Refuse what is not even known of weights and cache."""
        ...


@runtime_checkable
class HasPresets(Protocol):
    """An engine with a preset: defaults that follow from model, workload and GPU. What the user sets goes before them."""

    def preset_context(self, chosen: Mapping[str, Any], model: ModelSpec, gpu: GpuSpec | None, gpus: int) -> int | None:
        """The context where none is asked for; None without a preset."""
        ...

    def preset(self, chosen: Mapping[str, Any], version: str, model: ModelSpec, scheme: Scheme, workload: Workload, gpu: GpuSpec | None,
               gpus: int) -> Mapping[str, Any]:  # fmt: skip
        """Defaults that the preset, or this version, has in place of the usual ones."""
        ...


@runtime_checkable
class ReadsHost(Protocol):
    """An engine that may keep a part of what each token reads in host memory."""

    def host_read(self, job: Job) -> tuple[Stored, int]:
        """Weights, and bytes of cache, in host memory that decode steps read."""
        ...
