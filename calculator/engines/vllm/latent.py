"""Latent attention before 0.8: cached as heads padded to 256 (to 0.7.0), or as rows beside absorbed matrices (0.7.1 to 0.7.4).

Source: vllm v0.6.6 config.py L719-726, model_executor/models/deepseek_v2.py L266-316; v0.7.1, v0.7.2 and v0.7.3 config.py use_mla,
worker/cache_engine.py, attention/backends/mla/utils.py process_weights_after_loading and _forward_prefill_flash.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from calculator.engines.base import Job
from calculator.engines.ranks import element_bytes
from calculator.engines.vllm.deployment import HISTORY
from calculator.errors import Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.spec import LatentAttention, ModelSpec
from calculator.steps import Buffer
from calculator.units import align_up, ceil_div

Mode = Literal["row", "absorbed", "heads"]
SOURCE = "vllm v0.7.3 attention/backends/mla/utils.py process_weights_after_loading: W_QR, W_Q_UK, W_UV_O, beside the checkpoint's own"
HEADS_SOURCE = "vllm v0.6.6 config.py L719-726: keys and values of all heads, padded to 256"
ALIGNED_SOURCE = "vllm v0.7.3 worker/cache_engine.py _align_cache: rows of whole 256 bytes; v0.7.1 without"
ABSORBED_SINCE, ALIGNED_SINCE, ROWS_SINCE = (0, 7, 1), (0, 7, 2), (0, 8, 0)
PADDED = 256


def latent_mode(job: Job) -> Mode:
    """How a release keeps latent attention: 0.7 absorbs matrices in 16 bits and FP8 alone; other formats are kept as heads."""
    release, scheme = HISTORY.covered(job.deployment.engine_version), job.scheme
    if release >= ROWS_SINCE or job.model.mla is None:
        return "row"
    return "absorbed" if release >= ABSORBED_SINCE and (scheme.family == "plain" or scheme.name.startswith("fp8")) else "heads"


def check_latent(job: Job) -> None:
    """Refuse what the release can't do."""
    if latent_mode(job) == "absorbed" and job.deployment.kv_dtype == "fp8":
        raise Unsupported(f"vllm {job.deployment.engine_version} keeps no fp8 cache with latent attention", hint="leaving --kv-dtype out, or --engine-version 0.8.5 or later")


class EarlyRow(NamedTuple):
    """What a token adds to a layer, and how that is made up."""

    elements: int
    expression: str
    symbols: dict[str, int]
    source: str


def early_row(job: Job, rank: ModelSpec) -> EarlyRow | None:
    """Elements that a token adds to a layer on one rank, before 0.8; None since.

    heads: 2 x H x 256        absorbed: c + r, since 0.7.2 in whole 256 bytes: 576 -> 640 in 16 bits        derived
    """
    mode, mla = latent_mode(job), rank.mla
    if mode == "row" or mla is None:
        return None
    if mode == "heads":
        heads = rank.num_attention_heads
        return EarlyRow(2 * heads * PADDED, "2 × {H} (heads) × {P} (padded)", {"H": heads, "P": PADDED}, HEADS_SOURCE)
    row = mla.kv_lora_rank + mla.qk_rope_head_dim
    if HISTORY.covered(job.deployment.engine_version) >= ALIGNED_SINCE:
        row = align_up(row, PADDED // element_bytes(job))
    return EarlyRow(row, "{K} (row and rotary key, aligned)", {"K": row}, ALIGNED_SOURCE)


def absorbed_elements(rank: ModelSpec, mla: LatentAttention) -> tuple[int, int]:
    """Elements of a layer's absorbed matrices on one rank: in 16 bits, and in the weights' own type.

    W_QR = q H r;   W_Q_UK + W_UV_O = q H c + H c h        q rank of the queries, or h; H the rank's heads
    """
    q, heads = mla.q_lora_rank or rank.hidden_size, rank.num_attention_heads
    return q * heads * mla.qk_rope_head_dim, heads * mla.kv_lora_rank * (q + rank.hidden_size)


def absorbed_pair_line(job: Job, rank: ModelSpec, share: Share) -> Line | None:
    """Queries' and outputs' matrices with those of keys and values absorbed, for decoding (0.7.1 to 0.7.4).

    bytes = L x (e q H r + w H c (q + h) + scales)        w 1 in FP8, else e; a scale of 4 bytes a block of 128 x 128

    DeepSeek R1 on 8 x 3 L20 (0.7.4.dev382) prints 25.02 GiB, 25.00 with this line.                            derived
    """
    mla = rank.mla
    if mla is None or latent_mode(job) != "absorbed":
        return None
    size = element_bytes(job)
    wide, own = absorbed_elements(rank, mla)
    q, heads = mla.q_lora_rank or rank.hidden_size, rank.num_attention_heads
    each = size if job.scheme.storage is None else 1
    blocks = ceil_div(heads * mla.kv_lora_rank, 128) * (ceil_div(q, 128) + ceil_div(rank.hidden_size, 128)) if job.scheme.name == "fp8-block" else 0
    symbols = {"L": len(share.layers), "e": size, "q": q, "H": heads, "r": mla.qk_rope_head_dim, "c": mla.kv_lora_rank, "h": rank.hidden_size, "w": each, "s": blocks}
    nbytes = len(share.layers) * (size * wide + each * own + 4 * blocks)
    return Line("weights", "absorbed query and output matrices", nbytes,
                Formula("{L} (layers) × ({e} × {q} × {H} × {r} + {w} × {H} (heads) × {c} (compressed row) × ({q} + {h}) + 4 × {s} (scales))", symbols), SOURCE,
                device=share.device, note="beside the checkpoint's own matrices, which the prompt is run with")  # fmt: skip


def early_attention(mode: Mode, mla: LatentAttention, *, heads: int, tokens: int, element_bytes: int) -> list[Buffer]:
    """Keys and values made whole, and what is padded for the kernel: to the queries' width, or to 256."""
    t, e, n, r, v = tokens, element_bytes, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    whole = Buffer("keys and values made whole", e * t * heads * (n + v), "{e} × {T} × {H} × ({n} + {v})")
    if mode == "absorbed":
        return [whole, Buffer("queries, keys, padded values and output", 4 * e * t * heads * (n + r), "4 × {e} × {T} × {H} × ({n} + {p})")]
    return [whole, Buffer("queries and keys", 2 * e * t * heads * (n + r), "2 × {e} × {T} × {H} × ({n} + {p})"),
            Buffer("queries, keys, values and output, padded", 4 * e * t * heads * PADDED, "4 × {e} × {T} × {H} × 256")]  # fmt: skip
