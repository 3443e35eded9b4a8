"""The spine: model, workload and deployment in; a ledger with its peak out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from calculator import engines
from calculator.architectures import build_inventory
from calculator.catalog import Model, load_gpu, load_model
from calculator.caveats import caveats
from calculator.engines import Engine, Job
from calculator.engines.base import HasPresets, Pool, Reserves, Starts
from calculator.engines.partial import Partial
from calculator.engines.settings import parse_settings
from calculator.engines.transformers.small import NAMES as HELD_BESIDE
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Ledger
from calculator.memory import with_total
from calculator.parallelism import tensor_split
from calculator.quantization import Scheme, Stored, parse, quantize, stored_nbytes
from calculator.quantization.conventions import published
from calculator.quantization.gguf import file_nbytes, predicting, quantizer_of
from calculator.spec import Deployment, GpuSpec, Workload
from calculator.steps import Peak
from calculator.units import parse_count

DEFAULT_CONTEXT = 8192
KV_DTYPES = ("f32", "f16", "bf16", "fp8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "int8", "int4", "int2")


@dataclass(frozen=True)
class Estimate:
    """What a deployment needs, line by line."""

    model: Model
    job: Job
    engine: Engine
    phase: str
    ledger: Ledger
    warnings: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Memory of the process on all accelerators [bytes]."""
        return self.ledger.total_bytes

    @cached_property
    def peak(self) -> Peak:
        """Where the activations are largest."""
        return self.engine.peak(self.job, self.phase)

    @cached_property
    def pool(self) -> Pool | None:
        """What a serving engine sets aside for the cache; None for others, or without a GPU."""
        return self.engine.pool(self.job) if isinstance(self.engine, Reserves) else None

    @property
    def start_command(self) -> str | None:
        """What to type for this deployment; None where the engine has no command line, or no flag for a setting."""
        return self.engine.start_command(self.job) if isinstance(self.engine, Starts) else None

    @property
    def tensor_bytes(self) -> int:
        """All stored tensors, wherever they sit [bytes]."""
        extra = [line.nbytes for line in self.ledger.lines if line.name in HELD_BESIDE]
        return stored_nbytes(self.job.stored) + stored_nbytes(self._predicting) + sum(extra)

    @property
    def _predicting(self) -> Stored:
        """MTP layers of a GGUF recipe: in the file, not loaded."""
        if not self.job.scheme.recipe or self.job.from_headers:
            return ()
        settings = self.job.deployment.settings
        return predicting(self.job.model, build_inventory(self.job.model), self.job.scheme.recipe, imatrix=bool(settings.get("imatrix", False)),
                          quantizer=str(settings.get("quantizer", "")))  # fmt: skip

    @property
    def file_bytes(self) -> int | None:
        """The file or files as their headers say, or the predicted GGUF file [bytes]; None for other formats, or where the tokenizer's size is unknown."""
        if self.job.from_headers and self.model.checkpoint is not None:
            return self.model.checkpoint.file_bytes
        metadata = self.model.record.get("gguf_metadata_bytes")
        if not self.job.scheme.recipe or metadata is None:
            return None
        return file_nbytes((*self.job.stored, *self._predicting), metadata_bytes=metadata["value"])

    @property
    def partial(self) -> bool:
        """Whether activations are missing: the total is a lower bound."""
        return isinstance(self.engine, Partial)

    def decides(self, verdict: str) -> bool:
        """Whether a verdict on this is known: a lower bound says that something doesn't fit, never that it does."""
        return not self.partial or verdict == "does_not_fit"

    @property
    def parameters(self) -> int:
        """Parameters, tied ones once."""
        own = self.model.checkpoint.parameters if self.model.checkpoint is not None else None
        return build_inventory(self.job.model).parameters if own is None else own

    @property
    def kv_bytes_per_token(self) -> int:
        """Growth of the cache for one more token of one sequence [bytes]."""
        return self.engine.kv_bytes_per_token(self.job)


def estimate(
    model: str | Model,
    *,
    quant: str | None = None,
    context: int | str | None = None,
    sequences: int | str = 1,
    kv_dtype: str | None = None,
    engine: str | None = None,
    engine_version: str | None = None,
    gpu: str | GpuSpec | None = None,
    gpus: int = 1,
    settings: Mapping[str, Any] | None = None,
    partial: bool = False,
) -> Estimate:
    """Memory that `sequences` sequences of `context` tokens need, for this quantization, engine and GPU [bytes].

    `partial`: weights and cache alone where the engine has no formula for the model type's activations.

    Raises CalculatorError: unknown names, values out of range, combinations that the engine refuses.
    """
    found = load_model(model) if isinstance(model, str) else model
    job, runner = resolve(
        found, quant=quant, context=context, sequences=sequences, kv_dtype=kv_dtype, engine=engine,
        engine_version=engine_version, gpu=gpu, gpus=gpus, settings=settings or {}, partial=partial,
    )  # fmt: skip
    phase = largest_phase(runner, job)
    ledger = Ledger.of(
        runner.weight_lines(job),
        runner.cache_lines(job, phase),
        runner.activation_lines(job, phase),
        runner.overhead_lines(job, phase),
    )
    warnings = caveats(found, job, runner.peak(job, phase), ledger)
    if isinstance(runner, Reserves) and (pool := runner.pool(job)) is not None:
        warnings = (*pool.warnings, *warnings)
    return Estimate(found, job, runner, phase, ledger, warnings)


def largest_phase(engine: Engine, job: Job) -> str:
    """The phase that needs most; what doesn't depend on it needn't be added."""
    phases = engine.phases(job)
    if len(phases) == 1:
        return phases[0]
    work = job.workload
    return max(phases, key=lambda phase: engine.dynamic(job, phase)(work.context, work.sequences))


def resolve(
    model: Model,
    *,
    quant: str | None,
    context: int | str | None,
    sequences: int | str,
    kv_dtype: str | None,
    engine: str | None,
    engine_version: str | None,
    gpu: str | GpuSpec | None,
    gpus: int,
    settings: Mapping[str, Any],
    partial: bool = False,
) -> tuple[Job, Engine]:
    """Names and defaults settled, everything checked, before any number is made."""
    spec = model.spec
    wanted = engines.canonical(engine) if engine is not None else None
    scheme, own = _scheme(model, quant, wanted)
    if splits_tensors(wanted):
        scheme = published(spec, scheme)
    wanted = wanted or ("llama.cpp" if scheme.recipe else "transformers")
    engines.check_runs(scheme, wanted)
    runner, version = engines.load(wanted, engine_version)
    runner = engines.for_family(runner, spec, scheme, partial=partial)

    if kv_dtype is not None and (kv_dtype := kv_dtype.strip().lower()) not in KV_DTYPES:
        raise BadValue(f"kv-dtype {kv_dtype[:30]!r} is not known", allowed=", ".join(KV_DTYPES))
    chosen = parse_settings(runner.name, runner.settings, settings)
    card = load_gpu(gpu) if isinstance(gpu, str) else gpu
    whole = runner.inner if isinstance(runner, Partial) else runner
    presets = whole if isinstance(whole, HasPresets) else None
    default = (presets.preset_context(chosen, spec, card, gpus) if presets else None) or min(DEFAULT_CONTEXT, spec.max_position_embeddings)
    workload = Workload(
        context=default if context is None else parse_count(context, name="context"),
        sequences=parse_count(sequences, name="sequences", example="1"),
    )
    filled = {name: s.default for name, s in runner.settings.items() if s.default is not None}
    if "tensor_parallel_size" in filled:
        filled["tensor_parallel_size"] = tensor_split(spec, max(gpus // int(chosen.get("data_parallel_size", 1)), 1))
    filled |= {**(presets.preset(chosen, version, spec, scheme, workload, card, gpus) if presets else {}), **chosen}
    kv_dtype = runner.resolve_kv_dtype(spec, scheme, kv_dtype, filled, version)
    if total := filled.get("total_memory_bytes"):
        card = with_total(card, int(total))
    gpus = max(gpus, int(filled.get("tensor_parallel_size", 1)) * int(filled.get("data_parallel_size", 1)))
    if scheme.recipe:
        filled.setdefault("quantizer", quantizer_of(spec))
    deployment = Deployment(
        quant=scheme.name, kv_dtype=kv_dtype, engine=runner.name, engine_version=version, gpu=card.name if card else None,
        gpus=gpus, settings=filled,
    )  # fmt: skip
    stored = own if own is not None else quantize(spec, scheme, imatrix=bool(filled.get("imatrix", False)), quantizer=str(filled.get("quantizer", "")))
    job = Job(spec, scheme, stored, workload, deployment, card, own is not None, model.record.get("hf_id"), scheme.name == model.own_quant)
    runner = engines.bounded(runner, job, partial=partial)
    runner.check(job)
    return job, runner


def _scheme(model: Model, quant: str | None, engine: str | None) -> tuple[Scheme, Stored | None]:
    """The scheme, and the tensors as the checkpoint's own headers store them where that is what is asked for."""
    own, named = model.checkpoint, quant.strip().lower() if quant is not None else None
    if own is None:
        if quant is None and model.own_quant == "fp32" and splits_tensors(engine):
            return parse("fp16", engine=engine), None  # --dtype auto: vllm v0.9.2 config.py _resolve_auto_dtype, v0.6.6 _get_and_verify_dtype
        return parse(quant if quant is not None else model.own_quant, engine=engine), None
    if named is None and own.refused is not None:
        raise own.refused
    if named in (None, own.scheme.name.lower()):
        if engine is None or engine in own.scheme.engines:
            return own.scheme, None if splits_tensors(engine) else own.stored  # ranks are cut from the dimensions
        if own.scheme.family == "stored":
            raise NotModelled(f"{engine} with weights that only their headers describe ({own.scheme.name})", hint="--engine transformers, or --quant naming a format")
    return parse(quant if quant is not None else own.scheme.name, engine=engine), None


def check_tensor_parallel(model: Model, tp: int, engine: str | None = None) -> None:
    """Refuse a tensor-parallel size: impossible ones with the possible ones named, and those of engines without it."""
    heads = model.spec.num_key_value_heads
    if tp == 1 or splits_tensors(engine):
        return
    possible = [n for n in range(1, heads + 1) if heads % n == 0]
    if tp > heads or heads % tp:
        raise Unsupported(
            f"tensor_parallel_size {tp} doesn't divide {heads} key/value heads",
            hint=f"--tp {', '.join(map(str, possible[:-1]))} or {possible[-1]}" if len(possible) > 1 else "--tp 1",
        )
    raise NotModelled(f"tensor_parallel_size {tp} without a serving engine", hint="--engine vllm, or --gpus N, which splits by layers")


def splits_tensors(engine: str | None) -> bool:
    """Whether this engine is modelled with tensor parallelism."""
    found = engines.ENGINES.get(engines.canonical(engine)) if engine is not None else None
    return found is not None and "tensor_parallel_size" in found.settings
