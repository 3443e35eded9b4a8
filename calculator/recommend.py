"""Which GPU to take, and what a GPU can run: search over the catalogs, with a reason for every loser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from calculator.catalog import Model, load_gpus, load_model, model_ids
from calculator.engines import ENGINES, canonical, load
from calculator.engines.settings import parse_settings
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import Estimate, estimate
from calculator.fit import Fit, Verdict, fit
from calculator.solve import LADDERS, best_quant, largest_context, largest_sequences
from calculator.spec import GpuSpec
from calculator.speed import decode_tokens_per_s_bound
from calculator.units import gib, tokens

OBJECTIVES = ("smallest", "speed", "headroom", "price")
MIN_CONTEXT = 1024
WIDTH = 4  # bits a weight


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU that holds the workload, possibly after the changes named."""

    gpu: GpuSpec
    count: int
    estimate: Estimate
    fit: Fit
    max_context: int | None
    max_sequences: int | None
    changes: tuple[str, ...]

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
    estimate(model, **options)  # what no GPU can mend is refused here, for all of them
    for gpu in load_gpus() if gpus is None else gpus:
        try:
            asked = estimate(model, **options, gpu=gpu)
        except (NotModelled, Unsupported) as e:  # the card, as the workload itself is fine
            rejected.append(Rejected(gpu.name, str(e)))
            continue
        held = fit(asked, gpu)
        if held.verdict != "does_not_fit":
            candidates.append(_candidate(model, gpu, asked, options, ()))
        elif (rescued := _rescue(model, gpu, options)) is not None:
            candidates.append(rescued)
        else:
            tried = "no other cache type, quantization, engine, context or second card alone is enough"
            rejected.append(Rejected(gpu.name, f"{_shortfall(held)}; {tried}"))
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
        wanted = {**options, "engine": engine, "context": options.get("context") or min(8192, model.spec.max_position_embeddings)}
        try:
            best = best_quant(model, gpu, {k: v for k, v in wanted.items() if k != "quant"})
        except CalculatorError as e:
            rejected.append(Rejected(gpu.name, str(e), id))
            continue
        if best.estimate is None or not isinstance(best.value, str):
            smallest = estimate(model, **{**wanted, "quant": LADDERS[engine][-1]}, gpu=gpu)
            rejected.append(Rejected(gpu.name, f"{_shortfall(fit(smallest, gpu))} even as {LADDERS[engine][-1]}", id))
            continue
        chosen = {**wanted, "quant": best.value}
        candidates.append(_candidate(model, gpu, best.estimate, chosen, ()))
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


def _candidate(model: Model, gpu: GpuSpec, estimated: Estimate, options: dict[str, Any], changes: tuple[str, ...]) -> Candidate:
    held = fit(estimated, gpu)
    verdict = held.verdict
    context = largest_context(model, gpu, {k: v for k, v in options.items() if k != "context"}, verdict=verdict)
    sequences = largest_sequences(model, gpu, {k: v for k, v in options.items() if k != "sequences"}, verdict=verdict)
    return Candidate(
        gpu, estimated.job.deployment.gpus, estimated, held,
        context.value if isinstance(context.value, int) else None,
        sequences.value if isinstance(sequences.value, int) else None, changes,
    )  # fmt: skip


def _rescue(model: Model, gpu: GpuSpec, options: dict[str, Any]) -> Candidate | None:
    """The first change that makes it fit, cheapest first: cache type, quantization, context, one more GPU."""
    for change, changed in _changes(model, gpu, options):
        estimated = _try(model, gpu, changed)
        if estimated is not None and fit(estimated, gpu).verdict == "fits":
            return _candidate(model, gpu, estimated, changed, (change,))
    return None


def _try(model: Model, gpu: GpuSpec, options: dict[str, Any]) -> Estimate | None:
    """The estimate, or None where the engine refuses the changed options."""
    try:
        return estimate(model, **options, gpu=gpu)
    except CalculatorError:
        return None


def _changes(model: Model, gpu: GpuSpec, options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    asked = estimate(model, **options, gpu=gpu)
    engine = asked.engine.name
    quantized = {"llama.cpp": ("q8_0", "q4_0"), "vllm": ("fp8",), "sglang": ("fp8",)}.get(engine, ("int8", "int4"))
    for kind in quantized:
        if asked.job.deployment.kv_dtype not in quantized:
            yield f"kv-dtype {kind}", {**options, "kv_dtype": kind}
    if engine == "transformers" and options.get("engine") is None and asked.job.scheme.family == "plain":
        bare = {k: v for k, v in options.items() if k not in ("settings", "kv_dtype")}
        for name in LADDERS["llama.cpp"]:  # the wider formats first: the same weights with another engine come before fewer bits
            yield f"llama.cpp, {name}", {**bare, "engine": "llama.cpp", "quant": name}
    for name in LADDERS[engine]:
        smaller = _try(model, gpu, {**options, "quant": name})
        if smaller is not None and smaller.tensor_bytes < asked.tensor_bytes:
            yield f"quant {name}", {**options, "quant": name}
    shorter = largest_context(model, gpu, {k: v for k, v in options.items() if k != "context"})
    if isinstance(shorter.value, int) and MIN_CONTEXT <= shorter.value < asked.job.workload.context:
        down = shorter.value // MIN_CONTEXT * MIN_CONTEXT
        yield f"context {tokens(down)}", {**options, "context": down}
    if gpu.segment != "unified":
        count = asked.job.deployment.gpus + 1
        yield f"{count} x {gpu.name}, layers split", {**options, "gpus": count}


def _shortfall(held: Fit) -> str:
    device = held.binding
    return f"needs {gib(device.required_bytes)}, usable {gib(device.usable_bytes)}: {gib(-device.headroom_bytes)} short"
