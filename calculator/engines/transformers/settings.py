"""The library's settings under its own names, and what is refused of them."""

from __future__ import annotations

from typing import Any

from calculator.architectures import architecture
from calculator.engines.base import Job
from calculator.engines.settings import COUNT, Budgets, Setting
from calculator.engines.transformers import cache
from calculator.engines.transformers.families import FAMILIES, Family
from calculator.engines.transformers.placement import check_map
from calculator.errors import NotModelled, Unsupported
from calculator.quantization import Scheme, compute_dtype
from calculator.quantization.hf import KV_NAMES
from calculator.spec import ModelSpec

SETTINGS: dict[str, Setting] = {
    "attn_implementation": Setting(None, ("sdpa", "eager"), "attention kernel; default sdpa, or eager where the model type has no other"),
    "logits_to_keep": Setting(1, range(0, COUNT.stop), "positions with logits; 0 is all"),
    "cache_implementation": Setting(None, ("dynamic", "static", "quantized"), "kind of KV cache; default dynamic"),
    "phase": Setting(None, ("prefill", "decode"), "size this phase; default the larger of the two"),
    "device_map": Setting(None, ("auto", "balanced", "balanced_low_0", "sequential"), "modules to GPUs, then host, then disk; default one GPU, or auto over several without the host"),
    "max_memory": Setting(None, Budgets(), "what device_map may fill: 0:10GiB,cpu:30GiB; default what is free on an empty card, 0.9 of it on a single one"),
    "host_memory_bytes": Setting(None, COUNT, "free memory of the host, of which device_map fills 0.9; default as much as it takes [bytes]"),
    "generate": Setting(False, bool, "with generate()'s inputs: a mask and positions for each sequence; off, a bare forward pass"),
}


def unknown_share(scheme: Scheme, kind: str) -> NotModelled:
    """What each library quantizes of a model with this kind of layers isn't known; the servers' own rules are."""
    servers = [name for name in ("vllm", "sglang") if name in scheme.engines]
    others = f"--engine {' or '.join(servers)}, " if servers else ""
    return NotModelled(f"{scheme.name} of a model with {kind}: what each library leaves unquantized differs", hint=f"{others}--quant bf16, or a GGUF recipe")


def resolve_kv_dtype(model: ModelSpec, scheme: Scheme, kv_dtype: str | None, settings: dict[str, Any]) -> str:
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
    settings.setdefault("attn_implementation", "sdpa" if FAMILIES.get(model.model_type, Family()).sdpa else "eager")
    settings["cache_implementation"] = kind or ("dynamic" if kv_dtype == own else "quantized")
    return kv_dtype


def check(job: Job) -> None:
    """Refuse what this engine's formulas don't cover."""
    model = job.model
    check_map(job)
    settings = job.deployment.settings
    if settings["attn_implementation"] == "sdpa" and not FAMILIES[model.model_type].sdpa:
        raise Unsupported(f"transformers has no sdpa for {model.model_type}", hint="--set attn_implementation=eager")
    beyond = model.sliding_window is not None and job.workload.context >= model.sliding_window
    if model.sliding_window and ((settings["cache_implementation"] == "quantized" and (model.full_every or beyond)) or (job.deployment.gpus > 1 and model.full_every)):
        raise NotModelled(f"{model.model_type} in transformers: windows in a quantized cache, or over several GPUs, have no formula", hint="--engine llama.cpp")
    if model.num_experts and compute_dtype(model, job.scheme) != "bfloat16":
        raise NotModelled(f"{model.model_type} in {job.scheme.name}: torch's grouped product of experts takes bfloat16 only", hint="--quant bf16")
    if model.num_experts and job.scheme.family != "plain":
        raise unknown_share(job.scheme, "experts")
    mixed = architecture(model.model_type).windows == "use_sliding_window"  # its later layers see everything
    if mixed and model.sliding_window and job.workload.context > model.sliding_window:
        raise NotModelled(f"{model.model_type} in transformers beyond its window of {model.sliding_window:,} tokens",
                          hint=f"--context {model.sliding_window} or --engine llama.cpp")  # fmt: skip
