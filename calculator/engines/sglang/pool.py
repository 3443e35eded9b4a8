"""The pool of token slots that the static fraction leaves, and the table of requests beside it."""

from __future__ import annotations

from collections.abc import Callable

from calculator.engines.base import Job, Pool
from calculator.engines.ranks import kv_element_bytes, shares_of
from calculator.engines.sglang import sparse
from calculator.engines.sglang.attention import backend_of, page_of
from calculator.engines.sglang.defaults import chunk_of, sees_images, static_fraction
from calculator.engines.sglang.deployment import HISTORY, card_mib, context_length, version_of
from calculator.engines.sglang.families import full_layer, windowed
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.engines.sglang.rocm import partial_results
from calculator.engines.sglang.speculative import (
    draft_cell,
    draft_layers,
    method_of,
    passing_bytes,
    plan_of,
    pooled,
    requests_set,
    spare_tokens,
)
from calculator.engines.sglang.states import draft_states, slot_bytes, slots_a_request, slots_of, states_taken
from calculator.ledger import Ledger
from calculator.memory import usable_memory
from calculator.parallelism import Share
from calculator.spec import Quantity
from calculator.units import GIB, MIB, align_up

POOL_SOURCE = "sglang v0.4.9 srt/model_executor/model_runner.py profile_max_num_token L928-963; v0.5.6 L1367"
TABLE_SOURCE = "sglang v0.4.9 srt/mem_cache/memory_pool.py ReqToTokenPool L48-71; model_runner.py init_memory_pool"
REQUESTS_SOURCE = (
    "sglang v0.5.9 srt/model_executor/model_runner_kv_cache_mixin.py L343-376, v0.5.10 L847-859, v0.5.13 L876-893, v0.5.14 L981-1018; "
    "v0.5.23 srt/mem_cache/kv_cache_configurator.py L3119-3172"
)
CAP_SOURCE = "sglang v0.5.14 srt/model_executor/pool_configurator.py SWAChunkCapPoolConfigurator; v0.5.23 L924-1046 compute_swa_request_cap"
EVICTION = 128  # SGLANG_SWA_EVICTION_INTERVAL
IMAGES_SOURCE = "sglang v0.5.18 srt/mem_cache/kv_cache_configurator.py L130 mm_runtime_reservation_gb; v0.5.23 srt/arg_groups/model_overrides/qwen3_vl.py L84-119, srt/environ.py L1598-1622"

MLA_SOURCE = "sglang v0.5.6 srt/model_executor/model_runner.py L1383-1388: one row of kv_lora_rank + qk_rope_head_dim a layer, on every rank"


def row_bytes(job: Job, *, near: bool = False) -> int:
    """What one layer keeps of a token on one GPU [bytes]; `near`: one with a window.

    2 x K x d x e        K the rank's KV heads;  latent attention: (kv_lora_rank + rope) x e                derived
    """
    rank, e = rank_spec(job), kv_element_bytes(job)
    if rank.indexer:
        return sparse.row_bytes(job)
    if rank.mla:
        return (rank.mla.kv_lora_rank + rank.mla.qk_rope_head_dim) * e
    own = None if near else rank.by_layer
    heads, width = (own.full_kv_heads, own.full_head_dim) if own else (0, 0)
    return 2 * (heads or rank.num_key_value_heads) * (width or rank.head_dim) * e


def layers_of(job: Job, share: Share) -> tuple[int, int]:
    """Layers that keep all tokens, and those with a pool of their own for the window; those that read another's cache have rows too."""
    if not windowed(job.model, HISTORY.covered(job.deployment.engine_version)):
        return len(set(share.layers) & set(job.model.attention_layers)), 0
    full = sum(full_layer(job.model, layer) for layer in share.layers)
    return full, len(share.layers) - full


def cell_bytes(job: Job, share: Share) -> int:
    """What the pool takes for one token on one GPU [bytes].

    row x (layers that keep all + swa_full_tokens_ratio x windowed layers) + key x layers with an indexer   derived
    """
    full, near = layers_of(job, share)
    if job.model.indexer:
        return row_bytes(job) * full + sparse.key_bytes(job) * sparse.key_layers(job, share)
    if near and window_tokens(job) is not None:
        return row_bytes(job) * full
    return row_bytes(job) * full + round(row_bytes(job, near=True) * near * float(job.deployment.settings["swa_full_tokens_ratio"]))


def pool_cell(job: Job, share: Share) -> int:
    """What the pool is divided by: since 0.5.14 the draft's layers count as so many more of the target's, whatever theirs take [bytes].

    cell + n 2 K d e        n layers of the draft, rows of the target's full layers          derived
    """
    return cell_bytes(job, share) + (row_bytes(job) * draft_layers(job) if pooled(job) else 0)


def window_tokens(job: Job) -> int | None:
    """Tokens of a windowed pool that is sized by its requests: without a radix tree, max_running_requests set, since 0.5.14; else None.

    tokens = R (w + 128 + 2 p) + 2 c + p, in pages      R requests of one group, w the window, p page_size, c the chunk       derived

    Source: CAP_SOURCE. The windows of gpt-oss and Gemma are a token less than their configs say.
    """
    settings, release, model = job.deployment.settings, HISTORY.covered(job.deployment.engine_version), job.model
    given, chunk, page = settings.get("max_running_requests"), chunk_of(job), page_of(job)
    if release < (0, 5, 14) or not settings["disable_radix_cache"] or given is None or not chunk or not model.sliding_window or not windowed(model, release):
        return None
    window = model.sliding_window - (0 if model.model_type == "llama4_text" else 1)
    requests = max(int(given) // attention_groups(job), 1)
    return align_up(requests * (window + EVICTION + 2 * page) + 2 * chunk + page, page)


def window_bytes(job: Job, share: Share) -> int:
    """Bytes of that pool on one GPU; 0 where windowed layers go with the others."""
    near = layers_of(job, share)[1]
    tokens = window_tokens(job) if near else None
    return 0 if tokens is None else tokens * near * row_bytes(job, near=True)


def running_requests(job: Job, pool: Pool | None) -> int:
    """Requests at once of one attention group: as set, or 512 for each context that the pool holds, from 2,048 to 4,096.

    No more than half the tokens, or, where it is set, until 0.5.13 than the default; nor than the slots of recurrent states allow.

    Source: REQUESTS_SOURCE.
    """
    given, release = requests_set(job), HISTORY.covered(job.deployment.engine_version)
    tokens = pool.tokens if pool else 0
    most = min(max(int(tokens / context_length(job) * 512), 2048), 4096)
    if release >= (0, 5, 10):
        most = min(most if given is None or release < (0, 5, 14) else 2**31, max(tokens // 2, 1) if pool and (given is None or release >= (0, 5, 14)) else 2**31)
        given = None if given is None else max(int(given) // attention_groups(job), 1)
        most = most if given is None else min(most, given)
    elif given is not None:
        most = int(given)
    if pool and pool.states is not None:
        most = min(most, max(pool.states // slots_a_request(job), 1))
    return most


def table_bytes(job: Job, pool: Pool | None) -> int:
    """Where each request's tokens lie: 4 (R + spare) (C + 4 + tokens verified at once) bytes, allocated after the pool.        Source: TABLE_SOURCE."""
    return 4 * (running_requests(job, pool) + version_of(job).spare_slot) * (context_length(job) + table_margin(job))


def table_margin(job: Job) -> int:
    """Slots of a request beyond context_length; those of drafts since 0.5.6. Source: v0.5.6 srt/model_executor/model_runner.py L1757-1759."""
    drafts = method_of(job) and HISTORY.covered(job.deployment.engine_version) >= (0, 5, 6)
    return 4 + (plan_of(job).tokens if drafts else 0)


def image_bytes(job: Job) -> int:
    """What the pool is less by for the embeddings and features of images, since 0.5.18 [bytes]. Source: IMAGES_SOURCE."""
    release = HISTORY.covered(job.deployment.engine_version)
    if release < (0, 5, 18) or not sees_images(job.model):
        return 0
    hopper = job.gpu is not None and job.gpu.compute_capability == "9.0" and (card_mib(job) or 0) >= 60 * 1024
    if release >= (0, 5, 20) and hopper and job.model.model_type in ("qwen3", "qwen3_moe"):  # Qwen3-VL
        return (3072 if int(job.deployment.settings.get("max_running_requests") or 0) >= 400 else 1024) * MIB
    return 100 * MIB


def refusal(job: Job, free: int, taken: int) -> str:
    """What the server says where nothing is left for tokens. Source: v0.5.14 srt/model_executor/model_runner_kv_cache_mixin.py L111; pool_configurator.py."""
    release, least = HISTORY.covered(job.deployment.engine_version), taken / max(free, 1)
    if release < (0, 5, 14) or taken <= free * static_fraction(job):
        return "sglang refuses: Not enough memory. Please try to increase --mem-fraction-static."
    said = f"sglang refuses: Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static={static_fraction(job):g}."
    return f"{said} Raise --mem-fraction-static above {least:.3f}" if least < 1 else f"{said} No fraction would do: {taken / GIB:.2f} of {free / GIB:.2f} GiB are taken"


def static_share(job: Job, total: Quantity, before: tuple[int, int, int]) -> Quantity:
    """mem_fraction_static of what is free before the weights are loaded [bytes]; `before`: what is held by then, low to high."""
    fraction, (low, point, high) = static_fraction(job), before
    values = ((total.low_value - high), (total.value - point), ((total.high or total.value) - low))
    least, value, most = (int(max(free, 0) * fraction) for free in values)
    return Quantity(value=value, low=least, high=most, source=f"{fraction:g} x ({total.source}, less the CUDA context)", verified=total.verified)


def pool_of(job: Job, static: Callable[[Job], Ledger], before: tuple[int, int, int], outside: Callable[[Job], tuple[int, int]]) -> Pool | None:
    """What the static share leaves beside the weights on the tightest GPU, in whole pages; or max_total_tokens.

    pool = mem_fraction_static x (free before loading) - (taken by loading) - recurrent states;  tokens = floor(pool / cell) in pages

    `outside`: low and high end of what a draft's weights take beside it. Source: POOL_SOURCE. The buffers hold one page more, for padded tokens.
    """
    settings = job.deployment.settings
    page, limit = page_of(job), settings.get("max_total_tokens")
    if job.gpu is None and limit is None:
        return None
    shares, ledger, held = shares_of(job), static(job), None
    if job.gpu is None:
        usable = Quantity(value=0, source="setting max_total_tokens")
        smallest = min((int(limit or 0) * pool_cell(job, share) + window_bytes(job, share), int(limit or 0), share) for share in shares)
        bounds = (smallest[0],) * 3
        tokens = smallest[1]
    else:
        usable = static_share(job, usable_memory(job.gpu), before)
        left = []
        for share in shares:
            part = ledger.on(share.device)
            images = image_bytes(job) + passing_bytes(job)
            whole = (usable.value - part.total_bytes, usable.low_value - part.high_bytes, (usable.high or usable.value) - part.low_bytes)
            bounds = (whole[0] - images, whole[1] - images, whole[2] - images)
            slots = slots_of(job, share, bounds[0])
            point, low, high = (rest - states_taken(job, share, rest) for rest in bounds)
            left.append((max(point - window_bytes(job, share), 0) // pool_cell(job, share), (point, low, high), slots))
        tokens, bounds, _ = min(left)
        held = min(slots for *_, slots in left)
        if tokens > 0 and (spare := spare_tokens(job)):
            tokens, extra = tokens + spare, spare * max(cell_bytes(job, share) for share in shares)
            bounds = (bounds[0] + extra, bounds[1] + extra, bounds[2] + extra)
        if limit is not None and int(limit) < tokens:
            tokens = int(limit)
            bounds = (max(tokens * pool_cell(job, share) + window_bytes(job, share) for share in shares),) * 3
    tokens = tokens // page * page
    point, low, high = bounds[0], min(bounds), max(bounds)  # states and tokens share what is left in whole slots: less room may leave more tokens
    length, work = context_length(job), job.workload
    groups = attention_groups(job)
    found = Pool(point, low, high, tokens // page, tokens, groups * tokens / work.context, usable, 0, states=held if job.model.recurrent else None)
    at_once = min(groups * tokens / work.context, groups * running_requests(job, found))
    if found.states is not None:
        at_once = min(at_once, groups * (found.states // slots_a_request(job)))
    said: tuple[str, ...] = ()
    if tokens <= 0:
        taken = max(ledger.on(share.device).total_bytes for share in shares) + image_bytes(job)
        said = (refusal(job, round(usable.value / static_fraction(job)), taken),)
    elif work.context > min(length, tokens):
        said = (f"sglang refuses: Input length ({work.context} tokens) exceeds the maximum allowed length ({min(length, tokens) - 1} tokens).",)
    queues = not said and at_once < work.sequences
    if queues:
        said = (f"{int(at_once):,} of {work.sequences:,} sequences of {work.context:,} tokens run at once; the others queue",)
    if groups > 1:
        said = (*said, f"tokens are those of one attention group, as each prints them; {groups} groups hold {groups * tokens:,}")
    room, most = _room(job, ledger, found, before) if job.gpu else (0, 0)
    table, drafts = table_bytes(job, found), 0 if pooled(job) else tokens * draft_cell(job)
    drafting, scratch = outside(job)[0] + drafts, partial_results(job, backend_of(job), running_requests(job, found))[0]
    crowded = job.gpu is not None and tokens > 0 and table + drafting + scratch > most
    if crowded and scratch and table <= most:
        said = (*said, f"sglang refuses: HIP out of memory. Tried to allocate {scratch / GIB:.2f} GiB: AITER's partial results of {running_requests(job, found):,} requests of {length:,} tokens; "
                       "try --set max_running_requests, context_length, or attention_backend=triton")  # fmt: skip
    elif crowded and table <= most:
        said = (*said, f"sglang refuses: CUDA out of memory. The draft's weights and its pool of {tokens:,} tokens take {drafting / GIB:.2f} GiB beside the static fraction; "
                       f"try --set mem_fraction_static={max(static_fraction(job) - 0.05, 0.1):.2f}, or max_total_tokens")  # fmt: skip
    elif crowded:
        said = (*said, f"sglang refuses: {'HIP' if job.vendor == 'AMD' else 'CUDA'} out of memory. Tried to allocate {table / GIB:.2f} GiB: the table of {running_requests(job, found):,} requests of {length:,} tokens; "
                       "try --set context_length, or max_running_requests")  # fmt: skip
    reserved = usable.value * job.deployment.gpus or ledger.total_bytes + point * job.deployment.gpus
    return found._replace(reserved_bytes=reserved, room=max(room - drafts, 0), queues=queues, warnings=said, crowded=crowded)


def _room(job: Job, static: Ledger, pool: Pool, before: tuple[int, int, int]) -> tuple[int, int]:
    """What a card has beside weights and pool, at least and at most; more than the fraction leaves where max_total_tokens limits the pool."""
    total, fraction = usable_memory(job.gpu), 1 - static_fraction(job)  # type: ignore[arg-type]
    least, most = total.low_value - before[2], (total.high or total.value) - before[0]
    rooms = []
    for share in shares_of(job):
        part = static.on(share.device)
        taken = pool.tokens * (draft_cell(job) * pooled(job) + cell_bytes(job, share)) + window_bytes(job, share) + ((pool.states or 0) + 1 + draft_states(job, pool.states or 0)) * slot_bytes(job, share) + image_bytes(job)
        limited, spare = job.deployment.settings.get("max_total_tokens") is not None, spare_tokens(job) * cell_bytes(job, share)
        rooms.append((max(int(least * fraction) - spare, least - part.high_bytes - taken if limited else 0), max(int(most * fraction) - spare, most - part.low_bytes - taken if limited else 0)))
    return min(low for low, _ in rooms), max(high for _, high in rooms)
