"""Blocks of the cache: groups of layers that share a block table, a block's bytes, and how many blocks a sequence takes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from calculator.engines.base import Job
from calculator.engines.ranks import kv_element_bytes, rank_of, row_elements, stages_of
from calculator.engines.releases import Release
from calculator.engines.vllm.by_layer import caching_layers
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of, version_of
from calculator.engines.vllm.hybrid import block_size, group_size, states
from calculator.engines.vllm.latent import early_row
from calculator.engines.vllm.second_runner import second_runner
from calculator.engines.vllm.sparse import token_bytes
from calculator.engines.vllm.speculative import draft_block_bytes, draft_layers, lookahead
from calculator.parallelism import Share
from calculator.spec import ModelSpec
from calculator.units import ceil_div

BLOCK_SOURCE = "vllm v0.19.0 v1/core/kv_cache_utils.py L802-820, get_num_blocks; v0.6.6 worker/worker.py L206-222"
LATENT_SOURCE = "vllm v0.19.0 v1/kv_cache_interface.py MLAAttentionSpec; v0.8.5 v1/attention/backends/mla/common.py get_kv_cache_shape"
IN_FLIGHT_SINCE: Release = (0, 26, 0)
GROUPS_SOURCE = "vllm v0.19.0 v1/core/kv_cache_utils.py, _get_kv_cache_groups_uniform_page_size; v1/kv_cache_interface.py SlidingWindowSpec; since v0.26.0 config/vllm.py L512-533 with a step more of tokens in flight"


class Groups(NamedTuple):
    """Groups of layers with a block table of their own; a block holds one layer of each place in a group."""

    full: int
    windowed: int
    size: int
    """Layers of a group; the last one of a kind is padded."""
    recurrent: int = 0

    @property
    def tables(self) -> int:
        """Block tables: one a group."""
        return self.full + self.windowed + self.recurrent


def groups_of(job: Job) -> Groups:
    """One group of all layers; since 0.9 one for every so many windowed layers as there are others.

    Gemma 3 27B: 62 layers, 10 of them full -> 1 group of 10 full layers, 6 of 10 windowed ones (8 places padded).
    Where all layers have the window they are one windowed group. Llama 4's chunks keep everything: their groups are off
    unless VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE is set.

    Source: GROUPS_SOURCE; v0.11.0 config/__init__.py L518-529; before 0.9, and in the V0 engine, windowed layers keep everything.
    """
    return _groups(job.model, version_of(job).hybrid, draft_layers(job) if job.model.recurrent else 0)


@lru_cache(maxsize=256)
def _groups(model: ModelSpec, hybrid: bool, drafting: int) -> Groups:
    if model.recurrent:
        full, recurrent, size = group_size(model, drafting)
        return Groups(full, 0, size, recurrent)
    caching = caching_layers(model)
    full = len([i for i in model.full_indices if i < caching])
    windowed = caching - full
    if hybrid and model.sliding_window and not model.full_every:
        return Groups(0, 1, caching)
    if not hybrid or not full or not windowed or model.model_type == "llama4_text":
        return Groups(1, 0, caching)
    size = min(full, windowed)
    return Groups(ceil_div(full, size), ceil_div(windowed, size), size)


def block_bytes(rank: ModelSpec, layers: int, *, block_size: int, element_bytes: int) -> int:
    """One block of all layers, or of one layer of each group, on one rank [bytes].

    bytes = 2 x block_size x K x d x e x L        K the rank's KV heads, L layers that a block holds
          = block_size x (c + r) x e x L          latent attention: a compressed row and a rotary key, whole on every rank

    Equals every printed pair of pool and tokens in the tests.                                        derived
    """
    return block_size * max(rows_of(rank)) * element_bytes * layers


def rows_of(rank: ModelSpec) -> tuple[int, int]:
    """Elements that a token adds to a layer that sees everything, and to one with a window: their heads may differ (Gemma 4).

    A group whose row is smaller has so many more tokens in a block of the same bytes.
    Source: vllm v0.19.0 v1/core/kv_cache_utils.py unify_kv_cache_spec_page_size.
    """
    own, row = rank.by_layer, row_elements(rank)
    if own is None or not own.full_head_dim:
        return row, row
    return 2 * (own.full_kv_heads or rank.num_key_value_heads) * own.full_head_dim, row


def layers_of_block(job: Job, share: Share) -> int:
    """Layers that a block of a GPU holds: its own, or the largest part that a group has on it."""
    groups = groups_of(job)
    if groups.tables == 1:
        return len(share.layers)
    if groups.recurrent:
        return groups.size - draft_layers(job)
    everything = job.model.full_indices
    kinds: tuple[list[int], list[int]] = ([], [])
    for layer in range(caching_layers(job.model)):
        kinds[layer not in everything].append(layer)
    members = [kind[i::count] for kind, count in zip(kinds, (groups.full, groups.windowed), strict=True) for i in range(count)]
    return max(sum(layer in share.layers for layer in group) for group in members)


def block_of(job: Job, share: Share) -> int:
    """One block of a GPU [bytes]; with sparse attention a row of each layer, and the indexer's key."""
    if job.model.indexer:
        return block_size(job) * token_bytes(job, share)
    rank = rank_of(job)
    if early := early_row(job, rank):
        return block_size(job) * len(share.layers) * early.elements * kv_element_bytes(job)
    own = block_bytes(rank, layers_of_block(job, share), block_size=block_size(job), element_bytes=kv_element_bytes(job))
    return own + draft_block_bytes(job)


def batches_in_flight(job: Job) -> int:
    """Batches whose tokens may be scheduled and not yet freed: since 0.26 those that are scheduled ahead count, one more than the stages.

    The first model runner schedules none ahead with stages, and pooling models never do.

    Source: vllm v0.26.0 config/vllm.py L512-533, L1059-1107; v0.25.1 v1/kv_cache_interface.py L547-566: one batch.
    """
    stages = stages_of(job)
    if HISTORY.covered(job.deployment.engine_version) < IN_FLIGHT_SINCE:
        return 1
    if job.deployment.settings["runner"] == "pooling":
        return stages
    return stages + 1 if second_runner(job) or stages == 1 else stages


def blocks_for(job: Job, context: int, length: int = 0) -> int:
    """Blocks of one sequence, over all groups; `length` where max_model_len isn't the job's.

    full group: ceil(S / block_size);  windowed group: ceil(min(W - 1 + n T, S) / block_size) + 1;  recurrent group: its states
    n: batches_in_flight, 1 until 0.25. A draft takes slots ahead: S + num_speculative_tokens, up to max_model_len.

    Source: vllm v0.11.0 v1/kv_cache_interface.py L83-91, L196-214: the window and the tokens of one step.
    """
    groups, size = groups_of(job), block_size(job)
    context = max(context, min(context + lookahead(job), length or length_of(job)))
    whole = ceil_div(context, size)
    if groups.recurrent:
        return groups.full * whole + groups.recurrent * states(job, context)
    if not groups.windowed:
        return whole
    full_row, row = rows_of(rank_of(job))
    largest = max(full_row, row)
    whole, size = ceil_div(context, size * largest // full_row), size * largest // row
    window = (job.model.sliding_window or 0) - 1 + batches_in_flight(job) * batch_limits(job, length or length_of(job))[0]
    return groups.full * whole + groups.windowed * (ceil_div(min(window, context), size) + 1)
