"""Attention of one layer: projections, norms, rotary embedding, the cache's update, the kernel, the output's projection.

Source: transformers v5.23.0 models/llama/modeling_llama.py LlamaAttention.forward and its like; cache_utils.py.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.transformers import kernels
from calculator.engines.transformers.families import Family
from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor


class Slot:
    """A layer's place in the cache: what it holds now less what it will hold when the pass ends."""

    def __init__(self, run: Run, windowed: bool) -> None:
        self.windowed = windowed
        self.waiting: list[Tensor] = [run.new("keys not yet as in the final cache", *change(run, windowed, 0)),
                                      run.new("values not yet as in the final cache", *change(run, windowed, 1))]  # fmt: skip

    def update(self, run: Run, key: Tensor, value: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values to attend to; None where the cache holds them, which is not activation memory."""
        run.at("cache")
        k, v = rows(run)
        if run.how.quantized_cache:
            return self._quantized(run, key, value, k, v)
        if run.static:
            return self._static(run, key, value, k, v)
        seen = "N" if self.windowed and run.decoding else "T"
        if self.windowed:
            joined = run.new("keys joined", k.replace("n", "B" + seen)), run.new("values joined", v.replace("n", "B" + seen))
            self.waiting.clear()
            del joined
        else:
            for name, shape in (("keys joined", k), ("values joined", v)):
                whole = run.new(name, shape.replace("n", "B" + seen))
                self.waiting.pop(0)
                del whole
        return None, None

    def _static(self, run: Run, key: Tensor, value: Tensor, k: str, v: str) -> tuple[Tensor | None, Tensor | None]:
        """Made at first use; a window that is full keeps the last tokens, and moves by one in a decode step."""
        if not run.decoding:
            made = run.new("keys", k.replace("n", "BN" if self.windowed else "BT")), run.new("values", v.replace("n", "BN" if self.windowed else "BT"))
            self.waiting.clear()
            del made
            overflowing = self.windowed and run.course.window_passed
            return (key, value) if overflowing else (None, None)
        if self.windowed and run.course.window_passed:
            moved = run.new("window moved by one", k.replace("n", "BN")), run.new("window moved by one", v.replace("n", "BN"))
            last = run.new("index of the last row", "8")
            del moved, last
        return None, None

    def _quantized(self, run: Run, key: Tensor, value: Tensor, k: str, v: str) -> tuple[Tensor | None, Tensor | None]:
        """A decode step reads all of it in 16 bits; a prompt is read as it came."""
        self.waiting.clear()
        if not run.decoding:
            return key, value
        whole = run.new("one layer's cache dequantized", k.replace("n", "BT")), run.new("one layer's cache dequantized", v.replace("n", "BT"))
        joined = run.new("joined with recent tokens", k.replace("n", "BT")), run.new("joined with recent tokens", v.replace("n", "BT"))
        del whole
        return joined


def rows(run: Run) -> tuple[str, str]:
    """Shapes of new keys and values of a layer: heads, or with latent attention one compressed row and a rotary key."""
    return ("nce", "nre") if run.model.mla else ("nKde", "nKde")


def change(run: Run, windowed: bool, which: int, layers: int = 1) -> tuple[str, int]:
    """Shape and count of what `layers` layers hold of keys (0) or values (1) before the pass, less what they hold after."""
    shape = rows(run)[which]
    if run.how.quantized_cache:
        return "", 0
    if run.static:
        return ("", 0) if run.decoding else (shape.replace("n", "BN" if windowed else "BT"), -layers)
    if not run.decoding:
        return shape.replace("n", "BT"), -layers
    return (shape.replace("n", "BW"), layers) if windowed else (shape, -layers)


class Output(NamedTuple):
    """The projected output, and eager's weights, which live to the end of the layer."""

    states: Tensor
    weights: Tensor | None


def attention(run: Run, family: Family, slot: Slot) -> Output:
    """Grouped-query attention over what the caller holds."""
    run.at("attention projections")
    place = family.qk_norm if run.model.qk_norm or not family.qk_norm_setting else ""
    normed = family.qk_normed or family.norm
    per_head = "heads" in place
    fused = None
    shapes = (("nHd", "nH"), ("nKd", "nK")) if per_head else (("nHd", "n"), ("nKd", "n"))
    if place.startswith("projection"):  # each norm directly on its projection
        query = run.new("query", "nHde")
        query = normed(run, *shapes[0])
        key = run.new("key", "nKde")
        key = normed(run, *shapes[1])
        value = run.new("value", "nKde")
    elif family.fused:  # parts of one product, which lives as long as the function
        query = key = value = fused = run.new("fused q, k and v", "nHde")
        fused.keeps = (run.new("fused q, k and v", "nKde", 2),)
    else:
        query, key, value = run.new("query", "nHde"), run.new("key", "nKde"), run.new("value", "nKde")
    if place.startswith("then"):
        query = normed(run, *shapes[0])
        key = normed(run, *shapes[1])
    roped = family.rope_in == "all" or slot.windowed or (family.rope_in == "windows or none" and not run.model.sliding_window)
    if roped:
        run.at("rope")
        turned = family.rope(run, "K")
        if family.norms == "kept":
            turned[0].keeps += (query, key)
        query, key = turned
        del turned
    if place.startswith("after") and (roped or "always" in place):
        query = normed(run, *shapes[0])
        key = normed(run, *shapes[1])
    held = slot.update(run, key, value)
    del key, value
    seen = "N" if slot.windowed and run.decoding else "T"
    heads, mask = (run.heads, run.kv_heads), run.masks[slot.windowed]
    weights = None
    contiguous = family.rope_joins and roped
    if run.eager:
        output, weights = kernels.eager(run, mask, seen, heads, contiguous=contiguous, sinks=family.sinks, upcast=family.softmax_float)
    else:
        output = kernels.sdpa(run, mask, seen, heads, contiguous=contiguous)
    run.at("o_proj")
    states = run.new("attention, projected", "nhe")
    del query, output, held, fused
    return Output(states, weights)
