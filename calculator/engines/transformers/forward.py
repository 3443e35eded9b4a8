"""The forward pass of a decoder in transformers: masks, the layers that can be the largest, the head.

Activations are what is alive beside weights and the final KV cache. Model.forward keeps the embedded tokens for the
whole pass, and the loop over layers a layer's input; so the peak is in the last layer of its kind, or, where a cache
shrinks as windows replace whole prompts, in the first.

Source: transformers v5.23.0 models/llama/modeling_llama.py LlamaModel.forward and its like, masking_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from calculator.engines.transformers import rope
from calculator.engines.transformers.attention import Slot, attention, change
from calculator.engines.transformers.families import FAMILIES, Family
from calculator.engines.transformers.feed_forward import experts, gated
from calculator.engines.transformers.latent import latent_attention
from calculator.engines.transformers.run import Course, Pass, Run, constants, course, variables
from calculator.engines.transformers.tape import Plan, Tensor, plan, step_of
from calculator.spec import ModelSpec
from calculator.steps import Peak


def peak(model: ModelSpec, how: Pass, phase: str, *, new: int, seen: int, sequences: int) -> Peak:
    """Peak of a pass; `seen` tokens of each sequence are in the cache at its end."""
    sizes = variables(model, how, new=new, seen=seen, sequences=sequences)
    moment, nbytes = _plan(model, how, course(model, sizes, decoding=phase == "decode")).largest(sizes)
    symbols = {**constants(model, how), **sizes, "n": new * sequences}
    return Peak(phase, step_of(moment, symbols), nbytes, symbols)


@lru_cache(maxsize=64)  # passes that differ in their weights' copies only share it
def sizes(model: ModelSpec, how: Pass, *, decoding: bool) -> Callable[[int, int, int], int]:
    """(new, seen, sequences) -> the peak's size alone, for sweeps [bytes]."""
    plans: dict[Course, Plan] = {}

    @lru_cache(maxsize=4096)
    def nbytes(new: int, seen: int, sequences: int) -> int:
        known = variables(model, how, new=new, seen=seen, sequences=sequences)
        taken = course(model, known, decoding=decoding)
        if taken not in plans:
            plans[taken] = _plan(model, how, taken)
        return plans[taken].largest(known)[1]

    return nbytes


@lru_cache(maxsize=4096)
def _plan(model: ModelSpec, how: Pass, course: Course) -> Plan:
    """Everything that can be the peak of passes that take one course."""
    family, run = FAMILIES[model.model_type], Run(model, how, course)
    last = _layers(run, family)
    _head(run, family)
    del last
    return plan(run.tape, constants(model, how))


def _layers(run: Run, family: Family) -> Tensor:
    """Embedding, masks, rotary tables, layers, the last norm; the last hidden states stay."""
    everything = _pending(run, 0)
    run.at("embedding")
    embedded = run.new("embedded tokens", "nhe")
    for _ in range(family.embeddings - 1):
        embedded = run.new("embedded tokens", "nhe")
    positions = run.new("positions", rope.each(run) + "q8")
    _masks(run, family)
    del positions
    run.tables = rope.tables(run, family.tables, family.table_sets if all(_windows(run.model)) else 1)
    del everything
    hidden = embedded
    for index in _largest_layers(run.model, run.decoding):
        hidden, first = embedded, index == 0
        later = _pending(run, index + 1)
        x = embedded if first else run.new("layer's input", "nhe")
        hidden = _layer(run, family, x, index)
        del later, x
    run.at("norm")
    out = family.norm(run, "nh", "n")
    run.tables.clear()
    run.masks.clear()
    del hidden, embedded
    return out


def _head(run: Run, family: Family) -> None:
    """Logits of the positions that are kept; positions picked from several sequences are copied."""
    run.at("lm_head")
    picked = run.new("picked positions", "Bkhe") if run.course.picks and not run.course.one_sequence else None
    logits = run.new("logits", "BkVe")
    del picked
    if family.logits:
        run.at(f"logits {family.logits}")
        logits = run.new(f"logits, {family.logits}", "BkVe")
    del logits


def _layer(run: Run, family: Family, x: Tensor, index: int) -> Tensor:
    """One decoder layer; the caller holds x."""
    slot = Slot(run, windowed(run.model, index))
    attend = latent_attention if run.model.mla else attention
    before, after = family.norms != "after", family.norms in ("after", "around")
    run.at("input norm")
    y = family.norm(run, "nh", "n") if before else x
    if family.norms == "parallel":
        attended = attend(run, family, slot)
        beside = _feed_forward(run, family, index)
        run.at("residual")
        both = run.new("residual stream and attention", "nhe")
        out = run.new("residual stream", "nhe")
        del y, beside, both, attended
        return out
    kept = [y] if family.norms == "kept" else []
    y, weights = attend(run, family, slot)
    kept += [y] if family.norms == "kept" else []
    run.at("norm of attention")
    if after:
        y = family.norm(run, "nh", "n")
    y = residual = _added(run, family)
    run.at("feed-forward norm")
    if before:
        y = family.norm(run, "nh", "n")
    y = _feed_forward(run, family, index)
    run.at("norm of feed-forward")
    if after:
        y = family.norm(run, "nh", "n")
    out = _added(run, family)
    del weights, residual, kept, y
    return out


def _added(run: Run, family: Family) -> Tensor:
    scaled = run.new("scaled output", "nhe") if family.scaled_residual else None
    out = run.new("residual stream", "nhe")
    del scaled
    return out


def _feed_forward(run: Run, family: Family, index: int) -> Tensor:
    """Of layers with experts, or without; the caller holds the input."""
    if not sparse(run.model, index) or family.route is None:
        return family.mlp(run)
    shared = gated(run, "s") if family.shared in ("before", "gated") and run.model.shared_expert_intermediate_size else None
    routing = family.route(run)
    out = experts(run, routing, biased=family.biased_experts)
    if family.shared == "gated":
        run.at("shared expert, gated")
        gate = run.new("gate of the shared expert", "ne", 2)
        shared = run.new("shared expert, gated", "nhe")
        del gate
    elif family.shared == "after" and run.model.shared_expert_intermediate_size:
        shared = gated(run, "s")
    if shared is not None:
        out = run.new("feed-forward output", "nhe")
    del shared, routing
    return out


def _masks(run: Run, family: Family) -> None:
    """Eager's masks are floats; sdpa needs a bool one for a window that is full, and for one token in a static cache."""
    run.at("masks")
    near = "N" if run.decoding else "T"
    window, full = _windows(run.model)
    run.masks = {False: None, True: None}
    wanted = {False: "T" if full else near} if full or run.model.full_every else {}
    if window or family.unused_mask:
        wanted[True] = near
    for wide, t in wanted.items():
        if not (run.eager or (run.static and run.course.one_token) or (wide and (run.course.window_reached or family.unused_mask))):
            continue
        queries = run.new("numbers of sequences", "B8"), run.new("number of a head", "8"), run.new("positions of queries", "q8")
        keys = run.new("positions of keys, from 0", t + "8")
        keys = run.new("positions of keys", t + "8")
        mask = run.new("bool mask", "q" + t)
        if wide:  # tokens before, and of them those in the window
            both = mask, run.new("bool mask", "q" + t)
            mask = run.new("bool mask", "q" + t)
            del both
        if run.eager:
            mask = run.new("mask", "Bq" + t + "e")
        run.masks[wide] = mask
        del keys, queries, mask


def _pending(run: Run, start: int) -> list[Tensor]:
    """What layers from `start` on hold of the cache, less what they will hold at the end."""
    count = run.model.num_hidden_layers
    full = _full_before(run.model, count) - _full_before(run.model, start)
    near = count - start - full
    out = []
    for which, name in ((0, "keys that later layers hold, less the final ones"), (1, "values that later layers hold, less the final ones")):
        for wide, layers in ((False, full), (True, near)):
            shape, times = change(run, wide, which, layers)
            if layers and times:
                out.append(run.new(name, shape, times))
    return out


def windowed(model: ModelSpec, index: int) -> bool:
    """Whether a layer sees a window only."""
    return bool(model.sliding_window) and not (model.full_every and (index + 1) % model.full_every == 0)


def sparse(model: ModelSpec, index: int) -> bool:
    """Whether a layer has experts."""
    return model.num_experts > 0 and index >= model.first_dense_layers and (index + 1) % model.expert_every == 0


def _windows(model: ModelSpec) -> tuple[bool, bool]:
    """Whether some layers see a window, and whether some see everything."""
    full = _full_before(model, model.num_hidden_layers)
    return full < model.num_hidden_layers, full > 0


def _full_before(model: ModelSpec, index: int) -> int:
    """Layers before `index` that see everything."""
    if not model.sliding_window:
        return index
    return index // model.full_every if model.full_every else 0


@lru_cache(maxsize=512)
def _largest_layers(model: ModelSpec, decoding: bool) -> tuple[int, ...]:
    """The last layer of each kind; where a decode step shrinks windows, the first too. In their order, the last one at the end."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for index in range(model.num_hidden_layers):
        kinds.setdefault((windowed(model, index), sparse(model, index)), []).append(index)
    chosen = {places[-1] for places in kinds.values()}
    if decoding and model.sliding_window:
        chosen |= {places[0] for places in kinds.values()}
    return tuple(sorted(chosen))
