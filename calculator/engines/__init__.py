"""The engines by name: those with formulas, and those that are known but not modelled yet."""

from __future__ import annotations

from typing import NamedTuple

from calculator.architectures import architecture
from calculator.engines.base import Encodes, Engine, HasFamilies, Job, KnowsLess, LacksSteps, Releases
from calculator.engines.bound import Bound
from calculator.engines.llama_cpp import LlamaCpp
from calculator.engines.partial import ENGINES as PARTIAL
from calculator.engines.partial import Partial, PartialServer, as_published
from calculator.engines.sglang import Sglang
from calculator.engines.transformers import Transformers
from calculator.engines.vllm import Vllm
from calculator.errors import BadValue, NotModelled, UnknownName, Unsupported
from calculator.names import key, nearest
from calculator.quantization import Scheme
from calculator.spec import ModelSpec

__all__ = ["ENGINES", "LATER", "Engine", "Job", "bounded", "check_runs", "describes", "for_family", "load"]

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Transformers(), LlamaCpp(), Vllm(), Sglang())}


class Later(NamedTuple):
    """An engine of the contract without formulas in this version."""

    name: str
    why: str


LATER: dict[str, Later] = {
    name: Later(name, why)
    for name, why in (
        ("exllamav2", "no public record to hold its cache and scratch against"),
        ("tensorrt-llm", "no public record to hold it against"),
        ("mlx", "no public record to hold it against"),
    )
}
_ALIASES = {"llamacpp": "llama.cpp", "hf": "transformers", "trtllm": "tensorrt-llm"}


def canonical(name: str) -> str:
    """The engine's name as its makers write it. Raises UnknownName."""
    names = {key(n).replace(".", ""): n for n in (*ENGINES, *LATER)} | _ALIASES
    wanted = key(name).replace(".", "")
    if wanted == "ollama":
        raise UnknownName("ollama runs llama.cpp", hint="--engine llama.cpp --set preset=ollama")
    if wanted not in names:
        near = nearest(name, (*ENGINES, *LATER))
        raise UnknownName(f"engine {name[:40]!r} is not known", hint=", ".join(near) or "vram engines lists all")
    return names[wanted]


def check_runs(scheme: Scheme, engine: str) -> None:
    """Refuse a quantization that the engine can't run. Raises Unsupported."""
    if engine in scheme.engines or engine not in ENGINES:
        return
    if scheme.recipe and engine == "transformers":
        raise Unsupported(
            f"transformers loads a GGUF file by dequantizing it; it doesn't run {scheme.name}",
            hint=f"--engine llama.cpp, or --quant bf16 with {engine}",
        )
    if scheme.recipe:
        raise Unsupported(f"{engine} and GGUF files ({scheme.name}): what its layers hold of one has no formula here",
                          hint=f"--engine llama.cpp, or a format of {engine}'s own of that width: --quant {'fp8' if scheme.recipe in ('Q8_0', 'F16', 'BF16') else 'awq-int4-g128'}")  # fmt: skip
    recipe = f"--quant {'MXFP4_MOE' if scheme.name == 'mxfp4' else 'Q4_K_M'}, or " if engine == "llama.cpp" else ""  # mxfp4: the same blocks, in a GGUF file
    raise Unsupported(f"{engine} can't run {scheme.name}", hint=f"{recipe}--engine {' or '.join(scheme.engines)}")


def for_family(runner: Engine, model: ModelSpec, scheme: Scheme, *, partial: bool) -> Engine:
    """The engine for a model type; `partial`: a lower bound where a part of its activations has no formula.

    Raises NotModelled with the engines that have one, or that give a lower bound.
    """
    engine, knows, missing = runner.name, _knows(runner, model), _missing(runner, model)
    if knows and missing:
        if partial:
            return PartialServer(runner)
        raise NotModelled(f"{model.model_type} in {engine}: {missing} has no formula yet", hint="vram estimate, which gives a lower bound")
    if knows and not (partial and engine == "transformers" and as_published(model, scheme)):
        return runner
    if partial and engine in PARTIAL:
        return Partial(runner)
    others = [name for name, other in ENGINES.items() if name != engine and _knows(other, model) and not _missing(other, model)]
    if others:
        hint = f"--engine {' or '.join(others)}"
    elif engine in PARTIAL:
        hint = "vram estimate, which gives weights and cache as a lower bound; vram trace, which runs the real code"
    else:
        hint = f"vram estimate --engine {' or '.join(PARTIAL)}, which gives weights and cache as a lower bound"
    raise NotModelled(f"{model.model_type} in {engine}: its activations have no formula yet", hint=hint)


def _missing(engine: Engine, model: ModelSpec) -> str:
    """What of a pass has no formula in an engine that knows the model type."""
    if isinstance(engine, LacksSteps) and (said := engine.lacking(model)):
        return said
    return engine.images_missing(model) if isinstance(engine, Encodes) else ""


_WITHOUT_NORMS = frozenset({("llama.cpp", "cohere")})  # types whose norms of queries and keys aren't in the graph here (Command R+)


def _knows(engine: Engine, model: ModelSpec) -> bool:
    own = engine.families if isinstance(engine, HasFamilies) else frozenset()
    if model.qk_norm and (engine.name, model.model_type) in _WITHOUT_NORMS:
        return False
    return engine.name in architecture(model.model_type).engines or model.model_type in own


def bounded(runner: Engine, job: Job, *, partial: bool = True) -> Engine:
    """The engine, or a lower bound where it has no formula for this deployment's activations, or for the pass of its images.

    Raises NotModelled for the latter where no lower bound is wanted (`partial`).
    """
    if isinstance(runner, Encodes) and not isinstance(runner, Partial) and (missing := runner.images_without_formula(job)):
        if not partial:
            raise NotModelled(f"{job.model.model_type} in {runner.name} {job.deployment.engine_version}: {missing} has no formula", hint="vram estimate, which gives a lower bound")
        return PartialServer(runner)
    if partial and isinstance(runner, KnowsLess) and runner.without_peak(job) is not None:
        return Bound(runner)
    return runner


def describes(engine: Engine, version: str) -> bool:
    """Whether the formulas hold for a version: a modelled one, or a release that an engine knows to behave like one."""
    return version in engine.versions or (isinstance(engine, Releases) and engine.covers(version))


def load(name: str, version: str | None = None) -> tuple[Engine, str]:
    """An engine with formulas, and the version they describe. Raises NotModelled, BadValue for a version."""
    if name in LATER:
        raise NotModelled(f"engine {name} is not modelled yet: {LATER[name].why}", hint=" or ".join(ENGINES))
    engine = ENGINES[name]
    if version is not None and not describes(engine, version):
        between = f", {engine.others}" if isinstance(engine, LlamaCpp) else ", and the releases between them" if isinstance(engine, Releases) else ""
        raise BadValue(f"{name} {version[:40]!r} is not a modelled version", allowed=", ".join(engine.versions) + between)
    return engine, version or engine.versions[-1]
