"""The KV cache as lines: which layers' cache each place holds, and how large it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from calculator.engines.llama_cpp import buffers, placement
from calculator.formats import FORMATS, Format
from calculator.ledger import Formula, Line
from calculator.spec import ModelSpec

SOURCE = "llama.cpp src/llama-kv-cache.cpp @0c1e57098; equals 6,080 of 6,080 measured contexts of llama-like models"
Place = int | Literal["host"]


def lines(model: ModelSpec, context: buffers.Context) -> list[Line]:
    """KV buffers: padded cells times rows, on the place of each layer."""
    where = buffers.layout(context)
    rows = buffers.row_bytes(model, types_of(context), context.release)
    kept = f"K {context.type_k}, V {context.type_v}" if len(rows) == 2 else f"K {context.type_k}; values are a part of it"
    note = "no layer attends" if model.layer_types and not model.attention_layers else f"{kept}; cells are padded to {buffers.padding_of(context)}"
    found = []
    for device, layers in places(model, context).items():
        for name, cells, count in kinds(model, context, layers):
            total = count * layer_bytes(model, context, cells, device)
            padding = total - where.streams * cells * count * sum(rows.values())
            symbols = {"s": where.streams, "c": cells, "L": count, **rows, "p": padding}
            template = (
                "{s} (streams) × {c} (cells) × {L} (layers) × " + ("({k} + {v}) (bytes a row of K and V)" if len(rows) == 2 else "{k} (bytes a row of K)")
                + (" + {p} (CUDA's padding of last rows)" if padding else "")
            )
            found.append(Line("kv_cache", name, total, Formula(template, symbols), SOURCE, device=device, note=note))
    return found


def types_of(context: buffers.Context) -> dict[str, Format]:
    """Formats of K and V."""
    return {"k": FORMATS[context.type_k], "v": FORMATS[context.type_v]}


def gpu_bytes(model: ModelSpec, context: buffers.Context) -> int:
    """The cache on all GPUs, or of the CPU alone [bytes]."""
    return sum(
        count * layer_bytes(model, context, cells, place)
        for place, layers in places(model, context).items() if place != "host"
        for _, cells, count in kinds(model, context, layers)
    )  # fmt: skip


def places(model: ModelSpec, context: buffers.Context, kept: Sequence[int] | None = None) -> dict[Place, Sequence[int]]:
    """The layers whose cache each place holds; `kept`: those that have one, by default the ones that attend."""
    everything: Sequence[int] = (model.attention_layers if model.layer_types else range(model.num_hidden_layers)) if kept is None else kept
    if not context.cuda:
        return {0: everything}
    if not context.kv_offload:
        return {"host": everything}
    if context.gpus == 1 and context.n_gpu_layers < 0:
        return {0: everything}
    found: dict[Place, list[int]] = {}
    homes = placement.places_of_layers(model.num_hidden_layers, context)
    for layer in everything:
        found.setdefault("host" if homes[layer] == context.gpus else homes[layer], []).append(layer)
    return dict(found)


def kinds(model: ModelSpec, context: buffers.Context, layers: Sequence[int]) -> list[tuple[str, int, int]]:
    """Name of the buffer, cells a stream and number of layers, for full and for sliding-window layers."""
    cells = buffers.layout(context).cells
    if not model.full_every or not context.release.windows:
        return [("KV buffer", cells, len(layers))]
    full = len(set(model.full_indices) & set(layers))
    windowed = buffers.window_cells(model.sliding_window or 0, context)
    return [(name, n, count) for name, n, count in (("KV buffer", cells, full), ("KV buffer, sliding window", windowed, len(layers) - full)) if count]


def layer_bytes(model: ModelSpec, context: buffers.Context, cells: int, place: Place) -> int:
    """K and V of one layer on a place [bytes]."""
    where = buffers.layout(context)._replace(cells=cells)
    on_gpu = context.cuda and place != "host"
    rows = context.release.row_indices
    types = types_of(context)
    return sum(buffers.kv_tensor_bytes(n, types[part], where, cuda=on_gpu, rows=rows) for part, n in buffers.row_elements(model, context.release).items())
