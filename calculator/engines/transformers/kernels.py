"""Attention kernels: eager's products, and what sdpa calls: flash, memory-efficient, or math.

`t` is the symbol of the tokens read ("T", or "N" near ones), `same` says that every query head has a key head.

Source: transformers v5.23.0 models/llama/modeling_llama.py eager_attention_forward, integrations/sdpa_attention.py;
pytorch v2.13 aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, attention.cpp, SoftMax.cpp.
"""

from __future__ import annotations

from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor


def eager(run: Run, mask: Tensor | None, t: str, heads: tuple[int, int], *, contiguous: bool, latent: bool = False, sinks: bool = False, upcast: bool = True) -> tuple[Tensor, Tensor | None]:
    """Output and weights. The caller holds query, key and value. `contiguous`: the query is by heads;
    `latent`: the values are a part of a tensor.
    """
    run.at("attention")
    h, kv = heads
    repeated = run.new("repeated k and v", "BH" + t + "de", 2) if h > kv > 1 else None
    many, tokens = not run.course.one_sequence, not run.course.one_token
    views = [run.new("contiguous query", "Hnde")] if many and tokens and not contiguous else []
    stretched = many and h > kv == 1  # one head expanded: a view until the product needs it as a batch
    if stretched:
        views.append(run.new("contiguous k", "BH" + t + "de"))
    scores = run.new("scores", "Hn" + t + "e")
    views.clear()
    scores = run.new("scores, scaled", "Hn" + t + "e")
    if mask is not None:
        scores = run.new("scores, masked", "Hn" + t + "e")
    if sinks:
        weights, scores = _with_sinks(run, t)
    else:
        weights = _softmax(run, t) if upcast else run.new("attention weights", "Hn" + t + "e")
        del scores
    if stretched or (many and latent and h > 1):
        views.append(run.new("contiguous v", "BH" + t + "ve"))
    output = run.new("attention output", "nHve")
    views.clear()
    if tokens and h > 1:
        output = run.new("attention output, transposed", "nHve")
    del repeated
    return output, weights


def _softmax(run: Run, t: str) -> Tensor:
    """In float32: a copy beside the scores, except where half goes in as it is; then cast back."""
    if not run.half:
        return run.new("attention weights", "Hn" + t + "e")
    wide = run.new("scores in float32", "Hn" + t + "4") if run.how.softmax_bytes == 10 else None
    soft = run.new("softmax in float32", "Hn" + t + "4")
    del wide
    weights = run.new("attention weights", "Hn" + t + "e")
    del soft
    return weights


def _with_sinks(run: Run, t: str) -> tuple[Tensor, Tensor]:
    """gpt-oss: a column for the sink, the maximum taken off, softmax in the model's own type; weights, and what went into it."""
    joined = run.new("scores and sink", "Hn" + t + "e"), run.new("sink", "Hne")
    largest, places = run.new("maxima", "Hne"), run.new("their places", "Hn8")
    del places
    lowered = run.new("scores less their maximum", "Hn" + t + "e")
    lowered.keeps = (run.new("sink", "Hne"),)
    del joined, largest
    weights = run.new("attention weights", "Hn" + t + "e")
    weights.keeps = (run.new("weight of the sink", "Hne"),)
    return weights, lowered


def sdpa(run: Run, mask: Tensor | None, t: str, heads: tuple[int, int], *, contiguous: bool) -> Tensor:
    """Output. Masks are bool, and become floats of each sequence for the memory-efficient kernel."""
    run.at("attention")
    (h, kv), flat = heads, run.key_width == run.value_width <= 256
    same, repeated, grouped = h == kv, None, False
    if not same:
        if mask is None and flat:
            grouped = True
        elif run.course.one_token:
            same = True  # queries of one key head become its rows
        else:
            repeated, same = run.new("repeated k and v", "BH" + t + "de", 2) if kv > 1 else None, True
    floats = run.new("float mask", "Bq" + t + "e") if mask is not None else None
    if run.half and not run.how.math_bytes and mask is None and flat and (same or grouped):
        output = _flash(run, t)
        if contiguous and not run.course.one_token and h > 1:  # laid out as the query is
            output = run.new("attention output, transposed", "nHve")
    elif same:
        if floats is not None and not (run.course.aligned if t == "T" else run.course.near_aligned):
            wide = run.new("float mask with strides of 16", "Bq" + t + "e"), run.new("its padding", "Bq" + {"T": "P", "N": "Q"}[t] + "e")
            floats = None
        else:
            wide = None
        zero = run.new("zero of the float mask", "e") if mask is not None else None
        output = run.new("attention output", "nHve")
        run.new("a seed and an offset", "8", 2)
        del wide, zero
    else:
        output = _math(run, t, contiguous)
    del repeated, floats
    return output


def _flash(run: Run, t: str) -> Tensor:
    """Heads are padded to eights; a normalizer a row beside the output."""
    pad = run.key_width % 8
    padded = [run.new("padded query", "Hnde"), run.new("padded k and v", "BK" + t + "de", 2)] if pad else []
    output = run.new("attention output", "nHve")
    run.new("log of the sums", "Hn4")
    padded.clear()
    return output


def _math(run: Run, t: str, contiguous: bool) -> Tensor:
    """Everything in `w` bytes: float32, or float32 for types that the card's kernels refuse."""
    run.at("attention (math kernel)")
    wide = run.new("query in float32", "Hndw") if run.half else None
    scaled = run.new("scaled query", "Hndw")
    causal = run.new("causal mask of the math kernel", "q" + t + "w") if not run.course.one_token else None
    repeated = run.new("repeated k and v", "BH" + t + "dw", 2)
    keys = run.new("scaled k", "BH" + t + "dw")
    copied = run.new("contiguous query", "Hndw") if not run.course.one_sequence and not run.course.one_token and not contiguous else None
    scores = run.new("scores", "Hn" + t + "w")
    del copied, keys
    if causal is not None:
        scores = run.new("scores, masked", "Hn" + t + "w")
    scores = run.new("softmax", "Hn" + t + "w")
    output = run.new("attention output", "nHvw")
    del scores, repeated, scaled, wide
    return run.new("attention output, transposed", "nHve") if not run.course.one_token else output
