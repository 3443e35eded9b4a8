"""transformers on one GPU, or with its modules spread over several, the host and the disk: steps, caches, torch's overheads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from calculator.architectures import architecture
from calculator.engines.base import Dynamic, Job
from calculator.engines.records import Record, record_line
from calculator.engines.settings import Setting
from calculator.engines.transformers import cache, small, steps
from calculator.engines.transformers.copies import (
    DECOMPRESSED,
    DECOMPRESSED_SOURCE,
    copies_of,
    decompressed_bytes,
    math_kernel,
    records_of,
)
from calculator.engines.transformers.device_map import AWAY, HOOK_SOURCE, MAP_SOURCE
from calculator.engines.transformers.families import FAMILIES
from calculator.engines.transformers.offload import Matrices, with_hooks
from calculator.engines.transformers.placement import (
    Held,
    held_by_gpus,
    main_gpu,
    matrices_of,
    placed_text,
    spread,
    stored_on,
)
from calculator.engines.transformers.settings import SETTINGS, check, resolve_kv_dtype
from calculator.engines.transformers.state import attending, state_lines
from calculator.engines.weights import weight_lines
from calculator.ledger import Formula, Line
from calculator.quantization import Scheme, Stored, compute_dtype, stored_nbytes
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec
from calculator.steps import Peak

TRACED = "FakeTensor runs, torch 2.13.0"
MATH_SOURCE = ("pytorch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash needs compute capability 8.0, the "
               "memory-efficient kernel has no grouped heads; math attention computes in float32")  # fmt: skip
CACHE_SOURCE = "transformers v5.23.0 cache_utils.py"

GENERATE_SOURCE = ("transformers v5.23.0 generation/utils.py: token ids, attention mask and positions, all int64, a flag for each sequence; "
                   "up to three special tokens in the high end")  # fmt: skip
_MAPPING = ("device_map", "max_memory", "host_memory_bytes")


class Transformers:
    """The Hugging Face library, whole prompt in one pass."""

    name = "transformers"
    versions = ("5.23",)
    settings: ClassVar[dict[str, Setting]] = SETTINGS

    def phases(self, job: Job) -> tuple[str, ...]:
        """Both phases unless one was asked for."""
        phase = job.deployment.settings.get("phase")
        return (str(phase),) if phase else ("prefill", "decode")

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any], version: str) -> str:  # noqa: ARG002
        """The model's own type, or one of the quantized cache's."""
        return resolve_kv_dtype(model, scheme, kv_dtype, settings)

    def check(self, job: Job) -> None:
        """Refuse what this engine's formulas don't cover."""
        check(job)

    def weight_lines(self, job: Job) -> list[Line]:
        """Stored tensors and the rotary tables; what the map keeps on the host, and what it leaves on disk."""
        lines, found, model = [], spread(job), job.model
        tied, layers = model.tie_word_embeddings, model.num_hidden_layers
        for held in held_by_gpus(job, found):
            own = weight_lines(job.scheme, held.stored, device=held.device, tied=tied, basis=job.weights_basis)
            lines += [replace(line, note="; ".join(filter(None, (line.note, f"{held.note} of {layers}")))) if held.note and line.name == "linear layers" else line for line in own]
        if found is not None and "cpu" in found.pieces:
            for line in weight_lines(job.scheme, stored_on(job.stored, found, "cpu"), device="host", tied=tied, basis=job.weights_basis):
                lines.append(replace(line, note=f"offloaded by device_map: {placed_text(found, 'cpu')}", source=f"{line.source}; {MAP_SOURCE}"))
        if found is not None and "disk" in found.pieces:
            nbytes = stored_nbytes(stored_on(job.stored, found, "disk"))
            lines.append(Line("weights", "on disk", 0, Formula("0"), MAP_SOURCE, basis=job.weights_basis, device="host",
                              note=f"{placed_text(found, 'disk')}: {nbytes:,} bytes read from the checkpoint's files at each pass"))  # fmt: skip
        main = main_gpu(found) if found else 0
        where = found.rotary if found and isinstance(found.rotary, int) else main  # buffers aren't offloaded
        near = found.embedding if found and isinstance(found.embedding, int) else main
        return [*lines, *small.lines(job, rotary=where, embedding=near)] if model.model_type in FAMILIES else lines

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """The KV cache at the end of the phase; that of offloaded layers is where they run."""
        kind = job.deployment.settings["cache_implementation"]
        name = f"{str(kind).capitalize()}Cache"
        lines = []
        for share in self._held(job):
            count = attending(job.model, share.layers)
            held = self._cache(job, phase, count)
            lines.append(Line("kv_cache", name, held.nbytes, held.render(), CACHE_SOURCE, high=held.high, device=share.device,
                              note="" if count else "none of its layers attends" if share.layers else "no layer runs on this device"))  # fmt: skip
            if job.model.recurrent:
                lines += state_lines(job.model, share.layers, device=share.device, sequences=job.workload.sequences, element_bytes=DTYPE_BYTES[compute_dtype(job.model, job.scheme)])
        return lines

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """The peak of the pass, on every device that runs something."""
        peak, how = self._peak(job, phase, self._pass(job)), self._pass(job)
        own = f"{architecture(job.model.model_type).source}; {TRACED}"
        basis, low, source, note = "derived", peak.nbytes, own, f"peak at {peak.step.name}, {phase}"
        if how.copies != "never":
            low = self._peak(job, phase, how._replace(copies="never")).nbytes
            basis, source = "modelled", f"{own}; {copies_of(job.scheme)[2]}"
        if peak.step.name == "attention (math kernel)" and how.element_bytes < 4:
            basis, source = "modelled", f"{own}; {MATH_SOURCE}"
            low = min(low, self._peak(job, phase, how._replace(math_bytes=how.element_bytes)).nbytes)
        if job.vendor != "NVIDIA" or job.scheme.family == "exl2" or job.deployment.kv_dtype in cache.QUANTIZED or job.deployment.gpus > 1:
            basis = "modelled"
        hooked, plain = self._hooked(job, phase), Line("activations", "activations", peak.nbytes, peak.formula, source, basis=basis, low=low, note=note)  # type: ignore[arg-type]
        lines = []
        for held in self._held(job):
            if not held.runs:
                lines.append(Line("activations", "activations", 0, Formula("0"), MAP_SOURCE, device=held.device, note="no module on this device"))
            elif hooked is not None and held.main:
                lines.append(replace(plain, nbytes=hooked.nbytes, low=hooked.nbytes, formula=hooked.formula, source=f"{source}; {HOOK_SOURCE}", device=held.device,
                                     note=f"peak at {hooked.step.name}, {phase}: its weights are brought in while it runs"))  # fmt: skip
            else:
                lines.append(replace(plain, device=held.device))
        return lines

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:
        """Input ids, decompressed copies, cuBLAS workspace, allocator slack, context."""
        count, b, whole = self._inputs(job, phase, job.workload.context), job.workload.sequences, bool(job.deployment.settings["generate"])
        lines = [Line("overhead", "input ids", 8 * b * count, Formula("8 × {B} × (3 × {S} + 1)" if whole else "8 × {B} × {S}", {"B": b, "S": count // 3 if whole else count}),
                      GENERATE_SOURCE if whole else "int64 token ids that the caller holds", high=8 * b * count + 24 * whole)]  # fmt: skip
        slack, context, workspace = self._records(job)
        for share in self._held(job):
            if job.scheme.name.startswith(DECOMPRESSED):
                copy = decompressed_bytes(share.stored)
                lines.append(Line("overhead", "decompressed weights", copy, Formula("{n} × 2 (bytes)", {"n": copy // 2}),
                                  DECOMPRESSED_SOURCE, basis="modelled", low=0, device=share.device,
                                  note="transformers has no kernel for this format; the stored weights stay beside"))  # fmt: skip
            lines.append(record_line(workspace, "cuBLAS workspace", share.device, level="allocated"))
            moving = self._cache(job, phase, attending(job.model, share.layers)).nbytes + self._peak_on(job, phase, share)
            lines.append(Line("overhead", "allocator slack", moving * slack.value // 100,
                              Formula("{m} (KV cache and activations) × {p} / 100", {"m": moving, "p": slack.value}),
                              slack.source, basis=slack.basis, low=moving * slack.low // 100,
                              high=moving * slack.high // 100 + (self._other_high(job, phase) if share.main else 0), device=share.device, level="reserved", note=slack.note))  # fmt: skip
            lines.append(record_line(context, "CUDA context" if job.vendor == "NVIDIA" else "driver context",
                                      share.device))  # fmt: skip
        return lines

    def peak(self, job: Job, phase: str) -> Peak:
        """The largest step of the phase."""
        return self._hooked(job, phase) or self._peak(job, phase, self._pass(job))

    def kv_bytes_per_token(self, job: Job) -> int:
        """Growth per token; quantized caches count their scales."""
        hold, layers = self._cache_of(job, "prefill"), len(job.model.attention_layers)
        return (hold(layers, cache.GROUP, 1).nbytes - hold(layers, 0, 1).nbytes) // cache.GROUP

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the passes and the cache depend on."""
        quantized = job.deployment.kv_dtype if job.deployment.kv_dtype in cache.QUANTIZED else ""
        spreading = (job.deployment.gpus, *((job.gpu, job.deployment.quant, *map(job.deployment.settings.get, _MAPPING)) if job.deployment.settings.get("device_map") else ()))
        return (self.name, self._pass(job), quantized, spreading, job.vendor)

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """Cache, activations, their slack, and input ids."""
        slack, how, model = self._records(job)[0], self._pass(job), job.model
        hold = self._cache_of(job, phase)
        shares, matrices = [(attending(model, share.layers), share.runs, share.main) for share in self._held(job)], self._matrices(job)

        activations = steps.sizes(model, how, phase)

        def size(context: int, sequences: int) -> tuple[int, int]:
            plain = activations(context, sequences)
            hooked = _hooked(model, how, phase, matrices, plain, context, sequences) if matrices else None
            point = high = 8 * sequences * self._inputs(job, phase, context)
            for count, runs, main in shares:
                held = hold(count, context, sequences)
                peak = hooked.nbytes if hooked is not None and main else plain if runs else 0
                moving = held.nbytes + peak
                point += moving + moving * slack.value // 100
                high += held.high + peak + moving * slack.high // 100
            return point, high

        return size

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """Nothing depends on the workload here."""
        return dict(job.deployment.settings)

    def host_read(self, job: Job) -> tuple[Stored, int]:
        """Offloaded weights, which every pass brings to the GPU; no cache."""
        found = spread(job)
        return (tuple(group for place in AWAY for group in stored_on(job.stored, found, place)) if found and found.offloaded else ()), 0

    def _held(self, job: Job) -> tuple[Held, ...]:
        return held_by_gpus(job, spread(job))

    def _matrices(self, job: Job) -> Matrices | None:
        found = spread(job)
        return matrices_of(job, found) if found and found.offloaded else None

    def _hooked(self, job: Job, phase: str) -> Peak | None:
        """The pass's largest step where an offloaded module's weights make it so."""
        if (matrices := self._matrices(job)) is None:
            return None
        how, work = self._pass(job), job.workload
        return _hooked(job.model, how, phase, matrices, self._peak(job, phase, how).nbytes, work.context, work.sequences)

    def _peak_on(self, job: Job, phase: str, held: Held) -> int:
        if not held.runs:
            return 0
        return (self.peak(job, phase) if held.main else self._peak(job, phase, self._pass(job))).nbytes

    def _pass(self, job: Job) -> steps.Pass:
        settings, dtype = job.deployment.settings, compute_dtype(job.model, job.scheme)
        copies, size, _ = copies_of(job.scheme)
        return steps.Pass(
            str(settings["attn_implementation"]), DTYPE_BYTES[dtype],
            steps.softmax_bytes(dtype) if settings["attn_implementation"] == "eager" else 0,
            int(settings["logits_to_keep"]), settings["cache_implementation"] == "static", size, copies,
            job.deployment.kv_dtype in cache.QUANTIZED, dtype != "float16", 4 if math_kernel(dtype, job) else 0,
            bool(settings["generate"]),
        )  # fmt: skip

    def _peak(self, job: Job, phase: str, how: steps.Pass) -> Peak:
        run = steps.prefill if phase == "prefill" else steps.decode
        return run(job.model, how, tokens=job.workload.context, sequences=job.workload.sequences)

    def _other_high(self, job: Job, phase: str) -> int:
        """What the other phase's high end has above this one's: a total must hold for both [bytes]."""
        work = job.workload
        highs = {p: self.dynamic(job, p)(work.context, work.sequences)[1] for p in self.phases(job)}
        return max(highs.values()) - highs[phase]

    def _inputs(self, job: Job, phase: str, context: int) -> int:
        """Integers that the caller holds for a sequence; generate() keeps the whole text, its mask and positions, and a flag."""
        if job.deployment.settings["generate"]:
            return 3 * (context + (phase == "decode")) + 1
        return context if phase == "prefill" else 1

    def _cache(self, job: Job, phase: str, layers: int) -> cache.Cache:
        return self._cache_of(job, phase)(layers, job.workload.context, job.workload.sequences)

    def _cache_of(self, job: Job, phase: str) -> Callable[[int, int, int], cache.Cache]:
        """(layers, context, sequences) -> cache at the end of the phase."""
        model, kind, new = job.model, job.deployment.kv_dtype, 1 if phase == "decode" else 0
        size = DTYPE_BYTES[compute_dtype(model, job.scheme)]
        static = job.deployment.settings["cache_implementation"] == "static"
        if kind in cache.QUANTIZED:
            return lambda layers, s, b: cache.quantized(
                model, layers=layers, sequences=b, cached=s, new=new, kind=kind, element_bytes=size
            )
        return lambda layers, s, b: cache.plain(
            model, layers=layers, sequences=b, tokens=s + new, element_bytes=size, static=static, decoding=phase == "decode"
        )

    def _records(self, job: Job) -> tuple[Record, Record, Record]:
        return records_of(job.vendor, job.gpu.compute_capability if job.gpu else None)


def _hooked(model: ModelSpec, how: steps.Pass, phase: str, matrices: Matrices, plain: int, context: int, sequences: int) -> Peak | None:
    new, seen = (context, context) if phase == "prefill" else (1, context + 1)
    return with_hooks(model, how, phase, matrices, plain, new=new, seen=seen, sequences=sequences)
