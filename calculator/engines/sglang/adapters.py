"""Buffers of SGLang's LoRA manager: all slots at once, in 16 bits, before the pool."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import VOCAB_MULTIPLE, element_bytes, ranks_of
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.ranks import rank_spec
from calculator.errors import BadValue, NotModelled
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.units import align_up, ceil_div

LORA_SOURCE = (
    "sglang v0.5.2, v0.5.6, v0.5.9, v0.5.13 and v0.5.23 srt/lora/mem_pool.py get_lora_A_shape, get_lora_B_shape, init_buffers; "
    "\"all\": v0.5.9 srt/server_args.py L5388-5403, v0.5.13 srt/lora/lora_manager.py L536-545"
)
LORA_SINCE = (0, 5, 0)
EMBEDDINGS_SINCE = (0, 5, 10)  # "all" has embedding and head; before, the default backend (csgmv) leaves them out
KV_COPIES_SINCE = (0, 5, 12)  # ranks beyond the KV heads have one each; v0.5.10 divides their width


def check_lora(job: Job) -> None:
    """Refuse adapters where their buffers haven't been read."""
    settings, model = job.deployment.settings, job.model
    if not settings["enable_lora"]:
        if settings.get("max_lora_rank"):
            raise BadValue("max_lora_rank without enable_lora", hint="--set enable_lora=1")
        return
    if not settings.get("max_lora_rank"):
        raise BadValue("enable_lora without max_lora_rank: the server takes it of its adapters", hint="--set max_lora_rank=64")
    if HISTORY.covered(job.deployment.engine_version) < LORA_SINCE:
        raise NotModelled(f"sglang {job.deployment.engine_version} with enable_lora", allowed="0.5.0 or later", hint="--engine-version 0.5.6")
    if model.num_experts or model.mla or model.recurrent or model.by_layer or model.vision_parameters:
        what = "a vision tower" if model.vision_parameters else model.model_type
        raise NotModelled(f"sglang with enable_lora for {what}", hint="leaving it out")


def lora_line(job: Job, share: Share) -> Line | None:
    """Buffers of all adapter slots on one rank: A whole for column-split layers, B for row-split ones; of all layers, also in pipeline stages.

    bytes = e S r (L (A inputs x stacked + B outputs) + embedding and head)     S max_loras_per_batch, r max_lora_rank      derived

    Embedding and head have 2 x (V + 2 h + V of the rank's head): both tables are made for both names. Source: LORA_SOURCE.
    """
    settings, model, rank = job.deployment.settings, job.model, rank_spec(job)
    if not settings["enable_lora"]:
        return None
    release, tp, h = HISTORY.covered(job.deployment.engine_version), ranks_of(job), model.hidden_size
    q, kv = rank.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim // tp
    if release >= KV_COPIES_SINCE:
        kv = rank.num_key_value_heads * model.head_dim
    widths, outer = 3 * h + (q + 2 * kv) + (q + h), 0
    if settings["lora_target_modules"] == "all":
        widths += 2 * h + 2 * rank.intermediate_size + rank.intermediate_size + h
        if release >= EMBEDDINGS_SINCE:
            head = model.vocab_size if tp == 1 or model.tie_word_embeddings else ceil_div(align_up(model.vocab_size, VOCAB_MULTIPLE), tp)
            outer = 2 * (model.vocab_size + 2 * h + head)
    symbols = {"e": element_bytes(job), "L": model.num_hidden_layers, "S": int(settings["max_loras_per_batch"]), "r": int(settings["max_lora_rank"]), "w": widths, "o": outer}
    template = "{e} × {S} (slots) × {r} (rank) × ({L} (layers) × {w} (inputs of A, stacked, and outputs of B)" + (" + {o} (embedding and head))" if outer else ")")
    nbytes = symbols["e"] * symbols["S"] * symbols["r"] * (symbols["L"] * widths + outer)
    return Line("weights", "LoRA slots", nbytes, Formula(template, symbols), LORA_SOURCE, device=share.device, note=f"buffers for {symbols['S']} adapters of rank {symbols['r']} at once")
