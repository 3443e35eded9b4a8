"""llama.cpp: layers on one or several GPUs, on the host, or on both. Line names are those of its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

from calculator.engines.base import Dynamic, Job
from calculator.engines.llama_cpp import buffers, builds, draft, fit, kv, lora, ollama, overrides, placement, rs
from calculator.engines.llama_cpp.builds import RELEASES
from calculator.engines.llama_cpp.command import start_command
from calculator.engines.llama_cpp.compute import NONE_ON_HOST, Compute, compute, device_bytes
from calculator.engines.llama_cpp.compute import SOURCE as COMPUTE_SOURCE
from calculator.engines.llama_cpp.fit import CONTEXTS
from calculator.engines.llama_cpp.settings import KV_TYPES, SETTINGS, check, context_of, without_graph
from calculator.engines.llama_cpp.simulation import Weights
from calculator.engines.records import Record, ResidualBand, band_of, record, record_line, residual_band
from calculator.engines.settings import Setting
from calculator.engines.weights import stored_formula
from calculator.errors import NotModelled, Unsupported
from calculator.formats import FORMATS
from calculator.ledger import Formula, Line
from calculator.quantization import Scheme, Stored, StoredGroup
from calculator.quantization.gguf import OLD_SOURCE
from calculator.quantization.gguf_types import SOURCE as RECIPE_SOURCE
from calculator.spec import GpuSpec, ModelSpec, Workload
from calculator.steps import Peak

Place = int | Literal["host"]
_ROWS = "as the log's CUDA and CUDA_Split buffers, which count a matrix on its layer's GPU; its rows lie on all GPUs by their shares"


class LlamaCpp:
    """llama.cpp as its server runs it; n_ctx is the total over its slots."""

    name = "llama.cpp"
    versions = tuple(RELEASES)
    settings: ClassVar[dict[str, Setting]] = SETTINGS
    others = builds.FORMS

    def covers(self, version: str) -> bool:
        """A build number or a day whose rules are known."""
        return builds.release_of(version) is not None

    def phases(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002
        """Buffers are reserved once, for a full micro-batch."""
        return ("prefill",)

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any], version: str) -> str:  # noqa: ARG002
        """f16 unless told otherwise; fills type_k and type_v. A quantized V needs flash attention."""
        if kv_dtype is not None and kv_dtype not in KV_TYPES:
            raise Unsupported(f"llama.cpp has no {kv_dtype} cache", allowed=", ".join(KV_TYPES))
        both = kv_dtype or "f16"
        settings.setdefault("type_k", both)
        settings.setdefault("type_v", both)
        if FORMATS[settings["type_v"].upper()].block_elements > 1 and not settings["flash_attn"]:
            raise Unsupported(
                f"a quantized V cache ({settings['type_v']}) needs flash attention",
                hint="--set flash_attn=1, or --set type_v=f16",
            )
        row = buffers.row_elements(model)["k"]
        width = row if model.mla else model.head_dim
        for name in ("type_k", "type_v"):
            block = FORMATS[settings[name].upper()].block_elements
            if width % block:
                raise Unsupported(f"{name}={settings[name]} needs head_dim to be a multiple of {block}; it is {width} (row {row})",
                                  hint="f16 or bf16")  # fmt: skip
        same = settings["type_k"] == settings["type_v"]
        return str(settings["type_k"]) if same else f"{settings['type_k']}/{settings['type_v']}"

    def preset_context(self, chosen: Mapping[str, Any], model: ModelSpec, gpu: GpuSpec | None, gpus: int) -> int | None:
        """Context that ollama takes by the memory of the GPUs."""
        return ollama.default_context(model, gpu, gpus) if chosen.get("preset") == "ollama" else None

    def preset(self, chosen: Mapping[str, Any], version: str, model: ModelSpec, scheme: Scheme, workload: Workload, gpu: GpuSpec | None,
               gpus: int) -> Mapping[str, Any]:  # fmt: skip
        """What ollama passes to llama-server; and flash attention off where that was the default."""
        if chosen.get("preset") != "ollama":
            if builds.rules_of(version) is buffers.NEWEST:
                return {}
            flash = builds.flash_by_default(version)
            if flash is None and "flash_attn" not in chosen:
                raise NotModelled(f"llama.cpp {version}: whether flash attention is on by default", hint="--set flash_attn=0 or 1")
            whole = model.mla is not None and builds.rules_of(version).latent == "heads"
            return {"flash_attn": bool(flash), "quantizer": "2024" if whole else "2025"}
        return ollama.settings(model, scheme, workload, gpu, gpus, chosen.get("backend") != "cpu")

    def check(self, job: Job) -> None:
        """Refuse what this engine's formulas don't cover."""
        check(job)

    def check_bound(self, job: Job) -> None:
        """Refuse what is not even known of weights and cache."""
        check(job, graph=False)

    def without_peak(self, job: Job) -> str | None:
        """Why an older build's compute buffers aren't known; None where they are."""
        why = without_graph(job)
        return None if why is None else why.given

    def weight_lines(self, job: Job) -> list[Line]:
        """Model buffers: on the devices, and what the host holds beside them."""
        context = context_of(job)
        if not context.cuda:
            lines = [Line("weights", "model buffer", sum(g.nbytes for g in job.stored), stored_formula(list(job.stored)),
                         _types_source(job), basis=job.weights_basis, note="CPU, before any repacking"),
                    *lora.lines(context, job.stored)]  # fmt: skip
            return lines if "draft" not in job.deployment.settings else lines + draft.renamed(self.weight_lines(draft.job_of(job, context)))
        placed = _placed(job, context)
        lines = [_model_buffer(job, list(held), device, f"{job.scheme.name}: {job.scheme.rule}" if held else "no layer is on this GPU")
                 for device, held in enumerate(placed.gpus)]  # fmt: skip
        if context.by_rows and context.gpus > 1:
            lines = [replace(line, note=f"{line.note}; {_ROWS}") for line in lines]
        if job.deployment.settings["fit"]:
            lines = [replace(line, note=f"{line.note}; {fit.note(job, context)}", source=f"{line.source}; {fit.SOURCE}") for line in lines]
        twice = job.model.tie_word_embeddings and placement.places_of_layers(job.model.num_hidden_layers, context)[-1] != context.gpus
        tied = "held twice: tied to the output, which is on the GPU" if twice else "always on the host"
        if context.overrides:
            tied = "on the host unless override_tensor names it; a tied one is held once a place" if placed.embedding else "override_tensor puts it on a GPU"
        lines.append(_model_buffer(job, list(placed.embedding), "host", tied, "token_embd"))
        own = context.release.output_first or context.n_gpu_layers < 0
        first = job.model.num_hidden_layers + own - max(context.n_gpu_layers, 0)
        behind = "" if own else " and the output"
        for part, name, note in (
            (placed.layers, "layers", (f"layers 0 to {first - 1}{behind}" if first else "the output") if context.n_gpu_layers else "all layers and the output"),
            (placed.experts, "experts", f"n_cpu_moe={context.n_cpu_moe}"),
            (placed.overridden, "override_tensor", "what override_tensor puts on the host of layers that are on a GPU"),
            (placed.no_kernel, "no CUDA kernel", "CUDA doesn't multiply this type: it stays on the CPU"),
        ):
            if part:
                lines.append(_model_buffer(job, list(part), "host", note, name))
        lines += lora.lines(context, placed)
        return lines if "draft" not in job.deployment.settings else lines + draft.renamed(self.weight_lines(draft.job_of(job, context)))

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """KV buffers: padded cells times rows, on the place of each layer; RS buffers of recurrent layers."""
        context = context_of(job)
        found = kv.lines(job.model, context) + (rs.lines(job.model, context) if job.model.recurrent else [])
        return found if "draft" not in job.deployment.settings else found + draft.renamed(self.cache_lines(draft.job_of(job, context), phase))

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """Compute buffers of the devices and the host, and the output buffer."""
        context = context_of(job)
        peaks, host = _compute(job, context)
        band = _band(job, context)
        host_high = 102 if _older_and_split(context) else 101
        source = f"{COMPUTE_SOURCE}; band: {band.source}"
        copies = "; inputs are held four times, for micro-batches that run at once" if context.pipelined else ""
        lines = []
        for device, peak in enumerate(peaks):
            low, high = band.around(peak.nbytes)
            lines.append(Line("activations", "compute buffer", peak.nbytes, peak.formula, source, basis="modelled", low=low, high=high,
                              device=device, note=f"largest while {peak.step.name} is computed, for a full micro-batch{copies}"))  # fmt: skip
        beside: Place = "host" if context.cuda else 0
        if context.cuda:
            lines.append(Line("activations", "compute buffer, host", host,
                              Formula("{n} (inputs and what is computed on the host)", {"n": host}), source, basis="modelled",
                              low=host * 99 // 100, high=-(-host * host_high // 100), device="host"))  # fmt: skip
        rows = draft.outputs(job, context.n_seq_max)
        lines.append(Line("activations", "output buffer", 4 * job.model.vocab_size * rows,
                          Formula("4 (bytes) × {V} (vocabulary) × {q} (sequences" + (" and what is drafted for them)" if rows > context.n_seq_max else ")"),
                                  {"V": job.model.vocab_size, "q": rows}),
                          "llama.cpp src/llama-context.cpp output_reserve @0c1e57098", device=beside))  # fmt: skip
        if "draft" not in job.deployment.settings:
            return lines
        beside_it = draft.job_of(job, context)
        found = draft.renamed(self.activation_lines(beside_it, phase))
        return lines + draft.sampled(found, beside_it.model.vocab_size, context.n_seq_max)

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """What the process takes beside its buffers."""
        backend = job.deployment.settings["backend"]
        r = _context_record("Apple" if backend == "metal" else job.vendor, backend != "cpu")
        name = "process" if backend == "cpu" else "CUDA context" if backend == "cuda" and job.vendor == "NVIDIA" else "driver context"
        return [record_line(r, name, i) for i in range(job.deployment.gpus)]

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The step that the largest compute buffer is sized for."""
        return _compute(job, context_of(job)).largest

    def kv_bytes_per_token(self, job: Job) -> int:
        """Rows of K and V over the layers that still grow at this context."""
        context = context_of(job)
        rows = sum(buffers.row_bytes(job.model, kv.types_of(context), context.release).values())
        window = job.model.full_every and context.release.windows and not context.swa_full and job.workload.context >= (job.model.sliding_window or 0)
        own = (job.model.full_layers if window else len(job.model.attention_layers)) * rows
        return own if "draft" not in job.deployment.settings else own + self.kv_bytes_per_token(draft.job_of(job, context))

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the buffers depend on beside model, context and sequences."""
        chosen = {k: v for k, v in job.deployment.settings.items() if k not in ("imatrix", "preset") and k != "quantizer"}
        context = context_of(job)
        key = (self.name, tuple(chosen.items()), job.deployment.gpus, context.release, _weights(job, context), job.stored if chosen["fit"] else None)
        return (*key, self.dynamic_key(draft.job_of(job, context))) if "draft" in chosen else key

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """KV and compute buffers on the devices."""
        model, gpus = job.model, job.deployment.gpus
        band = _band(job, context_of(job))

        def size(context: int, sequences: int) -> tuple[int, int]:
            where = context_of(job, context, sequences)
            fixed = kv.gpu_bytes(model, where)
            if job.deployment.settings["fit"]:  # then weights depend on the context too
                placed = _placed(job, where)
                fixed += sum(placement.gpu_bytes(g) for part in placed.gpus for g in part)
                fixed += sum(line.nbytes for line in lora.lines(where, placed) if line.device != "host")
            if not where.cuda:
                fixed += 4 * model.vocab_size * draft.outputs(job, where.n_seq_max)
            if gpus == 1 and where.on_gpus_alone:
                devices = [device_bytes(model, where)]
            else:
                devices = [peak.nbytes for peak in _compute(job, where).devices]
            point, high = fixed + sum(devices), fixed + sum(band.around(nbytes)[1] for nbytes in devices)
            if "draft" in job.deployment.settings:
                own = draft.job_of(job, where)
                beside, beside_high = self.dynamic(own, phase)(context, sequences)
                return point + beside, high + beside_high + gpus * draft.sampler_bytes(own.model.vocab_size, where.n_seq_max)
            return point, high

        return size

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """With n_ctx, n_seq_max, n_outputs_max and n_gpu_layers as the workload and the model set them."""
        context = context_of(job)
        derived: dict[str, str | int | bool | float] = {"n_ctx": context.n_ctx, "n_seq_max": context.n_seq_max, "n_outputs_max": context.n_outputs}
        if context.cuda:
            all_layers = job.model.num_hidden_layers + 1
            derived["n_gpu_layers"] = all_layers if context.n_gpu_layers < 0 else context.n_gpu_layers
            if context.overrides:
                derived["override_tensor"] = overrides.text(context.overrides, context.gpus)
            if job.deployment.settings["fit"] and context.gpus > 1:
                derived["tensor_split"] = ",".join(f"{share:g}" for share in context.split)
        return dict(job.deployment.settings) | derived

    def start_command(self, job: Job) -> str | None:
        """The llama-server call whose buffers these are; None where no flag gives a setting."""
        return start_command(job, context_of(job))

    def host_read(self, job: Job) -> tuple[Stored, int]:
        """Weights, and bytes of cache, in host memory that generated tokens read, beside GPUs."""
        context = context_of(job)
        if not context.cuda:
            return (), 0
        cache = sum(line.nbytes for line in self.cache_lines(job, "prefill") if line.device == "host")
        return _placed(job, context).host_read, cache


def _older_and_split(context: buffers.Context) -> bool:
    """Whether this is a case that was held against public logs alone."""
    return context.release is not buffers.NEWEST and (not context.on_gpus_alone or context.gpus > 1)


def _band(job: Job, context: buffers.Context) -> ResidualBand:
    """What records have earned for the compute buffers of such a context; Metal's and Vulkan's are CUDA's, and a wider band says so."""
    if _older_and_split(context):
        return band_of(record("llama_cpp", "older_build_split"))
    if (backend := job.deployment.settings["backend"]) in ("cuda", "cpu"):
        return residual_band(f"llama.cpp/compute buffer/{backend}")
    return band_of(record("llama_cpp", "other_backend"))


@lru_cache(maxsize=16)
def _context_record(vendor: str, cuda: bool) -> Record:
    if not cuda:
        return record("llama_cpp", "cpu_process")
    return record("llama_cpp", CONTEXTS.get(vendor, "cuda_context"))


def _types_source(job: Job) -> str:
    recipe = OLD_SOURCE if job.deployment.settings.get("quantizer") in ("2024", "2025") else RECIPE_SOURCE
    return job.scheme.source if job.from_headers else recipe


def _placed(job: Job, context: buffers.Context) -> placement.Placed:
    return placement.place(job.stored, layers=job.model.num_hidden_layers, tied=job.model.tie_word_embeddings, context=context)


def _model_buffer(job: Job, held: list[StoredGroup], device: Place, note: str, name: str = "") -> Line:
    """The line of one model buffer, each tensor aligned and padded as its place has it."""
    size = placement.host_bytes if device == "host" else placement.gpu_bytes
    exact = all(size(g) == g.nbytes for g in held)
    label = f"model buffer, {name}" if name else "model buffer"
    return Line("weights", label, sum(size(g) for g in held), stored_formula(held, None if exact else size), placement.SOURCE,
                basis=job.weights_basis, device=device, note=note)  # fmt: skip


def _compute(job: Job, context: buffers.Context) -> Compute:
    return compute(job.model, context, _weights(job, context))


def _weights(job: Job, context: buffers.Context) -> Weights:
    """Formats of the host's matrices, where a GPU may take over their products."""
    layers = job.model.num_hidden_layers
    if context.on_gpus_alone or not (context.op_offload or context.overrides):
        return NONE_ON_HOST
    if not context.overrides:
        return Weights(*placement.formats_on_host(job.stored, layers, context.n_gpu_layers, context.n_cpu_moe, output_first=context.release.output_first))
    return Weights(*placement.overridden(job.stored, layers, job.model.tie_word_embeddings, context))
