"""ggml's scheduler: which backend computes each node, and what is copied to it.

Weights and cache stay where they are and draw the operations that read them; inputs are the host's; what lies between
follows its neighbours. Where the backend changes a new split starts, and the tensors it reads from elsewhere are copied
into its compute buffer.

Source: llama.cpp @0c1e57098 ggml/src/ggml-backend.cpp ggml_backend_sched_split_graph L1064 (passes 1 to 6);
ggml_backend_sched_backend_id_from_cur L899; CUDA's rules ggml-cuda.cu supports_op L5149, offload_op L5651,
fattn.cu ggml_cuda_get_best_fattn_kernel L541.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.llama_cpp.allocator import Allocation, Place, allocate
from calculator.engines.llama_cpp.graph import Graph, Tensor

MAX_COPIES = 4  # GGML_SCHED_MAX_COPIES
OFFLOAD_MIN_BATCH = 32  # rows from which CUDA takes over an operation whose weight is on the host
_VIEWS = frozenset({"view", "reshape", "permute", "transpose"})
_FLASH_HEADS = frozenset({40, 64, 72, 80, 96, 112, 128, 256})
_GROUPED_HEADS = {192: (128, 8), 320: (256, 32), 512: (512, 1), 576: (512, 1)}  # width of keys: of values, and what the group is a multiple of
_FLASH_TYPES = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})
_ROW_PADDING = 512  # MATRIX_ROW_PADDING, elements


class Machine(NamedTuple):
    """The backends in ggml's order, the CPU last; `places` are the types of their compute buffers."""

    places: tuple[Place, ...]
    op_offload: bool = True
    pipeline: bool = False

    @property
    def host(self) -> int:
        """Index of the CPU."""
        return len(self.places) - 1


def schedule(graph: Graph, machine: Machine) -> Allocation:
    """Split the graph over the backends and allocate it."""
    if machine.host == 0:
        for t in graph.leafs + graph.nodes:
            t.backend = 0
        return allocate(graph.nodes, graph.leafs, machine.places)
    _assign(graph, machine)
    nodes, copied = _split(graph, machine)
    if not machine.pipeline:
        return allocate(nodes, graph.leafs, machine.places)
    held = _pipelined(graph, copied)
    return allocate(nodes, held + graph.leafs, machine.places)._replace(copies=len(held))


def _assign(graph: Graph, machine: Machine) -> None:
    """Passes 1 to 4: a backend for each tensor."""
    host, nodes = machine.host, graph.nodes
    for t in graph.leafs + nodes:
        t.backend = t.pinned if t.pinned >= 0 else _from_sources(t, machine)
    computed = [t for t in nodes if t.op not in _VIEWS]
    for skip in (host, -1):  # first GPUs spread, then every backend: down, then up
        for order in (computed, computed[::-1]):
            current = -1
            for t in order:
                if t.backend >= 0:
                    current = -1 if t.backend == skip else t.backend
                elif current >= 0 and _supports(t, current, host):
                    t.backend = current
    for t in computed:
        if t.backend < 0:
            able = [b for b in range(host + 1) if _supports(t, b, host)]
            t.backend = max(able, key=lambda b: sum(_at(s) == b for s in t.src))
    for t in nodes:
        if t.backend < 0:
            t.backend = t.view_of.backend if t.view_of is not None else host
        for s in t.src:
            if s.backend < 0:
                s.backend = s.view_of.backend if s.view_of is not None else t.backend


def _from_sources(t: Tensor, machine: Machine) -> int:
    """Pass 1: by the memory that a tensor, or a weight that it reads, already has."""
    host = machine.host
    if t.home >= 0:
        return t.home
    if t.is_input:
        return host
    if t.op not in ("rope", "flash_attn"):
        for s in t.src:
            if s.weight:
                if machine.op_offload and s.home == host and _batch(t) >= OFFLOAD_MIN_BATCH:
                    return next((b for b in range(host) if _supports(t, b, host)), host)
                return s.home
    return -1


def _batch(t: Tensor) -> int:
    """Rows that CUDA counts to decide on an offload."""
    if t.op == "get_rows":
        return 0
    if t.op == "mul_mat":
        return t.ne[1]
    if t.op in ("mul_mat_id", "rope"):
        return t.ne[2]
    return t.ne[1] * t.ne[2] * t.ne[3]


def _supports(t: Tensor, backend: int, host: int) -> bool:
    """Whether a backend computes this node: the CPU does all; a GPU reads no other GPU's buffers."""
    if backend == host:
        return True
    for s in t.src:
        if s.home != backend and 0 <= s.home < host and s.view_of is None:
            return False
    return t.op != "flash_attn" or flash_attention_on_cuda(*t.src[:3])


def flash_attention_on_cuda(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether CUDA has a kernel for these head sizes and types; wide heads need grouped queries."""
    if k.fmt.name not in _FLASH_TYPES or v.fmt.name not in _FLASH_TYPES:
        return False
    if k.ne[0] in _GROUPED_HEADS:
        values, group = _GROUPED_HEADS[k.ne[0]]
        grouped = q.ne[2] // k.ne[2]
        return v.ne[0] == values and grouped >= 2 and grouped % group == 0 and k.ne[1] % 256 == 0
    return k.ne[0] in _FLASH_HEADS and v.ne[0] == k.ne[0]


def _at(t: Tensor) -> int:
    """Backend whose memory holds a tensor."""
    if t.home >= 0:
        return t.home
    return t.backend if t.backend >= 0 or t.view_of is None else t.view_of.backend


def _split(graph: Graph, machine: Machine) -> tuple[list[Tensor], list[Tensor]]:
    """Pass 5: the nodes of all splits, with the copies that each split starts with; and what was copied where."""
    nodes: list[Tensor] = []
    copied: list[Tensor] = []
    split: list[Tensor] = []
    inputs: list[tuple[Tensor, Tensor]] = []
    current = next(t.backend for t in graph.nodes if t.op not in _VIEWS)

    def close() -> None:
        for source, copy in inputs:
            dependency = Tensor(source.name, "none", source.fmt, source.ne, source.nb, (source,), source.view_of or source)
            dependency.backend = source.backend
            nodes.extend((dependency, copy))
        nodes.extend(split)
        split.clear()
        inputs.clear()

    for t in graph.nodes:
        if t.op not in _VIEWS:
            if t.backend != current or (inputs and any(s.weight and _at(s) != current for s in t.src)):
                close()
                current = t.backend
            for i, s in enumerate(t.src):
                if s.backend != current and _at(s) != current:
                    if current not in s.copies:
                        s.copies[current] = _copy(s, current, machine)
                        inputs.append((s, s.copies[current]))
                        copied.append(s.copies[current])
                    t.src = (*t.src[:i], s.copies[current], *t.src[i + 1 :])
        split.append(t)
    close()
    return nodes, copied


def _copy(s: Tensor, backend: int, machine: Machine) -> Tensor:
    """A tensor of the same layout on another backend; CUDA pads quantized rows. Of a view, all that its strides span."""
    copy = Tensor(f"{s.name} on {machine.places[backend].name}", "none", s.fmt, s.ne, s.nb)
    block, (a, b, c, d) = s.fmt.block_elements, s.ne
    copy.nbytes = s.nb[0] * (a // block) if block > 1 else s.fmt.block_bytes + (a - 1) * s.nb[0]
    copy.nbytes += (b - 1) * s.nb[1] + (c - 1) * s.nb[2] + (d - 1) * s.nb[3]
    if block > 1 and a % _ROW_PADDING:
        copy.scratch = s.fmt.nbytes(_ROW_PADDING - a % _ROW_PADDING)
    copy.backend = backend
    copy.is_output = machine.pipeline
    return copy


def _pipelined(graph: Graph, copied: list[Tensor]) -> list[Tensor]:
    """Pass 6: with pipeline parallelism every input and every copy exists four times, and none is ever freed."""
    leafs: list[Tensor] = []
    for leaf in [t for t in graph.leafs if t.is_input] + copied:
        for i in range(MAX_COPIES):
            again = leaf
            if i:
                again = Tensor(f"{leaf.name} #{i}", "none", leaf.fmt, leaf.ne, leaf.nb)
                again.nbytes, again.scratch, again.backend = leaf.nbytes, leaf.scratch, leaf.backend
            again.is_output = True
            leafs.append(again)
    return leafs
