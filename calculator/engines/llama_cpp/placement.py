"""Where llama.cpp puts layers, their weights and their cache: on which GPU, or on the host.

Source: llama.cpp @0c1e57098 src/llama-model.cpp load_tensors L1554 to L1614 (devices of layers), src/llama-model-loader.cpp
create_tensor L1116 (buffer of a tensor), common/common.h llm_ffn_exps_block_regex (--n-cpu-moe).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from calculator.engines.llama_cpp.buffers import HOST_ALIGNMENT, Context, cuda_tensor_bytes
from calculator.engines.llama_cpp.families import Moved
from calculator.engines.llama_cpp.overrides import file_name, has_post_norms, node_name, place_of
from calculator.formats import FORMATS, Format
from calculator.quantization import Stored, StoredGroup
from calculator.units import align_up

SOURCE = "llama.cpp src/llama-model.cpp load_tensors @0c1e57098; ggml-cuda.cu get_alloc_size"
INPUTS = frozenset({"embedding", "layer_embedding", "position"})  # LLM_TENSOR_LAYER_INPUT, src/llama-arch.cpp: always the host's
_FIRST_LAYER = ("per_layer_", "embeddings_layernorm", "token_embd_norm", "emb_ln", "embeddings.LayerNorm", "embeddings.norm")  # as a tensor of layer 0
Matrices = tuple[tuple[str, Format], ...]
NO_CUDA_KERNEL = frozenset({"TQ1_0", "TQ2_0"})  # ggml-cuda.cu ggml_backend_cuda_device_supports_op, MUL_MAT


def places_of_layers(layers: int, context: Context) -> Sequence[int]:
    """Index of the GPU of each layer, and of the output's last; the host's is the number of GPUs.

    The last n_gpu_layers of layers + output are on GPUs; of these the i-th of n is on the first GPU whose cumulated
    share exceeds i / n, in the float32 arithmetic of llama.cpp. In 2025 the last n layers without the output, which is
    on a GPU where n exceeds them: src/llama-model.cpp load_tensors, i_gpu_start and act_gpu_layers @4227c9be.
    """
    return _places(layers, context.split if context.cuda else (), context.n_gpu_layers, context.release.output_first)


@lru_cache(maxsize=1024)
def _places(layers: int, split: tuple[float, ...], n_gpu_layers: int, output_first: bool) -> tuple[int, ...]:
    host = len(split)
    wanted = layers + 1 if n_gpu_layers < 0 else min(n_gpu_layers, layers + 1)
    if not host or not wanted:
        return (host,) * (layers + 1)
    bounds, below = [], 0.0
    for share in split:
        below = _float32(below + _float32(share))
        bounds.append(below)
    bounds = [_float32(bound / below) for bound in bounds]
    on_gpus = tuple(bisect_right(bounds, _float32(i / wanted)) for i in range(wanted))
    if output_first or wanted > layers:
        return (host,) * (layers + 1 - wanted) + on_gpus
    return (host,) * (layers - wanted) + on_gpus + (host,)


def _float32(x: float) -> float:
    """The nearest single-precision number."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


class Placed(NamedTuple):
    """A stored inventory over a machine."""

    gpus: tuple[Stored, ...]
    embedding: Stored  # token_embd, always the host's
    layers: Stored  # layers, and the output, that are not on a GPU
    experts: Stored  # experts of layers that otherwise are on a GPU
    no_kernel: Stored  # matrices of a type that CUDA doesn't multiply
    overridden: Stored = ()  # what override_tensor puts on the host

    @property
    def host_read(self) -> Stored:
        """The host's weights that tokens read: all but the embedding."""
        return (*self.layers, *self.experts, *self.no_kernel, *self.overridden)


def place(stored: Stored, *, layers: int, tied: bool, context: Context) -> Placed:
    """Split a stored inventory. A tied embedding is held twice where the output is on a GPU."""
    if context.overrides:
        return _place_overridden(stored, layers, tied, context)
    places = places_of_layers(layers, context)
    host, output = context.gpus, places[layers]
    held: list[list[StoredGroup]] = [[] for _ in range(host + 1)]
    experts: list[StoredGroup] = []
    embedding = [g for g in stored if g.group.role in INPUTS]
    for group in stored:
        if group.group.role in INPUTS:
            if tied and output != host and group.group.role == "embedding":
                held[output].append(group)
        elif group.layers:
            by_place: dict[int, list[int]] = {}
            for layer in group.layers:
                moved = layer < context.n_cpu_moe and is_of_experts(group) and places[layer] != host
                by_place.setdefault(-1 if moved else places[layer], []).append(layer)
            for where, on in by_place.items():
                part = group if len(on) == len(group.layers) else replace(group, layers=tuple(on))
                (experts if where < 0 else held[where]).append(part)
        elif group.group.name.startswith("rope_"):  # one for the layers of each place
            for where in dict.fromkeys(places[:layers]):
                held[where].append(group)
        elif any(word in group.group.name for word in _FIRST_LAYER):
            held[places[0]].append(group)
        else:
            held[output].append(group)
    gpus, no_kernel = _with_kernel(held[:host])
    return Placed(gpus, tuple(embedding), tuple(held[host]), tuple(experts), no_kernel)


def _place_overridden(stored: Stored, layers: int, tied: bool, context: Context) -> Placed:
    """The same tensor by tensor, each by the first pattern that matches its name."""
    places = places_of_layers(layers, context)
    host, output, post_norms = context.gpus, places[layers], has_post_norms(stored)
    held: list[list[StoredGroup]] = [[] for _ in range(host + 1)]
    embedding: list[StoredGroup] = []
    experts: list[StoredGroup] = []
    overridden: list[StoredGroup] = []

    def put(group: StoredGroup, name: str, otherwise: int) -> None:
        where = place_of(name, context.overrides, otherwise)
        (overridden if where == host != otherwise else held[where]).append(group)

    for group in stored:
        name = file_name(group.group, post_norms=post_norms)
        if group.group.role == "embedding":
            where = place_of(name, context.overrides, host)
            (embedding if where == host else held[where]).append(group)
            if tied and (head := place_of(name, context.overrides, output)) != where:
                held[head].append(group)
        elif group.layers:
            by_place: dict[tuple[int, int], list[int]] = {}
            for layer in group.layers:
                moved = len(group.group.shape) == 3 and layer < context.n_cpu_moe
                where = place_of(file_name(group.group, layer, post_norms=post_norms), context.overrides, -1)
                kind = 2 if moved and where < 0 else 1 if where == host else 0
                place = where if where >= 0 else host if moved else places[layer]
                by_place.setdefault((kind if places[layer] != host else 0, place), []).append(layer)
            for (kind, place), on in by_place.items():
                (held[place], overridden, experts)[kind].append(replace(group, layers=tuple(on)))
        elif group.group.name.startswith("rope_"):
            for where in dict.fromkeys(place_of(name, context.overrides, place) for place in places[:layers]):
                held[where].append(group)
        else:
            put(group, name, output)
    gpus, no_kernel = _with_kernel(held[:host])
    return Placed(gpus, tuple(embedding), tuple(held[host]), tuple(experts), no_kernel, tuple(overridden))


def _with_kernel(held: Sequence[Sequence[StoredGroup]]) -> tuple[tuple[Stored, ...], Stored]:
    """What GPUs hold, and what of it stays on the host because CUDA doesn't multiply its type."""
    gpus = tuple(tuple(g for g in part if g.format not in NO_CUDA_KERNEL) for part in held)
    return gpus, tuple(g for part in held for g in part if g.format in NO_CUDA_KERNEL)


@lru_cache(maxsize=256)
def overridden(stored: Stored, layers: int, tied: bool, context: Context) -> tuple[tuple[Matrices, ...], Format, tuple[Moved, ...], Moved]:
    """Formats of what the host holds, and places, under override_tensor."""
    formats, output = formats_on_host(stored, layers, 0, 0)
    inner, outer = _moved(stored, layers, tied, context)
    homes, host = places_of_layers(layers, context), context.gpus
    held = tuple(tuple((name, fmt) for name, fmt in known if dict(moved).get(name, home) == host)
                 for known, moved, home in zip(formats, inner, homes, strict=False))  # fmt: skip
    return held, output, inner, outer


def _moved(stored: Stored, layers: int, tied: bool, context: Context) -> tuple[tuple[Moved, ...], Moved]:
    """By layer, and outside the layers: weights by their name in the graph that aren't where their layer is, and their place."""
    places, post_norms = places_of_layers(layers, context), has_post_norms(stored)
    inner: list[dict[str, int]] = [{} for _ in range(layers)]
    outer: dict[str, int] = {}

    def put(group: StoredGroup, layer: int, into: dict[str, int], otherwise: int, default: int, node: str = "") -> None:
        name = file_name(group.group, layer, post_norms=post_norms)
        where = place_of(name, context.overrides, default)
        if where != otherwise or len(group.group.shape) == 3:
            into[node or node_name(name)] = where

    for group in stored:
        for layer in group.layers:
            is_host = len(group.group.shape) == 3 and layer < context.n_cpu_moe
            put(group, layer, inner[layer], places[layer], context.gpus if is_host else places[layer])
        if group.group.name.startswith("rope_"):
            for layer in range(layers):
                put(group, 0, inner[layer], places[layer], places[layer])
        elif group.group.role == "embedding":
            put(group, 0, outer, context.gpus, context.gpus)
            if tied:
                put(group, 0, outer, places[layers], places[layers], "output")
        elif not group.layers:
            put(group, 0, outer, places[layers], places[layers])
    return tuple(tuple(sorted(m.items())) for m in inner), tuple(sorted(outer.items()))


def gpu_bytes(group: StoredGroup) -> int:
    """Bytes of a group in a GPU's model buffer, each tensor padded as CUDA pads it."""
    return cuda_tensor_bytes(group.tensor_nbytes, group.group.row_length, FORMATS[group.format]) * group.count


def host_bytes(group: StoredGroup) -> int:
    """Bytes of a group in the host's model buffer, each tensor aligned."""
    return align_up(group.tensor_nbytes, HOST_ALIGNMENT) * group.count


def is_of_experts(group: StoredGroup) -> bool:
    """Whether --n-cpu-moe keeps a tensor on the host: matrices and biases of the experts that are chosen among."""
    return ".experts." in group.group.name or "_exps." in group.group.name


def _graph_name(group: StoredGroup) -> str:
    """A matrix of a layer by its name in the graph; empty for others."""
    role, name = group.group.role, group.group.name
    if role in ("ffn_gate", "ffn_up", "ffn_down"):
        return role + ("_exps" if len(group.group.shape) == 3 else "_shexp" if "shared_" in name or "_shexp" in name else "")
    if role == "attn_kv_b":
        return "attn_v_b" if "v_b" in name else "attn_k_b"
    return {"attn_kv_a": "attn_kv_a_mqa"}.get(role, role) if role.startswith("attn_") else ""


@lru_cache(maxsize=1024)
def formats_on_host(stored: Stored, layers: int, n_gpu_layers: int, n_cpu_moe: int, *, output_first: bool = True) -> tuple[tuple[Matrices, ...], Format]:
    """Formats of the matrices of each layer that the host holds some of, () for other layers; and of the output.

    They matter where a GPU takes over a product: its compute buffer then holds a copy of the matrix.
    """
    first = 0 if n_gpu_layers < 0 else layers + output_first - n_gpu_layers
    outer = {g.group.role: FORMATS[g.format] for g in stored if not g.layers}
    found: list[dict[str, Format]] = [{} for _ in range(layers)]
    for group in stored:
        if name := _graph_name(group):
            for layer in group.layers:
                if layer < max(first, n_cpu_moe):
                    found[layer][name] = FORMATS[group.format]
    return tuple(tuple(sorted(f.items())) for f in found), outer.get("output") or outer["embedding"]
