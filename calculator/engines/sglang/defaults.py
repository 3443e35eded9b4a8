"""What SGLang's server chooses by the card where nobody sets it: chunk, captured batches, mem_fraction_static."""

from __future__ import annotations

from functools import lru_cache

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of
from calculator.engines.releases import Release
from calculator.engines.sglang.attention import backend_of
from calculator.engines.sglang.deployment import HISTORY, card_mib, version_of
from calculator.engines.sglang.ranks import attention_groups
from calculator.engines.sglang.rocm import lowered
from calculator.engines.sglang.speculative import method_of
from calculator.spec import ModelSpec

PREFILL_TOKENS = 16384  # max_prefill_tokens, where prefill isn't chunked
FRACTION_SOURCE = (
    "sglang v0.4.3 srt/server_args.py L194-205; v0.4.9 L283-321; v0.5.6 L699-861; v0.5.10 L1281-1316, v0.5.12 L1540-1590, v0.5.13 L1444-1645, "
    "v0.5.14 L3122, v0.5.16 L3900, v0.5.18 L4802; v0.5.20, v0.5.22 and v0.5.23 srt/arg_groups/memory_hook.py L47-355"
)
GRAPHS_SOURCE = (
    "sglang v0.5.12 srt/server_args.py L1300-1367, v0.5.14 L2980-3060, v0.5.16 L3630-3830, v0.5.17 and v0.5.18 the same names; "
    "v0.5.19, v0.5.20 and v0.5.23 srt/arg_groups/cuda_graph_hook.py; srt/model_executor/cuda_graph_config.py default_prefill_backend"
)
TOWER_SOURCE = (
    "sglang v0.4.1 srt/model_executor/model_runner.py L120, v0.4.5 L274, v0.4.8 L415; v0.4.9 srt/server_args.py L329, "
    "v0.4.10.post2 L2040, v0.5.13 L7774; v0.5.23 srt/arg_groups/memory_hook.py L416-462"
)
DP_CHUNKS_SINCE = (0, 4, 4)  # before, DP attention halves the chunk
_TEXT_ALONE = frozenset({"gemma3_text", "llama4_text"})  # with a tower, which --enable-multimodal loads: configs/model_config.py mm_disabled_models
_BREAKABLE_TOWERS: dict[str, Release] = {"qwen3_5_text": (0, 5, 16), "qwen3_5_moe_text": (0, 5, 16)}  # configs/model_config.py multimodal_breakable_…


def whole_chunk(job: Job) -> int:
    """chunked_prefill_size: as set, or by the card [tokens]; 0 where it is off."""
    given = job.deployment.settings.get("chunked_prefill_size")
    if given is not None:
        return max(int(given), 0)
    memory, version = card_mib(job), version_of(job)
    if version.fraction in ("table", "reserve"):
        return 2048 if memory is not None and memory < 25_000 else 8192
    if memory is None:
        return 4096
    small = 4096 if version.wide_small_cards and memory >= 20 * 1024 else 2048
    return small if memory < 35 * 1024 else 4096 if memory < 60 * 1024 else 8192 if memory < 160 * 1024 else 16384


def chunk_of(job: Job) -> int:
    """chunked_prefill_size in force [tokens], each attention group its part of it; 0 where it is off."""
    groups = attention_groups(job)
    if groups > 1 and HISTORY.covered(job.deployment.engine_version) < DP_CHUNKS_SINCE:
        groups = 2
    return whole_chunk(job) // groups


def prefill_tokens(job: Job) -> int:
    """Tokens of one prefill pass: attention groups bring theirs together before the feed-forward."""
    return (chunk_of(job) or PREFILL_TOKENS) * attention_groups(job)


def graph_sequences(job: Job) -> int:
    """cuda_graph_max_bs: the largest captured batch, as set, or by card, ranks and release [sequences]."""
    version, limit, given = version_of(job), job.deployment.settings.get("max_running_requests"), job.deployment.settings.get("cuda_graph_max_bs")
    most = _graphs_by_card(job) if given is None else int(given)
    return min(most, int(limit)) if version.graphs_to_requests and limit is not None else most


def _graphs_by_card(job: Job) -> int:
    memory, few, version = card_mib(job), ranks_of(job) < 4, version_of(job)
    if version.fraction in ("table", "reserve"):
        return (8 if few else 80) if memory is not None and memory < 25_000 else 160
    if memory is None:
        return 160
    if memory < 20 * 1024:
        return 8
    if memory < 35 * 1024:
        return (48 if few else 160) if version.wide_small_cards else 24 if few else 80
    if memory < 60 * 1024:
        return 32 if few else 160
    return 256 if few and memory < 160 * 1024 else 512


@lru_cache(maxsize=256)
def decode_graphs(most: int) -> int:
    """Number of captured batches up to `most` sequences, without drafts. Source: sglang v0.5.6 srt/server_args.py _generate_cuda_graph_batch_sizes; 52 to 512 in a log of MI355X."""
    sizes = (1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, most + 1, 32))
    return sum(size <= most for size in sizes)


def sees_images(model: ModelSpec) -> bool:
    """Whether the server starts with the tower; Gemma 3's and Llama 4's stay out unless asked for."""
    return bool(model.vision_parameters) and model.model_type not in _TEXT_ALONE


def prefill_in_graphs(job: Job) -> bool:
    """Whether prefill passes are captured too; not on AMD. Source: GRAPHS_SOURCE."""
    settings, model, release = job.deployment.settings, job.model, HISTORY.covered(job.deployment.engine_version)
    kind = version_of(job).prefill
    if not kind or on_rocm(job) or (settings["disable_cuda_graph"] and release >= (0, 5, 14)):  # before, the switch was for decode alone
        return False
    if sees_images(model) and not (model.model_type in _BREAKABLE_TOWERS and release >= _BREAKABLE_TOWERS[model.model_type]):
        return False
    stages = job.deployment.gpus > ranks_of(job)
    if kind == "piecewise":
        if method_of(job) and release < (0, 5, 12):  # v0.5.10 srt/server_args.py L1088-1090
            return False
        return not (stages or settings["enable_dp_attention"] or settings["enable_lora"] or model.model_type == "qwen3_next")
    if release < (0, 5, 18) and model.mla:
        return False
    if release < (0, 5, 17):
        return not (settings["enable_dp_attention"] or settings["enable_lora"])
    if release < (0, 5, 18) and model.model_type == "nemotron_h":
        return False
    return not (stages and release >= (0, 5, 19))


@lru_cache(maxsize=256)
def piecewise_graphs(most: int) -> int:
    """Number of prefill graphs up to `most` tokens. Source: sglang v0.5.10 srt/server_args.py L1397-1415; v0.5.23 srt/arg_groups/cuda_graph_hook.py L480-497."""
    sizes = (*range(4, 33, 4), *range(48, 257, 16), *range(288, 513, 32), *range(576, 1025, 64), *range(1280, 4097, 256), *range(4608, most + 1, 512))
    return sum(size <= most for size in sizes)


def prefill_graphs(job: Job) -> int:
    """Number of prefill graphs of a model without latent attention: up to the chunk, the pool's limit and, for a while, the context."""
    settings, release = job.deployment.settings, HISTORY.covered(job.deployment.engine_version)
    limits = [whole_chunk(job), settings.get("max_total_tokens")]
    if (0, 5, 13) <= release < (0, 5, 17):
        limits.append(settings.get("context_length"))
    if "llama-2" in (job.hf_id or job.model.id).lower():
        limits.append(4096)
    return piecewise_graphs(min(int(limit) for limit in limits if limit is not None))


def static_fraction(job: Job) -> float:
    """mem_fraction_static in force: as set, or the server's choice; less where AITER attends. Source: FRACTION_SOURCE; with a tower TOWER_SOURCE."""
    return _before_attention(job) * lowered(job, backend_of(job))


def _before_attention(job: Job) -> float:
    given = job.deployment.settings.get("mem_fraction_static")
    release, images = HISTORY.covered(job.deployment.engine_version), sees_images(job.model)
    fraction = _by_card(job) if given is None else float(given)
    if not images:
        return fraction
    if _tower_lowers(job):
        return fraction * (0.95 if release < (0, 4, 4) else 0.9)
    if given is not None:
        return fraction
    return fraction * (0.9 if release < (0, 4, 10) else tower_factor(job.model.vision_layers or 24, job.model.vision_hidden_size or 1024))


def lowered_if_set(job: Job) -> bool:
    """Whether the server lowers a fraction that somebody set, too: for a tower, before 0.4.9; where AITER attends."""
    return _tower_lowers(job) or lowered(job, backend_of(job)) < 1


def _tower_lowers(job: Job) -> bool:
    return sees_images(job.model) and HISTORY.covered(job.deployment.engine_version) < (0, 4, 9)


def tower_factor(layers: int, width: int) -> float:
    """What a vision tower of `layers` and `width` leaves of mem_fraction_static. Source: TOWER_SOURCE.

    0.95 x (1 - 0.1 (r - 1)), the bracket from 0.8 to 1.05;  r = layers width² / (24 x 1024²)                         derived
    """
    ratio = layers * width**2 / (24 * 1024**2)
    return 0.95 * max(0.8, min(1.05, 1 - 0.1 * (ratio - 1)))


def _by_card(job: Job) -> float:
    memory, gpus, version = card_mib(job), job.deployment.gpus, version_of(job)
    if memory is None:
        return 0.95 if version.wide_small_cards else 0.88
    if version.fraction == "table":
        return _by_ranks(memory, gpus)
    if version.fraction == "reserve":
        reserved = (2.8 + gpus / 10 if memory < 35 * 1024 else 9.5 + gpus / 2 if memory < 90 * 1024 else
                    12 + gpus / 2 if memory < 160 * 1024 else 32) * 1024 + (4096 if attention_groups(job) > 1 else 0) + _for_draft(job)  # fmt: skip
    else:
        reserved = 512 + max(whole_chunk(job) or PREFILL_TOKENS, 2048) * 1.5 + gpus / 8 * 1024 + _for_graphs(job)
        if memory > 60 * 1024:
            reserved = max(reserved, 10 * 1024)
        reserved += _for_draft(job)
    return max(round((memory - reserved) / memory, 3), 0.001)


def _for_draft(job: Job) -> int:
    """MiB that the default fraction leaves to a draft, until 0.5.13; a table by ranks leaves none.

    Source: sglang v0.4.9 srt/server_args.py L313, v0.5.2 L484-492, v0.5.6 and v0.5.9 L847-1058, v0.5.10 L1316-1322, v0.5.13 L1627-1633; v0.5.14 has none.
    """
    method, release = method_of(job), HISTORY.covered(job.deployment.engine_version)
    if not method or method == "ngram" or release >= (0, 5, 14):
        return 0
    return (6 if method == "standalone" else 4 if release >= (0, 5, 10) else 2) * 1024


def _for_graphs(job: Job) -> float:
    """MiB that the default fraction leaves to CUDA graphs of decode and prefill."""
    graphs, groups, release = graph_sequences(job), attention_groups(job), HISTORY.covered(job.deployment.engine_version)
    reserved = 0.0 if job.deployment.settings["disable_cuda_graph"] and release >= (0, 5, 15) else graphs * 2.0
    if groups > 1:
        reserved += graphs * groups * (3 if graphs <= 300 else 4.5)
    if prefill_in_graphs(job):
        reserved += 1536 if job.model.mla else 8 * prefill_graphs(job)
    return reserved


def _by_ranks(memory: int, gpus: int) -> float:
    fraction = 0.88
    if memory <= 81920:
        fraction = next((share for least, share in ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87)) if gpus >= least), 0.88)
    if memory > 96 * 1024:
        fraction = min(fraction + 48 * 1024 * (1 - fraction) / memory, (memory - 18 * 1024) / memory)
    return fraction
