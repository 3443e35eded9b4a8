"""The largest context, concurrency, layers on the GPU, or best quantization that it holds, by bisection over a monotone verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from calculator.catalog import Model
from calculator.engines import canonical
from calculator.engines.base import Reserves
from calculator.errors import BadValue, CalculatorError, NotModelled
from calculator.estimate import Estimate, estimate
from calculator.fit import ORDER, Verdict, fit, shortfall
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.spec import GpuSpec
from calculator.speed import decode_tokens_per_s_bound, host_bandwidth
from calculator.units import MAX_COUNT

LLAMA_CPP_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, llama.cpp src/llama-cparams.h @0c1e57098

# recipes and schemes that people choose between; each list is one engine's ladder, sorted by size when solved
LADDERS: dict[str, tuple[str, ...]] = {
    "llama.cpp": ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"),
    "transformers": ("bf16", "bnb-int8", "gptq-int4-g128", "bnb-nf4-dq"),
    "vllm": ("bf16", "fp8", "gptq-int4-g128"),
    "sglang": ("bf16", "fp8", "gptq-int4-g128"),
}
# of checkpoints that are published in eight or four bits: their own format, and what is published beside it
PUBLISHED: dict[str, dict[str, tuple[str, ...]]] = {
    "mxfp4": {"llama.cpp": ("MXFP4_MOE",), **dict.fromkeys(("transformers", "vllm", "sglang"), ("mxfp4",))},
    "fp8-block": {"transformers": ("fp8-block",), **dict.fromkeys(("vllm", "sglang"), ("fp8-block", "gptq-int4-g128"))},
}


def ladder(model: Model, engine: str) -> tuple[str, ...]:
    """The formats that people choose between for this model in this engine, widest first: those that are published."""
    return PUBLISHED.get(model.own_quant, {}).get(engine) or LADDERS[engine]


def with_formulas(model: Model, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The options, and what was changed so that they can be sized: blocks of mxfp4 are the same in llama.cpp's MXFP4_MOE.

    Transformers' activations over them have no formula, so the checkpoint as it is published goes to llama.cpp, unless
    an engine or a format is asked for.
    """
    engine = canonical(options["engine"]) if options.get("engine") else None
    if options.get("quant") is None and model.own_quant == "mxfp4" and engine in (None, "llama.cpp"):
        return {**options, "engine": "llama.cpp", "quant": "MXFP4_MOE"}, "quant MXFP4_MOE" if engine else "llama.cpp, MXFP4_MOE"
    return options, None


def sized_elsewhere(model: Model, options: dict[str, Any], refusal: NotModelled) -> NotModelled:
    """A refusal of the published format, with the engines that have a formula for it as what to try."""
    recipe = {"mxfp4": "--quant MXFP4_MOE", "fp8-block": "a GGUF recipe such as --quant Q4_K_M"}.get(model.own_quant)
    if recipe is None or options.get("quant") not in (None, model.own_quant) or canonical(options.get("engine") or "transformers") != "transformers":
        return refusal
    return NotModelled(refusal.given, hint=f"{recipe} (llama.cpp), or --engine vllm")


class Offload(NamedTuple):
    """What layers on the host cost: host memory [bytes], and upper bounds of decode speed [tokens/s]."""

    host_bytes: int
    layers: int
    """Layers that could be on the GPU, the output counted as one."""
    tokens_per_s_bound: float
    tokens_per_s_bound_low: float
    tokens_per_s_bound_high: float
    """The bound at a slower and at a faster host memory."""
    tokens_per_s_bound_all_layers: float
    """The bound if the card held everything."""
    host_bandwidth_bytes_per_s: int
    host_bandwidth_source: str


class Solution(NamedTuple):
    """The answer: the largest value with the verdict asked for, and what stops the next one."""

    wanted: str
    value: int | str | None
    binding: str
    next_value_fits: bool
    estimate: Estimate | None
    offload: Offload | None = None


def largest(accept: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest n in [low, high] with accept(n), for a predicate that turns false once. None if accept(low) fails."""
    if not accept(low):
        return None
    reach = low
    while reach < high and accept(min(2 * reach, high)):
        reach = min(2 * reach, high)
    low, bad = reach, min(2 * reach, high + 1)
    while bad - low > 1:
        middle = (low + bad) // 2
        if accept(middle):
            low = middle
        else:
            bad = middle
    return low


def largest_context(model: Model, gpu: GpuSpec, options: dict[str, Any], *, verdict: Verdict = "fits") -> Solution:
    """Largest context per sequence, up to what the model was trained for."""
    limit = model.spec.max_position_embeddings

    def run(context: int) -> Estimate:
        return estimate(model, **{**options, "context": context}, gpu=gpu)

    first = run(1)
    value = largest(lambda n: _holds_next(run, n, gpu, verdict), 1, limit)
    if value is None:
        return Solution("context", None, _why(first, gpu), False, None)
    if value == limit:
        return Solution("context", value, f"max_position_embeddings ({limit:,})", _holds_next(run, limit + 1, gpu, verdict), run(value))
    return Solution("context", value, _binding(run, value + 1), False, run(value))


def largest_sequences(model: Model, gpu: GpuSpec, options: dict[str, Any], *, verdict: Verdict = "fits") -> Solution:
    """Largest number of concurrent sequences of the given context."""

    def run(sequences: int) -> Estimate:
        return estimate(model, **{**options, "sequences": sequences}, gpu=gpu)

    first = run(1)
    limit = LLAMA_CPP_MAX_SEQUENCES if first.engine.name == "llama.cpp" else MAX_COUNT
    if isinstance(first.engine, Reserves) and first.pool is None:  # nothing is kept between passes: the batch is the limit
        limit = int(first.engine.resolved_settings(first.job)["max_num_seqs"])
    elif verdict == "tight" and first.pool is not None:  # any number queues
        limit = max(1, int(first.pool.max_concurrency))
    value = largest(lambda n: _holds_next(run, n, gpu, verdict), 1, limit)
    if value is None:
        return Solution("sequences", None, _why(first, gpu), False, None)
    if value == limit:
        return Solution("sequences", value, f"{first.engine.name} allows {limit:,} sequences", False, run(value))
    return Solution("sequences", value, _binding(run, value + 1), False, run(value))


def best_quant(model: Model, gpu: GpuSpec, options: dict[str, Any], *, verdict: Verdict = "fits") -> Solution:
    """The quantization with the most bytes that still fits: totals grow with tensor bytes, so bisect the sorted list."""
    engine = canonical(options.get("engine") or "llama.cpp")
    options = {**options, "engine": engine}
    sized = {stored_nbytes(quantize(model.spec, parse(q, engine=engine))): q for q in ladder(model, engine)}
    names = [name for _, name in sorted(sized.items())]

    def run(index: int) -> Estimate:
        return estimate(model, **{**options, "quant": names[index - 1]}, gpu=gpu)

    try:
        value = largest(lambda n: holds(run(n), gpu, verdict), 1, len(names))
    except CalculatorError:
        names = _not_refused(names, lambda name: estimate(model, **{**options, "quant": name}, gpu=gpu))
        value = largest(lambda n: holds(run(n), gpu, verdict), 1, len(names))
    listed = ", ".join(reversed(names))
    if value is None:
        smallest = f"{names[0]}, the only format tried," if len(names) == 1 else f"of {listed} the smallest, {names[0]},"
        return Solution("quant", None, f"{smallest} {shortfall(run(1), gpu)}", False, None)
    binding = "memory" if value < len(names) else f"the widest of {listed}" if len(names) > 1 else f"the only format tried: {listed}"
    return Solution("quant", names[value - 1], binding, False, run(value))


def _not_refused(names: list[str], run: Callable[[str], Estimate]) -> list[str]:
    """The formats that the engine runs of this model. Raises what it says to the smallest where it runs none."""
    kept, refused = [], []
    for name in names:
        try:
            run(name)
        except CalculatorError as e:
            refused.append(e)
        else:
            kept.append(name)
    if not kept:
        raise refused[0]
    return kept


def most_gpu_layers(model: Model, gpu: GpuSpec, options: dict[str, Any], *, verdict: Verdict = "fits") -> Solution:
    """Most layers on the GPU, the output counted as one. All of them are tried first: then nothing of the host's is copied."""
    if (options.get("engine") or "llama.cpp") not in ("llama.cpp", "llamacpp"):
        raise BadValue(f"n_gpu_layers is a setting of llama.cpp, not of {str(options['engine'])[:30]}", hint="--engine llama.cpp")
    settings = dict(options.get("settings") or {})
    if "n_gpu_layers" in settings:
        raise BadValue("n_gpu_layers is both given and looked for", hint="leaving --set n_gpu_layers out")

    def run(layers: int) -> Estimate:
        return estimate(model, **{**options, "engine": "llama.cpp", "settings": {**settings, "n_gpu_layers": layers}}, gpu=gpu)

    everything = model.spec.num_hidden_layers + 1
    whole = run(everything)
    if holds(whole, gpu, verdict):
        return Solution("n_gpu_layers", everything, "all layers and the output are on the GPU", False, whole, _offload(whole, whole, gpu))
    value = largest(lambda n: holds(run(n - 1), gpu, verdict), 1, everything)
    if value is None:
        return Solution("n_gpu_layers", None, _why(run(0), gpu), False, None)
    found = run(value - 1)
    return Solution("n_gpu_layers", value - 1, "memory", False, found, _offload(found, whole, gpu))


def _offload(found: Estimate, whole: Estimate, gpu: GpuSpec) -> Offload:
    host = host_bandwidth()
    point, low, high = (decode_tokens_per_s_bound(found, gpu, host_bytes_per_s=b) for b in (host.value, host.low, host.high))
    return Offload(found.ledger.host_bytes, found.job.model.num_hidden_layers + 1, point, low, high,
                   decode_tokens_per_s_bound(whole, gpu), host.value, f"{host.hardware}: {host.source}")  # fmt: skip


SOLVERS = {"context": largest_context, "sequences": largest_sequences, "quant": best_quant, "n_gpu_layers": most_gpu_layers}


def solve(model: Model, gpu: GpuSpec, wanted: str, options: dict[str, Any]) -> Solution:
    """Solve for context, sequences, quant or n_gpu_layers. Raises BadValue for another unknown."""
    if wanted not in SOLVERS:
        raise BadValue(f"can't solve for {wanted[:30]!r}", allowed=", ".join(SOLVERS))
    given = options.get(wanted)
    if given is not None and not (wanted == "sequences" and str(given) == "1"):
        raise BadValue(f"{wanted} is both given and looked for", hint=f"leaving --{wanted} out")
    left = {k: v for k, v in options.items() if k != wanted}
    if wanted != "quant":
        left, _ = with_formulas(model, left)
    try:
        return SOLVERS[wanted](model, gpu, left)
    except NotModelled as e:
        raise sized_elsewhere(model, left, e) from None


def holds(estimated: Estimate, gpu: GpuSpec, verdict: Verdict = "fits") -> bool:
    """Whether the verdict is at least as good as asked."""
    return ORDER.index(fit(estimated, gpu).verdict) <= ORDER.index(verdict)


def _holds_next(run: Callable[[int], Estimate], n: int, gpu: GpuSpec, verdict: Verdict) -> bool:
    try:
        return holds(run(n), gpu, verdict)
    except CalculatorError:
        return False


def _binding(run: Callable[[int], Estimate], n: int) -> str:
    """What stops n: memory, or a refusal in the engine's words."""
    try:
        run(n)
    except CalculatorError as e:
        return str(e)
    return "memory"


def _why(smallest: Estimate, gpu: GpuSpec) -> str:
    return f"even the smallest {shortfall(smallest, gpu)}"
