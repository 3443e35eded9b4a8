"""KV cache of transformers: dynamic, static and quantized, exact for full attention.

Source: transformers v5.23.0 cache_utils.py DynamicCache, StaticCache, QuantizedCache; equals every measured cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from calculator.ledger import Formula
from calculator.spec import ModelSpec

RESIDUAL_LENGTH = 128  # QuantizedCache keeps up to this many new tokens less one in 16 bits
GROUP = 64  # elements that share a scale and zero point

# kv_dtype -> (bits of a code, bytes of scale and zero point a group); fp8 has one scale a tensor
QUANTIZED: dict[str, tuple[int, int]] = {"int8": (8, 4), "int4": (4, 4), "int2": (2, 4), "fp8": (8, 0)}


class Cache(NamedTuple):
    """Bytes of the cache; `high` where recent tokens may still be unquantized. The formula is made when asked for."""

    nbytes: int
    high: int
    render: Callable[[], Formula]


def element_count(model: ModelSpec, layers: int, sequences: int) -> int:
    """Elements that one position adds over `layers` layers: 2 L B K d."""
    return 2 * layers * sequences * model.num_key_value_heads * model.head_dim


def plain(model: ModelSpec, *, layers: int, sequences: int, tokens: int, element_bytes: int, static: bool,
          decoding: bool = False) -> Cache:  # fmt: skip
    """DynamicCache: 2 L B K d e S; StaticCache: 8 bytes a layer more for its position counter."""
    counters = 8 * layers if static else 0
    if model.full_every:
        return _windowed(model, layers=layers, sequences=sequences, tokens=tokens, element_bytes=element_bytes, decoding=decoding)
    nbytes = element_count(model, layers, sequences) * element_bytes * tokens + counters

    def render() -> Formula:
        return Formula(
            "2 (keys and values) × {L} (layers) × {B} (sequences) × {K} (KV heads) × {d} (head_dim) × {e} (bytes) × "
            "{S} (tokens)" + (" + 8 × {L} (position counters)" if static else ""),
            _symbols(model, layers, sequences, tokens) | {"e": element_bytes},
        )

    return Cache(nbytes, nbytes, render)


def _windowed(model: ModelSpec, *, layers: int, sequences: int, tokens: int, element_bytes: int, decoding: bool) -> Cache:
    """DynamicCache with sliding-window layers: after a prefill they still hold the whole prompt, later the window.

    2 B K d e (F S + N min(S, W)) + 8 N      F layers that see everything, N with a window; W is S in a prefill
    """
    full = layers // model.full_every
    near = min(tokens, model.sliding_window or 0) if decoding else tokens
    nbytes = element_count(model, 1, sequences) * element_bytes * (full * tokens + (layers - full) * near) + 8 * (layers - full)

    def render() -> Formula:
        return Formula(
            "2 (keys and values) × {B} (sequences) × {K} (KV heads) × {d} (head_dim) × {e} (bytes) × ({F} (full layers) × {S} (tokens) + "
            "{N} (layers with a window) × {near} (tokens kept)) + 8 × {N} (counters)",
            _symbols(model, layers, sequences, tokens) | {"e": element_bytes, "F": full, "N": layers - full, "near": near},
        )

    return Cache(nbytes, nbytes, render)


def quantized(model: ModelSpec, *, layers: int, sequences: int, cached: int, new: int, kind: str,
              element_bytes: int) -> Cache:  # fmt: skip
    """QuantizedCache: codes and a 16-bit scale and zero point a group of 64; new tokens stay 16-bit for a while."""
    bits, scale_bytes = QUANTIZED[kind]
    elements = element_count(model, layers, sequences) * cached
    scales = elements // GROUP * scale_bytes if scale_bytes else 4 * 2 * layers
    recent = element_count(model, layers, sequences) * element_bytes
    nbytes = elements * bits // 8 + scales + recent * new
    high = nbytes + (recent * (RESIDUAL_LENGTH - 1 - new) if new else 0)

    def render() -> Formula:
        scales = "{g} / 64 (scale and zero point)" if scale_bytes else "0"
        return Formula(
            "2 × {L} × {B} × {K} × {d} × {S} × ({b} / 8 (codes) + " + scales + ")"
            + ("" if scale_bytes else " + 8 × {L} (scales)")
            + " + 2 × {L} × {B} × {K} × {d} × {e} × {new} (recent tokens in 16 bits)",
            _symbols(model, layers, sequences, cached) | {"b": bits, "g": scale_bytes, "e": element_bytes, "new": new},
        )  # fmt: skip

    return Cache(nbytes, high, render)


def _symbols(model: ModelSpec, layers: int, sequences: int, tokens: int) -> dict[str, int | str]:
    return {"L": layers, "B": sequences, "K": model.num_key_value_heads, "d": model.head_dim, "S": tokens}
