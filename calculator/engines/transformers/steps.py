"""The forward pass of a dense decoder in transformers, as steps with live buffers.

Activations are what is alive beside weights and the final KV cache. Residual tensors: Model.forward keeps the input
embeddings alive for the whole pass, beside a layer's input and its normalized copy; so the peak is in the last layer
and doesn't depend on the number of layers (above one).

Symbols: q new tokens of a sequence, T tokens in the cache at the end, B sequences, n = B q, h hidden, f feed-forward, V vocabulary, H and K
query and KV heads, d head_dim, e bytes an element, r residual tensors, k positions with logits.

Source: transformers v5.23.0 models/llama/modeling_llama.py LlamaModel.forward, LlamaDecoderLayer.forward, LlamaMLP;
modeling of every buffer checked against FakeTensor runs of that code, torch 2.13.0, also of random shapes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from calculator.engines.transformers import windows
from calculator.engines.transformers.eager import eager_steps
from calculator.engines.transformers.experts import expert_steps, weight_bytes
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step, largest

FUSED = frozenset({"phi3"})
QK_NORM = frozenset({"qwen3", "qwen3_moe"})
SCALED_LOGITS = frozenset({"granite"})  # a scaled copy beside the logits


class Pass(NamedTuple):
    """What a forward pass depends on beside the model."""

    attention: str  # eager, sdpa
    element_bytes: int
    softmax_bytes: int  # bytes a score in eager softmax: scores, and a float32 copy and result
    logits_to_keep: int  # 0: all positions
    static_cache: bool
    copy_bytes: int = 0  # transient bytes a weight that the linear layers are dequantized to
    copies: str = "never"  # never, prefill, always; int8: no copy, but wide products
    quantized_cache: bool = False
    cast_int8: bool = False  # int8 products come as float16 and are cast to another type
    math_bytes: int = 0  # bytes a score where sdpa is left the math kernel for grouped heads; 0: a fused kernel runs
    own_positions: bool = False  # each sequence has its positions, and rotary tables of them


def rotary_buffer(q: int, sequences: int, head_dim: int, element_bytes: int, *, tables: int = 1) -> Buffer:
    """Tables of cos and sin [1 or sequences, q, head_dim], and the positions."""
    one = 2 * tables * q * head_dim * element_bytes + 8 * q
    expression = f"{2 * tables} × {{q}} × {{d}} × {{e}} + 8 × {{q}}"
    return Buffer("cos, sin and positions", sequences * one, expression if sequences == 1 else f"{sequences} × ({expression})")


def softmax_bytes(dtype: str) -> int:
    """Bytes a score alive in eager attention's softmax.

    bf16: scores 2 + float32 copy 4 + float32 result 4; fp16: fused half to float, 2 + 4 + 2; fp32: 4 + 4.

    Source: pytorch aten/src/ATen/native/SoftMax.cpp, half_to_float only for ScalarType::Half.
    """
    return {"bfloat16": 10, "float16": 8, "float32": 8}[dtype]


def prefill(model: ModelSpec, how: Pass, *, tokens: int, sequences: int) -> Peak:
    """Peak of one pass over `tokens` tokens of each of `sequences` sequences, without padding."""
    return _peak(model, how, "prefill", new=tokens, seen=tokens, sequences=sequences)


def decode(model: ModelSpec, how: Pass, *, tokens: int, sequences: int) -> Peak:
    """Peak of one new token for each sequence with `tokens` tokens in the cache.

    A dynamic cache grows by torch.cat: while the last layer's values are copied, the old and the new tensor both live.
    """
    return _peak(model, how, "decode", new=1, seen=tokens + 1, sequences=sequences)


def _peak(model: ModelSpec, how: Pass, phase: str, *, new: int, seen: int, sequences: int) -> Peak:
    plain = _plain_peak(model, _plain(how), phase, new, seen, sequences)
    if how.copies == "never" or (how.copies == "prefill" and phase == "decode" and sequences <= 4):
        return plain
    if how.copies != "int8" and how.copy_bytes * model.hidden_size <= sequences * new * how.element_bytes:
        return plain  # the copy is smaller than the product that the mlp step holds in its place
    step = _copy_step(model, how, sequences, new, seen)
    nbytes = step.nbytes
    if nbytes <= plain.nbytes:
        return plain
    symbols = {**plain.symbols, "c": how.copy_bytes, "i": 2 if how.cast_int8 else 0}
    return Peak(phase, step, nbytes, symbols)


@lru_cache(maxsize=256)
def _plain(how: Pass) -> Pass:
    return how._replace(copies="never", copy_bytes=0, cast_int8=False)


def _copy_step(model: ModelSpec, how: Pass, b: int, q: int, t: int) -> Step:
    """The largest matrix product of a format that copies weights, or whose products are wide."""
    n, e, h, f, d = b * q, how.element_bytes, model.hidden_size, model.intermediate_size, model.head_dim
    r, eager = 3 if model.num_hidden_layers > 1 else 2, how.attention == "eager"
    alive = (
        Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}"),
        rotary_buffer(q, b if how.own_positions else 1, d, e),
        Buffer("attention weights", model.num_attention_heads * n * t * e if eager else 0, "{H} × {n} × {T} × {e}"),
        Buffer("mask", b * q * t * e if eager else 0, "{B} × {q} × {T} × {e}"),
    )
    if how.copies == "int8":  # int32 products, their float16 form, and the cast; int8 copy of the input and its scales
        cast = 2 if how.cast_int8 else 0
        products = Buffer("act(gate), int32 and 16-bit up", (e + 6 + cast) * f * n, "({e} + 6 + {i}) × {f} × {n}")
        return Step("up_proj, int8", (products, Buffer("int8 input and scales", (h + 4) * n, "({h} + 4) × {n}"), *alive))
    copy = Buffer("dequantized weight", how.copy_bytes * f * h, "{c} × {f} × {h}")
    return Step("up_proj, dequantized", (copy, Buffer("act(gate) and up", 2 * f * n * e, "2 × {f} × {n} × {e}"), *alive))


@lru_cache(maxsize=32_768)  # passes that differ in their weights' copies only share it
def _plain_peak(model: ModelSpec, how: Pass, phase: str, new: int, seen: int, sequences: int) -> Peak:
    """The peak where weights are used as they are stored."""
    if model.full_every:
        return windows.peak(model, phase, new=new, seen=seen, sequences=sequences, element_bytes=how.element_bytes,
                            softmax_bytes=how.softmax_bytes, logits_to_keep=how.logits_to_keep,
                            rotary=rotary_buffer(new, sequences if how.own_positions else 1, model.head_dim, how.element_bytes, tables=2))  # fmt: skip
    b, q, t, decoding = sequences, new, seen, phase == "decode"
    h, v, e = model.hidden_size, model.vocab_size, how.element_bytes
    f = model.expert_intermediate_size or model.intermediate_size
    heads, kv_heads, d = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    n, r, k = b * q, 3 if model.num_hidden_layers > 1 else 2, min(how.logits_to_keep or q, q)
    eager = how.attention == "eager"
    growing = 2 * kv_heads * d * n * e if decoding and how.static_cache else 0

    rotary = rotary_buffer(q, b if how.own_positions else 1, d, e)
    masked = eager or (decoding and how.static_cache)  # sdpa needs a mask where cells of a static cache are empty
    mask = Buffer("mask", b * q * t * e if eager else t if masked else 0, "{B} × {q} × {T} × {e}" if eager else "{T}")
    residual = Buffer("residual stream", r * h * n * e, "{r} × {h} × {n} × {e}")
    hidden = Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}")
    query = Buffer("query", heads * d * n * e, "{H} × {d} × {n} × {e}")
    # eager's weights live to the end of the layer: LlamaDecoderLayer unpacks them into a name
    scores = Buffer("attention weights", heads * n * t * e if eager else 0, "{H} × {n} × {T} × {e}")
    rows = Buffer("new keys and values", growing, "2 × {K} × {d} × {n} × {e}")
    last = b * k * h * e if b > 1 and 1 < k < q else 0  # positions picked from several sequences are copied
    z = 8 if e < 4 else 4
    quiet = (rotary, mask) if masked else (rotary,)
    common = (scores, *quiet) if eager else quiet
    fused = model.model_type in FUSED  # one product makes q, k and v, another gate and up; both live while their parts do
    qkv = (Buffer("fused q, k and v", (heads + 2 * kv_heads) * d * n * e, "({H} + 2 × {K}) × {d} × {n} × {e}"),) if fused else ()
    wide = 4 if fused else 3
    roped = (rows, residual, *quiet) if growing else (residual, *quiet)
    sparse = model.num_experts > 0
    steps = [
        Step("rope", (Buffer("q, k and rotated halves", 4 * heads * d * n * e, "4 × {H} × {d} × {n} × {e}"), *roped)),
        Step("lm_head", (Buffer("logits", b * k * v * e, "{B} × {k} × {V} × {e}"),
                         Buffer("last hidden state, picked positions", h * n * e + last, "{h} × {n} × {e} + {last}"))),
    ]  # fmt: skip
    if sparse:
        steps += expert_steps(model, n, e, (hidden, *common))
    else:
        steps.insert(0, Step("mlp", (Buffer("act(gate), up and their product", wide * f * n * e, f"{wide} × {{f}} × {{n}} × {{e}}"), hidden, *common)))
    # steps that one of the above outweighs for usual shapes are left out where it does
    if fused and h > f:
        product = Buffer("gate, up, product and output", (3 * f + h) * n * e, "(3 × {f} + {h}) × {n} × {e}")
        steps.append(Step("down_proj", (product, hidden, *common)))
    elif h > 2 * f and not sparse:
        product = Buffer("product and output", (f + h) * n * e, "({f} + {h}) × {n} × {e}")
        steps.append(Step("down_proj", (product, hidden, *common)))
    if fused or sparse or 2 * heads * d > 3 * f:
        output = Buffer("query, attention and output", 2 * heads * d * n * e, "2 × {H} × {d} × {n} × {e}")
        steps.append(Step("o_proj", (output, hidden, *qkv, *common)))
    if model.model_type in SCALED_LOGITS:
        both = Buffer("logits, and scaled", 2 * b * k * v * e, "2 × {B} × {k} × {V} × {e}")
        steps.append(Step("logits scaled", (both, Buffer("last hidden state", h * n * e, "{h} × {n} × {e}"))))
    if 3 * kv_heads > 2 * heads:
        halves = Buffer("q, k and rotated halves", (2 * heads + 3 * kv_heads) * d * n * e, "(2 × {H} + 3 × {K}) × {d} × {n} × {e}")
        steps.append(Step("rope of keys", (halves, *roped)))
    if sparse or 8 * h + z > (wide * f + h) * e:
        norm = Buffer("float32 copies of the norm", (8 * h + z) * n, "(8 × {h} + {z}) × {n}")
        steps.append(Step("post_attention_layernorm", (norm, residual, *common)))
    if model.model_type in QK_NORM:
        # the last layer's keys and values aren't cached yet; a static cache makes room for a layer at its first use
        later = Buffer("keys and values not yet cached", 0 if how.static_cache and decoding else -2 * kv_heads * d * n * e, "-2 × {K} × {d} × {n} × {e}")
        of_q = Buffer("q, float32 copies of its norm", ((8 + e) * d + z) * heads * n, "((8 + {e}) × {d} + {z}) × {H} × {n}")
        of_k = Buffer("k, float32 copies of its norm", ((8 + e) * d + z) * kv_heads * n, "((8 + {e}) × {d} + {z}) × {K} × {n}")
        steps.append(Step("q_norm", (of_q, residual, later, *quiet)))
        steps.append(Step("k_norm", (of_k, query, residual, later, *quiet)))
    if decoding:
        steps += _decode_steps(model, how, b, t, (query, residual, *qkv, *quiet))
    if eager:
        steps += eager_steps(model, b, q, t, (query, residual, *qkv, rotary, mask), element_bytes=e, softmax_bytes=how.softmax_bytes)
    elif how.math_bytes and heads > kv_heads and not decoding and (q > 1 or not how.static_cache):
        # flash refuses float32 and cards before Ampere, the memory-efficient kernel grouped heads: math remains
        m = how.math_bytes
        one = Buffer("scores", heads * n * t * m, "{H} × {n} × {T} × {m}")
        causal = Buffer("causal mask of the math kernel", q * t * m, "{q} × {T} × {m}")
        scaled = Buffer("scaled q, repeated k, scaled k, v", 4 * heads * d * n * m, "4 × {H} × {d} × {n} × {m}")
        copies = 1 + (b > 1 and q > 1 and not fused)  # of q: contiguous where it is not; phi3's rope makes it so
        more = Buffer("copies of q", copies * heads * d * n * m, "{y} × {H} × {d} × {n} × {m}")
        steps.append(Step("attention (math kernel)", (one, one._replace(name="masked scores"), scaled, causal, residual, *qkv, rotary)))
        steps.append(Step("attention (math kernel)", (one, scaled, more, causal, residual, *qkv, rotary)))
    step, nbytes = largest(steps)
    routed = {"M": n * model.num_experts_per_tok, "E": model.num_experts, "W": weight_bytes(model, e)} if sparse else {}
    symbols = {"q": q, "T": t, "B": b, "n": n, "h": h, "f": f, "V": v, "H": heads, "K": kv_heads, "d": d, "e": e, "r": r,
               "k": k, "L": model.num_hidden_layers, "p": _mask_elements(t), "s": how.softmax_bytes, "m": how.math_bytes, "z": z, "last": last,
               "y": 1 + (b > 1 and q > 1 and not fused), "w": 2 if q > 1 and heads > 1 else 1, **routed}  # fmt: skip
    return Peak(phase, step, nbytes, symbols)


def _mask_elements(t: int) -> int:
    """Elements of a one-token float mask over t tokens, and of its copy with strides of 16 for the memory-efficient kernel.

    Source: pytorch v2.13 aten/src/ATen/native/transformers/attention.cpp pad_bias.
    """
    return t if t % 16 == 0 else 2 * t + 16 - t % 16


def _decode_steps(model: ModelSpec, how: Pass, b: int, t: int, alive: tuple[Buffer, ...]) -> list[Step]:
    """What only a decode step holds: updates of the last layer's cache, masks over cached tokens, keys repeated."""
    heads, kv_heads, d, e = model.num_attention_heads, model.num_key_value_heads, model.head_dim, how.element_bytes
    eager, dynamic = how.attention == "eager", not how.static_cache
    own = 1 if model.model_type in FUSED else 2  # the value may be a view of the fused product
    new_kv = Buffer("new key and value", own * b * kv_heads * d * e, f"{own} × {{B}} × {{K}} × {{d}} × {{e}}")
    steps = []
    if how.quantized_cache:
        whole = Buffer("one layer's cache dequantized, and joined with recent tokens", 4 * b * kv_heads * t * d * e,
                       "4 × {B} × {K} × {T} × {d} × {e}")  # fmt: skip
        steps.append(Step("cache dequantized", (whole, new_kv, *alive)))
    elif how.static_cache:
        steps.append(Step("cache update", (new_kv, *alive)))
    else:
        old = Buffer("old values during concatenation", b * kv_heads * (t - 1) * d * e, "{B} × {K} × ({T} - 1) × {d} × {e}")
        steps.append(Step("cache concatenation", (old, new_kv, *alive)))
    if eager or how.static_cache:
        # sdpa with a dynamic cache needs no mask for one token. masking_utils.py makes it before the first layer
        indices = Buffer("positions of keys, as int64, twice", 16 * t + 8 * b + 24, "16 × {T} + 8 × {B} + 24")
        embedded = Buffer("embedded tokens", b * model.hidden_size * e, "{B} × {h} × {e}")
        later = Buffer("keys and values not yet cached", -2 * model.num_hidden_layers * kv_heads * d * b * e if dynamic else 0,
                       "-2 × {L} × {K} × {d} × {B} × {e}")  # fmt: skip
        steps.append(Step("mask", (indices, embedded, later)))
    if how.static_cache and not eager:
        steps.append(Step("attention", (Buffer("float masks, a seed and an offset", b * _mask_elements(t) * e + 16 + e, "{B} × {p} × {e} + 16 + {e}"), *alive)))
    if how.math_bytes and heads > kv_heads and dynamic and not eager:
        m = how.math_bytes
        repeated = Buffer("repeated k and v, scaled k, scores", (3 * d + 1) * heads * b * t * m, "(3 × {d} + 1) × {H} × {B} × {T} × {m}")
        steps.append(Step("attention (math kernel)", (repeated, Buffer("scaled query", heads * d * b * m, "{H} × {d} × {B} × {m}"), *alive)))
    return steps
