"""transformers on one GPU, or with its layers spread over several: steps, caches, torch's overheads."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

from calculator.engines.base import Dynamic, Job
from calculator.engines.records import Record, record, record_line
from calculator.engines.settings import COUNT, Setting
from calculator.engines.transformers import cache, steps
from calculator.engines.transformers.state import attending, state_lines
from calculator.engines.weights import weight_lines
from calculator.errors import NotModelled, Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share, share_of, split_layers
from calculator.quantization import Scheme, StoredGroup, compute_dtype
from calculator.quantization.hf import DTYPE_BYTES, KV_NAMES
from calculator.spec import ModelSpec
from calculator.steps import Peak

SOURCE = "transformers v5.23.0 models/llama/modeling_llama.py; FakeTensor runs, torch 2.13.0"
MATH_SOURCE = ("pytorch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash needs compute capability 8.0, the "
               "memory-efficient kernel has no grouped heads; math attention computes in float32")  # fmt: skip
CACHE_SOURCE = "transformers v5.23.0 cache_utils.py"

# bytes a weight that a forward pass holds beside the stored weights, and when: from the kernels' sources
_COPIES: dict[str, tuple[str, int, str]] = {
    "bnb-int8": ("int8", 0, "bitsandbytes 0.50 backends/cuda/ops.py int8_mm_dequant, autograd/_functions.py MatMul8bitLt"),
    "bnb": ("prefill", 2, "bitsandbytes 0.50 backends/cuda/ops.py L904: 16-bit copy above a kernel-dependent batch"),
    "awq": ("prefill", 2, "AutoAWQ awq/modules/linear/gemm.py L48: 16-bit copy from 1024 tokens; none with Marlin"),
    "gptq": ("prefill", 2, "GPTQModel exllamav2 q_gemm.cu L118: 16-bit copy above 50 rows; none with Marlin"),
    "torchao-int8wo": ("always", 2, "torchao 0.18.0 int8_tensor.py L346: 16-bit copy each pass unless compiled"),
    "torchao-fp8wo": ("always", 2, "torchao 0.18.0 float8_tensor.py L465: 16-bit copy each pass; more unless fused"),
    "quanto-int8": ("always", 2, "optimum-quanto 0.2.7 library/qbytes_mm.py L25"),
    "quanto-fp8": ("always", 4, "optimum-quanto 0.2.7 library/qbytes_mm.py L25: two 16-bit copies"),
    "quanto-int4": ("always", 4, "optimum-quanto 0.2.7 tensor/qbits.py L28"),
    "hqq": ("always", 6, "hqq @e0b1d00 core/quantize.py L183: three 16-bit tensors in the default backend"),
    "exl2": ("prefill", 2, "exllamav2 q_gemm.cu L233: 16-bit copy above 32 rows"),
}
GENERATE_SOURCE = ("transformers v5.23.0 generation/utils.py: token ids, attention mask and positions, all int64, a flag for each sequence; "
                   "up to three special tokens in the high end")  # fmt: skip
# compressed-tensors formats without a kernel in transformers become 16-bit on the first forward pass, for good
_DECOMPRESSED = ("int8-w8a8", "nvfp4", "w4a16", "w8a16", "compressed-tensors")  # beginnings of names
_DECOMPRESSED_SOURCE = "huggingface/transformers PR #47652: compressed weights are decompressed on the first forward pass"


class Transformers:
    """The Hugging Face library, whole prompt in one pass."""

    name = "transformers"
    versions = ("5.23",)
    settings: ClassVar[dict[str, Setting]] = {
        "attn_implementation": Setting("sdpa", ("sdpa", "eager"), "attention kernel"),
        "logits_to_keep": Setting(1, range(0, COUNT.stop), "positions with logits; 0 is all"),
        "cache_implementation": Setting(None, ("dynamic", "static", "quantized"), "kind of KV cache; default dynamic"),
        "phase": Setting(None, ("prefill", "decode"), "size this phase; default the larger of the two"),
        "generate": Setting(False, bool, "with generate()'s inputs: a mask and positions for each sequence; off, a bare forward pass"),
    }

    def phases(self, job: Job) -> tuple[str, ...]:
        """Both phases unless one was asked for."""
        phase = job.deployment.settings.get("phase")
        return (str(phase),) if phase else ("prefill", "decode")

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:
        """The model's own type, or one of the quantized cache's. A quantized type selects that cache."""
        own = KV_NAMES[compute_dtype(model, scheme)]
        kind = settings.get("cache_implementation")
        if kv_dtype is None:
            kv_dtype = "int4" if kind == "quantized" else own
        if kv_dtype not in (own, *cache.QUANTIZED):
            raise Unsupported(
                f"transformers keeps no {kv_dtype} cache for a {own} model", allowed=", ".join((own, *cache.QUANTIZED))
            )
        if kind is not None and (kv_dtype == own) == (kind == "quantized"):
            raise Unsupported(f"kv_dtype {kv_dtype} and cache_implementation={kind} contradict each other",
                              hint="leaving one of them out")  # fmt: skip
        settings["cache_implementation"] = kind or ("dynamic" if kv_dtype == own else "quantized")
        return kv_dtype

    def check(self, job: Job) -> None:
        """Refuse what this engine's formulas don't cover."""
        model = job.model
        if model.full_every:
            self._check_windows(job)
        if model.num_experts and compute_dtype(model, job.scheme) != "bfloat16":
            raise NotModelled(f"{model.model_type} in {job.scheme.name}: torch's grouped product of experts takes bfloat16 only", hint="--quant bf16")
        if model.num_experts and job.scheme.family != "plain":
            raise NotModelled(f"{job.scheme.name} of a model with experts: what each library leaves unquantized differs",
                              hint="--quant bf16, or a GGUF recipe")  # fmt: skip
        if not model.full_every and model.sliding_window and job.workload.context > model.sliding_window:
            raise NotModelled(
                f"transformers with sliding-window attention beyond its window of {model.sliding_window:,} tokens",
                hint=f"--context {model.sliding_window} or --engine llama.cpp",
            )

    def _check_windows(self, job: Job) -> None:
        settings = job.deployment.settings
        if job.model.model_type != "gemma3_text":
            raise NotModelled(f"{job.model.model_type} in transformers has no formula yet", hint="vram trace, which runs the real code, or --engine llama.cpp")
        if settings["cache_implementation"] != "dynamic" or job.deployment.gpus > 1:
            raise NotModelled(f"{job.model.model_type} in transformers: only a dynamic cache on one GPU has formulas", hint="--engine llama.cpp")
        if _math_kernel(compute_dtype(job.model, job.scheme), job) and settings["attn_implementation"] == "sdpa":
            raise NotModelled(f"{job.model.model_type} with sdpa in float32 or before Ampere has no formula yet", hint="--set attn_implementation=eager")

    def weight_lines(self, job: Job) -> list[Line]:
        """Stored tensors and the rotary tables."""
        lines = []
        for share in self._shares(job):
            held = share_of(job.stored, share, head_with_embedding=job.model.tie_word_embeddings)
            lines += weight_lines(job.scheme, held, device=share.device, tied=job.model.tie_word_embeddings, basis=job.weights_basis)
        half, tables = job.model.head_dim // 2, 2 if job.model.model_type == "gemma3_text" else 1
        lines.append(Line("weights", "rotary inverse frequencies", tables * 2 * 4 * half,
                          Formula("{n} (tables) × 2 (current and original) × 4 (bytes) × {half}", {"half": half, "n": tables}),
                          "transformers v5.23.0 modeling_rope_utils.py, buffers inv_freq and original_inv_freq"))  # fmt: skip
        if job.model.model_type == "gemma3_text":
            size = DTYPE_BYTES[compute_dtype(job.model, job.scheme)]
            lines.append(Line("weights", "embedding scale", size, Formula("{e}", {"e": size}),
                              "transformers v5.23.0 modeling_gemma3.py Gemma3TextScaledWordEmbedding"))  # fmt: skip
        return lines

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """The KV cache at the end of the phase."""
        kind = job.deployment.settings["cache_implementation"]
        name = f"{str(kind).capitalize()}Cache"
        lines = []
        for share in self._shares(job):
            count = attending(job.model, share.layers)
            held = self._cache(job, phase, count)
            lines.append(Line("kv_cache", name, held.nbytes, held.render(), CACHE_SOURCE, high=held.high, device=share.device,
                              note="" if count else "none of its layers attends" if share.layers else "this device holds the head only"))  # fmt: skip
            if job.model.recurrent:
                lines += state_lines(job.model, share, sequences=job.workload.sequences, element_bytes=DTYPE_BYTES[compute_dtype(job.model, job.scheme)])
        return lines

    def activation_lines(self, job: Job, phase: str) -> list[Line]:
        """The peak of the pass, on every device that runs layers."""
        peak = self.peak(job, phase)
        how = self._pass(job)
        basis, low, source, note = "derived", peak.nbytes, SOURCE, f"peak at {peak.step.name}, {phase}"
        if how.copies != "never":
            low = self._peak(job, phase, how._replace(copies="never")).nbytes
            basis, source = "modelled", f"{SOURCE}; {_copies(job.scheme)[2]}"
        if peak.step.name == "attention (math kernel)" and how.element_bytes < 4:
            basis, source = "modelled", f"{SOURCE}; {MATH_SOURCE}"
            low = min(low, self._peak(job, phase, how._replace(math_bytes=how.element_bytes)).nbytes)
        if job.vendor != "NVIDIA" or job.scheme.family == "exl2" or job.deployment.kv_dtype in cache.QUANTIZED or job.deployment.gpus > 1:
            basis = "modelled"
        return [
            Line("activations", "activations", peak.nbytes, peak.formula, source, basis=basis, low=low, device=i, note=note)  # type: ignore[arg-type]
            for i in range(job.deployment.gpus)
        ]

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:
        """Input ids, decompressed copies, cuBLAS workspace, allocator slack, context."""
        count, b, whole = self._inputs(job, phase, job.workload.context), job.workload.sequences, bool(job.deployment.settings["generate"])
        lines = [Line("overhead", "input ids", 8 * b * count, Formula("8 × {B} × (3 × {S} + 1)" if whole else "8 × {B} × {S}", {"B": b, "S": count // 3 if whole else count}),
                      GENERATE_SOURCE if whole else "int64 token ids that the caller holds", high=8 * b * count + 24 * whole)]  # fmt: skip
        slack, context, workspace = self._records(job)
        for share in self._shares(job):
            if job.scheme.name.startswith(_DECOMPRESSED):
                copy = _decompressed_bytes(share_of(job.stored, share, head_with_embedding=True))
                lines.append(Line("overhead", "decompressed weights", copy, Formula("{n} × 2 (bytes)", {"n": copy // 2}),
                                  _DECOMPRESSED_SOURCE, basis="modelled", low=0, device=share.device,
                                  note="transformers has no kernel for this format; the stored weights stay beside"))  # fmt: skip
            lines.append(record_line(workspace, "cuBLAS workspace", share.device, level="allocated"))
            moving = self._cache(job, phase, len(share.layers)).nbytes + self.peak(job, phase).nbytes
            lines.append(Line("overhead", "allocator slack", moving * slack.value // 100,
                              Formula("{m} (KV cache and activations) × {p} / 100", {"m": moving, "p": slack.value}),
                              slack.source, basis=slack.basis, low=moving * slack.low // 100,
                              high=moving * slack.high // 100 + (self._other_high(job, phase) if share.first else 0), device=share.device, level="reserved", note=slack.note))  # fmt: skip
            lines.append(record_line(context, "CUDA context" if job.vendor == "NVIDIA" else "driver context",
                                      share.device))  # fmt: skip
        return lines

    def peak(self, job: Job, phase: str) -> Peak:
        """The largest step of the phase."""
        return self._peak(job, phase, self._pass(job))

    def kv_bytes_per_token(self, job: Job) -> int:
        """Growth per token; quantized caches count their scales."""
        hold, layers = self._cache_of(job, "prefill"), len(job.model.attention_layers)
        return (hold(layers, cache.GROUP, 1).nbytes - hold(layers, 0, 1).nbytes) // cache.GROUP

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the passes and the cache depend on."""
        quantized = job.deployment.kv_dtype if job.deployment.kv_dtype in cache.QUANTIZED else ""
        return (self.name, self._pass(job), quantized, job.deployment.gpus, job.vendor)

    def dynamic(self, job: Job, phase: str) -> Dynamic:
        """Cache, activations, their slack, and input ids."""
        slack, how, model = self._records(job)[0], self._pass(job), job.model
        hold = self._cache_of(job, phase)
        run = steps.prefill if phase == "prefill" else steps.decode
        layers = [len(share.layers) for share in self._shares(job)]

        def size(context: int, sequences: int) -> tuple[int, int]:
            peak = run(model, how, tokens=context, sequences=sequences).nbytes
            point = high = 8 * sequences * self._inputs(job, phase, context)
            for count in layers:
                held = hold(count, context, sequences)
                moving = held.nbytes + peak
                point += moving + moving * slack.value // 100
                high += held.high + peak + moving * slack.high // 100
            return point, high

        return size

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """Nothing depends on the workload here."""
        return dict(job.deployment.settings)

    def _shares(self, job: Job) -> tuple[Share, ...]:
        return split_layers(job.model.num_hidden_layers, job.deployment.gpus)

    def _pass(self, job: Job) -> steps.Pass:
        settings, dtype = job.deployment.settings, compute_dtype(job.model, job.scheme)
        copies, size, _ = _copies(job.scheme)
        return steps.Pass(
            str(settings["attn_implementation"]), DTYPE_BYTES[dtype],
            steps.softmax_bytes(dtype) if settings["attn_implementation"] == "eager" else 0,
            int(settings["logits_to_keep"]), settings["cache_implementation"] == "static", size, copies,
            job.deployment.kv_dtype in cache.QUANTIZED, dtype != "float16", 4 if _math_kernel(dtype, job) else 0,
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
        return _records(job.vendor, job.gpu.compute_capability if job.gpu else None)


@lru_cache(maxsize=64)
def _records(vendor: str, capability: str | None) -> tuple[Record, Record, Record]:
    context = {"AMD": "hip_context", "Apple": "metal_context"}.get(vendor, "cuda_context")
    if vendor == "AMD":
        workspace = "hipblas_workspace"
    elif capability is None:
        workspace = "cublas_workspace_unknown"
    else:
        large = capability.split(".")[0] in ("9", "10", "12")
        workspace = "cublas_workspace_sm90" if large else "cublas_workspace"
    return record("torch", "allocator_slack"), record("torch", context), record("torch", workspace)


def _math_kernel(dtype: str, job: Job) -> bool:
    capability = job.gpu.compute_capability if job.gpu and job.vendor == "NVIDIA" else None
    return dtype == "float32" or (capability is not None and int(capability.split(".")[0]) < 8)


def _copies(scheme: Scheme) -> tuple[str, int, str]:
    if scheme.name.startswith("torchao-int4"):
        return ("never", 0, "")
    if scheme.name in _COPIES:
        return _COPIES[scheme.name]
    return _COPIES.get(scheme.name.split("-")[0], ("never", 0, ""))


def _decompressed_bytes(held: tuple[StoredGroup, ...]) -> int:
    return sum(2 * g.group.elements * g.count for g in held if len(g.parts) > 1)
