"""What serving engines have in common: releases, tensor-parallel ranks in pipeline stages, a 16-bit or fp8 cache."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from calculator.engines.base import Job
from calculator.engines.ranks import rank_of, ranks_of, replicas_of, stages_of
from calculator.engines.releases import History, Release, dotted
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.parallelism import pipeline_stages
from calculator.quantization import Scheme, compute_dtype
from calculator.quantization.hf import KV_NAMES
from calculator.spec import ModelSpec


class Server:
    """A server that sizes its cache at start-up. Subclasses say how."""

    name: str
    history: History[Any]
    oldest_card: tuple[int, int]
    """The least compute capability that it starts on."""
    vendors: tuple[str, ...] = ("NVIDIA",)
    """Whose cards it is modelled on."""
    too_old: str
    """What it says of an older one."""
    declared_caches: Mapping[str, tuple[Release, Release | None]] = MappingProxyType({})
    """Scheme.declared_cache -> the release since which an fp8 cache declared by such a checkpoint is kept, and until which nothing overrides it."""

    def covers(self, version: str) -> bool:
        """Releases between the modelled ones, by what was in force before them."""
        return self.history.release(version) is not None

    def phases(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002
        """A prefill pass of the largest batch decides once: no decode pass holds more."""
        return ("prefill",)

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any], version: str) -> str:  # noqa: ARG002
        """The model's own type, or fp8: as asked for, or as the checkpoint's config declares."""
        own = KV_NAMES[compute_dtype(model, scheme)]
        if kv_dtype is None and scheme.declared_cache == "modelopt-nvfp4":
            raise NotModelled("the checkpoint declares a cache in NVFP4, which has no formula here", hint=f"--kv-dtype fp8 or {own}, which the server takes in its place")
        if kv_dtype not in (None, own, "fp8"):
            raise Unsupported(f"{self.name} keeps no {kv_dtype} cache for a {own} model", allowed=f"{own}, fp8")
        declared, (_, until) = self.keeps_declared(scheme, version), self.declared_caches.get(scheme.declared_cache, (None, None))
        if declared and kv_dtype == own and until is not None and self.history.covered(version) < until:
            raise Unsupported(f"{self.name} {version} keeps the fp8 cache that this checkpoint declares, whatever it is told",
                              hint=f"--kv-dtype fp8, or --engine-version {dotted(until)}")  # fmt: skip
        return kv_dtype or ("fp8" if declared else own)

    def keeps_declared(self, scheme: Scheme, version: str) -> bool:
        """Whether this release keeps the fp8 cache that the checkpoint's config declares, where it isn't told otherwise."""
        since, _ = self.declared_caches.get(scheme.declared_cache, (None, None))
        return since is not None and self.history.covered(version) >= since

    def check_card(self, job: Job) -> None:
        """Refuse cards that no log is known of, or that the engine has no kernels for."""
        if job.vendor not in self.vendors:
            raise NotModelled(f"{self.name} on {job.vendor}: no public start-up log to hold it against", hint=f"a GPU of {' or '.join(self.vendors)}, or --engine llama.cpp")
        if job.gpu and job.gpu.compute_capability and tuple(map(int, job.gpu.compute_capability.split("."))) < self.oldest_card:
            raise Unsupported(f"{self.too_old} {job.gpu.name} has {job.gpu.compute_capability}", hint="a newer card, or --engine llama.cpp")

    def check_window(self, job: Job) -> None:
        """Refuse a context beyond the one window that all layers have."""
        window = job.model.sliding_window
        if window and not job.model.full_every and job.workload.context > window:
            raise NotModelled(f"{self.name} with sliding-window attention beyond its window of {window:,} tokens", hint=f"--context {window}")

    def check_split(self, job: Job) -> None:
        """Refuse ranks and stages that the model can't be split over."""
        tp, copies = ranks_of(job), replicas_of(job)
        rank_of(job)
        if job.deployment.gpus % (tp * copies):
            what = f"tensor_parallel_size {tp}" + (f" x data_parallel_size {copies}" if copies > 1 else "")
            raise BadValue(f"{job.deployment.gpus} GPUs are no multiple of {what}", hint=f"--gpus {tp * copies}")
        pipeline_stages(job.model.num_hidden_layers, stages_of(job))
