"""An engine that runs a model type without having formulas for its activations: weights and cache alone.

A total of these is a lower bound, so it never fits: it doesn't fit, or nobody knows. Search, sweeps and solving refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calculator.architectures import architecture
from calculator.engines import kinds
from calculator.engines.base import Dynamic, Encodes, Engine, Job, KnowsLess, LacksSteps, Pool
from calculator.engines.llama_cpp.settings import context_of
from calculator.engines.settings import Setting
from calculator.engines.transformers.placement import check_map
from calculator.engines.transformers.settings import unknown_share
from calculator.engines.transformers.small import NAMES as HELD_BESIDE
from calculator.errors import NotModelled
from calculator.formats import FORMATS
from calculator.ledger import Formula, Line
from calculator.quantization import Scheme, compute_dtype, experts_alone
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec
from calculator.steps import Peak, Step

ENGINES = ("transformers", "llama.cpp")
_NOT_IN_LLAMA_CPP = frozenset({"olmo_hybrid"})  # src/models @0c1e57098
_NOT_READ_IN_LLAMA_CPP = frozenset({"hy_v3", "mistral4", "step3p5"})  # its graphs, caches and conversions of these
_STATES = frozenset({"recurrent state", "RS buffer"})  # beside the cache, and of one size

WHOLE_SOURCE = "ollama 0.32.13 on deepseek-coder-v2:16b-lite-instruct-q5_K_M, August 2026: 540, 1,080 and 2,160 MiB at 2,048, 4,096 and 8,192 cells"
NO_VALUES = "llama.cpp src/llama-kv-cache.cpp: with MLA there is a K tensor of kv_lora_rank + qk_rope_head_dim a layer and no V"


def whole_rows_bytes(job: Job) -> int:
    """KV bytes a token in llama.cpp where the file keeps attn_kv_b whole, so keys and values of every head are cached.

    layers x heads x (key of nope + rope, value), each row in its type; 276,480 bytes for DeepSeek V2 Lite at f16.

    Source: WHOLE_SOURCE; ggml-org/llama.cpp#12801 splits attn_kv_b and caches the compressed row.
    """
    mla, heads, settings = job.model.mla, job.model.num_attention_heads, job.deployment.settings
    assert mla is not None
    widths = {"type_k": mla.qk_nope_head_dim + mla.qk_rope_head_dim, "type_v": mla.v_head_dim}
    return len(job.model.attention_layers) * sum(FORMATS[str(settings[name]).upper()].nbytes(heads * width) for name, width in widths.items())


def as_published(model: ModelSpec, scheme: Scheme) -> bool:
    """Whether this is the format that makers of models with experts publish them in: weights are known, what its kernels hold isn't."""
    return model.num_experts > 0 and (scheme.name == "fp8-block" or experts_alone(model, scheme))


class Partial:
    """Weights and cache of `inner`, and a line that says what is missing."""

    def __init__(self, inner: Engine) -> None:
        """`inner` keeps its name, versions, settings and what it refuses of them."""
        self.inner = inner

    @property
    def name(self) -> str:
        """The engine's own."""
        return self.inner.name

    @property
    def versions(self) -> tuple[str, ...]:
        """The engine's own."""
        return self.inner.versions

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The engine's own."""
        return self.inner.settings

    def what(self, job: Job) -> str:
        """What it is that has no formula for its activations."""
        return job.model.model_type

    def phases(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002
        """The prompt's: without activations no other phase holds more, but for one token."""
        return ("prefill",)

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any], version: str) -> str:
        """The engine's own."""
        return self.inner.resolve_kv_dtype(model, scheme, kv_dtype, settings, version)

    def check(self, job: Job) -> None:
        """What the engine refuses, and caches that aren't known."""
        apart = not context_of(job).on_gpus_alone if self.name == "llama.cpp" else bool(job.deployment.settings.get("device_map"))
        split = apart or job.deployment.gpus > 1
        kinds.check(job.model, engine=self.name, context=job.workload.context, plain=job.scheme.family == "plain", split=split)
        if self.name == "llama.cpp":
            if isinstance(self.inner, KnowsLess):
                self.inner.check_bound(job)
            if job.model.model_type in _NOT_IN_LLAMA_CPP:
                raise NotModelled(f"{job.model.model_type} in llama.cpp, which has no graph of it", hint="--engine transformers")
            if job.model.model_type in _NOT_READ_IN_LLAMA_CPP:
                raise NotModelled(f"{job.model.model_type} in llama.cpp: what its files and caches hold of it wasn't read", hint="--engine vllm or transformers")
            if job.model.mla and "/" in job.deployment.kv_dtype:
                raise NotModelled("keys and values of two types with latent attention, which keeps no values", hint="--kv-dtype")
            return
        check_map(job)
        model, settings = job.model, job.deployment.settings
        what = f"{model.model_type} in transformers"
        if settings["cache_implementation"] != "dynamic":
            raise NotModelled(f"{what}: only a dynamic cache has a formula", hint="leaving cache_implementation and --kv-dtype out")
        if model.recurrent and job.scheme.family != "plain" and not job.from_headers:
            raise unknown_share(job.scheme, "recurrent layers")
        if model.num_experts and job.scheme.family != "plain" and not as_published(model, job.scheme):
            raise unknown_share(job.scheme, "experts")
        if model.sliding_window and not model.full_every and job.workload.context > model.sliding_window:
            raise NotModelled(f"{what} beyond its window of {model.sliding_window:,} tokens", hint=f"--context {model.sliding_window}")

    def weight_lines(self, job: Job) -> list[Line]:
        """The engine's own, without the small tables that differ by family, and without what the engine doesn't load."""
        if self.name == "transformers" and job.model.by_layer is not None:
            own, n = job.model.by_layer, job.model.num_hidden_layers
            held = ((g, tuple(i for i in g.layers if kinds.loaded(own, g.group.name, i, n))) for g in job.stored)
            job = replace(job, stored=tuple(replace(g, layers=layers) for g, layers in held if layers or not g.layers))
        return [line for line in self.inner.weight_lines(job) if line.name not in HELD_BESIDE]

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """The engine's own for each kind of layer; with latent attention the compressed row of each token, and the indexer's key."""
        model = job.model
        if architecture(model.model_type).encoder:
            return [kinds.no_cache(model)]
        if not model.mla:
            lines = [line for part in kinds.by_kind(model, engine=self.name) for line in self.inner.cache_lines(replace(job, model=part), phase)]
            if model.cross_attention_layers:
                lines.append(kinds.image_line(model, sequences=job.workload.sequences, element_bytes=self._element_bytes(job)))
            return lines
        keys = kinds.indexer_keys(model)
        return self._latent_lines(job, phase) + ([self._keys(line) for line in self.inner.cache_lines(replace(job, model=keys), phase)] if keys else [])

    def _keys(self, line: Line) -> Line:
        """Of keys and values the keys, as the indexer keeps them."""
        return replace(line, name=f"{line.name}, indexer", nbytes=line.nbytes // 2, low=-1, high=-1, source=kinds.INDEXER_SOURCE,
                       formula=Formula("{n} / 2 (keys alone, one head)", {"n": line.nbytes}))  # fmt: skip

    def _latent_lines(self, job: Job, phase: str) -> list[Line]:
        assert job.model.mla is not None
        if self.name == "llama.cpp":
            return [line if line.name in _STATES else replace(line, nbytes=line.nbytes // 2, formula=Formula("{n} / 2 (keys alone: values are read from them)", {"n": line.nbytes}), source=NO_VALUES)
                    for line in self.inner.cache_lines(self._latent(job), phase)]  # fmt: skip
        return self.inner.cache_lines(job, phase)

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Nothing, and why."""
        note = f"the activations of {self.what(job)}, which have no formula"
        return [Line("activations", "not modelled", 0, Formula("0"), architecture(job.model.model_type).source, basis="modelled", device=i, note=note)
                for i in range(job.deployment.gpus)]  # fmt: skip

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Nothing: what depends on activations isn't known, and a lower bound needs no rest."""
        return [Line("overhead", "not modelled", 0, Formula("0"), architecture(job.model.model_type).source, basis="modelled", device=i,
                     level="process", note="left out where activations aren't known") for i in range(job.deployment.gpus)]  # fmt: skip

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """None is known."""
        return Peak(phase, Step("not modelled", ()), 0, {})

    def kv_bytes_per_token(self, job: Job) -> int:
        """The engine's own; with latent attention a compressed row a layer."""
        if architecture(job.model.model_type).encoder:
            return 0
        if job.model.mla is None:
            return sum(self.inner.kv_bytes_per_token(replace(job, model=part)) for part in kinds.by_kind(job.model, engine=self.name))
        keys = kinds.indexer_keys(job.model)
        beside = self.inner.kv_bytes_per_token(replace(job, model=keys)) // 2 if keys else 0
        if self.name == "llama.cpp":
            return self.inner.kv_bytes_per_token(self._latent(job)) // 2 + beside
        return self._latent_row(job) * len(job.model.attention_layers) + beside

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """Sweeps refuse it before they ask."""
        return ("partial", *self.inner.dynamic_key(job))

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """The cache."""

        def size(context: int, sequences: int) -> tuple[int, int]:
            other = replace(job, workload=replace(job.workload, context=context, sequences=sequences))
            nbytes = sum(line.nbytes for line in self.cache_lines(other, phase) if line.device != "host")
            return nbytes, nbytes

        return size

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """The engine's own."""
        return self.inner.resolved_settings(job)

    def _latent(self, job: Job) -> Job:
        """A job whose one KV head is the compressed row and the rotary key."""
        mla = job.model.mla
        assert mla is not None
        return replace(job, model=replace(job.model, num_key_value_heads=1, head_dim=mla.kv_lora_rank + mla.qk_rope_head_dim, mla=None))

    def _element_bytes(self, job: Job) -> int:
        return DTYPE_BYTES[compute_dtype(job.model, job.scheme)]

    def _latent_row(self, job: Job) -> int:
        assert job.model.mla is not None
        return (job.model.mla.kv_lora_rank + job.model.mla.qk_rope_head_dim) * self._element_bytes(job)


class PartialServer(Partial):
    """A server of a model with a vision tower or recurrent layers: all but its profiling run of images or scans, which its pool is less by.

    The encoder's outputs of one batch stay while the text model is profiled, so their bytes are in.
    Source: vllm v0.11.0 v1/worker/gpu_model_runner.py L3325-3403, v1/core/encoder_cache_manager.py L328-333.
    """

    inner: Any

    @property
    def beside(self) -> tuple[str, ...]:
        """The engine's own."""
        return tuple(self.inner.beside)

    def check(self, job: Job) -> None:
        """What the engine refuses."""
        self.inner.check(job)

    def weight_lines(self, job: Job) -> list[Line]:
        """The engine's own."""
        return list(self.inner.weight_lines(job))

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """The engine's own."""
        return list(self.inner.cache_lines(job, phase))

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """The text model's, and what is missing."""
        note = "not modelled: the pass of the largest images through the tower; the pool is smaller by it where it is the peak"
        lines = list(self.inner.activation_lines(job, phase))
        missing = self.inner.lacking(job.model) if isinstance(self.inner, LacksSteps) else ""
        for i in range(job.deployment.gpus):
            if self._lacks_images(job):
                lines.append(Line("activations", "vision encoder", 0, Formula("0"), self.inner.image_source, basis="modelled", device=i, note=note))
            if missing:
                lines.append(Line("activations", "not modelled", 0, Formula("0"), architecture(job.model.model_type).source, basis="modelled", device=i, note=missing))
        return lines

    def _lacks_images(self, job: Job) -> bool:
        return isinstance(self.inner, Encodes) and bool(self.inner.images_without_formula(job))

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:
        """The engine's own."""
        return list(self.inner.overhead_lines(job, phase))

    def peak(self, job: Job, phase: str) -> Peak:
        """The text model's."""
        found: Peak = self.inner.peak(job, phase)
        return found

    def kv_bytes_per_token(self, job: Job) -> int:
        """The engine's own."""
        return int(self.inner.kv_bytes_per_token(job))

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """The engine's own."""
        found: Dynamic = self.inner.dynamic(job, phase)
        return found

    def pool(self, job: Job) -> Pool | None:
        """What is left beside the text model: at most this, unless it is given."""
        found: Pool | None = self.inner.pool(job)
        if found is None or "kv_pool_bytes" in job.deployment.settings or self.name == "sglang":  # which doesn't take a profile's peak off
            return found
        missing = self.inner.lacking(job.model) if isinstance(self.inner, LacksSteps) else ""
        what = "the profiling run of images isn't in it" if self._lacks_images(job) else f"{missing} aren't in it"
        return found._replace(low=min(0, found.low), warnings=(f"the pool is at most this: {what}", *found.warnings))

    def for_one(self, job: Job) -> int:
        """The engine's own."""
        return int(self.inner.for_one(job))

    def start_command(self, job: Job) -> str | None:
        """The engine's own."""
        found: str | None = self.inner.start_command(job)
        return found
