"""The forward pass of a dense decoder in transformers, as steps with live buffers.

Activations are what is alive beside weights and the final KV cache. Residual tensors: Model.forward keeps the input
embeddings alive for the whole pass, beside a layer's input and its normalized copy; so the peak is in the last layer
and doesn't depend on the number of layers (above one).

Symbols: S tokens of the pass or in the cache, B sequences, n = B S, h hidden, f feed-forward, V vocabulary, H and K
query and KV heads, d head_dim, e bytes an element, r residual tensors, k positions with logits.

Source: transformers v5.23.0 models/llama/modeling_llama.py LlamaModel.forward, LlamaDecoderLayer.forward, LlamaMLP;
modeling of every buffer checked against FakeTensor runs of that code, torch 2.13.0.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step, largest


class Pass(NamedTuple):
    """What a forward pass depends on beside the model."""

    attention: str  # eager, sdpa
    element_bytes: int
    softmax_bytes: int  # bytes a score in eager softmax: scores, and a float32 copy and result
    logits_to_keep: int  # 0: all positions
    static_cache: bool
    copy_bytes: int = 0  # transient bytes a weight that the linear layers are dequantized to
    copies: str = "never"  # never, prefill, always
    quantized_cache: bool = False
    math_bytes: int = 0  # bytes a score where sdpa is left the math kernel for grouped heads; 0: a fused kernel runs


def softmax_bytes(dtype: str) -> int:
    """Bytes a score alive in eager attention's softmax.

    bf16: scores 2 + float32 copy 4 + float32 result 4; fp16: fused half to float, 2 + 4 + 2; fp32: 4 + 4.

    Source: pytorch aten/src/ATen/native/SoftMax.cpp, half_to_float only for ScalarType::Half.
    """
    return {"bfloat16": 10, "float16": 8, "float32": 8}[dtype]


def prefill(model: ModelSpec, how: Pass, *, tokens: int, sequences: int) -> Peak:
    """Peak of one pass over `tokens` tokens of each of `sequences` sequences, without padding."""
    s, b = tokens, sequences
    h, f, v, e = model.hidden_size, model.intermediate_size, model.vocab_size, how.element_bytes
    heads, kv_heads, d = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    n, r = b * s, 3 if model.num_hidden_layers > 1 else 2
    k = how.logits_to_keep or s
    grouped = heads > kv_heads

    rotary = Buffer("cos and sin", 2 * s * d * e, "2 × {S} × {d} × {e}")
    positions = Buffer("position ids", 8 * s, "8 × {S}")
    residual = Buffer("residual stream", r * h * n * e, "{r} × {h} × {n} × {e}")
    hidden = Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}")
    eager = how.attention == "eager"
    mask = Buffer("causal mask", b * s * s * e if eager else 0, "{B} × {S} × {S} × {e}")
    common = (rotary, positions, mask)

    steps = [
        Step("mlp", (Buffer("act(gate), up and their product", 3 * f * n * e, "3 × {f} × {n} × {e}"), hidden, *common)),
        Step("rope", (Buffer("q, k and rotated halves", 4 * heads * d * n * e, "4 × {H} × {d} × {n} × {e}"),
                      residual, *common)),
        Step("lm_head", (Buffer("logits", b * min(k, s) * v * e, "{B} × {k} × {V} × {e}"),
                         Buffer("last hidden state", h * n * e, "{h} × {n} × {e}"))),
    ]  # fmt: skip
    repeated = Buffer("repeated k and v", 2 * heads * d * n * e if grouped else 0, "2 × {H} × {d} × {n} × {e}")
    query = Buffer("query", heads * d * n * e, "{H} × {d} × {n} × {e}")
    if eager:
        if kv_heads == 1:  # one KV head is expanded as a view, not copied
            repeated = repeated._replace(nbytes=0)
        scores = Buffer("scores and softmax", how.softmax_bytes * heads * n * s, "{s} × {H} × {n} × {S}")
        steps.append(Step("attention", (scores, query, repeated, residual, *common)))
    elif how.math_bytes and grouped:
        # flash refuses float32 and cards before Ampere, the memory-efficient kernel grouped heads: math remains
        m = how.math_bytes
        scores = Buffer("scores before and after the mask", 2 * heads * n * s * m, "2 × {H} × {n} × {S} × {m}")
        scaled = Buffer("scaled q, repeated k, scaled k, v", 4 * heads * d * n * m, "4 × {H} × {d} × {n} × {m}")
        causal = Buffer("causal mask of the math kernel", s * s * m, "{S} × {S} × {m}")
        steps.append(Step("attention (math kernel)", (scores, scaled, causal, residual, *common)))
    if how.copies != "never":
        copy = Buffer("dequantized weight", how.copy_bytes * f * h, "{c} × {f} × {h}")
        gate_up = Buffer("act(gate) and up", 2 * f * n * e, "2 × {f} × {n} × {e}")
        steps.append(Step("up_proj, dequantized", (copy, gate_up, hidden, *common)))

    step, nbytes = largest(steps)
    symbols = {"S": s, "B": b, "n": n, "h": h, "f": f, "V": v, "H": heads, "d": d, "e": e, "r": r, "k": min(k, s),
               "s": how.softmax_bytes, "c": how.copy_bytes, "m": how.math_bytes}  # fmt: skip
    return Peak("prefill", step, nbytes, symbols)


def decode(model: ModelSpec, how: Pass, *, tokens: int, sequences: int) -> Peak:
    """Peak of one new token for each sequence with `tokens` tokens in the cache.

    A dynamic cache grows by torch.cat: while the last layer's values are copied, the old and the new tensor both live.
    """
    s, b = tokens, sequences
    h, f, v, e = model.hidden_size, model.intermediate_size, model.vocab_size, how.element_bytes
    heads, kv_heads, d = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    r = 3 if model.num_hidden_layers > 1 else 2
    grouped, eager = heads > kv_heads > 1, how.attention == "eager"
    seen = s + 1

    small = Buffer("residual stream", r * b * h * e, "{r} × {B} × {h} × {e}")
    query = Buffer("query", b * heads * d * e, "{B} × {H} × {d} × {e}")
    new_kv = Buffer("new key and value", 2 * b * kv_heads * d * e, "2 × {B} × {K} × {d} × {e}")
    rotary = Buffer("cos, sin and position", 2 * d * e + 8, "2 × {d} × {e} + 8")
    mask = Buffer("mask", b * seen * e if eager else 0, "{B} × ({S} + 1) × {e}")

    steps = [
        Step("lm_head", (Buffer("logits", b * v * e, "{B} × {V} × {e}"), Buffer("last hidden state", b * h * e, "{B} × {h} × {e}"))),
        Step("mlp", (Buffer("act(gate), up and their product", 3 * b * f * e, "3 × {B} × {f} × {e}"),
                     Buffer("residual stream and normed input", (r + 1) * b * h * e, "({r} + 1) × {B} × {h} × {e}"), rotary, mask)),
    ]  # fmt: skip
    if how.quantized_cache:
        whole = Buffer("one layer's cache dequantized, and joined with recent tokens", 4 * b * kv_heads * seen * d * e,
                       "4 × {B} × {K} × ({S} + 1) × {d} × {e}")  # fmt: skip
        steps.append(Step("cache dequantized", (whole, small, query, new_kv, rotary, mask)))
    elif not how.static_cache:
        old = Buffer("old values during concatenation", b * kv_heads * s * d * e, "{B} × {K} × {S} × {d} × {e}")
        steps.append(Step("cache concatenation", (old, small, query, new_kv, rotary, mask)))
    if eager:
        repeated = Buffer("repeated k and v", 2 * b * heads * seen * d * e if grouped else 0,
                          "2 × {B} × {H} × ({S} + 1) × {d} × {e}")  # fmt: skip
        scores = Buffer("scores and softmax", how.softmax_bytes * b * heads * seen, "{s} × {B} × {H} × ({S} + 1)")
        steps.append(Step("attention", (repeated, scores, small, query, rotary, mask)))
    if how.copies == "always" or (how.copies == "prefill" and b > 4):
        copy = Buffer("dequantized weight", how.copy_bytes * f * h, "{c} × {f} × {h}")
        gate_up = Buffer("act(gate) and up", 2 * b * f * e, "2 × {B} × {f} × {e}")
        steps.append(Step("up_proj, dequantized", (copy, gate_up, small, rotary, mask)))

    step, nbytes = largest(steps)
    symbols = {"S": s, "B": b, "h": h, "f": f, "V": v, "H": heads, "K": kv_heads, "d": d, "e": e, "r": r,
               "s": how.softmax_bytes, "c": how.copy_bytes}  # fmt: skip
    return Peak("decode", step, nbytes, symbols)
