"""Peak activations of a pass in transformers, for one prompt and for one more token.

`forward.py` writes the pass down; here is what formats add that copy weights before they multiply.

Source: transformers v5.23.0; every family checked against FakeTensor runs of its own code, torch 2.13.0, of random shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from calculator.engines.transformers import forward
from calculator.engines.transformers.run import Pass
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step

__all__ = ["Pass", "decode", "prefill", "sizes", "softmax_bytes"]


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


def sizes(model: ModelSpec, how: Pass, phase: str) -> Callable[[int, int], int]:
    """(tokens, sequences) -> the size of that peak alone, for sweeps [bytes]."""
    plain = forward.sizes(model, _plain(how), decoding=phase == "decode")

    def nbytes(tokens: int, sequences: int) -> int:
        new, seen = (tokens, tokens) if phase == "prefill" else (1, tokens + 1)
        if not _copies(model, how, phase, sequences, new):
            return plain(new, seen, sequences)
        return max(plain(new, seen, sequences), sum(_copy_sizes(model, how, sequences, new, seen)))

    return nbytes


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


def _copied(model: ModelSpec, how: Pass, phase: str, b: int, q: int, t: int) -> Step | None:
    """The step where a weight's copy lives, if it may be the largest."""
    if not _copies(model, how, phase, b, q):
        return None
    name, buffers = _COPY_STEPS[how.copies == "int8"]
    held = zip((*buffers, *_ALIVE), _copy_sizes(model, how, b, q, t), strict=True)
    return Step(name, tuple(Buffer(buffer, nbytes, expression) for (buffer, expression), nbytes in held))


def _copies(model: ModelSpec, how: Pass, phase: str, b: int, q: int) -> bool:
    """Whether the format makes a copy in this pass, and none that is smaller than what the mlp holds in its place."""
    if how.copies == "never" or (how.copies == "prefill" and phase == "decode" and b <= 4):
        return False
    return how.copies == "int8" or how.copy_bytes * model.hidden_size > b * q * how.element_bytes


# the largest matrix product of a format that copies weights, or whose products are wide: int32, their float16 form, and the cast; an int8 input
_COPY_STEPS: dict[bool, tuple[str, tuple[tuple[str, str], ...]]] = {
    False: ("up_proj, dequantized", (("dequantized weight", "{c} × {f} × {h}"), ("act(gate) and up", "2 × {f} × {n} × {e}"))),
    True: ("up_proj, int8", (("act(gate), int32 and 16-bit up", "({e} + 6 + {i}) × {f} × {n}"), ("int8 input and scales", "({h} + 4) × {n}"))),
}
_ALIVE = (
    ("residual stream and normed input", "({r} + 1) × {h} × {n} × {e}"), ("cos, sin and positions", "{p} × {q} × (2 × {R} × {e} + 8)"),
    ("attention weights", "{H} × {n} × {T} × {e}"), ("mask", "{B} × {q} × {T} × {e}"),
)  # fmt: skip


def _copy_sizes(model: ModelSpec, how: Pass, b: int, q: int, t: int) -> tuple[int, ...]:
    """Bytes of each buffer of that step, in their order."""
    n, e, h, f, d = b * q, how.element_bytes, model.hidden_size, model.intermediate_size, model.rotary_dim or model.head_dim
    r, eager, p = 3 if model.num_hidden_layers > 1 else 2, how.attention == "eager", b if how.own_positions else 1
    if how.copies == "int8":
        first, second = (e + 6 + (2 if how.cast_int8 else 0)) * f * n, (h + 4) * n
    else:
        first, second = how.copy_bytes * f * h, 2 * f * n * e
    attention, mask = (model.num_attention_heads * n * t * e, n * t * e) if eager else (0, 0)
    return first, second, (r + 1) * h * n * e, p * q * (2 * d * e + 8), attention, mask
