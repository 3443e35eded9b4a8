"""Sparse latent attention in vLLM (DeepSeek V3.2, GLM 5): rows of the cache, the indexer's keys, what isn't known.

Source: vllm v0.19.0 model_executor/models/deepseek_v2.py L584-675, L1155-1163, v1/kv_cache_interface.py MLAAttentionSpec,
v1/attention/backends/mla/flashmla_sparse.py; v0.11.0 the same, whose cache is in 8 bits unless bfloat16 is asked for (config.py L418-425).
"""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import kv_element_bytes, one_stage, ranks_of, stages_of
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of
from calculator.errors import NotModelled
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.spec import Indexer, ModelSpec

ROW_SOURCE = "vllm v0.19.0 v1/kv_cache_interface.py MLAAttentionSpec: fp8_ds_mla is 656 bytes a token: 512 in 8 bits, 4 scales of 4 bytes, 64 of the rotary key in 16 bits"
KEYS_SOURCE = "vllm v0.19.0 model_executor/models/deepseek_v2.py L663-671: 8 bits and a scale of 4 bytes for 128 of them, on every rank"
CHOICE_SOURCE = "vllm v0.19.0 model_executor/models/deepseek_v2.py L1155-1163: topk_indices_buffer"
FP8_ROW = 656
BLOCK = 64  # flashmla_sparse.py L91
FLASHINFER_SINCE = (0, 16, 1)  # on Blackwell, whose rows in 8 bits are plain: platforms/cuda.py of v0.17.1; v0.16.0 has FlashMLA alone
SHARED_SINCE = (0, 22, 0)  # index_topk_freq: read there, not in v0.19.0
LACKING = "the workspaces of sparse attention"


def check_sparse(job: Job) -> None:
    """Refuse what isn't known of sparse attention."""
    if job.model.indexer is None:
        return
    capability = job.gpu.compute_capability if job.gpu else None
    what = f"vllm with sparse attention ({job.model.id})"
    if capability and capability.split(".")[0] not in ("9", "10"):
        raise NotModelled(f"{what} on compute capability {capability}: its kernels run on Hopper and Blackwell of data centres", hint="H100, H200 or B200")
    if job.model.indexer.full and HISTORY.covered(job.deployment.engine_version) < SHARED_SINCE:
        raise NotModelled(f"{what} before 0.22, which has an indexer in every layer", hint="a later --engine-version")
    if stages_of(job) > 1:
        raise NotModelled(f"{what} in pipeline stages: no log to hold that against", hint=one_stage(job))


def row_bytes(model: ModelSpec, element_bytes: int, *, packed: bool) -> int:
    """What a token adds to a layer's cache beside the indexer's key [bytes]: c + r elements, or 656 bytes with their scales.

    GLM 5.2 on 0.23: 78 rows of 656 and 21 keys of 132 give the 574,336 tokens printed of 28.85 GiB.          derived
    """
    assert model.mla is not None
    return FP8_ROW if packed else (model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) * element_bytes


def key_bytes(indexer: Indexer) -> int:
    """The indexer's key of a token: d in 8 bits and a scale for each 128 [bytes]."""
    return indexer.head_dim + indexer.head_dim // 128 * 4


def packed_rows(job: Job) -> bool:
    """Whether rows are in FlashMLA's own layout of 8 bits."""
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    plain = capability.startswith("10.") and HISTORY.covered(job.deployment.engine_version) >= FLASHINFER_SINCE
    return job.deployment.kv_dtype == "fp8" and not plain


def sparse_bytes(job: Job) -> tuple[int, int]:
    """Row and indexer's key of a token in one layer [bytes]."""
    assert job.model.indexer is not None
    return row_bytes(job.model, kv_element_bytes(job), packed=packed_rows(job)), key_bytes(job.model.indexer)


def sparse_lines(job: Job, share: Share, tokens: int) -> list[Line]:
    """Rows and keys of `tokens` tokens, in whole blocks, on one GPU."""
    note = "every rank keeps the whole row and key" if ranks_of(job) > 1 else ""
    shared = "" if len(choosing(job, share)) == len(share.layers) else "the other layers take the choice of the one before"
    return [Line("kv_cache", name, tokens * layers * each, Formula("{n} (tokens in whole blocks) × {L} (layers) × {b} (bytes)", {"n": tokens, "L": layers, "b": each}), source, device=share.device, note=said)
            for name, layers, each, source, said in zip(("KV blocks", "indexer keys"), (len(share.layers), len(choosing(job, share))), sparse_bytes(job), (ROW_SOURCE, KEYS_SOURCE),
                                                        (note, "; ".join(filter(None, (note, shared)))), strict=True)]  # fmt: skip


def choosing(job: Job, share: Share) -> tuple[int, ...]:
    """The layers of a GPU that have an indexer. Source: vllm v0.31.0 model_executor/models/deepseek_v2.py L1141-1170."""
    return tuple(layer for layer in job.model.indexing_layers if layer in share.layers)


def token_bytes(job: Job, share: Share) -> int:
    """What a token adds to a GPU's layers: rows, and the keys of those that choose [bytes]."""
    row, key = sparse_bytes(job)
    return len(share.layers) * row + len(choosing(job, share)) * key


def choice_line(job: Job, share: Share) -> Line | None:
    """The tokens chosen by each token of a batch, made with the model."""
    if job.model.indexer is None:
        return None
    symbols = {"T": batch_limits(job, length_of(job))[0], "k": job.model.indexer.top_k}
    return Line("weights", "tokens chosen", 4 * symbols["T"] * symbols["k"], Formula("4 × {T} (tokens) × {k} (index_topk)", symbols), CHOICE_SOURCE,
                device=share.device, note="one buffer, shared by the layers")  # fmt: skip
