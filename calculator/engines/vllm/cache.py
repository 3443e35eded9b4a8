"""Lines of the cache: blocks of the sequences, and what a token adds to them."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import kv_element_bytes, rank_of, ranks_of, sequences_on, shares_of
from calculator.engines.vllm import draft, speculative
from calculator.engines.vllm.blocks import (
    BLOCK_SOURCE,
    GROUPS_SOURCE,
    LATENT_SOURCE,
    block_bytes,
    block_of,
    blocks_for,
    groups_of,
    layers_of_block,
    rows_of,
)
from calculator.engines.vllm.by_layer import caching_layers
from calculator.engines.vllm.encoders import cache_line, makes_no_pool
from calculator.engines.vllm.hybrid import PREFIX_SOURCE, STATE_SOURCE, block_size, keeps_all, keeps_prefixes, states
from calculator.engines.vllm.latent import early_row
from calculator.engines.vllm.sparse import sparse_lines, token_bytes
from calculator.ledger import Formula, Line


def cache_lines(job: Job) -> list[Line]:
    """Blocks of the sequences."""
    if makes_no_pool(job):
        return [cache_line(job, share.device) for share in shares_of(job)]
    work, size, rank, groups = job.workload, block_size(job), rank_of(job), groups_of(job)
    blocks = blocks_for(job, work.context)
    if job.model.indexer:
        return [line for share in shares_of(job) for line in sparse_lines(job, share, sequences_on(job, share) * blocks * size)]
    symbols = {"n": blocks, "s": size, "K": rank.num_key_value_heads, "d": rank.head_dim, "e": kv_element_bytes(job)}
    row, source, notes = "2 × {K} × {d}", GROUPS_SOURCE if groups.windowed else BLOCK_SOURCE, []
    if early := early_row(job, rank):
        row, source = early.expression, early.source
        symbols |= early.symbols
    elif rank.mla:
        row, source = "({K} (compressed row) + {d} (rotary key))", LATENT_SOURCE
        symbols |= {"K": rank.mla.kv_lora_rank, "d": rank.mla.qk_rope_head_dim}
        if ranks_of(job) > 1:
            notes.append("every rank keeps the whole compressed row")
    elif ranks_of(job) > job.model.num_key_value_heads:
        notes.append("KV heads are held by several ranks each")
    if groups.windowed and groups.full:
        notes.append(f"{groups.full} group of layers keeps everything, {groups.windowed} keep {job.model.sliding_window:,} tokens and those of a step")
    if groups.recurrent:
        source = f"{source}; {STATE_SOURCE}; {PREFIX_SOURCE}" if keeps_prefixes(job) else f"{source}; {STATE_SOURCE}"
        kept = states(job, work.context)
        notes.append(f"{groups.full} of {groups.tables} groups of layers attend; in the others a sequence's state is a block" + (f", and with prefixes {kept}" if kept > 1 else ""))
    drafted = speculative.draft_block_bytes(job)
    return [
        Line("kv_cache", "KV blocks", sequences_on(job, share) * blocks * (block_of(job, share) - drafted),
             Formula("{B} × {n} (blocks) × {s} (tokens) × " + row + " × {e} × {L} (layers)", symbols | {"B": sequences_on(job, share), "L": layers_of_block(job, share)}),
             source, device=share.device, note="; ".join(notes if sequences_on(job, share) else [*notes, "no sequence is left for this copy"]))
        for share in shares_of(job)
    ] + draft.cache_lines(job, blocks)  # fmt: skip


def kv_bytes_per_token(job: Job) -> int:
    """Over all layers and ranks; beyond their window, windowed layers don't grow where they have groups of their own."""
    rank, model = rank_of(job), job.model
    if makes_no_pool(job):
        return 0
    if model.indexer:
        return sum(token_bytes(job, share) for share in shares_of(job))
    if early := early_row(job, rank):
        return early.elements * model.num_hidden_layers * kv_element_bytes(job) * ranks_of(job)
    full_row, row = rows_of(rank)
    if full_row != row:
        caching, full = caching_layers(model), sum(i < caching_layers(model) for i in model.full_indices)
        windowed = caching - full if job.workload.context <= (model.sliding_window or 0) else 0
        return (full * full_row + windowed * row) * kv_element_bytes(job) * ranks_of(job)
    grows = len(model.attention_layers)
    if groups_of(job).windowed and job.workload.context > (model.sliding_window or 0):
        grows = model.full_layers if groups_of(job).full else 0
    drafted = speculative.draft_block_bytes(job) // block_size(job)
    if model.recurrent and keeps_all(job):
        drafted += groups_of(job).recurrent * block_of(job, shares_of(job)[0]) // block_size(job)
    return (block_bytes(rank, grows, block_size=1, element_bytes=kv_element_bytes(job)) + drafted) * ranks_of(job)
