"""What a pass holds where modules are offloaded: each brings its own tensors to the GPU while it runs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from calculator.engines.transformers.device_map import DeviceMap
from calculator.engines.transformers.experts import expert_steps, weight_bytes
from calculator.engines.transformers.run import Pass
from calculator.quantization import Stored
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step, largest

# whose steps beside an offloaded module are known; the others' differ from Llama's in what they keep meanwhile
HOOKED = frozenset({"llama", "mistral", "ministral3", "qwen2", "qwen3", "phi3", "granite", "smollm3", "seed_oss", "mixtral", "qwen3_moe", "gemma3_text"})


class Matrices(NamedTuple):
    """The largest offloaded module of each kind [bytes]; 0: none is."""

    up: int = 0
    down: int = 0
    attention: int = 0
    experts: int = 0
    head: int = 0
    embedding: int = 0


def offloaded_matrices(stored: Stored, found: DeviceMap) -> Matrices:
    """Modules that hooks bring in, by kind. A module of experts comes whole."""
    away = {i for i, device in enumerate(found.layers) if not isinstance(device, int)}
    most, experts = dict.fromkeys(("up", "down", "attention"), 0), dict.fromkeys(away, 0)
    outer = {"output": 0, "embedding": 0}
    kinds = {"ffn_up": "up", "ffn_gate": "up", "ffn_down": "down"}
    for group in stored:
        role, size = group.group.role, group.tensor_nbytes
        if not group.layers:
            outer[role] = size if role in outer else 0
        elif len(group.group.shape) == 3:
            for layer in away.intersection(group.layers):
                experts[layer] += size
        elif away.intersection(group.layers) and (kind := kinds.get(role, "attention" if role.startswith("attn") else "")):
            most[kind] = max(most[kind], size)
    tied = outer["output"] or outer["embedding"]
    return Matrices(
        most["up"], most["down"], most["attention"], max(experts.values(), default=0), 0 if isinstance(found.head, int) else tied,
        0 if isinstance(found.embedding, int) else outer["embedding"],
    )  # fmt: skip


@lru_cache(maxsize=4096)
def with_hooks(model: ModelSpec, how: Pass, phase: str, matrices: Matrices, plain: int, *, new: int, seen: int, sequences: int) -> Peak | None:
    """The step in which an offloaded module's tensors weigh most; None where one without them, of `plain` bytes, is larger."""
    b, q, t, e = sequences, new, seen, how.element_bytes
    n, h, f, d, heads = b * q, model.hidden_size, model.intermediate_size, model.head_dim, model.num_attention_heads
    r, eager, k = 3 if model.num_hidden_layers > 1 else 2, how.attention == "eager", min(how.logits_to_keep or q, q)
    wide, p = 4 if model.model_type == "phi3" else 3, b if how.own_positions else 1
    alive = (
        Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}"),
        Buffer("cos, sin and positions", p * q * (2 * d * e + 8), "{p} × {q} × (2 × {d} × {e} + 8)"),
        Buffer("attention weights", heads * n * t * e if eager else 0, "{H} × {n} × {T} × {e}"),
        Buffer("mask", b * q * t * e if eager else 0, "{B} × {q} × {T} × {e}"),
    )
    w = {name: Buffer("weight of the module that runs", size, f"{{w_{name}}}") for name, size in matrices._asdict().items()}
    embedded = Buffer("embedded tokens", h * n * e, "{h} × {n} × {e}")
    steps = [
        Step("up_proj, offloaded", (w["up"], Buffer("act(gate) and up", 2 * f * n * e, "2 × {f} × {n} × {e}"), *alive)),
        Step("down_proj, offloaded", (w["down"], Buffer("product and output", ((wide - 2) * f + h) * n * e, f"({wide - 2} × {{f}} + {{h}}) × {{n}} × {{e}}"), *alive)),
        Step("o_proj, offloaded", (w["attention"], Buffer("query, attention and output", 2 * heads * d * n * e, "2 × {H} × {d} × {n} × {e}"), *alive)),
        Step("lm_head, offloaded", (w["head"], Buffer("logits", b * k * model.vocab_size * e, "{B} × {k} × {V} × {e}"), embedded)),
        Step("embed_tokens, offloaded", (w["embedding"], embedded)),
    ]
    if model.num_experts:
        steps += [Step(f"{step.name}, offloaded", (w["experts"], *step.buffers)) for step in expert_steps(model, n, e, alive)]
    steps = [step for step in steps if step.buffers[0].nbytes]
    if not steps:
        return None
    step, nbytes = largest(steps)
    if nbytes <= plain:
        return None
    return Peak(phase, step, nbytes, {f"w_{name}": size for name, size in matrices._asdict().items()} | {
        "p": p, "q": q, "T": t, "B": b, "n": n, "h": h, "f": model.expert_intermediate_size or f, "V": model.vocab_size, "H": heads, "d": d, "e": e, "r": r, "k": k,
        "M": n * model.num_experts_per_tok, "E": model.num_experts, "W": weight_bytes(model, e)})  # fmt: skip
