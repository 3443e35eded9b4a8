"""Lines of a draft in SGLang: its weights, its pool of as many tokens as the target's, and its graphs."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import build_inventory
from calculator.architectures.inventory import Inventory
from calculator.engines.base import Job
from calculator.engines.eagle import HEAD_SOURCE, STATES, head_groups, head_stored
from calculator.engines.ranks import element_bytes, ranks_of, shares_of
from calculator.engines.records import record, record_line
from calculator.engines.sglang.attention import page_of
from calculator.engines.sglang.defaults import prefill_tokens
from calculator.engines.sglang.deployment import context_length
from calculator.engines.sglang.families import ABSORBED_SOURCE, rotary_elements
from calculator.engines.sglang.overheads import load_slack
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.engines.sglang.speculative import (
    OVERWRITES_UNTIL,
    SLOTS_SOURCE,
    SPECULATIVE_SOURCE,
    counted,
    draft_cell,
    draft_job,
    draft_layers,
    draft_rank,
    head_of,
    method_of,
    pooled,
    release_of,
)
from calculator.engines.weights import weight_lines
from calculator.ledger import Formula, Line
from calculator.quantization import Stored, compute_dtype
from calculator.quantization.hf import quantize
from calculator.units import align_up, ceil_div

MTP_SOURCE = "sglang v0.4.9 srt/models/deepseek_nextn.py L40-130, v0.5.6 glm4_moe_nextn.py; srt/speculative/eagle_worker.py L145-175: embedding and head are the target's"
STATES_SOURCE = "sglang v0.5.6 srt/speculative/eagle_worker.py forward_target_extend, forward_draft_extend: CaptureHiddenMode.FULL"
WITHIN, BESIDE = ", draft", ", draft beside the share"
NAMES = ("embedding", "linear layers", "routers", "norms and biases", "output head", "other tensors", "recurrent layers' small tensors", "absorbed key and value matrices",
         "rotary cos and sin", "tokens of the target", "load slack")  # fmt: skip
OUTSIDE = tuple(name + BESIDE for name in NAMES)
GRAPHS = "draft graphs"


def suffix(job: Job) -> str:
    """Behind the name of a draft's line: whether the static fraction holds it."""
    return WITHIN if counted(job) else BESIDE


def lines_of(job: Job) -> list[Line]:
    """The draft's weights on each GPU; none for ngram."""
    method = method_of(job)
    if method in ("", "ngram"):
        return []
    stored, source = _stored(job)
    rank, e, head, draft, slack = rank_spec(job), element_bytes(job), head_of(job), draft_job(job), load_slack(job)
    lines = []
    for share in shares_of(job):
        mine = weight_lines(job.scheme if method == "mtp" else draft.scheme if draft else job.scheme._replace(storage=None), stored, device=share.device,
                            tied=bool(draft and draft.model.tie_word_embeddings))  # fmt: skip
        if method == "mtp" and rank.mla:
            symbols = {"L": draft_layers(job), "c": rank.mla.kv_lora_rank, "H": rank.num_attention_heads, "n": rank.mla.qk_nope_head_dim, "v": rank.mla.v_head_dim, "e": e}
            mine.append(Line("weights", "absorbed key and value matrices", symbols["L"] * symbols["c"] * symbols["H"] * (symbols["n"] + symbols["v"]) * e,
                             Formula("{L} (layers) × {c} (compressed row) × {H} (heads) × ({n} + {v}) × {e}", symbols), ABSORBED_SOURCE, device=share.device))  # fmt: skip
        if head is not None and head.draft_vocab_size and method == "eagle3":
            mine.append(Line("weights", "tokens of the target", 8 * head.draft_vocab_size, Formula("8 × {D} (draft_vocab_size)", {"D": head.draft_vocab_size}), HEAD_SOURCE, device=share.device))
        if method != "mtp":
            mine.append(_rotary(job, share.device))
        mine.append(Line("weights", "load slack", 0, Formula("0"), slack.source, basis="modelled", low=0, high=slack.high, device=share.device,
                         note="segments of the allocator that the draft's weights don't fill; no log prints them alone"))  # fmt: skip
        lines += [replace(line, name=line.name + suffix(job), source=f"{line.source}; {source}") for line in mine]
    return lines


def _stored(job: Job) -> tuple[Stored, str]:
    """What one rank holds of the draft, and who says so."""
    method, dtype = method_of(job), compute_dtype(job.model, job.scheme)
    rank = draft_rank(job)
    assert rank is not None
    if method == "mtp":
        return _mtp_stored(job), MTP_SOURCE
    if (head := head_of(job)) is not None:
        return head_stored(head_groups(head, rank, eagle3=method == "eagle3", bias=method == "eagle" or head.bias, ranks=ranks_of(job), embedding=not head.shares_embedding), dtype), HEAD_SOURCE
    groups = build_inventory(rank)
    return quantize(Inventory(groups.groups, groups.tied), None, dtype=dtype, label=dtype), SPECULATIVE_SOURCE


def _mtp_stored(job: Job) -> Stored:
    """The MTP layers' tensors on a rank, without embedding and head; the projection whole and in 16 bits, routers whole."""
    whole = {g.name: g for g in build_inventory(job.model).mtp if g.role == "router"}
    held = [whole.get(g.name, g) for g in build_inventory(rank_spec(job)).mtp if g.role not in ("embedding", "output")]
    held = [replace(g, role="projection") if g.name.endswith(("eh_proj.weight", "mtp.fc.weight")) else g for g in held]
    storage = None if job.scheme.name == "nvfp4" else job.scheme.storage
    return quantize(Inventory(tuple(held), tied=False), storage, dtype=compute_dtype(job.model, job.scheme), label=job.scheme.name.upper())


def _rotary(job: Job, device: int) -> Line:
    """A draft's table of cosines and sines; none more where base, scaling and positions are the target's."""
    draft, head = draft_job(job), head_of(job)
    spec = draft.model if draft else head.spec if head else job.model
    positions, width = rotary_elements(spec)
    positions = max(positions, context_length(job)) if positions and release_of(job) >= OVERWRITES_UNTIL else positions
    return Line("weights", "rotary cos and sin", 4 * positions * width, Formula("4 × {P} (positions) × {d} (rotary width)", {"P": positions, "d": width}),
                "sglang v0.5.6 srt/layers/rotary_embedding.py get_rope: one table for equal arguments", basis="modelled", low=0, high=4 * max(positions, job.model.max_position_embeddings) * width,
                device=device, note="one with the target's where base, scaling and positions are the same")  # fmt: skip


def cache_lines(job: Job) -> list[Line]:
    """The draft's slots of the sequences, in whole pages."""
    cell = draft_cell(job)
    if not cell:
        return []
    symbols = {"B": ceil_div(job.workload.sequences, attention_groups(job)), "S": align_up(job.workload.context, page_of(job)), "C": cell, "L": draft_layers(job)}
    note = "as many tokens as the target's pool has, " + ("which counts them" if pooled(job) else "beside the static fraction")
    return [Line("kv_cache", "KV slots, draft", symbols["B"] * symbols["S"] * cell, Formula("{B} × {S} (tokens) × {C} (bytes of {L} layers)", symbols), SLOTS_SOURCE, device=share.device, note=note)
            for share in shares_of(job)]  # fmt: skip


def state_lines(job: Job) -> list[Line]:
    """Hidden states of a chunk that the draft's pass reads, three of EAGLE3: e T h each; its layer's own pass is no larger than the target's."""
    if not draft_layers(job) or method_of(job) == "standalone":
        return []
    symbols = {"n": STATES if method_of(job) == "eagle3" else 1, "e": element_bytes(job), "T": prefill_tokens(job), "h": job.model.hidden_size}
    nbytes = symbols["n"] * symbols["e"] * symbols["T"] * symbols["h"]
    return [Line("activations", "hidden states, draft", nbytes, Formula("{n} × {e} × {T} (tokens) × {h}", symbols), STATES_SOURCE, basis="modelled", low=0, high=2 * nbytes, device=share.device,
                 note="kept of the target's pass; no log prints them") for share in shares_of(job)]  # fmt: skip


def graph_lines(job: Job, device: int) -> list[Line]:
    """The draft's CUDA graphs."""
    if not draft_layers(job):
        return []
    if job.deployment.settings["disable_cuda_graph"]:
        return [Line("overhead", GRAPHS, 0, Formula("0"), "setting disable_cuda_graph", device=device, note="none: disable_cuda_graph")]
    return [record_line(record("sglang", "draft_graphs"), GRAPHS, device)]


def outside_bytes(job: Job, device: int) -> tuple[int, int]:
    """Low and high of the draft's weights beside the static fraction on one GPU."""
    mine = [line for line in lines_of(job) if line.device == device] if not counted(job) else []
    return sum(line.low_bytes for line in mine), sum(line.high_bytes for line in mine)
