"""The pool of recurrent states beside the pool of tokens: slots of one size, in which each running request has some."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.ledger import Formula, Line
from calculator.parallelism import Share

STATE_SOURCE = (
    "sglang srt/configs/mamba_utils.py @02e208ded mamba_cache_per_req; srt/model_executor/model_runner_kv_cache_mixin.py @001ccef00 handle_max_mamba_cache, "
    "v0.5.14 L981, srt/mem_cache/kv_cache_configurator.py v0.5.17, v0.5.23 L3062-3087 and L3229-3409"
)
SLOTS = 3  # of a request where finished prompts stay in the radix tree: MAMBA_CACHE_SIZE_MAX_RUNNING_REQUESTS_RATIO
TRACKED = 2  # more since 0.5.14, where the strategy "auto" became extra_buffer: v0.5.14 srt/server_args.py L4338-4393
TRACKED_SINCE = (0, 5, 14)
PADDED_SINCE = (0, 5, 17)  # since when the budget of the states pays for the padded slot
PADDING = 1  # a slot more for padded requests, as the logged sizes have it


def slot_bytes(job: Job, share: Share) -> int:
    """One request's state on one GPU: L (2 (k - 1) c + 4 s), k inputs and c channels of a convolution in 16 bits, s elements in float32 [bytes].

    Equals the logged pools of 361 slots of Qwen3.5 27B (50.77 and 0.99 GiB), 83 of 397B on 2 ranks and 2,212 of a Nemotron-H on 4.  derived
    """
    if job.model.recurrent is None:
        return 0
    own = rank_spec(job).recurrent
    assert own is not None
    count = len(set(share.layers) & set(job.model.recurrent_layers))
    return count * (2 * (own.conv_kernel - 1) * own.conv_channels + 4 * own.state_elements)


def slots_of(job: Job, share: Share, rest: int) -> int:
    """max_mamba_cache_size: as set; one for each of max_running_requests without a radix tree; or what mamba_full_memory_ratio gives of `rest` bytes.

    slots = floor(rest r / (1 + r) / n)        n bytes of a slot, r the ratio; since 0.5.17 less the padded one          derived
    """
    settings, size = job.deployment.settings, slot_bytes(job, share)
    if not size:
        return 0
    groups = attention_groups(job)
    if (given := settings.get("max_mamba_cache_size")) is not None:
        return int(given) // groups
    if settings["disable_radix_cache"] and settings.get("max_running_requests") is not None:
        return int(settings["max_running_requests"]) // groups
    ratio = float(settings["mamba_full_memory_ratio"])
    budget = int(max(rest, 0) * ratio / (1 + ratio))
    return max(budget - paid_padding(job) * size, 0) // size


def paid_padding(job: Job) -> int:
    """Slots of the padded request that the pool of tokens is less by."""
    return PADDING if HISTORY.covered(job.deployment.engine_version) >= PADDED_SINCE else 0


def slots_a_request(job: Job) -> int:
    """Slots that the server counts for one running request; two of them are snapshots since 0.5.14."""
    if job.deployment.settings["disable_radix_cache"]:
        return 1
    return SLOTS + (TRACKED if HISTORY.covered(job.deployment.engine_version) >= TRACKED_SINCE else 0)


def state_line(job: Job, share: Share, sequences: int) -> Line | None:
    """Slots of the requests and the padded one; None without recurrent layers."""
    size = slot_bytes(job, share)
    if not size:
        return None
    symbols = {"B": sequences, "m": slots_a_request(job), "p": PADDING, "n": size}
    return Line("kv_cache", "recurrent states", (sequences * symbols["m"] + PADDING) * size,
                Formula("({B} (sequences) × {m} (slots) + {p}) × {n} (bytes)", symbols), STATE_SOURCE, device=share.device, note="the same for any context")  # fmt: skip
