"""Which module goes to which device: transformers' own version of accelerate's greedy map, on the sizes of modules.

A decoder is two modules, `model` (embedding, layers, last norm, rotary tables) and `lm_head`; a layer is never split.
The map goes through them in that order and through GPUs, host and disk in that order, and never back.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple

MAP_SOURCE = "transformers v5.23.0 integrations/accelerate.py L204-339 (limits), L644-952 (the map); accelerate 1.15.0 utils/modeling.py get_max_layer_size"
HOOK_SOURCE = "accelerate 1.15.0 hooks.py AlignDevicesHook: an offloaded module's own tensors are on the first GPU while its forward runs"

Device = int | Literal["cpu", "disk"]
AWAY: tuple[Device, ...] = ("cpu", "disk")
EMBEDDING, NORM, ROTARY, HEAD = "model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"
GPU_SHARE = CPU_SHARE = 0.9  # of what is free, where nobody sets max_memory: one GPU only; the host
QUANTIZER_SHARE = 0.9  # of every limit, with bitsandbytes, torchao and quanto


class Sizes(NamedTuple):
    """Modules of a decoder [bytes]; a tied head counts nothing."""

    embedding: int
    layers: tuple[int, ...]
    norm: int
    rotary: int
    head: int
    tied: bool

    @property
    def total(self) -> int:
        """The whole model [bytes]."""
        return self.embedding + sum(self.layers) + self.norm + self.rotary + self.head

    @property
    def largest(self) -> int:
        """The largest piece that is not split [bytes]."""
        return max(self.embedding, *self.layers, self.norm, self.rotary, self.head)


class Limits(NamedTuple):
    """What the map may put where [bytes]: GPUs by index, the host; None where it has no part in the map."""

    gpus: tuple[tuple[int, float], ...]
    cpu: float | None


class DeviceMap(NamedTuple):
    """Where each piece went."""

    embedding: Device
    layers: tuple[Device, ...]
    norm: Device
    rotary: Device
    head: Device

    @property
    def offloaded(self) -> bool:
        """Whether hooks bring modules to a GPU."""
        return any(not isinstance(device, int) for device in self.pieces)

    @property
    def pieces(self) -> tuple[Device, ...]:
        """Devices of embedding, layers, norm, rotary tables and head, in the model's order."""
        return (self.embedding, *self.layers, self.norm, self.rotary, self.head)

    def layers_on(self, device: Device) -> tuple[int, ...]:
        """Layers of one device."""
        return tuple(i for i, where in enumerate(self.layers) if where == device)


class _Module(NamedTuple):
    name: str
    nbytes: int
    children: tuple[_Module, ...] = ()


def balanced(sizes: Sizes, limits: Limits, *, given: bool, low_zero: bool = False) -> Limits:
    """Limits of `device_map` auto, balanced and balanced_low_0: the model over the GPUs, each with room for a quarter more than its largest piece.

    each GPU but the last: min(model // n + 1.25 x largest piece, limit);  one GPU: 0.9 of what is free, unless set

    Source: MAP_SOURCE.
    """
    having = [index for index, limit in limits.gpus if limit > 0]
    if not having:
        return limits
    most = dict(limits.gpus)
    if len(having) == 1:
        low_zero = False
        if not given:
            first = limits.gpus[0][0]
            most[first] *= GPU_SHARE
    per_gpu = sizes.total // (len(having) - 1 if low_zero else len(having)) + int(1.25 * sizes.largest)
    for index in having[:-1]:
        most[index] = min(most[0] if low_zero and index == 0 else per_gpu, most[index])
    if low_zero:
        most[0] = min(max(0, sizes.total - sum(most[i] for i in range(1, len(having)))), most[0])
    return Limits(tuple(most.items()), limits.cpu)


@lru_cache(maxsize=1024)
def place(sizes: Sizes, limits: Limits) -> DeviceMap:
    """The map. The first GPU and the host keep room for the largest piece that is still to come.            Source: MAP_SOURCE."""
    layers = tuple(_Module(f"model.layers.{i}", size) for i, size in enumerate(sizes.layers))
    body = (_Module(EMBEDDING, sizes.embedding), _Module("model.layers", sum(sizes.layers), layers), _Module(NORM, sizes.norm), _Module(ROTARY, sizes.rotary))
    todo = [_Module("model", sizes.total - sizes.head, body), _Module(HEAD, sizes.head)]
    devices: list[tuple[Device, float]] = list(limits.gpus)
    devices += [("cpu", limits.cpu)] if limits.cpu is not None else []
    devices.append(("disk", float("inf")))
    keeping = {limits.gpus[0][0] if limits.gpus else "cpu", "cpu"}
    went: dict[str, Device] = {}
    at, used = 0, 0
    largest, names = _largest(todo)
    while todo:
        module = todo.pop(0)
        names = [name for name in names if name != module.name and not name.startswith(module.name + ".")]
        if not names:
            largest, names = _largest(todo)
        device, limit = devices[at]
        reserved = largest if device in keeping else 0
        if used + module.nbytes <= limit - reserved:
            used += module.nbytes
            went[module.name] = device
            if sizes.tied and module.name in ("model", EMBEDDING):  # the head goes with what it is tied to
                went[HEAD] = device
                todo = [other for other in todo if other.name != HEAD]
        elif module.children:
            todo = [*module.children, *todo]
            largest, names = _largest(todo)
        else:
            at, used, todo = at + 1, 0, [module, *todo]
    return _by_piece(went, len(layers))


def _largest(modules: Iterable[_Module]) -> tuple[int, list[str]]:
    pieces = [piece for module in modules for piece in _pieces(module)]
    most = max((piece.nbytes for piece in pieces), default=0)
    return most, [piece.name for piece in pieces if piece.nbytes == most]


def _pieces(module: _Module) -> list[_Module]:
    return [piece for child in module.children for piece in _pieces(child)] if module.children else [module]


def _by_piece(went: dict[str, Device], layers: int) -> DeviceMap:
    def where(name: str) -> Device:
        while name not in went:
            name = name.rpartition(".")[0]
        return went[name]

    return DeviceMap(where(EMBEDDING), tuple(where(f"model.layers.{i}") for i in range(layers)), where(NORM), where(ROTARY), where(HEAD))
