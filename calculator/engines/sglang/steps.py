"""A prefill pass of SGLang: the largest chunk through one layer's feed-forward."""

from __future__ import annotations

from functools import lru_cache

from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step

STEPS_SOURCE = "sglang v0.4.9 srt/models/llama.py LlamaMLP, LlamaDecoderLayer.forward; layers/moe/fused_moe_triton/fused_moe.py"

# tensors of the hidden size alive beside the feed-forward's own. No log prints a peak: 2 is the least that code can hold
# (residual and normed input), 4 is what vLLM's compiled pass of the same layer holds by its logs, 8 is twice that
COPIES = (2, 4, 8)


@lru_cache(maxsize=1024)
def prefill(rank: ModelSpec, tokens: int, element_bytes: int, copies: int) -> Peak:
    """Peak of one chunk on one rank.

    feed-forward: e T (3 f + c h);  experts: e T k (max(2 f, h) + f) + e c T h      c tensors of the hidden size    modelled
    """
    t, h, e, k = tokens, rank.hidden_size, element_bytes, rank.num_experts_per_tok or 1
    f = rank.expert_intermediate_size or rank.intermediate_size
    first = max(2 * f, h) if rank.num_experts else 2 * f
    buffers = (
        Buffer("gate and up", e * t * k * first, "{e} × {T} × {k} × " + ("2 × {f}" if first == 2 * f else "{h}")),
        Buffer("gate * up", e * t * k * f, "{e} × {T} × {k} × {f}"),
        Buffer("hidden states", copies * e * t * h, "{c} × {e} × {T} × {h}"),
    )
    step = Step("experts" if rank.num_experts else "mlp", buffers)
    return Peak("prefill", step, step.nbytes, {"e": e, "T": t, "k": k, "f": f, "h": h, "c": copies})
