"""Gemma 4 in vLLM: layers that read another layer's cache, inputs by layer, values that are keys.

Source: vllm v0.19.0 model_executor/models/gemma4.py L287-363, L665-700, gemma4_mm.py L917-930; v0.33.0 gemma4.py L409-428.
"""

from __future__ import annotations

from dataclasses import replace

from calculator.engines.base import Job
from calculator.engines.ranks import element_bytes, ranks_of
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of
from calculator.errors import NotModelled
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import Stored, StoredGroup
from calculator.spec import ModelSpec
from calculator.steps import Buffer, Step

SOURCE = "vllm v0.19.0 model_executor/models/gemma4.py L287-300: qkv_proj of every layer; gemma4_mm.py L917-930: per_layer_embeddings"
QUERIES_ALONE_SINCE = (0, 33, 0)  # read there; in 0.19 layers with a shared cache make keys and values too
MADE_UNTIL = (0, 20, 0)  # between the two it isn't known: a band


def caching_layers(model: ModelSpec) -> int:
    """Layers with a cache of their own: all before those that read another's.

    Source: vllm v0.19.0 v1/worker/gpu_model_runner.py L6905-6925: a layer that shares has no spec; docs.lmcache.ai/recipes/gemma4.html.
    """
    return model.num_hidden_layers - (model.by_layer.kv_shared_layers if model.by_layer else 0)


def check_by_layer(job: Job) -> None:
    """Refuse what isn't known of layers that differ."""
    own, what = job.model.by_layer, f"vllm with {job.model.id}"
    if own is None or not (own.input_width or own.kv_shared_layers):
        return
    if own.altup_inputs:
        raise NotModelled(f"{what}: the pass of AltUp's streams has no formula yet", hint="--engine transformers or llama.cpp")
    if job.deployment.gpus > 1:
        raise NotModelled(f"{what} on several GPUs: how its inputs by layer are divided has no formula yet", hint="one GPU, or --engine llama.cpp")


def held_by_layer(job: Job, stored: Stored) -> Stored:
    """Without the keys and values of layers that share a cache, where the release makes none, or isn't known to."""
    model = job.model
    own = model.by_layer
    if own is None or not own.kv_shared_layers or HISTORY.covered(job.deployment.engine_version) < MADE_UNTIL:
        return stored
    own_layers = caching_layers(model)
    held: list[StoredGroup] = []
    for group in stored:
        if _of_keys(group):
            group = replace(group, layers=tuple(i for i in group.layers if i < own_layers))
        if group.layers or not group.group.layers:
            held.append(group)
    return tuple(held)


def lines_by_layer(job: Job, share: Share, stored: Stored) -> list[Line]:
    """What is held beside the checkpoint's tensors (`stored`, whole): values of keys, and the inputs by layer of one batch.

    values = L_full x K x d x h x e        of layers whose values are keys: both parts of the fused matrix are loaded
    inputs = T x L x w x e                 T max_num_batched_tokens, w the inputs' width                       derived
    """
    model, size, release = job.model, element_bytes(job), HISTORY.covered(job.deployment.engine_version)
    own = model.by_layer
    lines: list[Line] = []
    if own is None:
        return lines
    if own.values_are_keys and model.full_every:
        layers = [i for i in share.layers if i in model.full_indices and i < caching_layers(model)]
        heads = max(1, (own.full_kv_heads or model.num_key_value_heads) // ranks_of(job))
        if layers:
            symbols = {"L": len(layers), "K": heads, "d": own.full_head_dim, "h": model.hidden_size, "e": size}
            lines.append(Line("weights", "values that are keys", len(layers) * heads * own.full_head_dim * model.hidden_size * size,
                              Formula("{L} (layers) × {K} × {d} × {h} × {e}", symbols), SOURCE, device=share.device, note="the fused matrix has room for both"))  # fmt: skip
    if own.input_width and share.first:
        tokens, n = batch_limits(job, length_of(job))[0], model.num_hidden_layers
        symbols = {"T": tokens, "L": n, "w": own.input_width, "e": size}
        lines.append(Line("weights", "inputs by layer", tokens * n * own.input_width * size, Formula("{T} (tokens) × {L} (layers) × {w} × {e}", symbols), SOURCE,
                          device=share.device, note="a buffer for one batch"))  # fmt: skip
    if own.kv_shared_layers and MADE_UNTIL <= release < QUERIES_ALONE_SINCE:
        shared = {i for i in share.layers if i >= caching_layers(model)}
        made = sum(g.tensor_nbytes * len(shared & set(g.layers)) for g in stored if _of_keys(g))
        lines.append(Line("weights", "keys and values of layers that share a cache", made, Formula("{n}", {"n": made}), SOURCE, basis="modelled", low=0, high=made,
                          device=share.device, note="made until 0.19, not in 0.33: when they were left out isn't known"))  # fmt: skip
    return lines


def inputs_step(rank: ModelSpec, *, tokens: int, element_bytes: int, hidden_copies: int, workspace: Buffer) -> Step | None:
    """The inputs by layer as they are made: projected, normed and added to the table's."""
    own = rank.by_layer
    if own is None or not own.input_width:
        return None
    each = element_bytes * tokens * rank.num_hidden_layers * own.input_width
    return Step("inputs by layer", (
        Buffer("inputs by layer: projected, normed, added", 3 * each, "3 × {e} × {T} × {L} × {i}"),
        Buffer("hidden states", hidden_copies * element_bytes * tokens * rank.hidden_size, "{c} × {e} × {T} × {h}"),
        workspace,
    ))  # fmt: skip


def inputs_kept(rank: ModelSpec, *, tokens: int, element_bytes: int) -> list[Buffer]:
    """The inputs by layer, which live as long as the layers run."""
    own = rank.by_layer
    if own is None or not own.input_width:
        return []
    return [Buffer("inputs by layer", element_bytes * tokens * rank.num_hidden_layers * own.input_width, "{e} × {T} × {L} × {i}")]


def _of_keys(group: StoredGroup) -> bool:
    return group.group.role in ("attn_k", "attn_v") or "k_norm" in group.group.name

