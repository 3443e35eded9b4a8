"""The compute buffers of a context: the graph of its largest micro-batch, scheduled and allocated as llama.cpp does.

Layers repeat, and so does what the allocator does to them: once a layer leaves the buffers as an earlier one did, all
further ones are known. So a graph of a few layers is enough, and each simulation checks that it is.

Source: llama.cpp @0c1e57098 src/llama-context.cpp (llama_context L133 to L306, sched_reserve L615, graph_reserve L2523).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from calculator.engines.llama_cpp.allocator import Allocation, Live, Place
from calculator.engines.llama_cpp.buffers import (
    CUDA_ALIGNMENT,
    HOST_ALIGNMENT,
    Context,
    layout,
    micro_batch,
    window_cells,
)
from calculator.engines.llama_cpp.families import Batch, Cache, Decoder, Formats, Kind, Layer, Moved
from calculator.engines.llama_cpp.graph import F16
from calculator.engines.llama_cpp.models import Builder
from calculator.engines.llama_cpp.placement import places_of_layers
from calculator.engines.llama_cpp.scheduler import OFFLOAD_MIN_BATCH, Machine, schedule
from calculator.formats import FORMATS, Format
from calculator.units import align_up


class Buffer(NamedTuple):
    """One compute buffer at its largest moment: bytes = sum of the live tensors + holes."""

    name: str
    nbytes: int
    node: str
    live: tuple[Live, ...]
    holes: int
    trail: tuple[int, ...] = ()  # what the allocator decided: equal trails, equal arithmetic


CPU = Place("host", HOST_ALIGNMENT, False)


def cuda(index: int = 0) -> Place:
    """A GPU's compute buffer."""
    return Place(f"gpu {index}", CUDA_ALIGNMENT, True)


class Weights(NamedTuple):
    """Storage formats of the matrices, by layer, which matter where the host's weights are copied to a GPU; and places of their own."""

    layers: tuple[Formats, ...] = ()
    output: Format = F16
    moved: tuple[Moved, ...] = ()  # by layer: what isn't where the layer is
    outer: Moved = ()  # the same of the tensors outside the layers


class Task(NamedTuple):
    """All that the buffers depend on."""

    model: Decoder
    batch: Batch
    caches: tuple[Cache, Cache]
    layers: tuple[Layer, ...]
    output: Layer
    machine: Machine


@lru_cache(maxsize=4096)
def compute_buffers(model: Decoder, context: Context, weights: Weights = Weights()) -> tuple[Buffer, ...]:  # noqa: B008
    """Compute buffers of the devices, in order, and the host's last; without a GPU the host's alone.

    A second graph is reserved after the first, of one token a sequence, and each buffer keeps the largest
    (src/llama-context.cpp L673 to L722). The second's may be the larger where the host computes it without the GPU's
    help, and where the logits, which both have, decide.
    """
    whole = task(model, context, weights)
    buffers = run(whole)
    if not context.no_alloc and (not context.on_gpus_alone or any(buffer.node.startswith("result") for buffer in buffers)):
        n = context.n_seq_max
        pin = whole.batch.pin or n < OFFLOAD_MIN_BATCH
        decode = run(whole._replace(batch=whole.batch._replace(tokens=n, outputs=n, pin=pin)))
        buffers = [max(pair, key=lambda buffer: buffer.nbytes) for pair in zip(buffers, decode, strict=True)]
    return tuple(buffers)


def task(model: Decoder, context: Context, weights: Weights = Weights()) -> Task:  # noqa: B008
    """What llama.cpp reserves for: a full micro-batch over full caches, all sequences in it.

    tokens  = min(cells x streams, n_ubatch, n_batch, n_ctx), up to a multiple of n_seq_max
    outputs = min(tokens before that, n_outputs)
    """
    where = layout(context)
    tokens = min(where.cells * where.streams, micro_batch(context))
    k, v = FORMATS[context.type_k], FORMATS[context.type_v]
    caches = (Cache(where.cells, where.streams, k, v), Cache(window_cells(model.window, context), where.streams, k, v))
    homes = places_of_layers(model.layers, context)
    host = context.gpus
    on_gpus = context.cuda and not 0 <= context.n_gpu_layers <= model.layers
    formats = weights.layers or ((),) * model.layers
    moved = weights.moved or ((),) * model.layers
    layers = tuple(
        Layer(Kind(model.windowed(i), model.sparse(i), model.rotated(i)), homes[i], homes[i] if context.kv_offload else host, host if i < context.n_cpu_moe else homes[i],
              formats[i], moved[i], i < model.routes.first_dense)
        for i in range(model.layers)
    )
    machine = Machine((*(cuda(i) for i in range(host)), CPU), context.op_offload, on_gpus and context._replace(n_gpu_layers=-1).pipelined)
    rows = align_up(tokens, context.n_seq_max if context.release.outputs_by_slots else where.streams)
    pin = (on_gpus or (context.cuda and rows < OFFLOAD_MIN_BATCH)) and not context.no_alloc
    batch = Batch(rows, min(tokens, context.n_outputs), context.flash_attn, pin=pin,
                  attend_on_host=not context.kv_offload and not context.no_alloc, release=context.release, adapters=context.adapters)  # fmt: skip
    return Task(model, batch, caches, layers, Layer(Kind(), homes[-1], host, host, (("output", weights.output),), weights.outer), machine)


def run(task: Task) -> list[Buffer]:
    """Simulate with as few layers as prove enough; the compute buffers, the host's last."""
    once = task.model.period
    copies = 0  # with pipelining what each layer copies would be held from the start: then no layer can be left out
    for few, period in ((2, once), (2, 2 * once), (4, 2 * once), (8, 2 * once)):
        kept = _reduced(task.layers, period, few)
        if len(kept) == len(task.layers):
            break
        allocation = _allocate(task, kept)
        steady = not task.machine.pipeline or allocation.copies == copies
        if steady and _repeats(task.layers, kept, allocation.boundaries, period):
            return _buffers(allocation)
        copies = allocation.copies
    return _buffers(_allocate(task, task.layers))


def _allocate(task: Task, layers: tuple[Layer, ...]) -> Allocation:
    builder = Builder(task.model, task.batch, task.caches, layers, task.output, task.machine.host)
    return schedule(builder.build(), task.machine)


def _segments(layers: tuple[Layer, ...]) -> list[list[Layer]]:
    """Runs of layers in the same place."""
    runs: list[list[Layer]] = []
    for layer in layers:
        if runs and runs[-1][-1][1:] == layer[1:]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _reduced(layers: tuple[Layer, ...], period: int, few: int) -> tuple[Layer, ...]:
    """Whole periods taken out of each run, `few` layers and a period left."""
    kept: list[Layer] = []
    for segment in _segments(layers):
        spare = len(segment) - few - period
        out = max(0, spare - spare % period)
        kept += segment[out:] if segment[out:] else segment
    return tuple(kept)


def _repeats(layers: tuple[Layer, ...], kept: tuple[Layer, ...], states: list[object], period: int) -> bool:
    """Whether each shortened run came back to a state a period later, before its last layer: there all periods left out fit in."""
    start = 0
    for whole, short in zip(_segments(layers), _segments(kept), strict=True):
        if len(short) < len(whole):
            inner = states[start : start + len(short) - 1]
            if not any(state == before for state, before in zip(inner[period:], inner, strict=False)):
                return False
        start += len(short)
    return True


def _buffers(allocation: Allocation) -> list[Buffer]:
    found = []
    for arena in allocation.arenas:
        live = tuple(arena.at_peak())
        found.append(Buffer(arena.place.name, arena.nbytes, arena.peak_node, live, arena.nbytes - sum(t.nbytes for t in live), tuple(arena.trail)))
    return found
