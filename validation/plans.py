"""What each suite runs, the most valuable first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "architectures.json").read_text())
FIRST = ("llama-3.2-1b", "llama-3.2-1b-card")
CONTEXTS = tuple(1024 * 2**i for i in range(8))
QUANTS = ("bf16", "fp16", "fp32", "bnb-int8", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-fp4-dq", "torchao-int8wo",
          "torchao-fp8wo", "quanto-int8", "quanto-int4", "quanto-fp8")  # fmt: skip
RECIPES = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q3_K_L", "Q3_K_M", "Q3_K_S",
           "Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_M", "IQ3_S", "TQ1_0", "TQ2_0")  # those that ask for no importance matrix
Task = dict[str, Any]


def task(suite: str, evidence: str, model: str, **run: Any) -> Task:
    """What is to be run."""
    return {"suite": suite, "evidence": evidence, "model": {"id": model, **MODELS.get(model, {})}, "run": run}


def passes(suite: str, evidence: str, model: str, context: int, *, phase: str = "prefill", quant: str = "bf16",
           sequences: int = 1, attn: str = "sdpa", keep: int = 1, cache: str = "dynamic") -> Task:  # fmt: skip
    """A forward pass."""
    settings = {"attn_implementation": attn, "logits_to_keep": keep, "cache_implementation": cache}
    return task(suite, evidence, model, quant=quant, context=context, sequences=sequences, phase=phase, settings=settings)


def weights_plan() -> Iterator[Task]:
    """Every format of every architecture."""
    for model in MODELS:
        yield from (task("weights", "cpu", model, quant=quant) for quant in QUANTS)


def cache_plan() -> Iterator[Task]:
    """Every kind of cache at every context, the shorter first."""
    for context in CONTEXTS:
        for model in MODELS:
            for kind, kv in (("dynamic", None), ("static", None), ("quanto-4", "int4"), ("quanto-2", "int2"), ("hqq-8", "int8"),
                             ("hqq-4", "int4")):  # fmt: skip
                settings = {"cache_implementation": "quantized" if kv else kind, **({"backend": kind.split("-")[0]} if kv else {})}
                more = {"kv_dtype": kv} if kv else {}
                yield task("cache", "cpu", model, quant="bf16", context=context, sequences=1, phase="prefill",
                           settings=settings, **more)  # fmt: skip


def activations_plan() -> Iterator[Task]:
    """Fake at full depth for all; then really executed, true depth, as far as memory and time allow."""
    def some(evidence: str, model: str, context: int, batches: tuple[int, ...]) -> Iterator[Task]:
        for attn in ("sdpa", "eager"):
            for b in batches:
                for keep in (1, 0):
                    yield passes("activations", evidence, model, context, sequences=b, attn=attn, keep=keep)
                yield passes("activations", evidence, model, context, phase="decode", sequences=b, attn=attn)
            yield passes("activations", evidence, model, context, phase="decode", attn=attn, cache="static")

    for model in MODELS:
        for context in CONTEXTS:
            yield from some("fake", model, context, (1, 2, 8) if model in FIRST else (1,))
    for context in (1024, 2048):
        for model in MODELS:
            yield from some("cpu", model, context, (1,))


def generate_plan() -> Iterator[Task]:
    """Eight tokens after a prompt, really generated; the context is prompt and answer."""
    for context in (256, 1024, 2048):
        for model in MODELS:
            for attn, b in (("sdpa", 1), ("eager", 1), ("sdpa", 4)):
                yield task("generate", "cpu", model, quant="bf16", context=context, sequences=b,
                           settings={"attn_implementation": attn}, output_tokens=8)  # fmt: skip


def training_plan() -> Iterator[Task]:
    """Fake at full depth to 8K, really executed at 512. LoRA is only executed: under fake tensors more is saved for its backward."""
    def steps(evidence: str, context: int, method: str) -> Iterator[Task]:
        for model in MODELS:
            for checkpointing in (False, True):
                yield task("training", evidence, model, quant="bf16", context=context, sequences=1, phase="training",
                           settings={"method": method, "checkpointing": checkpointing, "optimizer": "adamw"})  # fmt: skip

    for context in (512, 1024, 2048, 4096, 8192):
        yield from steps("fake", context, "full")
    for context in (128, 512):
        for method in ("lora", "full"):
            yield from steps("cpu", context, method)


def llama_cpp_plan() -> Iterator[Task]:
    """Contexts of llama.cpp's library as it is installed, then its recipes, dense models only."""
    models = [name for name in MODELS if "mixtral" not in name]

    def made(model: str, context: int, flash: bool, kv: str, slots: int = 1) -> Task:
        settings = {"backend": "cpu", "n_ctx": context, "n_seq_max": slots, "n_batch": 2048, "n_ubatch": 512, "kv_unified": False,
                    "n_outputs_max": slots, "flash_attn": flash, "type_k": kv, "type_v": kv, "swa_full": False}  # fmt: skip
        return task("llama-cpp", "cpu", model, quant="F16", settings=settings)

    for context in CONTEXTS[:6]:
        for model in models:
            yield made(model, context, True, "f16")
            yield made(model, context, True, "q8_0")
            yield made(model, context, False, "f16", slots=4)
    for quant in RECIPES:
        yield from (task("llama-cpp", "cpu", model, quant=quant) for model in models)


def cuda_plan() -> Iterator[Task]:
    """Most valuable first."""
    one, card = FIRST
    yield task("cuda", "gpu", "", task="context")
    for context in (1024, 8192, 32768, 131072, 2048, 4096, 16384, 65536):
        yield passes("cuda", "gpu", one, context)
    for context in (8192, 131072):
        yield passes("cuda", "gpu", one, context, phase="decode")
        yield passes("cuda", "gpu", card, context)
    for b in (8, 2, 4):
        yield passes("cuda", "gpu", one, 4096, sequences=b)
    for context in (1024, 4096, 8192):
        yield passes("cuda", "gpu", one, context, attn="eager")
    for quant in ("bnb-nf4", "bnb-int8", "bnb-nf4-dq"):
        for context, phase in ((8192, "prefill"), (1024, "prefill"), (8192, "decode"), (131072, "prefill")):
            yield passes("cuda", "gpu", one, context, quant=quant, phase=phase)
    for context in (131072, 8192):
        yield passes("cuda", "gpu", one, context, phase="decode", cache="static")
    yield passes("cuda", "gpu", one, 8192, keep=0)
    yield passes("cuda", "gpu", one, 8192, phase="decode", sequences=8)
    yield passes("cuda", "gpu", one, 4096, quant="fp16", attn="eager")
    yield passes("cuda", "gpu", one, 4096, quant="fp32")
    yield passes("cuda", "gpu", one, 4096, quant="fp32", phase="decode")
    for context in (1024, 2048, 4096, 16384, 32768, 65536):
        yield passes("cuda", "gpu", card, context)
    yield passes("cuda", "gpu", card, 8192, phase="decode")
    for model in MODELS:
        if model not in FIRST:
            yield passes("cuda", "gpu", model, 8192)


PLANS: dict[str, Callable[[], Iterator[Task]]] = {
    "weights": weights_plan, "cache": cache_plan, "activations": activations_plan, "generate": generate_plan,
    "training": training_plan, "llama-cpp": llama_cpp_plan, "cuda": cuda_plan,
}  # fmt: skip
