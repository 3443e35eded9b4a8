"""A job's modules on its devices: one GPU, or what transformers' device map makes of GPUs, host and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from calculator.engines.base import Job
from calculator.engines.records import record
from calculator.engines.settings import Budgets
from calculator.engines.transformers.device_map import (
    CPU_SHARE,
    QUANTIZER_SHARE,
    Device,
    DeviceMap,
    Limits,
    Sizes,
    balanced,
    place,
)
from calculator.engines.transformers.offload import HOOKED, Matrices, offloaded_matrices
from calculator.engines.transformers.small import rotary_bytes
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.memory import usable_memory
from calculator.quantization import Stored, StoredGroup
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec

_SCALED_EMBEDDING = frozenset({"gemma", "gemma2", "gemma3_text"})
_COUNTED = {"bnb-nf4": 0.5, "bnb-fp4": 0.5, "bnb-int8": 1.0}  # bytes an element that the map counts, by the quantizer's word
_TIGHTER = ("bnb", "torchao", "quanto")


class Held(NamedTuple):
    """What one GPU holds: its modules, and the cache of the layers that run there."""

    device: int
    stored: Stored
    layers: Sequence[int]
    runs: bool
    main: bool = True
    """Offloaded modules run here."""
    note: str = ""
    """Which layers it holds."""


def spread(job: Job, context_bytes: int | None = None) -> DeviceMap | None:
    """The device map; None for a model that is moved to one GPU whole."""
    settings, gpus = job.deployment.settings, job.deployment.gpus
    if gpus == 1 and not settings.get("device_map"):
        return None
    return _map(_Key(job.model, job.scheme.name, job.stored, gpus), str(settings.get("device_map") or "auto"), limits_of(job, record("torch", "cuda_context").value if context_bytes is None else context_bytes), given=bool(settings.get("max_memory")))


def check_map(job: Job) -> None:
    """Refuse devices that the map can't use, and formats that aren't offloaded."""
    settings, gpus, layers = job.deployment.settings, job.deployment.gpus, job.model.num_hidden_layers
    if gpus > layers:
        raise BadValue(f"{gpus} GPUs for {layers} layers", allowed=f"1 to {layers}", hint=f"--gpus {layers} or fewer")
    for name in ("max_memory", "host_memory_bytes"):
        if settings.get(name) and not settings.get("device_map"):
            raise BadValue(f"{name} without device_map", hint="--set device_map=auto")
    if settings.get("device_map") and job.model.vision_parameters:
        raise NotModelled("device_map with a vision tower, whose own layers are placed too", hint="leaving device_map out")
    if beyond := [i for i in Budgets.of(settings.get("max_memory")) if isinstance(i, int) and i >= gpus]:
        raise BadValue(f"max_memory of GPU {beyond[0]} where there are {gpus}", hint=f"--gpus {beyond[0] + 1}")
    found = spread(job)
    if found is None or not found.offloaded:
        return
    if not any(isinstance(device, int) for device in found.pieces):
        raise Unsupported("no module fits on a GPU beside the room kept for the largest one: the model would run on the CPU", hint="a smaller format, a larger GPU or max_memory")
    if job.model.model_type not in HOOKED:
        raise NotModelled(f"{job.model.model_type} with modules on the host or the disk has no formula yet", hint="--quant of fewer bytes, or a GPU that holds all")
    if job.scheme.name.startswith("bnb"):
        raise Unsupported("Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit the quantized model.",
                          hint="a larger GPU, --gpus N, or --quant bf16")  # fmt: skip
    if job.scheme.family != "plain":
        raise NotModelled(f"offloaded modules in {job.scheme.name}", hint="--quant bf16, or a GPU that holds all")


def layers_on_gpus(job: Job) -> tuple[int, int]:
    """Layers that the map leaves on GPUs with the most and the least that a CUDA context may hold before."""
    context = record("torch", "cuda_context")
    counts = []
    for held in (context.high, context.low):
        found = spread(job, context_bytes=held)
        counts.append(sum(isinstance(device, int) for device in found.layers) if found else job.model.num_hidden_layers)
    return counts[0], counts[1]


def limits_of(job: Job, context_bytes: int) -> Limits:
    """What the map may use: max_memory, else what is free on an empty card and the host; unbounded where nobody says."""
    settings, gpus = job.deployment.settings, job.deployment.gpus
    if given := Budgets.of(settings.get("max_memory")):
        return Limits(tuple((i, float(n)) for i, n in sorted((i, n) for i, n in given.items() if isinstance(i, int))), given.get("cpu"))
    if not settings.get("device_map"):  # several GPUs and nothing else: what doesn't fit is seen by the verdict
        return Limits(tuple((i, float("inf")) for i in range(gpus)), float("inf"))
    host = settings.get("host_memory_bytes")
    free = float(usable_memory(job.gpu).value - context_bytes) if job.gpu else float("inf")
    return Limits(tuple((i, max(free, 0.0)) for i in range(gpus)), float("inf") if host is None else int(host) * CPU_SHARE)


class _Key(NamedTuple):
    """Jobs of one model and format share a map; `stored` says the rest and needn't be hashed where it follows."""

    model: ModelSpec
    scheme: str
    stored: Stored
    gpus: int

    def __hash__(self) -> int:
        return hash((self.model, self.scheme, self.gpus))


@lru_cache(maxsize=1024)
def _map(key: _Key, kind: str, limits: Limits, *, given: bool) -> DeviceMap:
    sizes = sizes_of(key.model, key.scheme, key.stored)
    if kind != "sequential":
        limits = balanced(sizes, limits, given=given, low_zero=kind == "balanced_low_0")
    if key.scheme.startswith(_TIGHTER):
        limits = Limits(tuple((i, n * QUANTIZER_SHARE) for i, n in limits.gpus), None if limits.cpu is None else limits.cpu * QUANTIZER_SHARE)
    return place(sizes, limits)


def sizes_of(model: ModelSpec, scheme: str, stored: Stored) -> Sizes:
    """Modules as the map counts them: parameters and buffers, tied ones once [bytes]."""
    rate = next((rate for name, rate in _COUNTED.items() if scheme.startswith(name)), None)
    layers, outer = [0.0] * model.num_hidden_layers, dict.fromkeys(("embedding", "norm", "head"), 0.0)
    for group in stored:
        counted = len(group.parts) > 1 and rate is not None
        nbytes = group.group.elements * (rate or 0) if counted else group.tensor_nbytes
        for layer in group.layers:
            layers[layer] += nbytes
        if not group.layers:
            outer[_outer(group)] += nbytes
    if model.model_type in _SCALED_EMBEDDING:
        outer["embedding"] += DTYPE_BYTES[model.dtype]
    return Sizes(int(outer["embedding"]), tuple(int(n) for n in layers), int(outer["norm"]), rotary_bytes(model), int(outer["head"]), model.tie_word_embeddings)


def held_by_gpus(job: Job, found: DeviceMap | None) -> tuple[Held, ...]:
    """What each GPU holds; the first one that holds anything runs what is offloaded and keeps its cache."""
    if found is None:
        return (Held(0, job.stored, range(job.model.num_hidden_layers), runs=True),)
    return _held_by_gpus(_Key(job.model, job.scheme.name, job.stored, job.deployment.gpus), found)


@lru_cache(maxsize=1024)
def _held_by_gpus(key: _Key, found: DeviceMap) -> tuple[Held, ...]:
    main = main_gpu(found)
    away = tuple(i for i, device in enumerate(found.layers) if not isinstance(device, int))
    held = []
    for i in range(key.gpus):
        own = found.layers_on(i)
        held.append(Held(i, stored_on(key.stored, found, i), own + (away if i == main else ()), i in found.pieces, i == main, layers_text(own)))
    return tuple(held)


def matrices_of(job: Job, found: DeviceMap) -> Matrices:
    """The largest offloaded modules."""
    return _matrices(_Key(job.model, job.scheme.name, job.stored, job.deployment.gpus), found)


@lru_cache(maxsize=1024)
def _matrices(key: _Key, found: DeviceMap) -> Matrices:
    return offloaded_matrices(key.stored, found)


def main_gpu(found: DeviceMap) -> int:
    """Where offloaded modules run: the first GPU in use. Source: accelerate 1.15.0 big_modeling.py dispatch_model, main_device."""
    return min(device for device in found.pieces if isinstance(device, int))


def stored_on(stored: Stored, found: DeviceMap, device: Device) -> Stored:
    """The part of the tensors that the map puts on a device."""
    layers, outer = set(found.layers_on(device)), {"embedding": found.embedding, "norm": found.norm, "head": found.head}
    held = []
    for group in stored:
        if group.layers:
            if own := tuple(layer for layer in group.layers if layer in layers):
                held.append(group if len(own) == len(group.layers) else replace(group, layers=own))
        elif outer[_outer(group)] == device:
            held.append(group)
    return tuple(held)


def placed_text(found: DeviceMap, device: Device) -> str:
    """What the map puts on a device, in words."""
    outer = (("embedding", found.embedding), ("norm", found.norm), ("output head", found.head))
    words = [name for name, where in outer if where == device]
    own = found.layers_on(device)
    return ", ".join([*words[:1], *([layers_text(own)] if own else []), *words[1:]] if found.embedding == device else [*([layers_text(own)] if own else []), *words])


def layers_text(layers: tuple[int, ...]) -> str:
    """Layers in words: they are always a run."""
    return "no layers" if not layers else f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"


def _outer(group: StoredGroup) -> str:
    role, name = group.group.role, group.group.name
    return "embedding" if role == "embedding" else "head" if role == "output" or name.startswith("lm_head") else "norm"
