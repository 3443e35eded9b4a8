"""vLLM: weights as its ranks hold them, the profiling run, and the pool of cache blocks that is left."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

from calculator.engines.base import COUNT, Dynamic, Job, Pool, Real, Record, Setting, record
from calculator.engines.vllm.allocator import unsplit
from calculator.engines.vllm.pool import BLOCK_SOURCE, block_bytes, concurrency, refusal
from calculator.engines.vllm.profile import SORT_SOURCE, SOURCE, TRITON_SOURCE, Profile, profile
from calculator.engines.weights import weight_lines
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Formula, Ledger, Line
from calculator.memory import usable_memory
from calculator.parallelism import Share, pipeline_stages, share_of, tensor_rank
from calculator.quantization import Scheme, Stored, compute_dtype, quantize
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec, Quantity
from calculator.steps import Peak
from calculator.units import GIB, MIB, ceil_div

ROPE_SOURCE = "vllm v0.19.0 model_executor/layers/rotary_embedding/base.py, _compute_cos_sin_cache"
SCALES_SOURCE = "vllm v0.19.0 model_executor/layers/attention/attention.py: q, k, v and probability scales and ranges"
ROUNDING_SOURCE = "pytorch c10/cuda/CUDACachingAllocator.cpp should_split: up to 1 MiB of a block is not split off"
MARLIN_SOURCE = "vllm v0.19.0 model_executor/kernels/linear/mixed_precision/marlin.py: symmetric codes keep no zero points, g_idx emptied"
FP8_MARLIN_SOURCE = "vllm v0.6.6 model_executor/layers/quantization/utils/marlin_utils_fp8.py prepare_fp8_layer_for_marlin; marlin_utils.py"
FP8_SINCE = (8, 9)  # compute capability: below it, FP8 weights run on the Marlin kernel. vllm v0.6.6 layers/quantization/fp8.py
VOCAB_MULTIPLE = 64  # vllm v0.19.0 model_executor/layers/vocab_parallel_embedding.py L28
LARGE_MEMORY = 70 * GIB  # vllm v0.19.0 engine/arg_utils.py L2053
LONG_CONTEXT = 32768  # vllm v0.6.6 engine/arg_utils.py L1081: chunked prefill beyond it
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class Version(NamedTuple):
    """What differs between releases."""

    v1: bool
    sampler: Literal["sort", "triton"]
    in_blocks: bool
    """Concurrency counts whole blocks."""
    non_torch: str
    a100_is_large: bool = False
    locks_a_column: bool = False
    """Marlin's locks are counted by output columns, not by multiprocessors."""


VERSIONS: dict[str, Version] = {
    "0.6.6": Version(v1=False, sampler="sort", in_blocks=False, non_torch="v0", locks_a_column=True),
    "0.8.5": Version(v1=True, sampler="sort", in_blocks=False, non_torch="v1", a100_is_large=True, locks_a_column=True),
    "0.11.0": Version(v1=True, sampler="sort", in_blocks=True, non_torch="v1"),
    "0.19.0": Version(v1=True, sampler="triton", in_blocks=True, non_torch="0.19"),
}


class Vllm:
    """vLLM's server on NVIDIA GPUs: tensor parallel by `tensor_parallel_size`, pipeline stages over the rest."""

    name = "vllm"
    versions = tuple(VERSIONS)
    settings: ClassVar[dict[str, Setting]] = {
        "gpu_memory_utilization": Setting(0.9, Real(0, 1), "share of the GPU's memory that the engine takes"),
        "max_model_len": Setting(None, COUNT, "longest sequence [tokens]; default --context"),
        "max_num_seqs": Setting(None, COUNT, "most sequences at once; default by GPU and version, as the server"),
        "max_num_batched_tokens": Setting(None, COUNT, "most tokens a step; default by GPU and version, as the server"),
        "block_size": Setting(16, range(1, 4097), "tokens of a cache block"),
        "tensor_parallel_size": Setting(1, range(1, 1025), "ranks that each layer is split over"),
        "enforce_eager": Setting(False, bool, "no CUDA graphs"),
        "kv_pool_bytes": Setting(None, COUNT, "cache pool of a GPU, given instead of derived (kv_cache_memory_bytes) [bytes]"),
        "total_memory_bytes": Setting(None, COUNT, "memory of a GPU as a program sees it, in place of a named GPU [bytes]"),
        "allow_long_max_model_len": Setting(False, bool, "VLLM_ALLOW_LONG_MAX_MODEL_LEN: contexts beyond the model's limit"),
    }  # fmt: skip

    def phases(self, job: Job) -> tuple[str, ...]:  # noqa: ARG002
        """The profiling run decides once."""
        return ("prefill",)

    def resolve_kv_dtype(self, model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:  # noqa: ARG002
        """The model's own type, or fp8."""
        own = _SHORT[compute_dtype(model, scheme)]
        if kv_dtype not in (None, own, "fp8"):
            raise Unsupported(f"vllm keeps no {kv_dtype} cache for a {own} model", allowed=f"{own}, fp8")
        return kv_dtype or own

    def check(self, job: Job) -> None:
        """Refuse what the engine refuses, and what the formulas don't cover."""
        model, settings, length = job.model, job.deployment.settings, _length(job)
        if job.vendor != "NVIDIA":
            raise NotModelled(f"vllm on {job.vendor}: no public start-up log to hold it against", hint="an NVIDIA GPU, or --engine llama.cpp")
        if length > model.max_position_embeddings and not settings["allow_long_max_model_len"]:
            raise Unsupported(
                f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
                f"(max_position_embeddings={model.max_position_embeddings} or model_max_length=None in model's config.json)",
                hint="--set allow_long_max_model_len=1 (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1)",
            )
        if job.workload.context > length:
            raise BadValue(f"max_model_len {length:,} is below the context of {job.workload.context:,}", hint="leaving max_model_len out")
        if job.scheme.name == "fp8-block" and _fp8_by_marlin(job):
            raise NotModelled("vllm with fp8 in blocks on a GPU without FP8 units: Marlin spreads its scales, no record to hold that against", hint="a newer GPU")
        if model.num_experts or model.full_every:
            what = "experts" if model.num_experts else "sliding-window layers"
            raise NotModelled(f"vllm with {what}: {model.model_type} comes in a later version", hint="--engine transformers or llama.cpp")
        if model.sliding_window and job.workload.context > model.sliding_window:
            raise NotModelled(
                f"vllm with sliding-window attention beyond its window of {model.sliding_window:,} tokens",
                hint=f"--context {model.sliding_window}",
            )
        tp = int(settings["tensor_parallel_size"])
        tensor_rank(model, tp, vocab_multiple=VOCAB_MULTIPLE)
        if job.deployment.gpus % tp:
            raise BadValue(f"{job.deployment.gpus} GPUs are no multiple of tensor_parallel_size {tp}", hint=f"--gpus {tp}")
        pipeline_stages(model.num_hidden_layers, job.deployment.gpus // tp)

    def weight_lines(self, job: Job) -> list[Line]:
        """Stored tensors, the rotary table, scales, and what the allocator doesn't split off."""
        model, size = job.model, _element_bytes(job)
        table = model.max_position_embeddings * model.head_dim * size
        rank, marlin = _rank(job), _marlin(job.scheme)
        lines = []
        for share in self._shares(job):
            held = _held(job, share)
            mine = weight_lines(job.scheme, held, device=share.device, tied=model.tie_word_embeddings)
            if rank.vocab_size * _tp(job) != model.vocab_size:
                note = f"vocabulary of {model.vocab_size:,} padded to {rank.vocab_size * _tp(job):,}"
                mine = [replace(line, note=note) if line.name in ("embedding", "output head") and line.nbytes else line for line in mine]
            lines += mine
            lines.append(Line("weights", "rotary cos and sin", table,
                              Formula("{P} (positions) × {d} (head_dim) × {e}", {"P": model.max_position_embeddings, "d": model.head_dim, "e": size}),
                              ROPE_SOURCE, device=share.device, note="one table, shared by the layers"))  # fmt: skip
            if _version(job).v1:
                lines.append(Line("weights", "attention scales", 7 * 512 * len(share.layers),
                                  Formula("7 × 512 (allocated bytes of a scalar) × {L} (layers)", {"L": len(share.layers)}),
                                  SCALES_SOURCE, device=share.device))  # fmt: skip
            if _fp8_by_marlin(job):
                lines.append(_marlin_line(job, rank, share))
            matrices = sum(g.count for g in held if len(g.parts) > 1)
            point = 0 if matrices else _unsplit(rank, share, size)
            lines.append(Line("weights", "allocator rounding", point, Formula("{n}", {"n": point}), ROUNDING_SOURCE,
                              basis="modelled", low=0, high=point + 4 * MIB + MIB * matrices, device=share.device,
                              note="quantized weights are repacked: up to 1 MiB a matrix" if marlin or matrices else
                              "simulated over the tensors in the order in which they are made"))  # fmt: skip
        return lines

    def cache_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Blocks of the sequences."""
        work, size = job.workload, int(job.deployment.settings["block_size"])
        blocks, rank = ceil_div(work.context, size), _rank(job)
        symbols = {"B": work.sequences, "n": blocks, "s": size, "K": rank.num_key_value_heads, "d": rank.head_dim, "e": _kv_bytes(job)}
        return [
            Line("kv_cache", "KV blocks", work.sequences * blocks * self._block(job, share),
                 Formula("{B} × {n} (blocks) × 2 × {s} (tokens) × {K} × {d} × {e} × {L} (layers)", symbols | {"L": len(share.layers)}),
                 BLOCK_SOURCE, device=share.device,
                 note="KV heads are held by several ranks each" if _tp(job) > job.model.num_key_value_heads else "")
            for share in self._shares(job)
        ]  # fmt: skip

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """The peak of the profiling run on each device: the sampler runs on the last stage alone."""
        source = f"{SOURCE}; {TRITON_SOURCE if _version(job).sampler == 'triton' else SORT_SOURCE}"
        lines = []
        for share in self._shares(job):
            low, peak, high = _peaks(job, _length(job), samples=share.last)
            basis: Literal["derived", "modelled"] = "derived" if low == peak.nbytes == high else "modelled"
            lines.append(Line("activations", "peak activation", peak.nbytes, peak.formula, source, basis=basis, low=low, high=high,
                              device=share.device, note=f"profiling run, peak at {peak.step.name}"))  # fmt: skip
        return lines

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Memory outside torch, and CUDA graphs."""
        outside, graphs = self._records(job)
        eager = bool(job.deployment.settings["enforce_eager"])
        lines = []
        for i in range(job.deployment.gpus):
            lines.append(_record_line(outside, "non-torch memory", i))
            if eager:
                lines.append(Line("overhead", "CUDA graphs", 0, Formula("0"), "setting enforce_eager", device=i, note="none: enforce_eager"))
            else:
                lines.append(_record_line(graphs, "CUDA graphs", i))
        return lines

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The largest step of the profiling run."""
        return _peaks(job, _length(job))[1]

    def kv_bytes_per_token(self, job: Job) -> int:
        """Over all layers and ranks."""
        return sum(self._block(job, share) for share in self._shares(job)) // int(job.deployment.settings["block_size"])

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What cache and profiling run depend on."""
        d = job.deployment
        return (self.name, d.engine_version, tuple(d.settings.items()), d.gpus, d.kv_dtype, _element_bytes(job), job.gpu)

    def dynamic(self, job: Job, phase: str) -> Dynamic:  # noqa: ARG002
        """Cache, and the profiling run where its batch follows the context."""
        block, size = sum(self._block(job, s) for s in self._shares(job)), int(job.deployment.settings["block_size"])
        given, tp = job.deployment.settings.get("max_model_len"), _tp(job)
        others = job.deployment.gpus - tp

        def held(context: int, sequences: int) -> tuple[int, int]:
            cache = sequences * ceil_div(context, size) * block
            length = int(given or context)
            _, peak, high = _peaks(job, length)
            point, high = cache + peak.nbytes * tp, cache + high * tp
            if others:
                _, before, before_high = _peaks(job, length, samples=False)
                point, high = point + before.nbytes * others, high + before_high * others
            return point, high

        return held

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """With max_model_len and the batch limits filled in."""
        tokens, sequences = _batch(job, _length(job))
        derived = {"max_model_len": _length(job), "max_num_batched_tokens": tokens, "max_num_seqs": sequences}
        return dict(job.deployment.settings) | derived

    def for_one(self, job: Job) -> int:
        """Cache of one sequence on the fullest GPU."""
        blocks = ceil_div(_length(job), int(job.deployment.settings["block_size"]))
        return blocks * max(self._block(job, share) for share in self._shares(job))

    def pool(self, job: Job) -> Pool | None:
        """What is left for blocks on the tightest GPU, or kv_pool_bytes.

        pool = gpu_memory_utilization x total - weights - peak activation - non-torch memory

        Source: vllm v0.19.0 v1/worker/gpu_worker.py determine_available_memory; v0.11.0 L214-288; v0.6.6 worker/worker.py L206-219.
        """
        settings, version, length = job.deployment.settings, _version(job), _length(job)
        total, given = usable_memory(job.gpu) if job.gpu else None, int(settings.get("kv_pool_bytes", 0))
        if total is None and not given:
            return None
        size = int(settings["block_size"])
        ledger = Ledger.of(self.weight_lines(job), self.activation_lines(job, "prefill"), self.overhead_lines(job, "prefill"))
        usable = _share(total, float(settings["gpu_memory_utilization"])) if total else Quantity(value=given, source="setting kv_pool_bytes")
        stages = []
        for share in self._shares(job):
            taken = [line for line in ledger.on(share.device).lines if line.name != "CUDA graphs"]
            bounds = (given, given, given) if given else (
                usable.value - sum(line.nbytes for line in taken),
                usable.low_value - sum(line.high_bytes for line in taken),
                (usable.high or usable.value) - sum(line.low_bytes for line in taken),
            )  # fmt: skip
            stages.append((max(bounds[0], 0) // self._block(job, share), bounds))
        blocks, (point, low, high) = min(stages)
        many = concurrency(blocks, block_size=size, context=length, in_blocks=version.in_blocks)
        said = refusal(blocks=blocks, block_size=size, context=length, pool=point, needed=self.for_one(job), in_gib=version.v1)
        at_once = min(many, _batch(job, length)[1])
        queues = not said and at_once < job.workload.sequences
        queue = f"{int(at_once):,} of {job.workload.sequences:,} sequences of {length:,} tokens run at once; the others queue"
        reserved = ledger.total_bytes + given * job.deployment.gpus if given else usable.value * job.deployment.gpus
        return Pool(point, low, high, blocks, blocks * size, many, usable, reserved, queues,
                    (said,) if said else (queue,) if queues else ())  # fmt: skip

    def _shares(self, job: Job) -> tuple[Share, ...]:
        """Every GPU: pipeline stages, each over its tensor-parallel ranks."""
        tp = _tp(job)
        stages = pipeline_stages(job.model.num_hidden_layers, job.deployment.gpus // tp)
        return tuple(stage._replace(device=stage.device * tp + rank) for stage in stages for rank in range(tp))

    def _block(self, job: Job, share: Share) -> int:
        return block_bytes(_rank(job), len(share.layers), block_size=int(job.deployment.settings["block_size"]), element_bytes=_kv_bytes(job))

    def _records(self, job: Job) -> tuple[Record, Record]:
        version = _version(job)
        several = "_tp" if job.deployment.gpus > 1 else ""
        return record("vllm", f"non_torch_{version.non_torch}{several}"), record("vllm", f"cuda_graphs_{'v1' if version.v1 else 'v0'}")


def _version(job: Job) -> Version:
    return VERSIONS[job.deployment.engine_version]


def _length(job: Job) -> int:
    return int(job.deployment.settings.get("max_model_len") or job.workload.context)


def _tp(job: Job) -> int:
    return int(job.deployment.settings["tensor_parallel_size"])


def _element_bytes(job: Job) -> int:
    return DTYPE_BYTES[compute_dtype(job.model, job.scheme)]


def _kv_bytes(job: Job) -> int:
    return 1 if job.deployment.kv_dtype == "fp8" else _element_bytes(job)


def _rank(job: Job) -> ModelSpec:
    return tensor_rank(job.model, _tp(job), vocab_multiple=VOCAB_MULTIPLE)


def _marlin(scheme: Scheme) -> bool:
    return scheme.name.startswith(("gptq-int4", "gptq-int8"))


def _fp8_by_marlin(job: Job) -> bool:
    capability = job.gpu.compute_capability if job.gpu else None
    return job.scheme.name.startswith("fp8") and capability is not None and tuple(map(int, capability.split("."))) < FP8_SINCE


def _marlin_line(job: Job, rank: ModelSpec, share: Share) -> Line:
    """Scales spread over the output columns, and the kernel's locks, on GPUs without FP8 units.

    bytes = L x (e x columns [a scale a tensor] + columns)                   locks: 16 int32 for 64 columns, until 0.9
          = L x (e x columns [a scale a tensor] + 4 x ceil512(4 x SMs))      locks: one int32 a multiprocessor, since
    """
    spread = _element_bytes(job) if job.scheme.name in ("fp8", "fp8-dynamic") else 0
    q, kv = rank.num_attention_heads * rank.head_dim, rank.num_key_value_heads * rank.head_dim
    symbols = {"L": len(share.layers), "e": spread, "N": q + 2 * kv + 2 * rank.intermediate_size + 2 * rank.hidden_size}
    scales = symbols["e"] * symbols["N"]
    if _version(job).locks_a_column:
        locks, formula = symbols["N"], "{L} (layers) × ({e} + 1) × {N} (output columns)"
    else:
        locks, formula = 4 * 1024, "{L} (layers) × ({e} × {N} (output columns) + 4 × 1,024 (locks as allocated))"
    return Line("weights", "Marlin scales and locks", symbols["L"] * (scales + locks), Formula(formula, symbols),
                FP8_MARLIN_SOURCE, device=share.device, note="no FP8 units: weights alone are in FP8")  # fmt: skip


def _held(job: Job, share: Share) -> Stored:
    """Stored tensors of one GPU, as they are after repacking."""
    stored = _rank_stored(_rank(job), job.scheme)
    held = share_of(stored, share, head_with_embedding=True)
    if job.model.tie_word_embeddings and share.last and not share.first:
        held = (*(g for g in stored if g.group.role == "embedding"), *held)
    return held


@lru_cache(maxsize=1024)
def _rank_stored(rank: ModelSpec, scheme: Scheme) -> Stored:
    stored = quantize(rank, scheme)
    if not _marlin(scheme):
        return stored
    return tuple(replace(g, parts=tuple(p for p in g.parts if p.name not in ("qzeros", "g_idx"))) for g in stored)


def _unsplit(rank: ModelSpec, share: Share, size: int) -> int:
    """Bytes that the allocator counts beyond the tensors, in the order in which vLLM makes them."""
    h, d, positions = rank.hidden_size, rank.head_dim, rank.max_position_embeddings
    q, kv, f = rank.num_attention_heads * d, rank.num_key_value_heads * d, rank.intermediate_size
    vocabulary = rank.vocab_size * h * size
    layer = [(q + 2 * kv) * h * size, h * q * size]
    if rank.attention_bias != "none":
        layer.insert(1, (q + 2 * kv) * size)
    layer += [2 * f * h * size, h * f * size, h * size, h * size]
    table = positions * d
    rope = (4 * positions, 2 * table, 2 * table, 2 * table, 4 * table, size * table)
    first = (vocabulary,) if share.first or rank.tie_word_embeddings else ()
    last = (h * size, *(() if rank.tie_word_embeddings else (vocabulary,))) if share.last else ()
    return unsplit(first, tuple(layer), last, len(share.layers), rope)


def _batch(job: Job, length: int) -> tuple[int, int]:
    """max_num_batched_tokens and max_num_seqs: as set, or as the server chooses them.

    Source: vllm v0.19.0 engine/arg_utils.py L2046-2072, L2180-2205; v0.8.5 L1593-1621; v0.6.6 config.py L1428-1442.
    """
    settings, version = job.deployment.settings, _version(job)
    gpu = job.gpu
    if not version.v1:
        tokens = max(length, 2048) if length <= LONG_CONTEXT else 2048
        sequences = 256
    else:
        memory = (gpu.cuda_total_bytes or gpu.memory_sold_bytes).value if gpu else 0
        large = memory >= LARGE_MEMORY and (version.a100_is_large or not (gpu and "a100" in gpu.name.lower()))
        tokens, sequences = (8192, 1024) if large else (2048, 256)
    tokens = int(settings.get("max_num_batched_tokens", tokens))
    return tokens, min(int(settings.get("max_num_seqs", sequences)), tokens)


def _peaks(job: Job, length: int, *, samples: bool = True) -> tuple[int, Peak, int]:
    """Low end, peak and high end of the profiling run on one GPU [bytes]."""
    version, gpu = _version(job), job.gpu
    tokens, sequences = _batch(job, length)
    capability = gpu.compute_capability if gpu else None
    major = capability.split(".")[0] if capability else ""
    workspace = record("torch", "cublas_workspace_unknown" if not major else "cublas_workspace_sm90" if major in ("9", "10", "12") else "cublas_workspace")
    rows = record("vllm", "multiprocessors_9" if major == "9" else "multiprocessors")
    small = version.sampler == "sort" or sequences < 8
    run = Profile(tokens, sequences, job.model.vocab_size, _element_bytes(job), version.sampler,
                  4 if version.v1 or major == "7" else 3, workspace.value, rows.value)  # fmt: skip
    run = run._replace(samples=samples)
    return _bounds(_rank(job), run, (workspace.low, workspace.high), (rows.low, rows.high), small and sequences < 128)


@lru_cache(maxsize=4096)
def _bounds(rank: ModelSpec, run: Profile, workspace: tuple[int, int], rows: tuple[int, int], full_sort: bool) -> tuple[int, Peak, int]:
    peak = profile(rank, run)
    if peak.step.name == "mlp":
        copies = (run.hidden_copies - 1, run.hidden_copies + 1)
    else:
        copies = (run.hidden_copies, run.hidden_copies)
    low = profile(rank, run._replace(workspace=workspace[0], multiprocessors=rows[0], hidden_copies=copies[0])).nbytes
    high = profile(rank, run._replace(workspace=workspace[1], multiprocessors=rows[1], hidden_copies=copies[1],
                                      sort_buffers=24 if full_sort else 12)).nbytes  # fmt: skip
    return min(low, peak.nbytes), peak, max(high, peak.nbytes)


def _share(total: Quantity, share: float) -> Quantity:
    return Quantity(value=int(total.value * share), low=int(total.low_value * share), high=int((total.high or total.value) * share),
                    source=f"{share:g} x {total.source}", verified=total.verified)  # fmt: skip


def _record_line(r: Record, name: str, device: int) -> Line:
    return Line("overhead", name, r.value, Formula("{v}", {"v": r.value}), r.source, basis=r.basis, low=r.low,
                high=r.high, device=device, level="process", note=r.note)  # fmt: skip
