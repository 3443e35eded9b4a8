"""Weights that stay in host memory: `cpu_offload_gb` moves parameters there as the layers are made, until it is reached.

The GPU reads them where they are (unified addressing), so no pass needs room for a copy. Source: SOURCE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

from calculator.engines.base import Job
from calculator.engines.vllm.deployment import HISTORY, version_of
from calculator.errors import NotModelled
from calculator.parallelism import Share
from calculator.quantization.stored import Stored, StoredGroup
from calculator.units import GIB

SOURCE = "vllm v0.8.5 model_executor/models/utils.py L523-585, v0.19.0 model_executor/offloader/uva.py L43-116"
SINCE = (0, 8, 5)  # the first source read whose V1 engine offloads
REPACKED_SINCE = (0, 17, 0)  # model_loader/utils.py L134-168: what repacking makes goes back to the host; before, it stays on the GPU
_FUSED = {"attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "ffn_gate": "gate and up", "ffn_up": "gate and up"}


def budget_of(job: Job) -> int:
    """Bytes of each GPU's weights that may stay in host memory."""
    return int(float(job.deployment.settings["cpu_offload_gb"]) * GIB)


def check_offload(job: Job) -> None:
    """Refuse what copies layers to the GPU on each pass, and what loses them in repacking."""
    if not budget_of(job):
        return
    release, what = HISTORY.covered(job.deployment.engine_version), f"cpu_offload_gb in vllm {job.deployment.engine_version}"
    if release < SINCE or not version_of(job).v1:
        raise NotModelled(f"{what}: its V0 engine copies layers to the GPU on each pass", hint="--engine-version 0.8.5 or later")
    if job.scheme.storage is not None and release < REPACKED_SINCE:
        raise NotModelled(f"{what} of quantized weights, which repacking brings back to the GPU", hint="--engine-version 0.17 or later, or --quant bf16")
    if job.deployment.settings["enable_lora"] or job.model.vision_parameters or job.model.recurrent:
        raise NotModelled(f"{what} with LoRA, a vision tower or recurrent layers: in which order they are made hasn't been read", hint="leaving cpu_offload_gb out")


def offloaded(held: Stored, layers: range, budget: int) -> Stored:
    """The same tensors, those of the first layers on the host until they are `budget` bytes or, with the last of them, more."""
    away: dict[str, list[int]] = {}
    taken = 0
    for layer, fused in _parameters(held, layers):
        if taken >= budget:
            break
        for group in fused:
            away.setdefault(group.group.name, []).append(layer)
            taken += group.tensor_nbytes
    split = []
    for group in held:
        there = tuple(away.get(group.group.name, ())) if group.layers else ()
        here = tuple(layer for layer in group.layers if layer not in there)
        if there:
            split.append(replace(group, layers=there, on_host=True))
        if here or not group.layers:
            split.append(replace(group, layers=here))
    return tuple(split)


def left_on_gpu(held: Stored, share: Share) -> Share:
    """The share without the layers that are wholly on the host: the allocator keeps nothing of them."""
    here = [layer for group in held if not group.on_host for layer in group.layers]
    return share._replace(layers=range(min(here, default=share.layers.stop), share.layers.stop))


def _parameters(held: Stored, layers: range) -> Iterator[tuple[int, tuple[StoredGroup, ...]]]:
    """Every layer's parameters in their order, fused ones as one."""
    for layer in layers:
        own = [group for group in held if layer in group.layers]
        for _, fused in groupby(own, lambda g: (_FUSED.get(g.group.role, g.group.name), len(g.group.shape))):
            yield layer, tuple(fused)
