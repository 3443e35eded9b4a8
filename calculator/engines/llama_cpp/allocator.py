"""ggml's graph allocator: where in the compute buffer each tensor of a graph goes, and how large that buffer gets.

Inputs and constants come first, then each node in turn: its memory is taken from the smallest free block that holds
it, or from the end; an element-wise node takes over the memory of a source that nobody else needs; what has no
readers left is freed. What the buffer holds at its largest moment, plus the holes between, is its size.

Source: llama.cpp @0c1e57098 ggml/src/ggml-alloc.c: ggml_op_can_inplace L23, ggml_dyn_tallocr_alloc L209,
ggml_dyn_tallocr_free_bytes L313, ggml_gallocr_allocate_node L619, ggml_gallocr_alloc_graph_impl L711. One chunk a
buffer: CPU and CUDA set no maximum (get_max_size).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from calculator.engines.llama_cpp.graph import Shape, Tensor
from calculator.formats import Format

_ENDLESS = 2**62
# results that may take over a source's memory
IN_PLACE = frozenset({"add", "mul", "div", "sub", "scale", "unary", "rope", "rms_norm", "clamp", "soft_max", "add_id", "sqr", "fill"})


class Place(NamedTuple):
    """A buffer type: alignment [bytes], and whether CUDA's rules for tensor sizes hold."""

    name: str
    alignment: int
    cuda: bool


class Live(NamedTuple):
    """A tensor in the compute buffer [elements, bytes]."""

    name: str
    ne: Shape
    fmt: Format
    nbytes: int


class Arena:
    """One compute buffer: its free blocks by address, and the log of what was placed when."""

    __slots__ = ("alignment", "cuda", "free_at", "free_size", "log", "nbytes", "peak_node", "peak_time", "place", "time",
                 "trail")  # fmt: skip

    def __init__(self, place: Place) -> None:
        """An empty buffer with one endless free block."""
        self.place, self.alignment, self.cuda = place, place.alignment, place.cuda
        self.free_at, self.free_size = [0], [_ENDLESS]
        self.nbytes = self.time = self.peak_time = 0
        self.peak_node = ""
        self.log: list[tuple[int, Tensor, int]] = []  # time; tensor; bytes taken, or -1 where it ended
        self.trail: list[int] = []  # the outcome of every comparison of sizes

    def sized(self, t: Tensor) -> int:
        """Bytes that a tensor takes here."""
        size = t.nbytes + (t.scratch if self.cuda else 0)
        return -(-size // self.alignment) * self.alignment

    def take(self, t: Tensor, moment: str) -> None:
        """Place a tensor in the best fitting free block; of equals the last, and the endless one only if no other fits."""
        size, sizes = self.sized(t), self.free_size
        best, last, fitting = -1, len(sizes) - 1, 0
        smallest = _ENDLESS
        for i in range(last):
            if size <= sizes[i]:
                fitting |= 1 << i
                if sizes[i] <= smallest:
                    best, smallest = i, sizes[i]
        if best < 0:
            best = last
        at = self.free_at[best]
        t.offset = at
        self.trail += (fitting, best, sizes[best] == size, at + size > self.nbytes)
        if sizes[best] == size:
            del sizes[best], self.free_at[best]
        else:
            sizes[best] -= size
            self.free_at[best] = at + size
        self.time += 1
        self.log.append((self.time, t, size))
        if at + size > self.nbytes:
            self.nbytes, self.peak_time, self.peak_node = at + size, self.time, moment

    def give(self, at: int, size: int) -> None:
        """Return bytes, merged with the free blocks beside them."""
        if not size:
            return
        starts, sizes = self.free_at, self.free_size
        i = 0
        while starts[i] < at:
            i += 1
        after, before = starts[i] == at + size, i > 0 and starts[i - 1] + sizes[i - 1] == at
        self.trail += (i, after, before)
        if after and before:
            sizes[i - 1] += size + sizes[i]
            del starts[i], sizes[i]
        elif after:
            starts[i], sizes[i] = at, sizes[i] + size
        elif before:
            sizes[i - 1] += size
        else:
            starts.insert(i, at)
            sizes.insert(i, size)

    def drop(self, t: Tensor) -> None:
        """Free a tensor."""
        t.owned = False
        self.log.append((self.time, t, -1))
        self.give(t.offset, self.sized(t))

    def pass_on(self, parent: Tensor, t: Tensor) -> None:
        """A node takes over its source's memory; what it doesn't need is freed."""
        parent.owned = False
        t.offset, t.place = parent.offset, parent.place
        self.time += 1
        had, needs = self.sized(parent), self.sized(t)
        self.log += [(self.time, parent, -1), (self.time, t, needs)]
        self.give(t.offset + needs, had - needs)

    def at_peak(self) -> list[Live]:
        """What lived when the buffer reached its size, largest first."""
        alive: dict[int, tuple[Tensor, int]] = {}
        for time, t, size in self.log:
            if time > self.peak_time:
                break
            if size >= 0:
                alive[id(t)] = (t, size)
            elif time < self.peak_time:
                del alive[id(t)]
        found = [Live(t.name, t.ne, t.fmt, size) for t, size in alive.values()]
        return sorted(found, key=lambda live: -live.nbytes)

    def state(self) -> tuple[object, ...]:
        """All that a later allocation depends on."""
        return (tuple(self.free_at), tuple(self.free_size), self.nbytes)


class Allocation(NamedTuple):
    """The compute buffers, and their states where a layer ended."""

    arenas: list[Arena]
    boundaries: list[object]
    copies: int = 0  # with pipelining: inputs and copies, four of each, held from the start


def allocate(nodes: Sequence[Tensor], leafs: Sequence[Tensor], places: Sequence[Place]) -> Allocation:
    """Walk the graph as ggml does; `backend` of every tensor is the index of its place."""
    arenas = [Arena(place) for place in places]
    boundaries: list[object] = []
    for leaf in leafs:
        _place(leaf, arenas, leaf, "inputs")
    for node in nodes:
        if node.view_of is not None and node.op != "none":
            node.view_of.views += 1
        for s in node.src:
            s.children += 1
    for node in nodes:
        for s in node.src:
            if not s.owned:
                _place(s, arenas, node)
        _place(node, arenas, node)
        for s in node.src:
            s.children -= 1
            if s.children or s.views:
                continue
            root = s.view_of
            if root is None:
                if s.owned and not s.is_output:
                    arenas[s.place].drop(s)
            else:
                root.views -= 1
                if not root.views and not root.children and root.owned and not root.is_output:
                    arenas[root.place].drop(root)
        if node.ends_layer:
            boundaries.append((node.place, node.offset, *(arena.state() for arena in arenas)))
    return Allocation(arenas, boundaries)


def _place(t: Tensor, arenas: list[Arena], node: Tensor, moment: str = "") -> None:
    """Give a tensor its memory, unless it has some. A view never passes its memory on: it doesn't own any."""
    if t.owned or t.home >= 0 or t.view_of is not None:
        return
    t.owned = True
    if t.op in IN_PLACE:
        for s in t.src:
            if (s.owned and s.children == 1 and not s.views and not s.is_output and s.fmt is t.fmt
                    and s.ne == t.ne and s.nb == t.nb):  # fmt: skip
                arenas[s.place].pass_on(s, t)
                return
    t.place = node.backend
    arenas[t.place].take(t, moment or node.name)
