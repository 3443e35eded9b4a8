"""vLLM's releases, and what a job's settings resolve to: batch limits, ranks, shares, blocks."""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.engines.base import Job
from calculator.parallelism import Share, pipeline_stages, tensor_rank
from calculator.quantization import compute_dtype
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec
from calculator.units import GIB

VOCAB_MULTIPLE = 64  # vllm v0.19.0 model_executor/layers/vocab_parallel_embedding.py L28
LARGE_MEMORY = 70 * GIB  # vllm v0.19.0 engine/arg_utils.py L2053
LONG_CONTEXT = 32768  # vllm v0.6.6 engine/arg_utils.py L1081: chunked prefill beyond it
BLOCK_SOURCE = "vllm v0.19.0 v1/core/kv_cache_utils.py L802-820, get_num_blocks; v0.6.6 worker/worker.py L206-222"


class Version(NamedTuple):
    """What differs between releases."""

    v1: bool
    sampler: Literal["sort", "triton"]
    in_blocks: bool
    """Concurrency counts whole blocks."""
    non_torch: str
    a100_is_large: bool = False
    locks_a_column: bool = False
    """Marlin's locks are counted by output columns, not by multiprocessors."""


VERSIONS: dict[str, Version] = {
    "0.6.6": Version(v1=False, sampler="sort", in_blocks=False, non_torch="v0", locks_a_column=True),
    "0.8.5": Version(v1=True, sampler="sort", in_blocks=False, non_torch="v1", a100_is_large=True, locks_a_column=True),
    "0.11.0": Version(v1=True, sampler="sort", in_blocks=True, non_torch="v1"),
    "0.19.0": Version(v1=True, sampler="triton", in_blocks=True, non_torch="0.19"),
}


def version_of(job: Job) -> Version:
    """What differs in the release of this job."""
    return VERSIONS[job.deployment.engine_version]


def length_of(job: Job) -> int:
    """max_model_len: as set, or the context [tokens]."""
    return int(job.deployment.settings.get("max_model_len") or job.workload.context)


def ranks_of(job: Job) -> int:
    """Ranks that each layer is split over."""
    return int(job.deployment.settings["tensor_parallel_size"])


def element_bytes(job: Job) -> int:
    """Bytes of an element of the activations."""
    return DTYPE_BYTES[compute_dtype(job.model, job.scheme)]


def kv_element_bytes(job: Job) -> int:
    """Bytes of an element of the cache."""
    return 1 if job.deployment.kv_dtype == "fp8" else element_bytes(job)


def rank_of(job: Job) -> ModelSpec:
    """What one rank holds, as a model of its own."""
    return tensor_rank(job.model, ranks_of(job), vocab_multiple=VOCAB_MULTIPLE)


def batch_limits(job: Job, length: int) -> tuple[int, int]:
    """max_num_batched_tokens and max_num_seqs: as set, or as the server chooses them.

    Source: vllm v0.19.0 engine/arg_utils.py L2046-2072, L2180-2205; v0.8.5 L1593-1621; v0.6.6 config.py L1428-1442.
    """
    settings, version = job.deployment.settings, version_of(job)
    gpu = job.gpu
    if not version.v1:
        tokens = max(length, 2048) if length <= LONG_CONTEXT else 2048
        sequences = 256
    else:
        memory = (gpu.cuda_total_bytes or gpu.memory_sold_bytes).value if gpu else 0
        large = memory >= LARGE_MEMORY and (version.a100_is_large or not (gpu and "a100" in gpu.name.lower()))
        tokens, sequences = (8192, 1024) if large else (2048, 256)
    tokens = int(settings.get("max_num_batched_tokens", tokens))
    return tokens, min(int(settings.get("max_num_seqs", sequences)), tokens)


def block_bytes(rank: ModelSpec, layers: int, *, block_size: int, element_bytes: int) -> int:
    """One block of all layers on one rank [bytes].

    bytes = 2 x block_size x K x d x e x L        K the rank's KV heads

    Equals every printed pair of pool and tokens in the tests.                                        derived
    """
    return 2 * block_size * rank.num_key_value_heads * rank.head_dim * element_bytes * layers


def shares_of(job: Job) -> tuple[Share, ...]:
    """Every GPU: pipeline stages, each over its tensor-parallel ranks."""
    tp = ranks_of(job)
    stages = pipeline_stages(job.model.num_hidden_layers, job.deployment.gpus // tp)
    return tuple(stage._replace(device=stage.device * tp + rank) for stage in stages for rank in range(tp))


def block_of(job: Job, share: Share) -> int:
    """One block of the layers of a GPU [bytes]."""
    size = int(job.deployment.settings["block_size"])
    return block_bytes(rank_of(job), len(share.layers), block_size=size, element_bytes=kv_element_bytes(job))
