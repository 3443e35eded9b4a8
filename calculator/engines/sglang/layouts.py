"""Weights that SGLang holds beside or wider than the checkpoint's: absorbed latent attention, float32 routers, MXFP4 layouts."""

from __future__ import annotations

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.mxfp4 import aiter_extra, mxfp4_extra
from calculator.engines.ranks import element_bytes
from calculator.engines.sglang.adapters import lora_line
from calculator.engines.sglang.families import ABSORBED_SOURCE, family_of, full_layer
from calculator.engines.sglang.ranks import held, rank_spec
from calculator.engines.sglang.rocm import absorbed_bytes, expert_lines
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import experts_in_mxfp4

ROUTER_SOURCE = "sglang v0.5.6 srt/models/minimax_m2.py L178: params_dtype float32"
VALUES_SOURCE = "sglang srt/models/gemma4_causal.py @03826cdd9 load_weights: attention_k_eq_v loads k_proj as v too"
MXFP4_SOURCE = "sglang v0.5.6 srt/layers/quantization/mxfp4.py, the same kernels as vllm's: triton_kernels on Hopper, FlashInfer on Blackwell"


def extra_lines(job: Job, share: Share) -> list[Line]:
    """What is beside the stored tensors on one GPU."""
    rank, model, lines = rank_spec(job), job.model, []
    count, e = len(share.layers), element_bytes(job)
    lines += expert_lines(job, share)
    if (slots := lora_line(job, share)) is not None:
        lines.append(slots)
    if rank.by_layer and rank.by_layer.values_are_keys:
        keys = [(g.nbytes, len(g.layers)) for g in held(job, share) if g.group.role == "attn_k" and g.layers and full_layer(model, g.layers[0])]
        nbytes = sum(size for size, _ in keys)
        lines.append(Line("weights", "values copied from keys", nbytes, Formula("{n} (keys of {L} layers)", {"n": nbytes, "L": sum(n for _, n in keys)}),
                          VALUES_SOURCE, device=share.device, note="layers that see everything have one matrix for both in the checkpoint"))  # fmt: skip
    if rank.mla:
        symbols = {"L": count, "c": rank.mla.kv_lora_rank, "H": rank.num_attention_heads, "n": rank.mla.qk_nope_head_dim, "v": rank.mla.v_head_dim, "e": absorbed_bytes(job, e)}
        nbytes = count * symbols["c"] * symbols["H"] * (symbols["n"] + symbols["v"]) * symbols["e"]
        lines.append(Line("weights", "absorbed key and value matrices", nbytes, Formula("{L} (layers) × {c} (compressed row) × {H} (heads) × ({n} + {v}) × {e}", symbols),
                          ABSORBED_SOURCE, device=share.device, note="a copy of kv_b_proj in 16 bits" if symbols["e"] > 1 else "a copy of kv_b_proj in 8 bits"))  # fmt: skip
    if family_of(model).wide_router and e < 4:
        elements = sum(g.group.elements * len(set(g.layers) & set(share.layers)) for g in job.stored if g.group.role == "router")
        lines.append(Line("weights", "routers in float32", (4 - e) * elements, Formula("{x} (bytes more) × {n} (elements)", {"x": 4 - e, "n": elements}),
                          ROUTER_SOURCE, device=share.device, note="beside the 16 bits that the checkpoint stores"))  # fmt: skip
    if experts_in_mxfp4(model, job.scheme):
        major = int((job.gpu.compute_capability or "9").split(".")[0]) if job.gpu else 9
        if on_rocm(job):
            each, formula, kernel = aiter_extra(hidden=rank.hidden_size, width=rank.expert_intermediate_size)
        else:
            each, formula, kernel = mxfp4_extra(capability=(major, 0), hidden=rank.hidden_size, width=rank.expert_intermediate_size)
        symbols = {"L": count, "E": rank.num_experts, "h": rank.hidden_size, "f": rank.expert_intermediate_size}
        nbytes = count * rank.num_experts * each
        lines.append(Line("weights", "MXFP4 layout", nbytes, Formula("{L} (layers) × {E} (experts) × " + formula, symbols), MXFP4_SOURCE, basis="modelled",
                          low=0, high=nbytes, device=share.device, note=f"{kernel}'s, not held against a log"))  # fmt: skip
    return lines
