"""The pool of recurrent states beside the pool of tokens: slots of one size, in which each running request has some."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.engines.sglang.speculative import method_of, plan_of, requests_set
from calculator.errors import Unsupported
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
DRAFT_SOURCE = (
    "sglang v0.5.6 srt/model_executor/model_runner.py handle_max_mamba_cache; v0.5.10 srt/model_executor/model_runner_kv_cache_mixin.py L179-200, v0.5.14 L122-205; "
    "v0.5.17 srt/mem_cache/kv_cache_configurator.py L1816-1950, v0.5.23 L3229-3409"
)
RESERVED_SINCE = (0, 5, 7)  # states of drafts are taken before the split; before, each slot has them
JOINT_SINCE = (0, 5, 14)  # and out of the states' part of it
PADDING = 1  # a slot more for padded requests, as the logged sizes have it


GROUPS_SOURCE = "sglang v0.5.3, v0.5.12 and v0.5.23 srt/layers/attention/mamba/mamba.py MambaMixer2.__init__; the quantized ones' in v0.5.6, not in v0.5.3"
QUANTIZED_CHECKED_SINCE = (0, 5, 4)


def check_states(job: Job) -> None:
    """Refuse ranks that Mamba 2's groups of B and C can't be divided over, in the server's words. Source: GROUPS_SOURCE."""
    state, ranks = job.model.recurrent, ranks_of(job) // attention_groups(job)
    if state is None or state.kind != "mamba2" or state.groups % ranks == 0:
        return
    if state.groups != 1:
        raise Unsupported("If tensor parallel world size does not divide num_groups, then num_groups must equal 1.", hint=f"--tp {state.groups} or a divisor of it")
    if job.scheme.family != "plain" and HISTORY.covered(job.deployment.engine_version) >= QUANTIZED_CHECKED_SINCE:
        raise Unsupported("Tensor parallel currently supported for quantized models only if tensor parallel world size divides num groups.", hint="--tp 1, or --quant bf16")


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
    if settings["disable_radix_cache"] and (requests := requests_set(job)) is not None:
        return requests // groups
    ratio, drafts, release = float(settings["mamba_full_memory_ratio"]), drafted(job), HISTORY.covered(job.deployment.engine_version)
    if RESERVED_SINCE <= release < JOINT_SINCE:
        rest -= draft_states(job) * size
    budget = max(int(max(rest, 0) * ratio / (1 + ratio)) - paid_padding(job) * (1 + drafts) * size, 0)
    if release < RESERVED_SINCE:
        return budget // size // (1 + drafts)
    return int(budget // (size * (1 + drafts / slots_a_request(job)))) if drafts and release >= JOINT_SINCE else budget // size


def drafted(job: Job) -> int:
    """States that a running request has for its drafts, one for each token verified at once; 0 without drafts."""
    return plan_of(job).tokens if method_of(job) else 0


def draft_states(job: Job, slots: int = 0) -> int:
    """States of drafts that the server reserves beside `slots`: D for each slot until 0.5.6; D for each of max_running_requests; since 0.5.14 for as many as `slots` allow, and since 0.5.17 the padded one.

    Source: DRAFT_SOURCE.                                                                                              derived
    """
    drafts, release = drafted(job), HISTORY.covered(job.deployment.engine_version)
    if not drafts:
        return 0
    if release < RESERVED_SINCE:
        return slots * drafts
    requests = max((requests_set(job) or 0) // attention_groups(job), 1)
    if release >= JOINT_SINCE:
        requests = min(requests, slots // slots_a_request(job))
    return (requests + paid_padding(job)) * drafts


def states_taken(job: Job, share: Share, rest: int) -> int:
    """Bytes that states take of `rest` on one GPU: slots, the padded one where it is paid, and those of drafts."""
    slots = slots_of(job, share, rest)
    return (slots + paid_padding(job) + draft_states(job, slots)) * slot_bytes(job, share)


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


def draft_state_line(job: Job, share: Share, sequences: int) -> Line | None:
    """States of the requests' drafts; None without recurrent layers or drafts."""
    size, drafts = slot_bytes(job, share), drafted(job)
    if not size or not drafts:
        return None
    symbols = {"B": sequences, "D": drafts, "n": size}
    return Line("kv_cache", "recurrent states, draft", sequences * drafts * size, Formula("{B} (sequences) × {D} (tokens verified at once) × {n} (bytes)", symbols), DRAFT_SOURCE, device=share.device,
                note="kept until it is known which drafts hold; the server reserves them for max_running_requests")  # fmt: skip
