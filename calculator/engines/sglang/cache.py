"""What sequences hold of SGLang's pools: slots in whole pages, windows, recurrent states, the indexer's keys, a draft's."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of, shares_of
from calculator.engines.sglang import draft, sparse
from calculator.engines.sglang.attention import page_of
from calculator.engines.sglang.pool import (
    CAP_SOURCE,
    MLA_SOURCE,
    POOL_SOURCE,
    cell_bytes,
    layers_of,
    row_bytes,
    window_bytes,
    window_tokens,
)
from calculator.engines.sglang.ranks import attention_groups
from calculator.engines.sglang.states import draft_state_line, state_line
from calculator.ledger import Formula, Line
from calculator.units import align_up, ceil_div


def cache_lines(job: Job) -> list[Line]:
    """Slots of the sequences, in whole pages."""
    slots = align_up(job.workload.context, page_of(job))
    count, mla = ceil_div(job.workload.sequences, attention_groups(job)), job.model.mla
    note = "the compressed row is on every rank" if mla and ranks_of(job) > 1 else ""
    if not mla and ranks_of(job) // attention_groups(job) > job.model.num_key_value_heads:
        note = "KV heads are held by several ranks each"
    lines = []
    for share in shares_of(job):
        full, near = layers_of(job, share)
        if fixed := window_bytes(job, share):
            capped = {"T": window_tokens(job) or 0, "R": row_bytes(job, near=True), "W": near}
            lines.append(Line("kv_cache", "window slots", fixed, Formula("{T} (tokens) × {R} (bytes a layer) × {W} (layers)", capped), CAP_SOURCE, device=share.device,
                              note="sized by max_running_requests, without a radix tree"))  # fmt: skip
            near = 0
        ratio = float(job.deployment.settings["swa_full_tokens_ratio"])
        if (states := state_line(job, share, count)) is not None:
            lines.append(states)
        if (states := draft_state_line(job, share, count)) is not None:
            lines.append(states)
        symbols = {"B": count, "S": slots, "R": row_bytes(job), "L": full, "W": near, "r": f"{ratio:g}", "C": cell_bytes(job, share)}
        template = "{B} × {S} (tokens) × {C} (bytes of {L} layers and {r} of {W} with a window)" if near else "{B} × {S} (tokens) × {R} (bytes a layer) × {L} (layers)"
        if keys := sparse.key_layers(job, share):
            symbols["C"] = row_bytes(job) * full
            own = {"B": count, "S": slots, "k": sparse.key_bytes(job), "L": keys}
            lines.append(Line("kv_cache", "indexer keys", count * slots * own["k"] * keys, Formula("{B} × {S} (tokens) × {k} (bytes) × {L} (layers)", own), sparse.KEYS_SOURCE,
                              device=share.device, note=note if keys == full else "the other layers take the choice of the one before"))  # fmt: skip
        lines.append(Line("kv_cache", "KV slots", count * slots * symbols["C"], Formula(template, symbols), sparse.SPARSE_SOURCE if job.model.indexer else MLA_SOURCE if mla else POOL_SOURCE, device=share.device, note=note))  # type: ignore[operator, arg-type]
    return lines + draft.cache_lines(job)
