"""Which GPU to take, and what a GPU can run: search over the catalogs, with a reason for every loser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from calculator.catalog import Model, load_gpus, load_model, model_ids, user_models
from calculator.engines import ENGINES, canonical, load
from calculator.engines.base import Reserves
from calculator.engines.llama_cpp.overrides import HELD
from calculator.engines.settings import parse_settings
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import Estimate, estimate, splits_tensors
from calculator.fit import Fit, Verdict, fit, shortfall
from calculator.parallelism import tensor_split
from calculator.solve import (
    Solution,
    best_quant,
    ladder,
    largest_context,
    largest_sequences,
    sized_elsewhere,
    with_formulas,
)
from calculator.spec import GpuSpec
from calculator.speed import decode_tokens_per_s_bound
from calculator.units import gib, tokens

OBJECTIVES = ("smallest", "speed", "headroom", "price")
MIN_CONTEXT = 1024
WIDTH = 4  # bits a weight
SEQUENCES = (128, 64, 32, 16, 8)  # max_num_seqs that are tried where the default asks for too many states
COUNTS, RANK_COUNTS = (2, 3, 4, 6, 8), (2, 4, 8)  # cards of one machine; those that heads can mostly be divided by
PLACES = {"fit", "n_gpu_layers", "tensor_split", "override_tensor", "n_cpu_moe"}  # where the user has placed tensors already


@dataclass(frozen=True)
class Candidate:
    """A GPU that holds the workload, possibly after the changes named."""

    gpu: GpuSpec
    estimate: Estimate
    fit: Fit
    options: dict[str, Any]
    changes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Cards of it."""
        return self.estimate.job.deployment.gpus

    @cached_property
    def max_context(self) -> int | None:
        """Largest context with the same verdict; None where the engine makes room, as what is largest is up to the host's memory."""
        return self._largest(largest_context, "context")

    @cached_property
    def max_sequences(self) -> int | None:
        """Most sequences of the context with the same verdict."""
        return self._largest(largest_sequences, "sequences")

    def _largest(self, search: Callable[..., Solution], axis: str) -> int | None:
        if self.estimate.job.deployment.settings.get("fit"):
            return None
        value = search(self.estimate.model, self.gpu, {k: v for k, v in self.options.items() if k != axis}, verdict=self.fit.verdict).value
        return value if isinstance(value, int) else None

    @property
    def tokens_per_s(self) -> float:
        """Upper bound by bandwidth."""
        return decode_tokens_per_s_bound(self.estimate, self.gpu)


class Rejected(NamedTuple):
    """What lost, and why: a GPU, or a model on the one GPU that was asked."""

    gpu: str
    reason: str
    model: str | None = None


class Recommendation(NamedTuple):
    """All GPUs: those that hold the workload, best first, and the others."""

    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejected, ...]


def recommend(model: Model, options: dict[str, Any], *, objective: str = "smallest",
              gpus: Iterable[GpuSpec] | None = None) -> Recommendation:  # fmt: skip
    """Rank the GPUs for a workload; a near miss is rescued by the cheapest change that makes it fit.

    objective: smallest (least memory sold, then fastest), speed, headroom. Raises BadValue for price: none are shipped.
    """
    check_objective(objective)
    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    options, elsewhere = with_formulas(model, options)
    before = (elsewhere,) if elsewhere else ()
    try:
        unfitted = {k: v for k, v in (options.get("settings") or {}).items() if k != "fit"}  # which goes by the GPU's memory
        estimate(model, **{**options, "settings": unfitted})  # what no GPU can mend is refused here, for all of them
    except NotModelled as e:
        raise sized_elsewhere(model, options, e) from None
    for gpu in load_gpus() if gpus is None else gpus:
        try:
            asked = estimate(model, **options, gpu=gpu)
        except (NotModelled, Unsupported) as e:  # the card, as the workload itself is fine
            rejected.append(Rejected(gpu.name, str(e)))
            continue
        held = fit(asked, gpu)
        if held.verdict != "does_not_fit":
            candidates.append(Candidate(gpu, asked, held, options, before))
            continue
        rescued, tried = _rescue(asked, gpu, options, before)
        if rescued is not None:
            candidates.append(rescued)
        else:
            alone = f"not enough alone: {'; '.join(tried)}" if tried else "nothing else to change"
            rejected.append(Rejected(gpu.name, f"{shortfall(asked, gpu)}; {alone}"))
    return Recommendation(tuple(sorted(candidates, key=_ranking(objective))), tuple(rejected))


def runs_on(gpu: GpuSpec, options: dict[str, Any], *, objective: str = "smallest") -> Recommendation:
    """What this GPU can run: for each catalog model the best quantization that fits, with what remains.

    The largest models come first (or the fastest, or those that leave most), and after all others those that need fewer
    than WIDTH bits a weight: a smaller model in a wider format is mostly the better one.
    """
    check_objective(objective)
    engine = load(canonical(options.get("engine") or "llama.cpp"))[0].name
    parse_settings(engine, ENGINES[engine].settings, options.get("settings") or {})
    if options.get("quant") is not None:
        raise BadValue("--quant without a model: the best quantization is what is looked for", hint="naming a MODEL")
    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    for id in model_ids():
        model = load_model(id)
        if model.record.get("hf_id") is None and id not in user_models():
            rejected.append(Rejected(gpu.name, "no checkpoint of it is published", id))
            continue
        wanted = {**options, "engine": engine, "context": options.get("context") or min(8192, model.spec.max_position_embeddings)}
        try:
            best = best_quant(model, gpu, {k: v for k, v in wanted.items() if k != "quant"})
        except CalculatorError as e:
            rejected.append(Rejected(gpu.name, str(e), id))
            continue
        if best.estimate is None or not isinstance(best.value, str):
            rejected.append(Rejected(gpu.name, best.binding, id))
            continue
        chosen = {**wanted, "quant": best.value}
        candidates.append(Candidate(gpu, best.estimate, fit(best.estimate, gpu), chosen, ()))
    return Recommendation(tuple(sorted(candidates, key=_worth(objective))), tuple(rejected))


def check_objective(objective: str) -> None:
    """Raises BadValue for an objective that is unknown, or that no data supports."""
    if objective not in OBJECTIVES:
        raise BadValue(f"objective {objective[:30]!r} is not known", allowed=", ".join(OBJECTIVES))
    if objective == "price":
        raise BadValue("no prices are shipped yet", hint="--objective smallest, which prefers the smallest card")


def _ranking(objective: str) -> Callable[[Candidate], tuple[Any, ...]]:
    order: tuple[Verdict, ...] = ("fits", "tight", "does_not_fit")

    def key(c: Candidate) -> tuple[Any, ...]:
        first = (len(c.changes), order.index(c.fit.verdict))
        if objective == "speed":
            return (*first, -c.tokens_per_s, c.gpu.name)
        if objective == "headroom":
            return (*first, -c.fit.binding.headroom_bytes, c.gpu.name)
        return (*first, c.count, c.gpu.memory_sold_bytes.value, -c.gpu.bandwidth_bytes_per_s.value, c.gpu.name)

    return key


def _worth(objective: str) -> Callable[[Candidate], tuple[Any, ...]]:
    def key(c: Candidate) -> tuple[Any, ...]:
        narrow = c.estimate.tensor_bytes * 8 < WIDTH * c.estimate.parameters
        best = {"speed": c.tokens_per_s, "headroom": c.fit.binding.headroom_bytes}.get(objective, c.estimate.parameters)
        return (narrow, -best, c.estimate.job.model.id)

    return key


def _rescue(asked: Estimate, gpu: GpuSpec, options: dict[str, Any], before: tuple[str, ...]) -> tuple[Candidate | None, list[str]]:
    """The first change that makes it fit, cheapest first, and those that were tried and don't."""
    model, tried = asked.model, dict[str, list[str]]()
    for change, changed in _changes(asked, gpu, options):
        estimated = _try(model, gpu, changed)
        if estimated is None:
            continue
        if (held := fit(estimated, gpu)).verdict == "fits":
            return Candidate(gpu, estimated, held, changed, (*before, change)), []
        kind, _, value = (change, "", "") if change.startswith("fit=1") else change.rpartition(" ")
        if changed.get("gpus", 1) > asked.job.deployment.gpus:
            tried["up to"] = [f"{changed['gpus']} cards"]
        else:
            tried.setdefault(kind, []).append(value)
    if asked.job.workload.context > MIN_CONTEXT and "context" not in tried:  # the largest that fits is shorter
        tried["context"] = [tokens(MIN_CONTEXT)]
    return None, [f"{kind} {', '.join(values)}".strip() for kind, values in tried.items()]


def _try(model: Model, gpu: GpuSpec, options: dict[str, Any]) -> Estimate | None:
    """The estimate, or None where the engine refuses the changed options."""
    try:
        return estimate(model, **options, gpu=gpu)
    except CalculatorError:
        return None


def _experts_on_host(asked: Estimate, gpu: GpuSpec, options: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """llama-server's --fit, which keeps of a model with experts what a token always reads on the GPU; None where it doesn't apply."""
    model, settings = asked.model, dict(options.get("settings") or {})
    if asked.engine.name != "llama.cpp" or not model.spec.num_experts or model.spec.model_type not in HELD:
        return None
    if gpu.segment == "unified" or PLACES & settings.keys():
        return None
    changed = {**options, "settings": {**settings, "fit": "1"}}
    fitted = _try(model, gpu, changed)
    if fitted is None:
        return None
    layers = int(fitted.engine.resolved_settings(fitted.job).get("n_gpu_layers", 0)) <= model.spec.num_hidden_layers
    what = "experts and whole layers" if layers else "experts"
    return f"fit=1: {what} on the host, {gib(fitted.ledger.host_bytes)} of its memory", changed


def _fewer_states(asked: Estimate, gpu: GpuSpec) -> tuple[int, ...]:
    """Smaller max_num_seqs, where vLLM wants more states of recurrent layers than its pool may hold."""
    pool = asked.engine.pool(replace(asked.job, gpu=gpu)) if isinstance(asked.engine, Reserves) else None
    if pool is None or not pool.short_of_states or "max_num_seqs" in asked.job.deployment.settings:
        return ()
    return tuple(n for n in SEQUENCES if n >= asked.job.workload.sequences)


def _changes(asked: Estimate, gpu: GpuSpec, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    model, engine = asked.model, asked.engine.name
    for fewer in _fewer_states(asked, gpu):
        yield f"max_num_seqs {fewer}", {**options, "settings": {**(options.get("settings") or {}), "max_num_seqs": str(fewer)}}
    quantized = {"llama.cpp": ("q8_0", "q4_0"), "vllm": ("fp8",), "sglang": ("fp8",)}.get(engine, ("int8", "int4"))
    for kind in quantized:
        if asked.job.deployment.kv_dtype not in quantized:
            yield f"kv-dtype {kind}", {**options, "kv_dtype": kind}
    if engine == "transformers" and options.get("engine") is None and asked.job.scheme.family == "plain":
        bare = {k: v for k, v in options.items() if k not in ("settings", "kv_dtype")}
        for name in ladder(model, "llama.cpp"):  # the wider formats first: the same weights with another engine come before fewer bits
            yield f"llama.cpp, {name}", {**bare, "engine": "llama.cpp", "quant": name}
    if (hosted := _experts_on_host(asked, gpu, options)) is not None:
        yield hosted
    for name in ladder(model, engine):
        smaller = _try(model, gpu, {**options, "quant": name})
        if smaller is not None and smaller.tensor_bytes < asked.tensor_bytes:
            yield f"quant {name}", {**options, "quant": name}
    shorter = largest_context(model, gpu, {k: v for k, v in options.items() if k != "context"})
    if isinstance(shorter.value, int) and MIN_CONTEXT <= shorter.value < asked.job.workload.context:
        down = shorter.value // MIN_CONTEXT * MIN_CONTEXT
        yield f"context {tokens(down)}", {**options, "context": down}
    if gpu.segment != "unified":
        counts = RANK_COUNTS if splits_tensors(engine) else COUNTS
        for count in (n for n in counts if n > asked.job.deployment.gpus):
            yield f"{count} x {gpu.name}, {_split(asked, options, count)}", {**options, "gpus": count}


def _split(asked: Estimate, options: dict[str, Any], count: int) -> str:
    """How so many cards share the model."""
    if not splits_tensors(asked.engine.name):
        return "layers split"
    ranks = int((options.get("settings") or {}).get("tensor_parallel_size", tensor_split(asked.job.model, count)))
    return f"tensor parallel {ranks}" + (f", {count // ranks} stages" if count > ranks else "")
