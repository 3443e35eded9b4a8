"""The search of llama-server's --fit, step by step: fewer cells, then layers, and of a model with experts first these.

It measures as this package simulates, but without allocating: nodes that the model's code pins to a device are forgotten
then, and only a full micro-batch's graph counts. Adapters aren't measured.

Source: llama.cpp @0c1e57098 common/fit.cpp common_params_fit_impl L167.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from calculator.engines.llama_cpp import kv, placement
from calculator.engines.llama_cpp.buffers import Context, Override
from calculator.engines.llama_cpp.compute import compute
from calculator.engines.llama_cpp.simulation import Weights
from calculator.quantization import Stored
from calculator.spec import ModelSpec

CELLS = 256  # the context is rounded down to a multiple of it a stream
_EXPERTS = r"ffn_(up|down|gate_up|gate)_(ch|)exps"
_PARTS = {"attn": r"ffn_(gate|up|gate_up|down).*", "up": r"ffn_(gate|gate_up|down).*", "gate": r"ffn_down.*", "moe": _EXPERTS}


class Asked(NamedTuple):
    """What --fit is told, and what the user has set [bytes, tokens]."""

    free: int  # on each GPU
    target: int  # to stay free on each GPU
    least: int  # cells a stream that it doesn't go below
    any_context: bool  # the user left the context to it
    any_layers: bool  # and layers, split and overrides


class Share(NamedTuple):
    """Layers of a device; the experts of its last `partial` layers overflow, of the first of these perhaps other parts."""

    layers: int = 0
    partial: int = 0
    overflow: str = "moe"

    @property
    def full(self) -> int:
        """Layers of which nothing overflows."""
        return self.layers - self.partial

    def plus(self, layers: int, partial: int = 0) -> Share:
        """With more of both."""
        return self._replace(layers=self.layers + layers, partial=self.partial + partial)


@lru_cache(maxsize=512)
def fitted(model: ModelSpec, stored: Stored, context: Context, asked: Asked) -> Context:
    """The context that llama-server runs where it may adjust what the user left open."""
    fit = _Fit(model, stored, context, asked)
    if fit.fits_after_reducing_context() or not asked.any_layers:
        return fit.context
    shares = fit.back_to_front()
    if model.num_experts and fit.surplus_without_experts > 0:
        shares = fit.front_to_back(shares)
    return fit.placed(shares, fit.overflow_to)


@lru_cache(maxsize=4096)
def measured(model: ModelSpec, stored: Stored, context: Context) -> tuple[tuple[int, int], ...]:
    """Bytes on each GPU: of the model, and of everything."""
    context = context._replace(no_alloc=True, adapters=None)
    layers, tied = model.num_hidden_layers, model.tie_word_embeddings
    if context.overrides:
        weights = Weights(*placement.overridden(stored, layers, tied, context))
    elif context.on_gpus_alone:
        weights = Weights()
    else:
        weights = Weights(*placement.formats_on_host(stored, layers, context.n_gpu_layers, context.n_cpu_moe))
    placed = placement.place(stored, layers=layers, tied=tied, context=context)
    caches = kv.places(model, context)
    found = []
    for device, peak in enumerate(compute(model, context, weights).devices):
        held = sum(placement.gpu_bytes(g) for g in placed.gpus[device])
        cache = sum(n * kv.layer_bytes(model, context, cells, device) for _, cells, n in kv.kinds(model, context, caches.get(device, ())))
        found.append((held, held + cache + peak.nbytes))
    return tuple(found)


class _Fit:
    """The search, in the engine's order."""

    def __init__(self, model: ModelSpec, stored: Stored, context: Context, asked: Asked) -> None:
        self.model, self.stored, self.context, self.asked = model, stored, context, asked
        self.gpus, self.layers = context.gpus, model.num_hidden_layers
        self.most = asked.free - asked.target
        self.overflow_to = [self.gpus] * self.gpus
        self.mem: list[int] = []

    def used(self, context: Context) -> list[int]:
        """Bytes on each GPU."""
        return [everything for _, everything in measured(self.model, self.stored, context)]

    def fits_after_reducing_context(self) -> bool:
        """Steps 1 and 2: whether everything fits as it is, or with fewer cells."""
        context, gpus = self.context, self.gpus
        full = self.used(context)
        if all(used <= self.most for used in full):
            return True
        streams = 1 if context.kv_unified else context.n_seq_max
        least = self.asked.least * streams
        if self.most * gpus >= sum(full) or not self.asked.any_context or context.n_ctx <= least:
            return False
        target = self.most * gpus
        if gpus > 1:
            a_layer = sum(held for held, _ in measured(self.model, self.stored, context)) // self.layers
            target -= (gpus + 1) * a_layer // (6 if self.model.num_experts else 2)
        small = sum(self.used(context._replace(n_ctx=least)))
        cells = least
        if target > small:
            cells += (context.n_ctx - least) * (target - small) // (sum(full) - small)
            cells = max(cells - cells % (CELLS * streams), least)
        self.context = context._replace(n_ctx=cells)
        return target > small and gpus == 1

    def placed(self, shares: list[Share], overflow_to: list[int]) -> Context:
        """The context with these layers on the GPUs."""
        wanted = sum(share.layers for share in shares)
        layer, overrides = self.layers + 1 - wanted, []
        for share, other in zip(shares, overflow_to, strict=True):
            layer += share.full
            for i in range(layer, layer + share.partial):
                first = i == layer
                pattern = rf"blk\.{i}\." + _PARTS[share.overflow if first else "moe"]
                overrides.append(Override(pattern, other if first else self.gpus))
            layer += share.partial
        split = tuple(float(share.layers) for share in shares) if wanted and self.gpus > 1 else self.context.split
        return self.context._replace(n_gpu_layers=-1 if wanted > self.layers else wanted, split=split, overrides=tuple(overrides))

    def test(self, shares: list[Share], overflow_to: list[int] | None = None) -> list[int]:
        """Bytes on each GPU with these layers."""
        return self.used(self.placed(shares, overflow_to or self.overflow_to))

    @property
    def surplus_without_experts(self) -> int:
        """Bytes left over all GPUs with all experts on the host."""
        used = self.used(self.context._replace(overrides=(Override(r"blk\.\d+\." + _EXPERTS, self.gpus),)))
        return self.most * self.gpus - sum(used)

    def back_to_front(self) -> list[Share]:
        """Step 3: the last device first, each as many layers as it holds; of a model with experts, without these."""
        shares = [Share() for _ in range(self.gpus)]
        self.mem = self.test(shares)
        last = self.gpus - 1
        for id in range(last, -1, -1):
            left = self.layers + 1 - sum(share.layers for share in shares[id + 1 :])
            if not left:
                continue
            experts = bool(self.model.num_experts)
            partial = (left if id < last else left - 1) if experts else 0

            def more(shares: list[Share], step: int, id: int = id, experts: bool = experts) -> list[Share]:
                partial = (step - 1 if id == last and not shares[id].partial else step) if experts else 0
                return _with(shares, id, shares[id].plus(step, partial))

            high = _with(shares, id, shares[id]._replace(layers=left, partial=partial))
            shares = self.narrow(id, shares, high, more, lambda share: share.layers)
        return shares

    def front_to_back(self, shares: list[Share]) -> list[Share]:
        """Step 4: layers get their experts back, from the first device on; of one more perhaps a part."""
        gpus = self.gpus
        start = next((id for id in range(gpus) if all(share.layers for share in shares[id:])), gpus)  # none: the last holds nothing
        id = 0
        while id <= start < gpus:
            high = list(shares)
            for other in range(start, gpus):
                moved = high[other].layers - (other == gpus - 1)
                high[id] = high[id].plus(moved)
                high[other] = high[other].plus(-moved)._replace(partial=0)

            def more(now: list[Share], step: int, id: int = id, start: int = start) -> list[Share]:
                return _converted(now, id, step, start)

            before, shares = shares, self.narrow(id, shares, high, more, lambda share: share.full)
            if shares is high:
                start = gpus - 1
            elif shares is not before:
                start = next(d for d in range(start, gpus) if shares[d].partial)
            if shares[start].layers > (id == gpus - 1):
                shares, start = self.with_a_part(shares, id, start)
            id += 1
        return shares

    def with_a_part(self, shares: list[Share], id: int, start: int) -> tuple[list[Share], int]:
        """One more layer with attention and up, then gate; or attention alone."""
        test = _with(shares, start, shares[start].plus(-1, -1))
        after = start + 1 if test[start].partial == 0 else start
        test = _with(test, id, test[id].plus(1, 1))
        to = list(self.overflow_to)
        if id < self.gpus - 1:
            to[id] = id + 1

        def fits(part: str) -> list[Share] | None:
            tried = _with(test, id, test[id]._replace(overflow=part))
            mem = self.test(tried, to)
            if mem[id] >= self.most or (id + 1 < self.gpus and mem[id + 1] >= self.most):
                return None
            self.mem, self.overflow_to = mem, to
            return tried

        if (up := fits("up")) is not None:
            return fits("gate") or up, after
        attn = fits("attn")
        return (shares, start) if attn is None else (attn, after)

    def narrow(self, id: int, low: list[Share], high: list[Share], more: Callable[[list[Share], int], list[Share]],
               size: Callable[[Share], int]) -> list[Share]:  # fmt: skip
        """False position between what fits and what is too much, by the bytes of one device."""
        mem_high = self.test(high)
        if mem_high[id] <= self.most:
            self.mem = mem_high
            return high
        while (delta := size(high[id]) - size(low[id])) > 1:
            room, more_bytes = self.most - self.mem[id], mem_high[id] - self.mem[id]
            wanted = delta * room // more_bytes if room >= 0 else -(delta * -room // more_bytes)
            step = delta - 1 if wanted < 0 else min(max(wanted, 1), delta - 1)  # below zero the engine's unsigned number is large
            tried = more(low, step)
            mem = self.test(tried)
            if mem[id] <= self.most:
                low, self.mem = tried, mem
            else:
                high, mem_high = tried, mem
        return low


def _with(shares: list[Share], id: int, share: Share) -> list[Share]:
    return [share if i == id else other for i, other in enumerate(shares)]


def _converted(shares: list[Share], id: int, step: int, start: int) -> list[Share]:
    """`step` layers without experts, of device `start` and further ones, become whole layers of a device."""
    found, done = list(shares), 0
    for other in range(start, len(found)):
        n = min(step - done, found[other].partial)
        found[other] = found[other].plus(-n, -n)
        found[id] = found[id].plus(n)
        done += n
        if found[other].partial:
            break
    return found
