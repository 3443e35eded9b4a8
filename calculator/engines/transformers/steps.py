"""Peak activations of a pass in transformers, for one prompt and for one more token.

`forward.py` writes the pass down; here is what formats add that copy weights before they multiply.

Source: transformers v5.23.0; every family checked against FakeTensor runs of its own code, torch 2.13.0, of random shapes.
"""

from __future__ import annotations

from functools import lru_cache

from calculator.engines.transformers import forward
from calculator.engines.transformers.run import Pass
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step

__all__ = ["Pass", "decode", "nbytes", "prefill", "softmax_bytes"]


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


def nbytes(model: ModelSpec, how: Pass, phase: str, *, tokens: int, sequences: int) -> int:
    """The size of that peak alone, for sweeps [bytes]."""
    new, seen = (tokens, tokens) if phase == "prefill" else (1, tokens + 1)
    plain = _plain_nbytes(model, _plain(how), phase == "decode", new, seen, sequences)
    step = _copied(model, how, phase, sequences, new, seen)
    return plain if step is None else max(plain, step.nbytes)


def _peak(model: ModelSpec, how: Pass, phase: str, *, new: int, seen: int, sequences: int) -> Peak:
    plain = _plain_peak(model, _plain(how), phase, new, seen, sequences)
    step = _copied(model, how, phase, sequences, new, seen)
    if step is None or step.nbytes <= plain.nbytes:
        return plain
    symbols = {**plain.symbols, "p": sequences if how.own_positions else 1, "c": how.copy_bytes, "i": 2 if how.cast_int8 else 0, "r": 3 if model.num_hidden_layers > 1 else 2}
    return Peak(phase, step, step.nbytes, symbols)


@lru_cache(maxsize=256)
def _plain(how: Pass) -> Pass:
    """The pass where weights are used as they are stored."""
    return how._replace(copies="never", copy_bytes=0, cast_int8=False)


@lru_cache(maxsize=4096)
def _plain_peak(model: ModelSpec, how: Pass, phase: str, new: int, seen: int, sequences: int) -> Peak:
    return forward.peak(model, how, phase, new=new, seen=seen, sequences=sequences)


@lru_cache(maxsize=32_768)  # passes that differ in their weights' copies only share it
def _plain_nbytes(model: ModelSpec, how: Pass, decoding: bool, new: int, seen: int, sequences: int) -> int:
    return forward.nbytes(model, how, decoding=decoding, new=new, seen=seen, sequences=sequences)


def _copied(model: ModelSpec, how: Pass, phase: str, b: int, q: int, t: int) -> Step | None:
    """The step where a weight's copy lives, if the format makes one in this pass and it isn't smaller than what the mlp holds in its place."""
    if how.copies == "never" or (how.copies == "prefill" and phase == "decode" and b <= 4):
        return None
    if how.copies != "int8" and how.copy_bytes * model.hidden_size <= b * q * how.element_bytes:
        return None
    return _copy_step(model, how, b, q, t)


def _copy_step(model: ModelSpec, how: Pass, b: int, q: int, t: int) -> Step:
    """The largest matrix product of a format that copies weights, or whose products are wide."""
    n, e, h, f, d = b * q, how.element_bytes, model.hidden_size, model.intermediate_size, model.rotary_dim or model.head_dim
    r, eager, p = 3 if model.num_hidden_layers > 1 else 2, how.attention == "eager", b if how.own_positions else 1
    alive = (
        Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}"),
        Buffer("cos, sin and positions", p * q * (2 * d * e + 8), "{p} × {q} × (2 × {R} × {e} + 8)"),
        Buffer("attention weights", model.num_attention_heads * n * t * e if eager else 0, "{H} × {n} × {T} × {e}"),
        Buffer("mask", b * q * t * e if eager else 0, "{B} × {q} × {T} × {e}"),
    )
    if how.copies == "int8":  # int32 products, their float16 form, and the cast; int8 copy of the input and its scales
        cast = 2 if how.cast_int8 else 0
        products = Buffer("act(gate), int32 and 16-bit up", (e + 6 + cast) * f * n, "({e} + 6 + {i}) × {f} × {n}")
        return Step("up_proj, int8", (products, Buffer("int8 input and scales", (h + 4) * n, "({h} + 4) × {n}"), *alive))
    copy = Buffer("dequantized weight", how.copy_bytes * f * h, "{c} × {f} × {h}")
    return Step("up_proj, dequantized", (copy, Buffer("act(gate) and up", 2 * f * n * e, "2 × {f} × {n} × {e}"), *alive))
