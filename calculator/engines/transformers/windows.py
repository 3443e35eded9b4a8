"""Decoders of which most layers see a sliding window (gemma3), in transformers.

What sets them apart: two rotary tables; sdpa gets a square mask of bool from the window's length on, and a float copy of
it in each layer with a window; eager has two square masks. A layer with a window keeps a view of the last tokens: after
a prefill the view's storage is still the whole prompt, until the first token that is generated replaces it.

Symbols as in steps.py, and F layers that see everything, N with a window.

Source: transformers v5.23.0 models/gemma3/modeling_gemma3.py, cache_utils.py DynamicSlidingWindowLayer, masking_utils.py.
"""

from __future__ import annotations

from calculator.engines.transformers.eager import eager_steps
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Peak, Step, largest


def peak(model: ModelSpec, phase: str, *, new: int, seen: int, sequences: int, element_bytes: int, softmax_bytes: int,
         logits_to_keep: int, rotary: Buffer) -> Peak:  # fmt: skip
    """Peak of a pass; `softmax_bytes` 0 is sdpa. `seen` tokens are in the cache at the end."""
    b, q, t, e, s = sequences, new, seen, element_bytes, softmax_bytes
    h, v, f, window = model.hidden_size, model.vocab_size, model.intermediate_size, model.sliding_window or 0
    heads, kv, d = model.num_attention_heads, model.num_key_value_heads, model.head_dim
    n, r, k, decoding = b * q, 3 if model.num_hidden_layers > 1 else 2, min(logits_to_keep or q, q), phase == "decode"
    near = min(t, window) if decoding else t  # tokens that a layer with a window reads

    if s:
        mask = Buffer("two masks", b * q * (t + near) * e, "{B} × {q} × ({T} + {near}) × {e}")
    else:
        square = q * near if t > window or (not decoding and t == window) else 0
        mask = Buffer("bool mask of the window", square, "{square}")
    residual = Buffer("residual stream", r * h * n * e, "{r} × {h} × {n} × {e}")
    hidden = Buffer("residual stream and normed input", (r + 1) * h * n * e, "({r} + 1) × {h} × {n} × {e}")
    query = Buffer("query", heads * d * n * e, "{H} × {d} × {n} × {e}")
    last = t if (model.num_hidden_layers % model.full_every) == 0 else near  # tokens that the last layer reads
    kept = Buffer("attention weights", heads * n * last * e if s else 0, "{H} × {n} × {last} × {e}")
    picked = b * k * h * e if b > 1 and 1 < k < q else 0  # positions picked from several sequences are copied
    quiet = (rotary, mask)
    common = (kept, *quiet)
    halves = Buffer("q, k and rotated halves", 4 * heads * d * n * e, "4 × {H} × {d} × {n} × {e}")
    steps = [
        Step("mlp", (Buffer("act(gate), up and their product", 3 * f * n * e, "3 × {f} × {n} × {e}"), hidden, *common)),
        Step("rope", (halves, residual, *quiet)),
        Step("lm_head", (Buffer("logits", b * k * v * e, "{B} × {k} × {V} × {e}"),
                         Buffer("last hidden state, picked positions", h * n * e + picked, "{h} × {n} × {e} + {picked}"))),
        Step("post_feedforward_layernorm", (Buffer("float32 copies of the norm", 8 * h * n + 4 * max(n, h), "8 × {h} × {n} + 4 × {most}"),
                                            hidden, *common)),
        Step("q_norm", (Buffer("q, float32 copies of its norm", (8 + e) * heads * d * n + 4 * max(heads * n, d),
                               "(8 + {e}) × {H} × {d} × {n} + 4 × {norms}"), residual, *quiet)),
    ]  # fmt: skip
    padded = -near % 16 and 16 - near % 16 + near
    if s:
        steps += eager_steps(model, b, q, last, (query, residual, *quiet), element_bytes=e, softmax_bytes=s, seen="last")
    elif mask.nbytes:
        floats = Buffer("float mask", b * q * near * e, "{B} × {q} × {near} × {e}")
        wide = Buffer("float mask with strides of 16", b * q * padded * e, "{B} × {q} × {padded} × {e}")
        copies = Buffer("repeated k and v", 2 * b * heads * d * near * e if heads > kv > 1 and not decoding else 0, "2 × {B} × {H} × {d} × {near} × {e}")
        output = Buffer("output, a seed and an offset", heads * d * n * e + 16 + e, "{H} × {d} × {n} × {e} + 16 + {e}")
        # in the last layer with a window, which is the first of two where the second sees everything
        after = not model.num_hidden_layers % model.full_every
        only = Buffer("residual stream of the first layer", 2 * h * n * e, "2 × {h} × {n} × {e}")
        inside = only if after and model.num_hidden_layers == 2 else residual
        later = Buffer("keys and values not yet cached", -2 * kv * d * n * e if after and not decoding else 0, "-2 × {K} × {d} × {n} × {e}")
        steps.append(Step("attention mask", (floats, wide, copies, query, inside, later, *quiet)))
        steps.append(Step("attention", (wide if padded else floats, copies, query, output, inside, later, *quiet)))
    if decoding:
        steps += _decode_steps(model, b, t, e, (query, rotary, mask), s)
    step, nbytes = largest(steps)
    symbols = {"q": q, "T": t, "B": b, "n": n, "h": h, "f": f, "V": v, "H": heads, "K": kv, "d": d, "e": e, "r": r, "k": k, "s": s,
               "F": model.full_layers, "N": model.num_hidden_layers - model.full_layers, "near": near, "last": last, "picked": picked, "square": mask.nbytes,
               "most": max(n, h), "norms": max(heads * n, d), "padded": padded,
               "after": model.num_hidden_layers % model.full_every}  # fmt: skip
    return Peak(phase, step, nbytes, symbols)


def _decode_steps(model: ModelSpec, b: int, t: int, e: int, alive: tuple[Buffer, ...], s: int) -> list[Step]:
    """The first token after a prompt: layers with a window still hold all of it, and drop it one after the other."""
    kv, d, h, window = model.num_key_value_heads, model.head_dim, model.hidden_size, model.sliding_window or 0
    row = 2 * b * kv * d * e  # keys and values of a token in a layer
    windowed, after = model.num_hidden_layers - model.full_layers, model.num_hidden_layers % model.full_every
    old, near = t - 1, min(t, window)
    new_kv = Buffer("new key and value", row, "2 × {B} × {K} × {d} × {e}")
    waiting = Buffer("prompts that layers with a window still hold", windowed * row * (old - near), "{N} × 2 × {B} × {K} × {d} × {e} × ({T} - 1 - {near})")
    full = Buffer("keys and values that full layers don't hold yet", -model.full_layers * row, "-{F} × 2 × {B} × {K} × {d} × {e}")
    first = Buffer("residual stream of the first layer", 2 * h * b * e, "2 × {h} × {B} × {e}")
    window_kv = Buffer("new window of the first layer", row * near, "2 × {B} × {K} × {d} × {e} × {near}")
    norm = Buffer("embedded tokens and float32 copies of the norm", (e + 8) * h * b + 4 * max(b, h), "({e} + 8) × {h} × {B} + 4 × {most}")
    residual = Buffer("residual stream", 3 * h * b * e, "3 × {h} × {B} × {e}")
    values = Buffer("old values during concatenation", row // 2 * old, "{B} × {K} × {d} × {e} × ({T} - 1)")
    prompt = Buffer("prompt of the last window during concatenation", row * old, "2 × {B} × {K} × {d} × {e} × ({T} - 1)")
    behind = Buffer("keys and values of the layer behind", 0 if after else -row, "-2 × {B} × {K} × {d} × {e}")
    steps = [
        Step("input_layernorm, first layer", (waiting, full, norm, *alive[1:])),
        Step("cache concatenation, first layer", (waiting, full, window_kv, new_kv, first, *alive)),
        Step("cache concatenation, last layer with a window", (prompt, behind, new_kv, residual, *alive)),
    ]
    for held, done, where in ((windowed - model.full_every + 1, 1, ", first full layer"), (after, model.full_layers, ", last full layer")):
        left = Buffer("prompts that later layers still hold", held * row * (old - near), f"{held} × 2 × {{B}} × {{K}} × {{d}} × {{e}} × ({{T}} - 1 - {{near}})")
        missing = Buffer("keys and values that full layers don't hold yet", -(model.full_layers - done) * row,
                         f"-{model.full_layers - done} × 2 × {{B}} × {{K}} × {{d}} × {{e}}")  # fmt: skip
        steps.append(Step("cache concatenation" + where, (left, missing, values, new_kv, residual, *alive)))
        if s:
            steps += eager_steps(model, b, 1, t, (left, missing, residual, *alive), element_bytes=e, softmax_bytes=s)
    if s:
        indices = Buffer("positions of keys, as int64, twice", 16 * t + 8 * b + 24, "16 × {T} + 8 × {B} + 24")
        steps.append(Step("mask", (waiting, full, indices, Buffer("embedded tokens", h * b * e, "{h} × {B} × {e}"))))
        others = Buffer("prompts that the other layers still hold", (windowed - 1) * row * (old - near), "({N} - 1) × 2 × {B} × {K} × {d} × {e} × ({T} - 1 - {near})")
        steps += eager_steps(model, b, 1, near, (others, full, first, *alive), element_bytes=e, softmax_bytes=s, seen="near", where=", first layer")
    return steps
