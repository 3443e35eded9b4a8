"""Normalization layers: most compute in float32 and hold several copies of their input.

The caller holds the input. A `shape` is rows and width without bytes ("nh", or "nHd" for heads), `rows` the part of it that is normalized apart.

Source: transformers v5.23.0, the norm of each family's modeling file, named in families.py.
"""

from __future__ import annotations

from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor


def rms(run: Run, shape: str, rows: str) -> Tensor:
    """Llama: cast back, then weighed."""
    y, variance = _scaled(run, shape, rows)
    cast = run.new("norm, cast", shape + "e") if run.half else None
    out = run.new("normed", shape + "e")
    del y, variance, cast
    return out


def rms_float(run: Run, shape: str, rows: str) -> Tensor:
    """OLMo 2, gpt-oss: weighed in float32, then cast."""
    y, variance = _scaled(run, shape, rows)
    weighed = run.new("norm, weighed", shape + "4")
    out = run.new("normed", shape + "e") if run.half else weighed
    del y, variance
    return out


def rms_gemma(run: Run, shape: str, rows: str) -> Tensor:
    """Gemma: float32 throughout, and a weight of 1 + w in float32."""
    wide = run.new("float32 copy", shape + "4") if run.half else None
    squares = run.new("squares", shape + "4")
    mean = run.new("mean square", rows + "4")
    del squares
    root = run.new("inverse root", rows + "4")
    del mean
    y = run.new("norm in float32", shape + "4")
    del root, wide
    weight = run.new("1 + weight in float32", shape.removeprefix(rows) + "4")
    weighed = run.new("norm, weighed", shape + "4")
    del y, weight
    return run.new("normed", shape + "e") if run.half else weighed


def layer(run: Run, shape: str, rows: str) -> Tensor:
    """Torch's own: output, mean and inverse deviation."""
    out = run.new("normed", shape + "e")
    run.new("mean and deviation", rows + "8")
    return out


def layer_float(run: Run, shape: str, rows: str) -> Tensor:
    """OLMo: torch's own in float32."""
    if not run.half:
        return layer(run, shape, rows)
    wide = run.new("float32 copy", shape + "4")
    y = run.new("norm in float32", shape + "4")
    run.new("mean and deviation", rows + "8")
    del wide
    out = run.new("normed", shape + "e")
    del y
    return out


def layer_cohere(run: Run, shape: str, rows: str) -> Tensor:
    """Cohere: mean and variance by hand in float32."""
    wide = run.new("float32 copy", shape + "4") if run.half else None
    mean = run.new("mean", rows + "4")
    centred = run.new("centred", shape + "4")
    squares = run.new("squares", shape + "4")
    del centred
    variance = run.new("variance", rows + "4")
    del squares
    centred = run.new("centred", shape + "4")
    root = run.new("inverse root", rows + "4")
    y = run.new("norm in float32", shape + "4")
    del centred, root, wide
    weighed = run.new("norm, weighed", shape + "4")
    del y
    out = run.new("normed", shape + "e") if run.half else weighed
    del mean, variance
    return out


def _scaled(run: Run, shape: str, rows: str) -> tuple[Tensor, Tensor]:
    """X / rms(x) in float32, and the variance, which lives as long."""
    wide = run.new("float32 copy", shape + "4") if run.half else None
    squares = run.new("squares", shape + "4")
    variance = run.new("variance", rows + "4")
    del squares
    root = run.new("inverse root", rows + "4")
    y = run.new("norm in float32", shape + "4")
    del root, wide
    return y, variance
