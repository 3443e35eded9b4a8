"""vLLM's releases, and what a job's settings resolve to: batch limits, ranks, shares, blocks."""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.architectures import architecture
from calculator.engines.base import Job
from calculator.engines.ranks import before_ampere
from calculator.engines.releases import History, Release
from calculator.spec import GpuSpec
from calculator.units import GIB

LARGE_MEMORY = 70 * GIB  # vllm v0.19.0 engine/arg_utils.py L2053
HUGE_MEMORY, HUGE_SINCE = 160 * GIB, (0, 28, 0)  # read in vllm v0.28.0 engine/arg_utils.py (v0.29.0 L2698), not in v0.27.0
SPARK = "gb10"  # has the limits of small cards: NVML doesn't tell its memory, which counts as none (platforms/cuda.py v0.24.0 L768); by its name since v0.33.0 L2984-2988
WHOLE_ITEM_SINCE = (0, 22, 0)  # images that attend both ways aren't cut into chunks: v0.22.0 L2446-2530, not in v0.21.0
WHOLE_ITEM = {"gemma4_text": 2496}  # tokens of the largest item, a video. Logs of 0.25.1, 0.27.1: batches of 2,496
ENCODES_IN_V1 = (0, 10, 1)  # vllm#21270, encoders without a cache on the V1 engine: after 0.10.0
POOLS_IN_V1 = (0, 9, 2)  # vllm#19964, a development build after 0.9.1, makes embeddings on the V1 engine
# whose declared fp8 cache is kept since when, and until when nothing overrides it. Source: v0.14.0 utils/torch_utils.py L301
# (not in v0.13.0), v0.15.0 attention/layer.py L199 (not in v0.14.1), v0.22.0 model_executor/layers/attention/attention.py L238
DECLARED_CACHES: dict[str, tuple[Release, Release | None]] = {"modelopt": ((0, 14, 0), None), "compressed-tensors": ((0, 15, 0), (0, 22, 0))}
LONG_CONTEXT = 32768  # vllm v0.6.6 engine/arg_utils.py L1081: chunked prefill beyond it


Sampler = Literal["sort", "triton", "logits", "copied", "masked"]


class Version(NamedTuple):
    """What differs between releases."""

    v1: bool
    sampler: Sampler
    in_blocks: bool
    """Concurrency counts whole blocks."""
    non_torch: str
    a100_is_large: bool = False
    locks_a_column: bool = False
    """Marlin's locks are counted by output columns, not by multiprocessors."""
    hybrid: bool = False
    """Windowed layers keep their window alone, in groups of their own."""
    marlin_copies: bool = False
    """The kernel of packed codes allocates a second input. Source: vllm v0.6.6 csrc gptq_marlin.cu L2308; v0.8.5 L2342-2347, not."""
    experts_share: bool = True
    """The experts' first and last buffers share memory."""
    workspaces_wide: bool = False
    """The experts' two workspaces are both wide enough for the hidden size."""
    graphs_profiled: bool = False
    """CUDA graphs are measured beforehand and taken off the pool. Source: start-up logs of 0.20.0; v0.33.0 v1/worker/gpu_worker.py L702-757."""
    tokens_by_length: bool = False
    """The printed tokens are the concurrency times max_model_len. Source: v0.20.2 v1/core/kv_cache_utils.py L1695-1706, v0.33.0 L1124-1157; not in logs of 0.20.0."""
    loads_unsplit: bool = False
    """Weights are loaded with max_split_size_mb 20: allocator.py."""
    utilization: float = 0.9
    """gpu_memory_utilization where it isn't set. Source: v0.20.0 config/cache.py L66; 0.9 in v0.19.0 L41."""
    needs_ampere: bool = False
    """Cards before compute capability 8.0 fall back to the V0 engine."""


# the release since which each holds; read in the sources of VERSIONS, the releases between behave like the one before
SINCE: dict[Release, Version] = {
    (0, 6, 0): Version(v1=False, sampler="sort", in_blocks=False, non_torch="v0_early", locks_a_column=True, marlin_copies=True, experts_share=False),
    (0, 6, 5): Version(v1=False, sampler="sort", in_blocks=False, non_torch="v0", locks_a_column=True, marlin_copies=True, experts_share=False),
    (0, 8, 0): Version(v1=True, sampler="sort", in_blocks=False, non_torch="v1", a100_is_large=True, locks_a_column=True, needs_ampere=True),
    (0, 9, 0): Version(v1=True, sampler="sort", in_blocks=True, non_torch="v1", hybrid=True, needs_ampere=True),
    (0, 11, 0): Version(v1=True, sampler="sort", in_blocks=True, non_torch="v1", hybrid=True),
    (0, 17, 0): Version(v1=True, sampler="triton", in_blocks=True, non_torch="0.17", hybrid=True, workspaces_wide=True),
}
SINCE[0, 19, 0] = SINCE[0, 17, 0]._replace(non_torch="0.19")
SINCE[0, 20, 0] = SINCE[0, 19, 0]._replace(non_torch="0.20", graphs_profiled=True, utilization=0.92)
SINCE[0, 20, 2] = SINCE[0, 20, 0]._replace(tokens_by_length=True)
SINCE[0, 21, 0] = SINCE[0, 20, 2]._replace(loads_unsplit=True)
VERSIONS = ("0.6.6", "0.8.5", "0.9.2", "0.11.0", "0.14.0", "0.19.0", "0.33.0")  # sources read
HISTORY = History(SINCE, newest=(0, 33, 99))


def version_of(job: Job) -> Version:
    """What differs in the release of this job: the V0 engine where it is asked for or fallen back to.

    Source: vllm v0.8.5 engine/arg_utils.py L1348-1354, v0.9.2 L1355-1361: no V1 below compute capability 8.0.
    """
    version = HISTORY.at(job.deployment.engine_version)
    settings = job.deployment.settings
    since = ENCODES_IN_V1 if architecture(job.model.model_type).encoder else POOLS_IN_V1
    early_pooling = settings.get("runner") == "pooling" and HISTORY.covered(job.deployment.engine_version) < since
    if version.v1 and ((version.needs_ampere and before_ampere(job)) or settings.get("use_v1") is False or early_pooling):
        return version._replace(v1=False, in_blocks=False, non_torch="v0", hybrid=False)
    return version


def latent_block_size(release: Release, gpu: GpuSpec | None) -> int:
    """Tokens of a block that the backend of latent attention wants: 64 for FlashMLA (Hopper) until 0.14, 128 for CUTLASS, 32 for FlashInfer.

    Source: vllm v0.8.5 platforms/cuda.py L142-156, v0.11.0 L126-182, v0.14.0 L160-231; v0.19.0 platforms/cuda.py L58-98,
    platforms/interface.py L427-474: what the first backend prefers, 16 for FlashAttention and Triton.
    """
    if gpu and gpu.vendor == "AMD":
        return 16
    capability = gpu.compute_capability if gpu else None
    major = int(capability.split(".")[0]) if capability else 9
    if major == 10:
        return 16 if release < (0, 9) else 128 if release < (0, 16) else 32
    return 64 if major == 9 and release < (0, 16) else 16


def length_of(job: Job) -> int:
    """max_model_len: as set, or the context [tokens]."""
    return int(job.deployment.settings.get("max_model_len") or job.workload.context)


def batch_limits(job: Job, length: int) -> tuple[int, int]:
    """max_num_batched_tokens and max_num_seqs: as set, or as the server chooses them.

    Source: vllm v0.19.0 engine/arg_utils.py L2046-2072, L2180-2205; v0.8.5 L1593-1621; v0.6.6 config.py L1428-1442; WHOLE_ITEM.
    """
    settings, version = job.deployment.settings, version_of(job)
    gpu = job.gpu
    if not version.v1:
        tokens = max(length, 2048) if length <= LONG_CONTEXT else 2048
        sequences = 256
    else:
        memory = (gpu.cuda_total_bytes or gpu.memory_sold_bytes).value if gpu else 0
        release, name = HISTORY.covered(job.deployment.engine_version), gpu.name.lower() if gpu else ""
        small = ("a100" in name and not version.a100_is_large) or SPARK in name
        tokens, sequences = (8192, 1024) if memory >= LARGE_MEMORY and not small else (2048, 256)
        if release >= HUGE_SINCE and memory >= HUGE_MEMORY:
            tokens = 16384
        if release >= WHOLE_ITEM_SINCE and job.model.vision_parameters and not settings["language_model_only"]:
            tokens = max(tokens, WHOLE_ITEM.get(job.model.model_type, 0))
    sequences = int(settings.get("max_num_seqs", sequences))
    tokens = int(settings.get("max_num_batched_tokens") or _whole_prompts(job, length, tokens, sequences))
    return tokens, min(sequences, tokens)


def _whole_prompts(job: Job, length: int, tokens: int, sequences: int) -> int:
    """Tokens of a step where prompts aren't cut in chunks: encoders, and the V0 engine's pooling runner; else `tokens`.

    V0:             max(max_model_len, 32,768), at most max_num_seqs x max_model_len since 0.9
    V1 until 0.11:  max_model_len
    since:          max(max_model_len, the GPU's default), at most max_num_seqs x max_model_len

    Source: vllm v0.6.6 config.py L1429-1449, v0.9.2 L2265-2284; v0.11.0 engine/arg_utils.py _set_default_args; v0.11.2 L2012-2026.
    """
    release, v1 = HISTORY.covered(job.deployment.engine_version), version_of(job).v1
    if job.deployment.settings.get("runner") != "pooling" or (v1 and not architecture(job.model.model_type).encoder):
        return tokens
    if v1:
        return length if release < (0, 11, 1) else min(max(length, tokens), sequences * length)
    return max(length, 32768) if release < (0, 9) else min(max(length, 32768), sequences * length)
