"""What a layer of experts holds beside its own offloaded weights: tokens gathered for their experts, products of all of them, and the way back.

M = n u rows, one for each of the u experts of a token; W bytes of a weight: mixtral keeps its routing weights in float32,
which makes the weighted products float32 too.

Source: transformers v5.23.0 integrations/moe.py grouped_mm_experts_forward; models/{mixtral,qwen3_moe} TopKRouter.
"""

from __future__ import annotations

from calculator.spec import ModelSpec
from calculator.steps import Buffer, Step


def expert_steps(model: ModelSpec, n: int, e: int, alive: tuple[Buffer, ...]) -> list[Step]:
    """Steps beside `alive`, the buffers that live through the feed-forward."""
    used, count, f, h = model.num_experts_per_tok, model.num_experts, model.expert_intermediate_size, model.hidden_size
    m, w = n * used, weight_bytes(model, e)
    routing = Buffer("router logits, expert ids and weights, sorted and not", (28 + 2 * w) * m + n * count * e + 8 * count,
                     "(28 + 2 × {W}) × {M} + {n} × {E} × {e} + 8 × {E}")  # fmt: skip
    gathered = Buffer("gathered tokens", m * h * e, "{M} × {h} × {e}")
    gates = Buffer("gate and up, act(gate) and product", 4 * m * f * e, "4 × {M} × {f} × {e}")
    down = Buffer("product and output", m * (f + h) * e, "{M} × ({f} + {h}) × {e}")
    back = Buffer("output, weighted, and in the order of tokens", m * h * (e + 2 * w), "{M} × {h} × ({e} + 2 × {W})")
    cast = e if w != e else 0
    total = Buffer("output, weighted, and summed", m * h * (e + w) + n * h * (w + cast), f"{{M}} × {{h}} × ({{e}} + {{W}}) + {{n}} × {{h}} × ({{W}} + {cast})")
    order = Buffer("inverse permutation", 8 * m, "8 × {M}")
    return [
        Step("experts", (gates, gathered, routing, *alive)),
        Step("experts, down", (down, gathered, routing, *alive)),
        Step("experts, weighted", (back, gathered, order, routing, *alive)),
        Step("experts, summed", (total, gathered, order, routing, *alive)),
    ]


def weight_bytes(model: ModelSpec, e: int) -> int:
    """Bytes of a routing weight."""
    return 4 if model.model_type == "mixtral" else e
