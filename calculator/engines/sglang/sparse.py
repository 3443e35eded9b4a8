"""Sparse latent attention in SGLang (DeepSeek V3.2, GLM 5): rows and the indexer's keys in the pool, pages of 64."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import kv_element_bytes
from calculator.engines.sglang.deployment import HISTORY
from calculator.errors import NotModelled
from calculator.parallelism import Share

SPARSE_SOURCE = "sglang v0.5.9 srt/model_executor/model_runner_kv_cache_mixin.py L70-80, L212-245; srt/mem_cache/memory_pool.py NSATokenToKVPool"
KEYS_SOURCE = f"{SPARSE_SOURCE}; v0.5.23 srt/model_executor/pool_configurator.py L589-634"
PAGE = 64  # srt/server_args.py L1258
CHOOSING_ALONE = (0, 5, 20)  # layers that share a choice keep no keys: read in 0.5.20, not in 0.5.17


def check_sparse(job: Job) -> None:
    """Refuse cards without kernels of sparse attention."""
    capability = job.gpu.compute_capability if job.gpu else None
    if job.model.indexer and capability and capability.split(".")[0] not in ("9", "10"):
        raise NotModelled(f"sglang with sparse attention ({job.model.id}) on compute capability {capability}: no log to hold that against", hint="H100, H200 or B200")


def row_bytes(job: Job) -> int:
    """A token's row in one layer [bytes]: c + r elements; in 8 bits c, 4 bytes for each 128 of them, and r of 2.

    GLM 5 in 8 bits on MI355X prints 186.77 GiB for 3,262,823 tokens: 78 x (656 + 132) bytes each.          derived
    """
    mla = job.model.mla
    assert mla is not None
    if job.deployment.kv_dtype == "fp8":
        return mla.kv_lora_rank + mla.kv_lora_rank // 128 * 4 + 2 * mla.qk_rope_head_dim
    return (mla.kv_lora_rank + mla.qk_rope_head_dim) * kv_element_bytes(job)


def key_bytes(job: Job) -> int:
    """The indexer's key of a token in one layer [bytes]: d in 8 bits and 4 for each 128 of them."""
    own = job.model.indexer
    return own.head_dim + own.head_dim // 128 * 4 if own else 0


def key_layers(job: Job, share: Share) -> int:
    """The layers of a GPU that keep keys: all of them, since CHOOSING_ALONE those that choose."""
    if job.model.indexer is None:
        return 0
    if HISTORY.covered(job.deployment.engine_version) < CHOOSING_ALONE:
        return len(share.layers)
    return len(set(job.model.indexing_layers) & set(share.layers))
