"""What every engine has in common: a job in, lines out; settings under the engine's own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

from calculator.datafiles import read_json
from calculator.errors import BadValue, NotModelled
from calculator.ledger import Basis, Line
from calculator.names import nearest
from calculator.quantization import Scheme, Stored
from calculator.spec import Deployment, GpuSpec, ModelSpec, Quantity, Workload
from calculator.steps import Peak
from calculator.units import MAX_COUNT


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

    @property
    def checkpoint(self) -> str:
        """What a server is told to load: the Hugging Face id; the name here for a file, or for a quantization that somebody has to make."""
        return self.hf_id or self.model.id

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

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:
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
    """Fewer sequences at once than the workload has."""
    warnings: tuple[str, ...] = ()


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

    def host_read_bytes(self, job: Job) -> int:
        """Bytes of weights and cache in host memory that one decode step reads."""
        ...


@dataclass(frozen=True, slots=True)
class Real:
    """Allowed values of a setting that is not whole: low < value <= high."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Shares:
    """Allowed values of a setting that is a list of shares: numbers from 0, separated by commas or slashes."""


class Setting(NamedTuple):
    """One knob: its default and what is allowed: words, bool, a range of integers or of real numbers, or shares."""

    default: str | int | bool | float | None
    allowed: tuple[str, ...] | type[bool] | range | Real | Shares
    meaning: str

    def parse(self, name: str, value: str | int | bool | float) -> str | int | bool | float:
        """The value in its own type. Raises BadValue with what is allowed."""
        text = str(value).strip()
        if self.allowed is bool:
            if text.lower() in ("1", "true", "on", "yes"):
                return True
            if text.lower() in ("0", "false", "off", "no"):
                return False
            raise BadValue(f"{name}={text[:30]!r}", allowed="true or false")
        if isinstance(self.allowed, range):
            if not re.fullmatch(r"-?[0-9]{1,40}", text) or int(text) not in self.allowed:
                shown = f"{self.allowed.start:,} to {self.allowed.stop - 1:,}"
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"a whole number, {shown}")
            return int(text)
        if isinstance(self.allowed, Real):
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text) or not self.allowed.low < float(text) <= self.allowed.high:
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"above {self.allowed.low:g}, up to {self.allowed.high:g}")
            return float(text)
        if isinstance(self.allowed, Shares):
            if len(text) > 400 or not re.fullmatch(rf"{_SHARE}(\s*[,/]\s*{_SHARE})*", text):
                raise BadValue(f"{name}={text[:30]!r}", allowed="numbers separated by commas: 3,1")
            return re.sub(r"\s*[,/]\s*", ",", text)
        assert isinstance(self.allowed, tuple)
        if text.lower() not in self.allowed:
            raise BadValue(f"{name}={text[:30]!r}", allowed=", ".join(self.allowed))
        return text.lower()


COUNT = range(1, MAX_COUNT + 1)
_SHARE = r"[0-9]{1,9}(\.[0-9]{1,9})?"


# settings that an engine has and the formulas don't cover: engine -> setting -> what is missing
NOT_MODELLED: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        **dict.fromkeys(("speculative_config", "speculative_model", "num_speculative_tokens"), "speculative decoding: the draft's weights, cache and pass"),
        **dict.fromkeys(("data_parallel_size", "decode_context_parallel_size"), "ranks that don't split the layers"),
        **dict.fromkeys(("cpu_offload_gb", "kv_transfer_config", "kv_offloading_size"), "weights or cache outside of the GPU"),
    },
    "sglang": {
        **dict.fromkeys(("speculative_algorithm", "speculative_draft_model_path", "speculative_num_steps"), "speculative decoding: the draft's weights, cache and pass"),
        **dict.fromkeys(("dp_size", "data_parallel_size", "enable_dp_attention"), "ranks that don't split the layers"),
        **dict.fromkeys(("ep_size", "expert_parallel_size", "enable_ep_moe"), "experts split by number"),
        **dict.fromkeys(("lora_paths", "enable_lora", "max_loras_per_batch"), "LoRA slots"),
        **dict.fromkeys(("cpu_offload_gb", "enable_hierarchical_cache"), "weights or cache outside of the GPU"),
    },
}


def parse_settings(engine: str, table: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, str | int | bool | float]:
    """The given settings in their types. Raises BadValue for a name that the engine doesn't have."""
    for name in given:
        if (missing := NOT_MODELLED.get(engine, {}).get(name)) is not None:
            raise NotModelled(f"{engine} with {name}: {missing} have no formula yet", hint="leaving it out")
        if name not in table:
            near = nearest(name, table)
            raise BadValue(
                f"{engine} has no setting {name[:40]!r} here", allowed=", ".join(table), hint=near[0] if near else ""
            )
    return {name: table[name].parse(name, value) for name, value in given.items()}


class Record(NamedTuple):
    """A fitted or measured number with its band and where it comes from."""

    id: str
    value: int
    low: int
    high: int
    unit: str
    source: str
    basis: Basis
    note: str
    hardware: str
    software: str


@lru_cache(maxsize=64)
def record(file: str, id: str) -> Record:
    """One record of data/overheads/FILE.json."""
    for entry in read_json(f"overheads/{file}.json")["records"]:
        if entry["id"] == id:
            return Record(**{name: entry[name] for name in Record._fields})
    raise KeyError(id)


class ResidualBand(NamedTuple):
    """What a modelled line's predictions were multiplied by to reach the records [ten-thousandths]."""

    low: int
    high: int
    source: str

    def around(self, nbytes: int) -> tuple[int, int]:
        """Low and high of a prediction [bytes]."""
        return nbytes * self.low // 10_000, -(-nbytes * self.high // 10_000)


@lru_cache(maxsize=64)
def residual_band(key: str) -> ResidualBand:
    """The band that the records have earned for a line, from data/residuals.json (`vram validate --write`)."""
    data = read_json("residuals.json")
    band = data["bands"][key]
    source = f"{data['method']}: {band['n']:,} records, {band['left_out_coverage_percent']} % of left-out ones covered"
    return ResidualBand(band["low"], band["high"], source)
