"""LoRA adapters: two thin matrices beside each target, on the target's place, and four nodes more in the graph.

A product with a target's matrix w becomes w x + s B (A x), for each adapter in turn.

Source: llama.cpp @0c1e57098 src/llama-adapter.cpp llama_adapter_lora_init_impl L143 (buffers), src/llama-graph.cpp
build_lora_mm L1520 (nodes); convert_lora_to_gguf.py L287 (the type, f32 unless told).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from calculator.engines.base import Job
from calculator.engines.llama_cpp.buffers import CUDA_ALIGNMENT, HOST_ALIGNMENT, Adapters, Context
from calculator.engines.llama_cpp.overrides import STEMS
from calculator.engines.llama_cpp.placement import Placed
from calculator.errors import BadValue, NotModelled
from calculator.formats import FORMATS
from calculator.ledger import Formula, Line
from calculator.quantization import Stored, StoredGroup
from calculator.units import align_up

SOURCE = "llama.cpp src/llama-adapter.cpp llama_adapter_lora_init_impl @0c1e57098"
TYPES = ("f32", "f16", "bf16")
_ROLES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def adapters_of(job: Job) -> Adapters | None:
    """The adapters that the settings describe; None without a rank."""
    s = job.deployment.settings
    if not int(s["lora_rank"]):
        return None
    return Adapters(int(s["lora_rank"]), targets(str(s["lora_targets"]), job.stored), str(s["lora_type"]).upper(), int(s["lora_adapters"]))


def targets(text: str, stored: Stored) -> tuple[str, ...]:
    """Names as in the file, in its order; Hugging Face's are taken too. `all` are the matrices of all layers."""
    words = {STEMS.get(word.strip(), word.strip()) for word in text.lower().split(",")}
    there = {g.group.role for g in stored if g.group.role in (*_ROLES, "output")}
    known = [r for r in (*_ROLES, "output") if r in there]
    if words == {"all"}:
        return tuple(r for r in known if r != "output")
    if unknown := sorted(words - set(known)):
        raise BadValue(f"lora_targets {', '.join(unknown)[:40]!r}: the model has no such matrix", allowed=", ".join(("all", *known)))
    return tuple(r for r in known if r in words)


def check(job: Job) -> None:
    """Refuse adapters of experts, and of versions whose graph wasn't held against the engine with them."""
    adapters = adapters_of(job)
    if adapters is None:
        return
    if job.deployment.engine_version != "0c1e57098":
        raise NotModelled(f"lora_rank with llama.cpp {job.deployment.engine_version}", hint="leaving --engine-version out")
    if job.model.num_experts and any(t.startswith("ffn") for t in adapters.targets):
        raise NotModelled("LoRA adapters of experts", hint="--set lora_targets=attn_q,attn_k,attn_v,attn_output")
    if any(g.format in ("TQ1_0", "TQ2_0") for g in job.stored) and job.deployment.settings["backend"] != "cpu":
        raise NotModelled("LoRA adapters of matrices that CUDA doesn't multiply", hint="another recipe")


def matrices(group: StoredGroup, adapters: Adapters) -> tuple[int, int]:
    """Bytes of A (rank rows of the target's inputs) and of B (a row of rank elements each output)."""
    out, inputs = group.group.shape
    size = FORMATS[adapters.type].block_bytes
    return adapters.rank * inputs * size, adapters.rank * out * size


def held(part: Stored, adapters: Adapters) -> Iterator[StoredGroup]:
    """The targets among the tensors of a place."""
    return (g for g in part if g.group.role in adapters.targets and len(g.group.shape) == 2)


def lines(context: Context, placed: Placed | Stored) -> list[Line]:
    """A buffer on each place that holds targets."""
    adapters = context.adapters
    if adapters is None:
        return []
    if not isinstance(placed, Placed):
        return [_line(placed, adapters, 0, HOST_ALIGNMENT)]
    found = [_line(part, adapters, device, CUDA_ALIGNMENT) for device, part in enumerate(placed.gpus)]
    on_host = (*placed.layers, *placed.no_kernel, *placed.overridden)
    if any(held(on_host, adapters)):
        found.append(_line(on_host, adapters, "host", HOST_ALIGNMENT))
    return found


def _line(part: Stored, adapters: Adapters, device: int | Literal["host"], alignment: int) -> Line:
    pairs = [(matrices(g, adapters), g) for g in held(part, adapters)]
    elements = sum((a + b) * g.count for (a, b), g in pairs) // FORMATS[adapters.type].block_bytes
    nbytes = adapters.number * sum((align_up(a, alignment) + align_up(b, alignment)) * g.count for (a, b), g in pairs)
    size = FORMATS[adapters.type].block_bytes
    padding = nbytes - adapters.number * elements * size
    formula = Formula("{n} (adapters) × {e} (rank × (inputs + outputs) of all targets) × {b} (bytes)" + (" + {p} (alignment)" if padding else ""),
                      {"n": adapters.number, "e": elements, "b": size, "p": padding})  # fmt: skip
    note = f"rank {adapters.rank} on {', '.join(adapters.targets)}" if pairs else "no target is here"
    return Line("weights", "LoRA buffer", nbytes, formula, SOURCE, device=device, note=note)
