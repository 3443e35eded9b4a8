"""Eager attention: scores, softmax in float32, values. One KV head is expanded as a view, not copied.

Source: transformers v5.23.0 models/llama/modeling_llama.py eager_attention_forward, repeat_kv.
"""

from __future__ import annotations

from calculator.spec import ModelSpec
from calculator.steps import Buffer, Step


def eager_steps(model: ModelSpec, b: int, q: int, t: int, alive: tuple[Buffer, ...], *, element_bytes: int, softmax_bytes: int,
                seen: str = "T", where: str = "") -> list[Step]:  # fmt: skip
    """Steps of one layer that reads t tokens, `seen` by its symbol; `alive` lives beside them."""
    heads, kv_heads, d, e = model.num_attention_heads, model.num_key_value_heads, model.head_dim, element_bytes
    n = b * q
    scores = Buffer("attention weights", heads * n * t * e, "{H} × {n} × {T} × {e}")
    grouped, shared = heads > kv_heads > 1, heads > kv_heads == 1 and b > 1
    repeated = Buffer("repeated k and v", 2 * b * heads * t * d * e if grouped else 0, "2 × {B} × {H} × {T} × {d} × {e}")
    contiguous = Buffer("expanded k or v", b * heads * t * d * e if shared else 0, "{B} × {H} × {T} × {d} × {e}")
    copied = Buffer("contiguous query", heads * d * n * e if b > 1 and q > 1 else 0, "{H} × {d} × {n} × {e}")
    output = Buffer("output", heads * d * n * e, "{H} × {d} × {n} × {e}")
    turned = Buffer("output and its transpose", (2 if q > 1 and heads > 1 else 1) * heads * d * n * e, "{w} × {H} × {d} × {n} × {e}")
    softmax = Buffer("scores and softmax", softmax_bytes * heads * n * t, "{s} × {H} × {n} × {T}")
    steps = [
        Step("attention", (softmax, repeated, *alive)),
        Step("attention scores", (copied, contiguous, scores, repeated, *alive)),
        Step("attention values", (contiguous, output, scores, repeated, *alive)),
        Step("attention output", (turned, scores, repeated, *alive)),
    ]
    if seen == "T":
        return steps
    return [Step(step.name + where, tuple(x._replace(expression=x.expression.replace("{T}", "{" + seen + "}")) for x in step.buffers[:-len(alive)]) + alive)
            for step in steps]  # fmt: skip
