"""The pool of recurrent states beside the pool of tokens: slots of one size, in which each running request has some."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.ledger import Formula, Line
from calculator.parallelism import Share

STATE_SOURCE = "sglang srt/configs/mamba_utils.py @02e208ded mamba_cache_per_req; srt/model_executor/model_runner_kv_cache_mixin.py @001ccef00 handle_max_mamba_cache"
SLOTS = 3  # of a request where finished prompts stay in the radix tree: MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO
PADDING = 1  # a slot more for padded requests, as the logged sizes have it


def slot_bytes(job: Job, share: Share) -> int:
    """One request's state on one GPU: L (2 (k - 1) c + 4 s), k inputs and c channels of a convolution in 16 bits, s elements in float32 [bytes].

    Equals the logged pools of 361 slots of Qwen3.5 27B (50.77 and 0.99 GiB), 83 of 397B on 2 ranks and 2,212 of a Nemotron-H on 4.  derived
    """
    own = rank_spec(job).recurrent
    if own is None:
        return 0
    count = len(set(share.layers) & set(job.model.recurrent_layers))
    return count * (2 * (own.conv_kernel - 1) * own.conv_channels + 4 * own.state_elements)


def slots_of(job: Job, share: Share, rest: int) -> int:
    """max_mamba_cache_size: as set; one for each of max_running_requests without a radix tree; or what mamba_full_memory_ratio gives of `rest` bytes."""
    settings, size = job.deployment.settings, slot_bytes(job, share)
    if not size:
        return 0
    groups = attention_groups(job)
    if (given := settings.get("max_mamba_cache_size")) is not None:
        return int(given) // groups
    if settings["disable_radix_cache"] and settings.get("max_running_requests") is not None:
        return int(settings["max_running_requests"]) // groups
    ratio = float(settings["mamba_full_memory_ratio"])
    return int(max(rest, 0) * ratio / (1 + ratio)) // size


def slots_a_request(job: Job) -> int:
    """Slots that the server counts for one running request."""
    return 1 if job.deployment.settings["disable_radix_cache"] else SLOTS


def state_line(job: Job, share: Share, sequences: int) -> Line | None:
    """Slots of the requests and the padded one; None without recurrent layers."""
    size = slot_bytes(job, share)
    if not size:
        return None
    symbols = {"B": sequences, "m": slots_a_request(job), "p": PADDING, "n": size}
    return Line("kv_cache", "recurrent states", (sequences * symbols["m"] + PADDING) * size,
                Formula("({B} (sequences) × {m} (slots) + {p}) × {n} (bytes)", symbols), STATE_SOURCE, device=share.device, note="the same for any context")  # fmt: skip
