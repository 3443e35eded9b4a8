"""A stored inventory over several devices: which layers and outer tensors each of them holds."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from calculator.errors import BadValue
from calculator.quantization import Stored, StoredGroup
from calculator.units import ceil_div


class Share(NamedTuple):
    """What one device holds."""

    device: int
    layers: range
    first: bool
    last: bool


@lru_cache(maxsize=1024)
def split_layers(layers: int, gpus: int) -> tuple[Share, ...]:
    """Contiguous runs of layers for equal devices; the output counts as one more layer, on the last.

    Source: llama.cpp src/llama-model.cpp load_tensors, get_layer_buft_list: device of layer i is the split that
    i / (n_layer + 1) falls into. Accelerate's balanced device_map is modelled by the same rule.
    """
    if gpus > layers:
        raise BadValue(f"{gpus} GPUs for {layers} layers", allowed=f"1 to {layers}", hint=f"--gpus {layers} or fewer")
    first = [min(ceil_div(i * (layers + 1), gpus), layers) for i in range(gpus + 1)]
    runs = [range(first[i], first[i + 1]) for i in range(gpus)]
    return tuple(Share(i, run, i == 0, i == gpus - 1) for i, run in enumerate(runs))


def share_of(stored: Stored, share: Share, *, head_with_embedding: bool) -> Stored:
    """The part of a stored inventory that one device holds. A tied head stays with the embedding if asked."""
    held: list[StoredGroup] = []
    for group in stored:
        if group.group.layers:
            layers = tuple(layer for layer in group.layers if layer in share.layers)
            if layers:
                held.append(group if len(layers) == len(group.layers) else replace(group, layers=layers))
        elif share.first if group.group.role == "embedding" and head_with_embedding else share.last:
            held.append(group)
    return tuple(held)
