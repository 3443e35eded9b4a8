"""ggml's compute graph, as far as memory depends on it: tensors with shapes, strides, sources and views.

A tensor that is a view, or that lives in a model or cache buffer, takes nothing of the compute buffer. Nodes are
listed in the order in which ggml would compute them: sources before the tensor, left to right.

Source: llama.cpp @0c1e57098 ggml/src/ggml.c: ggml_new_tensor_impl L1766, ggml_visit_parents_graph L7245,
ggml_build_forward_impl L7313.
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.formats import FORMATS, Format

Shape = tuple[int, int, int, int]

F32, F16 = FORMATS["F32"], FORMATS["F16"]
I32, I64 = Format("I32", 1, 4), Format("I64", 1, 8)


class Tensor:
    """A node or a leaf of the graph: `ne` elements and `nb` strides [bytes] of four dimensions."""

    __slots__ = (
        "adapters", "backend", "children", "copies", "ends_layer", "fmt", "home", "is_input", "is_output", "name", "nb", "nbytes",
        "ne", "offset", "op", "owned", "pinned", "place", "scratch", "seen", "src", "view_of", "views", "weight",
    )  # fmt: skip

    def __init__(self, name: str, op: str, fmt: Format, ne: Shape, nb: Shape, src: tuple[Tensor, ...] = (),
                 view_of: Tensor | None = None) -> None:  # fmt: skip
        """A new tensor; its memory, where it has any, is the compute buffer's until `home` says otherwise."""
        self.name, self.op, self.fmt, self.ne, self.nb, self.src = name, op, fmt, ne, nb, src
        self.view_of = view_of
        self.nbytes = 0  # of a tensor that isn't a view
        self.scratch = 0  # bytes that CUDA adds behind the tensor
        self.home = -1  # backend whose model or cache buffer holds it
        self.weight = self.is_input = self.is_output = self.seen = self.ends_layer = False
        self.pinned = -1  # backend that the model's code asks for
        self.backend = -1  # assigned by the scheduler
        self.copies: dict[int, Tensor] = {}
        self.adapters: tuple[tuple[Tensor, Tensor], ...] = ()  # A and B of LoRA adapters of a weight
        self.children = self.views = 0
        self.owned = False  # holds memory of the compute buffer now
        self.place = self.offset = -1


def contiguous(ne: Shape, fmt: Format) -> Shape:
    """Strides of a contiguous tensor [bytes]."""
    row = fmt.block_bytes * (ne[0] // fmt.block_elements)
    return (fmt.block_bytes, row, row * ne[1], row * ne[1] * ne[2])


class Graph:
    """Tensors in the order of their computation, and the constants and inputs that they read."""

    def __init__(self) -> None:
        """An empty graph."""
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []

    def new(self, name: str, op: str, ne: Sequence[int], *src: Tensor, fmt: Format = F32) -> Tensor:
        """A contiguous tensor computed from its sources."""
        a, b, c, d = *ne, *(1,) * (4 - len(ne))
        row = fmt.block_bytes * (a // fmt.block_elements)
        t = Tensor(name, op, fmt, (a, b, c, d), (fmt.block_bytes, row, row * b, row * b * c), src)
        t.nbytes = row * b * c * d
        return t

    def like(self, name: str, op: str, a: Tensor, *src: Tensor) -> Tensor:
        """A contiguous tensor of `a`'s shape, computed from `a` and further sources."""
        return self.new(name, op, a.ne, a, *src, fmt=a.fmt)

    def input(self, name: str, fmt: Format, *ne: int) -> Tensor:
        """A tensor that the caller fills before each pass."""
        t = self.new(name, "none", ne, fmt=fmt)
        t.is_input = True
        return t

    def resident(self, name: str, fmt: Format, home: int, *ne: int, weight: bool = True) -> Tensor:
        """A tensor of the model's, or the cache's, own buffer on a backend."""
        t = self.new(name, "none", ne, fmt=fmt)
        t.home, t.weight = home, weight
        return t

    def view(self, a: Tensor, ne: Shape, nb: Shape, op: str = "view") -> Tensor:
        """Other dimensions over the memory of `a`. A view of a view is a view of its root."""
        t = Tensor(a.name, op, a.fmt, ne, nb, (a,), a.view_of or a)
        t.home = a.home
        return t

    def reshape(self, a: Tensor, *ne: int) -> Tensor:
        """A contiguous tensor's elements in another shape."""
        whole: Shape = (*ne, *(1,) * (4 - len(ne)))  # type: ignore[assignment]
        return self.view(a, whole, contiguous(whole, a.fmt), "reshape")

    def swap(self, a: Tensor, i: int, j: int, op: str = "permute") -> Tensor:
        """Dimensions i and j exchanged."""
        order = [0, 1, 2, 3]
        order[i], order[j] = j, i
        p, q, r, s = order
        ne, nb = a.ne, a.nb
        return self.view(a, (ne[p], ne[q], ne[r], ne[s]), (nb[p], nb[q], nb[r], nb[s]), op)

    def mul_mat(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a^T b, in float32; for each adapter of a weight its product is scaled and added."""
        t = self.new(name, "mul_mat", (a.ne[1], *b.ne[1:]), a, b)
        for down, up in a.adapters:
            t = self.like(name, "add", t, self.like("lora", "scale", self.mul_mat("lora_b", up, self.mul_mat("lora_a", down, b))))
        return t

    def get_rows(self, name: str, a: Tensor, rows: Tensor) -> Tensor:
        """Rows of `a`, in float32."""
        return self.new(name, "get_rows", (a.ne[0], *rows.ne[:3]), a, rows)

    def set_rows(self, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
        """Write rows of `b` into `a`: a view of `a`."""
        t = self.view(a, a.ne, a.nb, "set_rows")
        t.src = (b, rows, a)
        return t

    def copy_into(self, a: Tensor, b: Tensor) -> Tensor:
        """Copy `b` into the beginning of `a`: a view of `a`."""
        whole = self.view(a, b.ne, b.nb)
        t = self.view(whole, b.ne, b.nb, "cpy")
        t.src = (b, whole)
        return t

    def expand(self, t: Tensor) -> None:
        """List a tensor and everything before it that isn't listed yet."""
        t.seen = True
        for s in t.src:
            if not s.seen:
                self.expand(s)
        (self.leafs if t.op == "none" else self.nodes).append(t)

    def forward(self, t: Tensor) -> None:
        """Compute `t` at this point."""
        if not t.seen:
            self.expand(t)
