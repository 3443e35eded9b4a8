"""The cache pool: blocks, tokens, how many sequences of the context, and what the engine says where it refuses."""

from __future__ import annotations

from collections.abc import Callable

from calculator.engines.base import Job, Pool
from calculator.engines.ranks import replicas_of, shares_of
from calculator.engines.vllm.blocks import block_of, blocks_for, groups_of
from calculator.engines.vllm.deployment import batch_limits, length_of, version_of
from calculator.engines.vllm.graphs import too_many
from calculator.engines.vllm.hybrid import block_size
from calculator.ledger import Ledger
from calculator.memory import usable_memory
from calculator.spec import Quantity
from calculator.units import GIB

BESIDE = ("CUDA graphs", "draft buffers")  # outside of what the pool is reckoned from


def concurrency(blocks: int, *, block_size: int, context: int, needed: int, in_blocks: bool) -> float:
    """Sequences of the context that the pool holds, as the log prints it; `needed` blocks each.

    in_blocks (since 0.9):  blocks / ceil(context / block_size);  before:  blocks x block_size / context

    Source: vllm v0.19.0 v1/core/kv_cache_utils.py L802-820; v0.8.5 L636; v0.6.6 executor/gpu_executor.py L78.
    """
    return blocks / needed if in_blocks else blocks * block_size / context


def refusal(*, blocks: int, longest: int, context: int, pool: int, needed: int, in_gib: bool) -> str:
    """What the engine says when the pool doesn't hold one sequence; "" where it does.

    Source: vllm v0.6.6 worker/worker.py L492-503; v0.19.0 v1/core/kv_cache_utils.py L627-653.
    """
    advice = "Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
    if blocks <= 0:
        return "vllm refuses: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine."
    if in_gib:
        if needed <= pool:
            return ""
        return (f"vllm refuses: To serve at least one request with the models's max seq len ({context}), ({needed / GIB:.2f} GiB KV "
                f"cache is needed, which is larger than the available KV cache memory ({pool / GIB:.2f} GiB). Based on the "
                f"available memory, the estimated maximum model length is {longest}. {advice}")  # fmt: skip
    if context <= longest:
        return ""
    return (f"vllm refuses: The model's max seq len ({context}) is larger than the maximum number of tokens that can be stored in "
            f"KV cache ({longest}). {advice}")  # fmt: skip


def longest_of(job: Job, blocks: int, size: int) -> int:
    """The longest sequence that so many blocks hold [tokens]: what the engine's own search finds.

    Source: vllm v0.19.0 v1/core/kv_cache_utils.py _estimate_max_model_len_from_groups.
    """
    if groups_of(job).tables == 1:
        return blocks * size
    low, high = 0, length_of(job)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if blocks_for(job, middle, middle) <= blocks else (low, middle - 1)
    return low


def pool_of(job: Job, taken_by: Callable[[Job], Ledger]) -> Pool | None:
    """What is left for blocks on the tightest GPU, or kv_pool_bytes.

    pool = gpu_memory_utilization x total - weights - peak activation - non-torch memory

    Source: vllm v0.19.0 v1/worker/gpu_worker.py determine_available_memory; v0.11.0 L214-288; v0.6.6 worker/worker.py L206-219.
    """
    settings, version, length = job.deployment.settings, version_of(job), length_of(job)
    total, given = usable_memory(job.gpu) if job.gpu else None, int(settings.get("kv_pool_bytes", 0))
    if total is None and not given:
        return None
    size = block_size(job)
    ledger = taken_by(job)
    usable = share_of_memory(total, float(settings["gpu_memory_utilization"])) if total else Quantity(value=given, source="setting kv_pool_bytes")
    stages = []
    for share in shares_of(job):
        taken = [line for line in ledger.on(share.device).lines if line.name not in BESIDE]
        bounds = (given, given, given) if given else (
            usable.value - sum(line.nbytes for line in taken),
            usable.low_value - sum(line.high_bytes for line in taken),
            (usable.high or usable.value) - sum(line.low_bytes for line in taken),
        )  # fmt: skip
        stages.append((max(bounds[0], 0) // block_of(job, share), bounds))
    blocks, (point, low, high) = min(stages)
    many = concurrency(blocks, block_size=size, context=length, needed=blocks_for(job, length), in_blocks=version.in_blocks)
    said = refusal(blocks=blocks, longest=longest_of(job, blocks, size), context=length, pool=point, needed=for_one(job), in_gib=version.v1)
    tokens = int(many * length) if version.tokens_by_length else blocks // groups_of(job).tables * size
    copies = replicas_of(job)
    of_each = f"tokens and sequences of the pool are those of each of {copies} copies"
    at_once = min(many, batch_limits(job, length)[1]) * copies
    said = said or too_many(job, blocks)
    queue = f"{int(at_once):,} of {job.workload.sequences:,} sequences of {length:,} tokens run at once; the others queue" if at_once < job.workload.sequences else ""
    least = max(low, 0) // max(block_of(job, share) for share in shares_of(job))
    near = f"the pool may hold as few as {least:,} states of recurrent layers, and vllm refuses to start with fewer than max_num_seqs" if too_many(job, least) else ""
    warned = (said,) if said else tuple(filter(None, (queue, near)))
    reserved = ledger.total_bytes + given * job.deployment.gpus if given else usable.value * job.deployment.gpus
    room = total.low_value - (usable.high or usable.value) if total else 0
    return Pool(point, low, high, blocks, tokens, many, usable, reserved, room, queues=bool(warned) and not said,
                warnings=warned + ((of_each,) if copies > 1 else ()), refusal=said, short_of_states=bool(too_many(job, least)))  # fmt: skip


def for_one(job: Job) -> int:
    """Cache of one sequence on the fullest GPU [bytes]."""
    return blocks_for(job, length_of(job)) * max(block_of(job, share) for share in shares_of(job))


def share_of_memory(total: Quantity, share: float) -> Quantity:
    """gpu_memory_utilization of a GPU's memory, with its band."""
    return Quantity(value=int(total.value * share), low=int(total.low_value * share), high=int((total.high or total.value) * share),
                    source=f"{share:g} x {total.source}", verified=total.verified)  # fmt: skip
