"""llama.cpp, fully offloaded to one or several GPUs, or on the CPU. Line names are those of its log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal

from calculator.engines.base import COUNT, Dynamic, Job, Record, Setting, record, residual_band
from calculator.engines.llama_cpp import buffers
from calculator.engines.llama_cpp.compute import SOURCE as COMPUTE_SOURCE
from calculator.engines.llama_cpp.compute import compute, device_bytes
from calculator.engines.weights import stored_formula
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.formats import FORMATS
from calculator.ledger import Formula, Line
from calculator.parallelism import share_of, split_layers
from calculator.quantization import Scheme, Stored, StoredGroup
from calculator.quantization.gguf import SOURCE as RECIPE_SOURCE
from calculator.spec import ModelSpec
from calculator.steps import Peak

KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
KV_SOURCE = "llama.cpp src/llama-kv-cache.cpp @0c1e57098; equals 6,080 of 6,080 measured contexts of llama-like models"
PLACEMENT = "llama.cpp src/llama-model.cpp load_tensors @0c1e57098; ggml-cuda.cu get_alloc_size"
NO_CUDA_KERNEL = frozenset({"TQ1_0", "TQ2_0"})  # ggml-cuda.cu ggml_backend_cuda_device_supports_op, MUL_MAT


class LlamaCpp:
    """llama.cpp as its server runs it; n_ctx is the total over its slots."""

    name = "llama.cpp"
    versions = ("0c1e57098",)
    settings: ClassVar[dict[str, Setting]] = {
        "backend": Setting("cuda", ("cuda", "cpu"), "CUDA (any GPU, by CUDA's rules), or the CPU as device 0"),
        "n_ctx": Setting(None, COUNT, "total cells over all sequences; default context x sequences"),
        "flash_attn": Setting(True, bool, "flash attention"),
        "n_batch": Setting(2048, COUNT, "logical batch [tokens]"),
        "n_ubatch": Setting(512, COUNT, "micro-batch that the compute buffer is sized for [tokens]"),
        "n_seq_max": Setting(None, range(1, 257), "slots; default the number of sequences"),
        "kv_unified": Setting(False, bool, "one cache shared by all sequences"),
        "n_outputs_max": Setting(None, range(0, COUNT.stop), "outputs reserved a micro-batch; 0 all; default n_seq_max, as llama-server"),
        "swa_full": Setting(False, bool, "full-size cache for sliding-window layers"),
        "type_k": Setting(None, KV_TYPES, "type of K; default --kv-dtype"),
        "type_v": Setting(None, KV_TYPES, "type of V; default --kv-dtype"),
        "n_gpu_layers": Setting(None, range(-1, 10_002), "layers on the GPU; default all"),
        "imatrix": Setting(False, bool, "the file was quantized with an importance matrix"),
    }  # fmt: skip

    def phases(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002
        """Buffers are reserved once, for a full micro-batch."""
        return ("prefill",)

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:  # noqa: ARG002
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
        row = model.num_key_value_heads * model.head_dim
        for name in ("type_k", "type_v"):
            block = FORMATS[settings[name].upper()].block_elements
            if model.head_dim % block:
                raise Unsupported(f"{name}={settings[name]} needs head_dim to be a multiple of {block}; it is {model.head_dim} (row {row})",
                                  hint="f16 or bf16")  # fmt: skip
        same = settings["type_k"] == settings["type_v"]
        return str(settings["type_k"]) if same else f"{settings['type_k']}/{settings['type_v']}"

    def check(self, job: Job) -> None:
        """Refuse what this engine's formulas don't cover."""
        settings = job.deployment.settings
        layers = settings.get("n_gpu_layers")
        if layers is not None and layers != -1 and int(layers) <= job.model.num_hidden_layers:
            raise NotModelled(
                f"n_gpu_layers={layers}: layers left on the CPU come in a later version",
                hint="leaving it out (all layers), or --set backend=cpu",
            )
        if job.workload.sequences > 256:
            raise BadValue(f"sequences {job.workload.sequences} is out of range for llama.cpp", allowed="1 to 256")
        context, work = self._context(job), job.workload
        if context.n_seq_max < work.sequences:
            raise BadValue(f"n_seq_max {context.n_seq_max} has no slots for {work.sequences} sequences",
                           hint=f"--set n_seq_max={work.sequences}")  # fmt: skip
        if context.n_ctx < work.context * work.sequences:
            raise BadValue(
                f"n_ctx {context.n_ctx:,} doesn't hold {work.sequences:,} x {work.context:,} tokens",
                hint="leaving n_ctx out, or a smaller --context",
            )
        if (where := buffers.layout(context)).streams > 1 and where.cells < work.context:
            raise BadValue(f"n_seq_max {context.n_seq_max} leaves {where.cells:,} cells a sequence for {work.context:,} tokens",
                           hint=f"--set n_ctx={work.context * context.n_seq_max}")  # fmt: skip
        if settings["backend"] == "cpu" and job.deployment.gpus > 1:
            raise BadValue("backend=cpu runs on one device", hint="leaving --gpus out")
        if settings["backend"] == "cpu" and job.gpu:
            raise BadValue(f"backend=cpu doesn't use {job.gpu.name}", hint="leaving --gpu or backend=cpu out")

    def weight_lines(self, job: Job) -> list[Line]:
        """Model buffers: on the devices, and the token embedding in host memory."""
        cuda = self._cuda(job)
        if not cuda:
            return [Line("weights", "model buffer", sum(g.nbytes for g in job.stored), stored_formula(list(job.stored)),
                         _types_source(job), basis=job.weights_basis, note="CPU, before any repacking")]  # fmt: skip
        lines = []
        for share in split_layers(job.model.num_hidden_layers, job.deployment.gpus):
            held = _on_gpu(share_of(job.stored, share, head_with_embedding=False), job.model.tie_word_embeddings)
            held = [g for g in held if g.format not in NO_CUDA_KERNEL]
            total = sum(_gpu_bytes(g) for g in held)
            exact = all(_gpu_bytes(g) == g.nbytes for g in held)
            formula = stored_formula(held, None if exact else _gpu_bytes)
            lines.append(Line("weights", "model buffer", total, formula, PLACEMENT, basis=job.weights_basis, device=share.device,
                              note=f"{job.scheme.name}: {job.scheme.rule}"))  # fmt: skip
        host = [g for g in job.stored if g.group.role == "embedding"]
        tied = "held twice: tied to the output, which is on the GPU" if job.model.tie_word_embeddings else "always on the host"
        lines.append(Line("weights", "model buffer, token_embd", sum(g.nbytes for g in host), stored_formula(host),
                          PLACEMENT, basis=job.weights_basis, device="host", note=tied))  # fmt: skip
        if left := [g for g in job.stored if g.format in NO_CUDA_KERNEL]:
            lines.append(Line("weights", "model buffer, no CUDA kernel", sum(g.nbytes for g in left), stored_formula(left),
                              PLACEMENT, basis=job.weights_basis, device="host", note="CUDA doesn't multiply this type: it stays on the CPU"))  # fmt: skip
        return lines

    def cache_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """KV buffers: padded cells times rows."""
        context, model = self._context(job), job.model
        where = buffers.layout(context)
        rows = {"k": buffers.row_bytes(model, FORMATS[context.type_k]), "v": buffers.row_bytes(model, FORMATS[context.type_v])}
        note = f"K {context.type_k}, V {context.type_v}; cells are padded to 256"
        lines = []
        for share in split_layers(model.num_hidden_layers, job.deployment.gpus):
            for name, cells, count in self._kinds(model, context, share.layers):
                total = count * self._kv_layer(job, context, cells)
                padding = total - where.streams * cells * count * sum(rows.values())
                symbols = {"s": where.streams, "c": cells, "L": count, **rows, "p": padding}
                template = (
                    "{s} (streams) × {c} (cells) × {L} (layers) × ({k} + {v}) (bytes a row of K and V)"
                    + (" + {p} (CUDA's padding of last rows)" if padding else "")
                )
                lines.append(Line("kv_cache", name, total, Formula(template, symbols), KV_SOURCE, device=share.device, note=note))
        return lines

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Compute buffers of the devices and the host, and the output buffer."""
        context = self._context(job)
        peak, host = compute(job.model, context)
        band = residual_band(f"llama.cpp/compute buffer/{job.deployment.settings['backend']}")
        low, high = band.around(peak.nbytes)
        source = f"{COMPUTE_SOURCE}; band: {band.source}"
        lines = [
            Line("activations", "compute buffer", peak.nbytes, peak.formula, source, basis="modelled", low=low, high=high,
                 device=i, note=f"largest while {peak.step.name} is computed, for a full micro-batch")
            for i in range(job.deployment.gpus)
        ]  # fmt: skip
        if job.deployment.gpus > 1:
            copies = buffers.pipeline_inputs(context)
            lines += [
                Line("activations", "pipeline copies", copies, Formula("{n} (3 more copies of the mask)", {"n": copies}),
                     "llama.cpp ggml/src/ggml-backend.cpp GGML_SCHED_MAX_COPIES @0c1e57098", basis="modelled", low=0,
                     high=2 * copies, device=i, note="several devices run micro-batches at once; no record has two devices")
                for i in range(job.deployment.gpus)
            ]  # fmt: skip
        beside: int | Literal["host"] = "host" if self._cuda(job) else 0
        if self._cuda(job):
            lines.append(Line("activations", "compute buffer, host", host,
                              Formula("{n} (inputs and input embeddings)", {"n": host}), source, basis="modelled",
                              low=host * 99 // 100, high=host * 101 // 100, device="host"))  # fmt: skip
        lines.append(Line("activations", "output buffer", 4 * job.model.vocab_size * context.n_seq_max,
                          Formula("4 (bytes) × {V} (vocabulary) × {q} (sequences)",
                                  {"V": job.model.vocab_size, "q": context.n_seq_max}),
                          "llama.cpp src/llama-context.cpp output_reserve @0c1e57098", device=beside))  # fmt: skip
        return lines

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """What the process takes beside its buffers."""
        r = _context_record(job.vendor, self._cuda(job))
        name = "process" if not self._cuda(job) else "CUDA context" if job.vendor == "NVIDIA" else "driver context"
        return [
            Line("overhead", name, r.value, Formula("{v}", {"v": r.value}), r.source, basis=r.basis, low=r.low,
                 high=r.high, device=i, level="process", note=r.note)
            for i in range(job.deployment.gpus)
        ]  # fmt: skip

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The step that the compute buffer is sized for."""
        return compute(job.model, self._context(job))[0]

    def kv_bytes_per_token(self, job: Job) -> int:
        """Rows of K and V over the layers that still grow at this context."""
        context = self._context(job)
        rows = sum(buffers.row_bytes(job.model, FORMATS[t]) for t in (context.type_k, context.type_v))
        window = job.model.full_every and not context.swa_full and job.workload.context >= (job.model.sliding_window or 0)
        return (job.model.full_layers if window else job.model.num_hidden_layers) * rows

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the buffers depend on beside model, context and sequences."""
        chosen = {k: v for k, v in job.deployment.settings.items() if k != "imatrix"}
        return (self.name, tuple(chosen.items()), job.deployment.gpus)

    def dynamic(self, job: Job, phase: str) -> Dynamic:  # noqa: ARG002
        """KV and compute buffers."""
        model, gpus = job.model, job.deployment.gpus
        band = residual_band(f"llama.cpp/compute buffer/{job.deployment.settings['backend']}")

        def size(context: int, sequences: int) -> tuple[int, int]:
            where = self._context(job, context, sequences)
            fixed = sum(count * self._kv_layer(job, where, cells) for _, cells, count in self._kinds(model, where, range(model.num_hidden_layers)))
            if not where.cuda:
                fixed += 4 * model.vocab_size * where.n_seq_max
            device = device_bytes(model, where)
            copies = buffers.pipeline_inputs(where) if gpus > 1 else 0
            return fixed + (device + copies) * gpus, fixed + (band.around(device)[1] + 2 * copies) * gpus

        return size

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """With n_ctx, n_seq_max and n_outputs_max as the workload sets them."""
        context = self._context(job)
        derived = {"n_ctx": context.n_ctx, "n_seq_max": context.n_seq_max, "n_outputs_max": context.n_outputs}
        return dict(job.deployment.settings) | derived

    def _cuda(self, job: Job) -> bool:
        return job.deployment.settings["backend"] == "cuda"

    def _kinds(self, model: ModelSpec, context: buffers.Context, layers: Sequence[int]) -> list[tuple[str, int, int]]:
        """Name of the buffer, cells a stream and number of layers, for full and for sliding-window layers."""
        cells = buffers.layout(context).cells
        if not model.full_every:
            return [("KV buffer", cells, len(layers))]
        full = sum((i + 1) % model.full_every == 0 for i in layers)
        windowed = buffers.window_cells(model.sliding_window or 0, context)
        return [("KV buffer", cells, full), ("KV buffer, sliding window", windowed, len(layers) - full)]

    def _kv_layer(self, job: Job, context: buffers.Context, cells: int) -> int:
        where = buffers.layout(context)._replace(cells=cells)
        k = buffers.kv_tensor_bytes(job.model, FORMATS[context.type_k], where, cuda=context.cuda)
        v = buffers.kv_tensor_bytes(job.model, FORMATS[context.type_v], where, cuda=context.cuda)
        return k + v

    def _context(self, job: Job, context: int = 0, sequences: int = 0) -> buffers.Context:
        """The context that llama-server would make for the job's workload, or for another."""
        s = job.deployment.settings
        context, sequences = context or job.workload.context, sequences or job.workload.sequences
        n_ubatch = min(int(s["n_ubatch"]), int(s["n_batch"]))
        n_seq_max = int(s.get("n_seq_max", sequences))
        n_outputs = int(s.get("n_outputs_max", n_seq_max)) or n_ubatch
        return buffers.Context(
            n_ctx=int(s.get("n_ctx", context * sequences)), n_batch=int(s["n_batch"]), n_ubatch=n_ubatch,
            n_seq_max=n_seq_max, n_outputs=n_outputs, kv_unified=bool(s["kv_unified"]), flash_attn=bool(s["flash_attn"]),
            type_k=str(s["type_k"]).upper(), type_v=str(s["type_v"]).upper(), cuda=s["backend"] == "cuda", swa_full=bool(s["swa_full"]),
        )  # fmt: skip


@lru_cache(maxsize=16)
def _context_record(vendor: str, cuda: bool) -> Record:
    if not cuda:
        return record("llama_cpp", "cpu_process")
    return record("llama_cpp", {"AMD": "hip_context", "Apple": "metal_context"}.get(vendor, "cuda_context"))


def _types_source(job: Job) -> str:
    return job.scheme.source if job.from_headers else RECIPE_SOURCE


def _on_gpu(held: Stored, tied: bool) -> list[StoredGroup]:
    """Without an untied token_embd; a tied one is the output and goes with it."""
    return [g for g in held if g.group.role != "embedding" or tied]


def _gpu_bytes(group: StoredGroup) -> int:
    fmt = FORMATS[group.format]
    return buffers.cuda_tensor_bytes(group.tensor_nbytes, group.group.row_length, fmt) * group.count
