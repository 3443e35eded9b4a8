"""SGLang's releases, and the limits that the server sets by the card where nobody else does."""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of
from calculator.engines.releases import History, Release
from calculator.engines.sglang.ranks import attention_groups
from calculator.errors import NotModelled
from calculator.memory import usable_memory
from calculator.units import MIB

VERSIONS = ("0.4.1", "0.4.3", "0.4.6", "0.4.8", "0.4.9", "0.5.2", "0.5.3", "0.5.6", "0.5.9", "0.5.10", "0.5.12")  # sources read
PREFILL_TOKENS = 16384  # max_prefill_tokens, where prefill isn't chunked
FRACTION_SOURCE = "sglang v0.4.3 srt/server_args.py L194-205; v0.4.9 L283-321; v0.5.6 L699-861; v0.5.10 L1281-1316, v0.5.12 L1540-1590"


class Version(NamedTuple):
    """What differs between releases."""

    fraction: Literal["table", "reserve", "chunk", "stated"]
    """How mem_fraction_static defaults: by ranks, by a reserve of the card's class, by chunk and graphs; or in a way without a formula."""
    spare_slot: int
    """Rows of the request table beyond max_running_requests."""
    piecewise: bool = False
    """Prefill runs in CUDA graphs by pieces, whose memory the default fraction leaves."""


SINCE: dict[Release, Version] = {
    (0, 4, 0): Version("table", 1),
    (0, 4, 8): Version("reserve", 0),
    (0, 5, 3): Version("chunk", 0),
    (0, 5, 10): Version("chunk", 0, piecewise=True),
    (0, 5, 11): Version("chunk", 1, piecewise=True),
    (0, 5, 13): Version("stated", 1),
}
HISTORY = History(SINCE, newest=(0, 5, 15))
TOWER_OF_DEFAULT_SINCE: Release = (0, 4, 9)  # before, the share of a vision tower comes off a fraction that is set, too
TOWER_BY_SIZE_SINCE: Release = (0, 5, 2)
BASE_LAYERS, BASE_WIDTH = 24, 1024  # of the tower that a share of 0.95 is for: tower_share
DP_CHUNKS_SINCE = (0, 4, 4)  # before, DP attention halves the chunk


def version_of(job: Job) -> Version:
    """What differs in the release of this job."""
    return HISTORY.at(job.deployment.engine_version)


def context_length(job: Job) -> int:
    """As set, or the model's limit: the server doesn't follow the requests [tokens]."""
    return int(job.deployment.settings.get("context_length") or job.model.max_position_embeddings)


def card_mib(job: Job) -> int | None:
    """The card's memory as nvidia-smi prints it, which the defaults go by [MiB]."""
    if job.gpu is None:
        return None
    gpu = job.gpu
    size = gpu.nvml_total_bytes or (gpu.memory_sold_bytes if gpu.memory_sold_bytes.verified else usable_memory(gpu))
    return max(size.value // MIB, 1)


def chunk_of(job: Job) -> int:
    """chunked_prefill_size in force [tokens], each attention group its part of it; 0 where it is off."""
    groups = attention_groups(job)
    if groups > 1 and HISTORY.covered(job.deployment.engine_version) < DP_CHUNKS_SINCE:
        groups = 2
    return whole_chunk(job) // groups


def whole_chunk(job: Job) -> int:
    """chunked_prefill_size: as set, or by the card [tokens]; 0 where it is off."""
    given = job.deployment.settings.get("chunked_prefill_size")
    if given is not None:
        return max(int(given), 0)
    memory = card_mib(job)
    if version_of(job).fraction in ("table", "reserve"):
        return 2048 if memory is not None and memory < 25_000 else 8192
    if memory is None:
        return 4096
    return 2048 if memory < 35 * 1024 else 4096 if memory < 60 * 1024 else 8192 if memory < 160 * 1024 else 16384


def prefill_tokens(job: Job) -> int:
    """Tokens of one prefill pass: attention groups bring theirs together before the feed-forward."""
    return (chunk_of(job) or PREFILL_TOKENS) * attention_groups(job)


def graph_sequences(job: Job) -> int:
    """cuda_graph_max_bs: the largest captured batch, by card, ranks and release [sequences]."""
    memory, few = card_mib(job), ranks_of(job) < 4
    kind = version_of(job).fraction
    if kind in ("table", "reserve"):
        return (8 if few else 80) if memory is not None and memory < 25_000 else 160
    if memory is None:
        return 160
    if memory < 20 * 1024:
        return 8
    if memory < 35 * 1024:
        return 24 if few else 80
    if memory < 60 * 1024:
        return 32 if few else 160
    return 256 if few and memory < 160 * 1024 else 512


def static_fraction(job: Job) -> float:
    """The share that is in force: mem_fraction_static, until 0.4.8 less what a vision tower leaves of it."""
    stated = stated_fraction(job)
    return stated * tower_share(job) if HISTORY.covered(job.deployment.engine_version) < TOWER_OF_DEFAULT_SINCE else stated


def stated_fraction(job: Job) -> float:
    """mem_fraction_static: as set, or the server's choice, since 0.4.9 less what a vision tower leaves of it. Source: FRACTION_SOURCE."""
    given = job.deployment.settings.get("mem_fraction_static")
    if given is not None:
        return float(given)
    share = 1 if HISTORY.covered(job.deployment.engine_version) < TOWER_OF_DEFAULT_SINCE else tower_share(job)
    return _default_fraction(job) * share


def _default_fraction(job: Job) -> float:
    """What the server chooses without a tower, by card, ranks and release."""
    memory, gpus = card_mib(job), job.deployment.gpus
    kind = version_of(job).fraction
    if memory is None:
        return 0.88
    if kind == "stated":
        raise NotModelled(f"sglang {job.deployment.engine_version}'s own mem_fraction_static, which follows from its prefill graphs", hint="--set mem_fraction_static, or --engine-version 0.5.12")
    if kind == "table":
        return _by_ranks(memory, gpus)
    groups = attention_groups(job)
    if kind == "reserve":
        reserved = (2.8 + gpus / 10 if memory < 35 * 1024 else 9.5 + gpus / 2 if memory < 90 * 1024 else
                    12 + gpus / 2 if memory < 160 * 1024 else 32) * 1024 + (4096 if groups > 1 else 0)  # fmt: skip
    else:
        graphs = graph_sequences(job)
        reserved = 512 + max(whole_chunk(job) or PREFILL_TOKENS, 2048) * 1.5 + graphs * 2 + gpus / 8 * 1024
        if groups > 1:
            reserved += graphs * groups * (3 if graphs <= 300 else 4.5)
        elif version_of(job).piecewise and not job.model.vision_parameters and gpus == ranks_of(job):
            reserved += 1536 if job.model.mla else 8 * piecewise_graphs(whole_chunk(job))
        if memory > 60 * 1024:
            reserved = max(reserved, 10 * 1024)
    return max(round((memory - reserved) / memory, 3), 0.001)


def tower_share(job: Job) -> float:
    """What a vision tower leaves of mem_fraction_static, for images to be encoded in.

    0.95 until 0.4.3, 0.90 until 0.5.1;  since 0.5.2  0.95 x (1 - 0.1 (l h^2 / (24 x 1024^2) - 1)), its factor from 0.8 to 1.05
    l num_hidden_layers and h hidden_size of vision_config, 24 and 1,024 where it has no field of that name

    Source: sglang v0.4.3 srt/model_executor/model_runner.py L137-138, v0.4.6 L307-308, v0.4.9 srt/server_args.py L327-329,
    v0.5.2 and v0.5.12 adjust_mem_fraction_for_vlm. Until 0.4.8 a fraction that is set is reduced too.
    """
    if not job.model.vision_parameters:
        return 1
    release, tower = HISTORY.covered(job.deployment.engine_version), job.model.tower
    if release < TOWER_BY_SIZE_SINCE:
        return 0.95 if release < (0, 4, 4) else 0.90
    layers, width = (tower.stated_layers if tower else 0) or BASE_LAYERS, (tower.stated_width if tower else 0) or BASE_WIDTH
    return 0.95 * max(0.8, min(1.05, 1 - 0.1 * (layers * width**2 / (BASE_LAYERS * BASE_WIDTH**2) - 1)))


def piecewise_graphs(most: int) -> int:
    """Number of prefill graphs up to `most` tokens. Source: sglang v0.5.10 srt/server_args.py L1397-1415."""
    sizes = (*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1280, 4097, 256), *range(4608, most + 1, 512))
    return sum(size <= most for size in sizes)


def _by_ranks(memory: int, gpus: int) -> float:
    fraction = 0.88
    if memory <= 81920:
        fraction = next((share for least, share in ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87)) if gpus >= least), 0.88)
    if memory > 96 * 1024:
        fraction = min(fraction + 48 * 1024 * (1 - fraction) / memory, (memory - 18 * 1024) / memory)
    return fraction
