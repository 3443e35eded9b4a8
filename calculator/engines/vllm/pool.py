"""The cache pool: blocks, tokens, how many sequences of the context, and what the engine says where it refuses."""

from __future__ import annotations

from calculator.spec import ModelSpec
from calculator.units import GIB, ceil_div

BLOCK_SOURCE = "vllm v0.19.0 v1/core/kv_cache_utils.py L802-820, get_num_blocks; v0.6.6 worker/worker.py L206-222"


def block_bytes(rank: ModelSpec, layers: int, *, block_size: int, element_bytes: int) -> int:
    """One block of all layers on one rank [bytes].

    bytes = 2 x block_size x K x d x e x L        K the rank's KV heads

    Equals every printed pair of pool and tokens in the tests.                                        derived
    """
    return 2 * block_size * rank.num_key_value_heads * rank.head_dim * element_bytes * layers


def concurrency(blocks: int, *, block_size: int, context: int, in_blocks: bool) -> float:
    """Sequences of the context that the pool holds, as the log prints it.

    in_blocks (since 0.9):  blocks / ceil(context / block_size);  before:  blocks x block_size / context

    Source: vllm v0.19.0 v1/core/kv_cache_utils.py L802-820; v0.8.5 L636; v0.6.6 executor/gpu_executor.py L78.
    """
    return blocks / ceil_div(context, block_size) if in_blocks else blocks * block_size / context


def refusal(*, blocks: int, block_size: int, context: int, pool: int, needed: int, in_gib: bool) -> str:
    """What the engine says when the pool doesn't hold one sequence; "" where it does.

    Source: vllm v0.6.6 worker/worker.py L492-503; v0.19.0 v1/core/kv_cache_utils.py L627-653.
    """
    advice = "Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine."
    if blocks <= 0:
        return "vllm refuses: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine."
    if in_gib:
        if needed <= pool:
            return ""
        longest = blocks * block_size
        return (f"vllm refuses: To serve at least one request with the models's max seq len ({context}), ({needed / GIB:.2f} GiB KV "
                f"cache is needed, which is larger than the available KV cache memory ({pool / GIB:.2f} GiB). Based on the "
                f"available memory, the estimated maximum model length is {longest}. {advice}")  # fmt: skip
    if context <= blocks * block_size:
        return ""
    return (f"vllm refuses: The model's max seq len ({context}) is larger than the maximum number of tokens that can be stored in "
            f"KV cache ({blocks * block_size}). {advice}")  # fmt: skip
