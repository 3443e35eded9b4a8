"""Weights that SGLang holds beside or wider than the checkpoint's: absorbed latent attention, float32 routers, MXFP4 layouts."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.mxfp4 import mxfp4_extra
from calculator.engines.ranks import element_bytes, ranks_of
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.families import ABSORBED_SOURCE, family_of, full_layer
from calculator.engines.sglang.ranks import held, rank_spec
from calculator.errors import BadValue, NotModelled
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import experts_alone

LORA_SOURCE = "sglang v0.5.2 and v0.5.6 srt/lora/mem_pool.py get_lora_A_shape, get_lora_B_shape, init_buffers: 16-bit buffers of all slots, before the pool"
LORA_RELEASES = ((0, 5, 0), (0, 5, 6))  # read; later ones may count embedding and head among "all"
ROUTER_SOURCE = "sglang v0.5.6 srt/models/minimax_m2.py L178: params_dtype float32"
VALUES_SOURCE = "sglang srt/models/gemma4_causal.py @03826cdd9 load_weights: attention_k_eq_v loads k_proj as v too"
MXFP4_SOURCE = "sglang v0.5.6 srt/layers/quantization/mxfp4.py, the same kernels as vllm's: triton_kernels on Hopper, FlashInfer on Blackwell"


def check_lora(job: Job) -> None:
    """Refuse adapters where their buffers haven't been read."""
    settings = job.deployment.settings
    if not settings["enable_lora"]:
        if settings.get("max_lora_rank"):
            raise BadValue("max_lora_rank without enable_lora", hint="--set enable_lora=1")
        return
    if not settings.get("max_lora_rank"):
        raise BadValue("enable_lora without max_lora_rank: the server takes it of its adapters", hint="--set max_lora_rank=64")
    release = HISTORY.covered(job.deployment.engine_version)
    if not LORA_RELEASES[0] <= release <= LORA_RELEASES[1]:
        raise NotModelled(f"sglang {job.deployment.engine_version} with enable_lora", allowed="0.5.0 to 0.5.6", hint="--engine-version 0.5.6")
    if job.model.num_experts or job.model.mla:
        raise NotModelled(f"sglang with enable_lora for {job.model.model_type}", hint="leaving it out")


def lora_line(job: Job, share: Share) -> Line | None:
    """Buffers of all adapter slots on one rank: A whole for column-split layers, B for row-split ones; of all layers, also in pipeline stages.

    bytes = e L S r (A inputs x stacked + B outputs)        S max_loras_per_batch, r max_lora_rank               derived
    """
    settings, model, rank = job.deployment.settings, job.model, rank_spec(job)
    if not settings["enable_lora"]:
        return None
    h, q, kv = model.hidden_size, rank.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim // ranks_of(job)
    widths = 3 * h + (q + 2 * kv) + (q + h)
    if settings["lora_target_modules"] == "all":
        widths += 2 * h + 2 * rank.intermediate_size + rank.intermediate_size + h
    symbols = {"e": element_bytes(job), "L": model.num_hidden_layers, "S": int(settings["max_loras_per_batch"]), "r": int(settings["max_lora_rank"]), "w": widths}
    return Line("weights", "LoRA slots", symbols["e"] * symbols["L"] * symbols["S"] * symbols["r"] * widths,
                Formula("{e} × {L} (layers) × {S} (slots) × {r} (rank) × {w} (inputs of A, stacked, and outputs of B)", symbols), LORA_SOURCE,
                device=share.device, note=f"buffers for {symbols['S']} adapters of rank {symbols['r']} at once")  # fmt: skip


def extra_lines(job: Job, share: Share) -> list[Line]:
    """What is beside the stored tensors on one GPU."""
    rank, model, lines = rank_spec(job), job.model, []
    count, e = len(share.layers), element_bytes(job)
    if (slots := lora_line(job, share)) is not None:
        lines.append(slots)
    if rank.by_layer and rank.by_layer.values_are_keys:
        keys = [(g.nbytes, len(g.layers)) for g in held(job, share) if g.group.role == "attn_k" and g.layers and full_layer(model, g.layers[0])]
        nbytes = sum(size for size, _ in keys)
        lines.append(Line("weights", "values copied from keys", nbytes, Formula("{n} (keys of {L} layers)", {"n": nbytes, "L": sum(n for _, n in keys)}),
                          VALUES_SOURCE, device=share.device, note="layers that see everything have one matrix for both in the checkpoint"))  # fmt: skip
    if rank.mla:
        symbols = {"L": count, "c": rank.mla.kv_lora_rank, "H": rank.num_attention_heads, "n": rank.mla.qk_nope_head_dim, "v": rank.mla.v_head_dim, "e": e}
        nbytes = count * symbols["c"] * symbols["H"] * (symbols["n"] + symbols["v"]) * e
        lines.append(Line("weights", "absorbed key and value matrices", nbytes, Formula("{L} (layers) × {c} (compressed row) × {H} (heads) × ({n} + {v}) × {e}", symbols),
                          ABSORBED_SOURCE, device=share.device, note="a copy of kv_b_proj in 16 bits"))  # fmt: skip
    if family_of(model).wide_router and e < 4:
        elements = sum(g.group.elements * len(set(g.layers) & set(share.layers)) for g in job.stored if g.group.role == "router")
        lines.append(Line("weights", "routers in float32", (4 - e) * elements, Formula("{x} (bytes more) × {n} (elements)", {"x": 4 - e, "n": elements}),
                          ROUTER_SOURCE, device=share.device, note="beside the 16 bits that the checkpoint stores"))  # fmt: skip
    if experts_alone(model, job.scheme):
        major = int((job.gpu.compute_capability or "9").split(".")[0]) if job.gpu else 9
        each, formula, kernel = mxfp4_extra(capability=(major, 0), hidden=rank.hidden_size, width=rank.expert_intermediate_size)
        symbols = {"L": count, "E": rank.num_experts, "h": rank.hidden_size, "f": rank.expert_intermediate_size}
        nbytes = count * rank.num_experts * each
        lines.append(Line("weights", "MXFP4 layout", nbytes, Formula("{L} (layers) × {E} (experts) × " + formula, symbols), MXFP4_SOURCE, basis="modelled",
                          low=0, high=nbytes, device=share.device, note=f"{kernel}'s, not held against a log"))  # fmt: skip
    return lines
