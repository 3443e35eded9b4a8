"""KV cache of transformers: dynamic, static and quantized, of full attention, windows and latent attention.

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
    """Elements that one position adds over `layers` layers: 2 L B K d; latent attention keeps a compressed row and a rotary key."""
    if model.mla:
        return layers * sequences * (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim)
    return 2 * layers * sequences * model.num_key_value_heads * model.head_dim


def plain(model: ModelSpec, *, layers: int, sequences: int, tokens: int, element_bytes: int, static: bool,
          decoding: bool = False) -> Cache:  # fmt: skip
    """DynamicCache: 2 L B K d e S; StaticCache: 8 bytes a layer more for its position counter."""
    if model.sliding_window:
        return _windowed(model, layers=layers, sequences=sequences, tokens=tokens, element_bytes=element_bytes, shrunk=static or decoding, static=static)
    nbytes = element_count(model, layers, sequences) * element_bytes * tokens + (8 * layers if static else 0)

    def render() -> Formula:
        return Formula("{L} (layers) × {B} (sequences) × " + _row(model) + " × {e} (bytes) × {S} (tokens)" + (" + 8 × {L} (position counters)" if static else ""),
                       _symbols(model, layers, sequences, tokens) | {"e": element_bytes})  # fmt: skip

    return Cache(nbytes, nbytes, render)


def _windowed(model: ModelSpec, *, layers: int, sequences: int, tokens: int, element_bytes: int, shrunk: bool, static: bool) -> Cache:
    """Sliding-window layers: in a dynamic cache they still hold the whole prompt after a prefill, later the window.

    2 B K d e (F S + N min(S, W)) + 8 N      F layers that see everything, N with a window; W is S in a dynamic prefill;
    a counter in each layer with a window, in a static cache in every layer
    """
    full = 0 if not model.full_every else model.full_layers if layers == model.num_hidden_layers else layers // model.full_every
    near, counters = min(tokens, model.sliding_window or 0) if shrunk else tokens, layers if static else layers - full
    nbytes = element_count(model, 1, sequences) * element_bytes * (full * tokens + (layers - full) * near) + 8 * counters

    def render() -> Formula:
        return Formula("{B} (sequences) × " + _row(model) + " × {e} (bytes) × ({F} (full layers) × {S} (tokens) + "
                       "{N} (layers with a window) × {near} (tokens kept)) + 8 × {counters} (counters)",
                       _symbols(model, layers, sequences, tokens) | {"e": element_bytes, "F": full, "N": layers - full, "near": near, "counters": counters})  # fmt: skip

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
            "{L} × {B} × " + _row(model) + " × {S} × ({b} / 8 (codes) + " + scales + ")"
            + ("" if scale_bytes else " + 8 × {L} (scales)")
            + " + {L} × {B} × " + _row(model) + " × {e} × {new} (recent tokens in 16 bits)",
            _symbols(model, layers, sequences, cached) | {"b": bits, "g": scale_bytes, "e": element_bytes, "new": new},
        )  # fmt: skip

    return Cache(nbytes, high, render)


def _row(model: ModelSpec) -> str:
    return "({c} (compressed row) + {r} (rotary key))" if model.mla else "2 (keys and values) × {K} (KV heads) × {d} (head_dim)"


def _symbols(model: ModelSpec, layers: int, sequences: int, tokens: int) -> dict[str, int | str]:
    row = {"c": model.mla.kv_lora_rank, "r": model.mla.qk_rope_head_dim} if model.mla else {"K": model.num_key_value_heads, "d": model.head_dim}
    return {"L": layers, "B": sequences, "S": tokens, **row}
