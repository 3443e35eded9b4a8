"""SGLang's releases: what differs between them, and what every default goes by."""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.engines.base import Job
from calculator.engines.releases import History, Release
from calculator.memory import usable_memory
from calculator.units import MIB

VERSIONS = ("0.4.1", "0.4.3", "0.4.6", "0.4.8", "0.4.9", "0.5.2", "0.5.3", "0.5.6", "0.5.9", "0.5.10", "0.5.12", "0.5.13", "0.5.16", "0.5.18", "0.5.20", "0.5.23")  # sources read


class Version(NamedTuple):
    """What differs between releases."""

    fraction: Literal["table", "reserve", "chunk"]
    """How mem_fraction_static defaults: by ranks, by a reserve of the card's class, by chunk and graphs."""
    spare_slot: int
    """Rows of the request table beyond max_running_requests."""
    prefill: Literal["", "piecewise", "breakable"] = ""
    """How prefill runs in CUDA graphs, whose memory the default fraction leaves."""
    wide_small_cards: bool = False
    """Cards of 20 to 35 GiB prefill 4,096 tokens and capture 48 sequences."""
    graphs_to_requests: bool = False
    """No batch beyond max_running_requests is captured by default."""


SINCE: dict[Release, Version] = {
    (0, 4, 0): Version("table", 1),
    (0, 4, 8): Version("reserve", 0),
    (0, 5, 3): Version("chunk", 0),
    (0, 5, 10): Version("chunk", 0, "piecewise"),
    (0, 5, 11): Version("chunk", 1, "piecewise"),
    (0, 5, 15): Version("chunk", 1, "breakable"),
    (0, 5, 20): Version("chunk", 1, "breakable", wide_small_cards=True),
    (0, 5, 22): Version("chunk", 1, "breakable", wide_small_cards=True, graphs_to_requests=True),
}
# as in vllm/deployment.py. Source: v0.5.3 srt/model_executor/model_runner.py L1399 (not in v0.5.2); v0.5.4 srt/server_args.py L1789 takes bfloat16
DECLARED_CACHES: dict[str, tuple[Release, Release | None]] = {"modelopt": ((0, 5, 3), (0, 5, 4))}
UNIFIED_SINCE = (0, 5, 9)  # srt/utils/common.py L525-533 get_available_gpu_memory; v0.5.8 asks CUDA alone
HISTORY = History(SINCE, newest=(0, 5, 23))


def version_of(job: Job) -> Version:
    """What differs in the release of this job."""
    return HISTORY.at(job.deployment.engine_version)


def context_length(job: Job) -> int:
    """As set, or the model's limit: the server doesn't follow the requests [tokens]."""
    return int(job.deployment.settings.get("context_length") or job.model.max_position_embeddings)


def unified(job: Job) -> bool:
    """Whether GPU and CPU share their memory: what is free is then what the system calls available, since 0.5.9."""
    return job.gpu is not None and job.gpu.segment == "unified" and HISTORY.covered(job.deployment.engine_version) >= UNIFIED_SINCE


def card_mib(job: Job) -> int | None:
    """The card's memory as nvidia-smi prints it, which the defaults go by [MiB]."""
    if job.gpu is None:
        return None
    gpu = job.gpu
    if unified(job):  # nvidia-smi says nothing, and the server asks CUDA
        return max(usable_memory(gpu).value // MIB, 1)
    size = gpu.nvml_total_bytes or (gpu.memory_sold_bytes if gpu.memory_sold_bytes.verified else usable_memory(gpu))
    return max(size.value // MIB, 1)
