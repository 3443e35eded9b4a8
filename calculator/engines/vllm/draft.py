"""Lines of a draft in vLLM: its weights, its part of the cache, its pass in the profiling run, and the rejection sampler."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import build_inventory
from calculator.architectures.inventory import Inventory
from calculator.engines.base import Job
from calculator.engines.eagle import HEAD_SOURCE, STATES, head_groups, head_stored, load_medusa, medusa_groups
from calculator.engines.ranks import element_bytes, kv_element_bytes, rank_of, ranks_of, shares_of
from calculator.engines.vllm import profile, weights
from calculator.engines.vllm.deployment import HISTORY, batch_limits, version_of
from calculator.engines.vllm.drafted import drafted, method_of
from calculator.engines.vllm.forward import SORT_BELOW
from calculator.engines.vllm.hybrid import block_size
from calculator.engines.vllm.layouts import absorbed_line, router_line, scales_line
from calculator.engines.vllm.speculative import (
    MTP_HEAD_SHARED,
    SPECULATIVE_SOURCE,
    draft_block_bytes,
    draft_job,
    draft_layers,
    draft_row,
    head_of,
)
from calculator.engines.weights import weight_lines
from calculator.ledger import Formula, Line
from calculator.quantization import Stored, compute_dtype
from calculator.quantization.hf import quantize
from calculator.steps import Buffer, Peak, Step
from calculator.units import MIB, ceil_div

REJECTION_SOURCE = "vllm v0.19.0 v1/worker/gpu_model_runner.py L5609-5632; v1/sample/rejection_sampler.py L60-150"
PASS_SOURCE = "vllm v0.19.0 v1/worker/gpu_model_runner.py L5488-5526; v1/spec_decode/eagle.py L1486-1536"
MTP_SOURCE = "vllm v0.19.0 model_executor/models/deepseek_mtp.py, glm4_moe_mtp.py, qwen3_next_mtp.py, qwen3_5_mtp.py; v1/spec_decode/eagle.py L1322-1460: embedding and head are the target's"
MEDUSA_SOURCE = "vllm v0.11.0 and v0.19.0 model_executor/models/medusa.py; v0.19.0 config/speculative.py: as many heads as num_speculative_tokens"
SHARED_SOURCE = "vllm v0.14.0 v1/spec_decode/eagle.py load_model; v0.19.0 eagle.py _maybe_share_embeddings, _maybe_share_lm_head"
PASS_NOTE = "the dummy batch drafts one token a sequence, whatever num_speculative_tokens is"
BUFFERS = "draft buffers"
UNHELD_SHARE, UNREAD_SHARE = 120, 160  # high end of a peak that no log was held against; of a release whose pass hasn't been read [percent]
READ = (0, 22, 99)  # later releases have a second model runner: v0.22.0 config/vllm.py use_v2_model_runner


def lines_of(job: Job) -> list[Line]:
    """The draft's weights on each device; none for ngram."""
    method = method_of(job)
    if method == "mtp":
        return _mtp_lines(job)
    if method == "medusa":
        return _medusa_lines(job)
    if head_of(job) is not None:
        return _head_lines(job)
    draft = draft_job(job)
    if draft is None:
        return []
    lines = [replace(line, name=f"{line.name}, draft", source=f"{line.source}; {SPECULATIVE_SOURCE}") for line in weights.lines_of(draft)]
    same = "one with the target's where base, scaling and positions are the same"
    return [replace(line, low=0, high=line.nbytes, basis="modelled", note=same) if line.name == "rotary cos and sin, draft" else line for line in lines]


def _mtp_stored(job: Job) -> Stored:
    """The MTP layers' tensors on a rank: without the embedding, and since 0.16 without a head; the projection in 16 bits, routers whole."""
    shared = HISTORY.covered(job.deployment.engine_version) >= MTP_HEAD_SHARED
    whole = {g.name: g for g in build_inventory(job.model).mtp if g.role == "router"}
    held = [whole.get(g.name, g) for g in build_inventory(rank_of(job)).mtp if g.role != "embedding" and not (shared and g.role == "output")]
    held = [replace(g, role="projection") if g.name.endswith("eh_proj.weight") else g for g in held]
    held = [replace(g, role="projection", shape=(ceil_div(g.shape[0], ranks_of(job)), g.shape[1])) if g.name == "mtp.fc.weight" else g for g in held]
    storage = None if job.scheme.apart is not None and job.scheme.name != "fp8-block" else job.scheme.storage  # who leaves modules out leaves these: copied from the base
    return quantize(Inventory(tuple(held), tied=False), storage, dtype=compute_dtype(job.model, job.scheme), label=job.scheme.name.upper())


def _mtp_lines(job: Job) -> list[Line]:
    stored, n, rank = _mtp_stored(job), job.model.mtp_layers, rank_of(job)
    lines = []
    for share in shares_of(job):
        mine = weight_lines(job.scheme, stored, device=share.device, tied=False)
        behind = share._replace(layers=range(n))
        mine += [line for line in (router_line(job, share, stored), absorbed_line(job, rank, behind)) if line]
        mine.append(scales_line(n, share.device))
        mine.append(_rounding(12 * n, share.device))
        lines += [replace(line, name=f"{line.name}, draft", source=f"{line.source}; {MTP_SOURCE}") for line in mine]
    return lines


def _head_lines(job: Job) -> list[Line]:
    """A head on each rank: its layers, fc, d2t, and for EAGLE3 a head over its own tokens; embedding and head are the target's where they are equal."""
    head, draft, eagle3, e = head_of(job), draft_job(job), method_of(job) == "eagle3", element_bytes(job)
    assert head is not None
    assert draft is not None
    rank, spec, dtype = rank_of(draft), head.spec, compute_dtype(job.model, job.scheme)
    stored = head_stored(head_groups(head, rank, eagle3=eagle3, bias=False, ranks=ranks_of(job), embedding=not head.shares_embedding), dtype)
    own = e * rank.vocab_size * spec.hidden_size
    lines = []
    for share in shares_of(job):
        mine = weight_lines(draft.scheme, stored, device=share.device, tied=False)
        if head.shares_embedding:
            mine.append(_shared("embedding", own, share.device))
        if not (eagle3 and head.draft_vocab_size):
            mine.append(_shared("output head", own, share.device))
        if eagle3:
            tokens = head.draft_vocab_size or spec.vocab_size
            mine.append(Line("weights", "tokens of the target", 8 * tokens, Formula("8 × {D} (draft_vocab_size)", {"D": tokens}), HEAD_SOURCE, device=share.device))
        positions, width = spec.max_position_embeddings, spec.rotary_dim or spec.head_dim
        mine.append(Line("weights", "rotary cos and sin", e * positions * width, Formula("{e} × {P} (positions) × {d} (rotary width)", {"e": e, "P": positions, "d": width}), weights.ROPE_SOURCE, device=share.device,
                         basis="modelled", low=0, high=e * max(positions, job.model.max_position_embeddings) * width, note="one with the target's where base, scaling and positions are the same"))  # fmt: skip
        n = spec.num_hidden_layers
        mine.append(scales_line(n, share.device))
        mine.append(_rounding(12 * n, share.device))
        lines += [replace(line, name=f"{line.name}, draft", source=f"{line.source}; {HEAD_SOURCE}") for line in mine]
    return lines


def _medusa_lines(job: Job) -> list[Line]:
    """Medusa's blocks and heads on each rank, for num_speculative_tokens."""
    groups = medusa_groups(load_medusa(str(job.deployment.settings["speculative_model"])), heads=drafted(job), ranks=ranks_of(job))
    stored, lines = head_stored(groups, compute_dtype(job.model, job.scheme)), []
    for share in shares_of(job):
        mine = weight_lines(job.scheme._replace(storage=None), stored, device=share.device, tied=False)
        mine.append(_rounding(drafted(job), share.device))
        lines += [replace(line, name=f"{line.name}, draft", source=f"{line.source}; {MEDUSA_SOURCE}") for line in mine]
    return lines


def _rounding(matrices: int, device: int) -> Line:
    """What the allocator may not split off."""
    return Line("weights", "allocator rounding", 0, Formula("0"), weights.ROUNDING_SOURCE, basis="modelled", low=0, high=matrices * MIB, device=device, note="up to 1 MiB a matrix")


def _shared(name: str, nbytes: int, device: int) -> Line:
    """What a head takes of the target, unless its checkpoint has another."""
    return Line("weights", name, 0, Formula("0"), SHARED_SOURCE, basis="modelled", low=0, high=nbytes, device=device, note="the target's; a checkpoint that differs from it keeps its own")


def cache_lines(job: Job, blocks: int) -> list[Line]:
    """The draft's part of the sequences' blocks, `blocks` a sequence."""
    layers = draft_layers(job)
    if not layers:
        return []
    symbols = {"B": job.workload.sequences, "n": blocks, "s": block_size(job), "R": draft_row(job), "e": kv_element_bytes(job), "L": layers}
    formula = Formula("{B} × {n} (blocks) × {s} (tokens) × {R} (elements of a row) × {e} × {L} (layers)", symbols)
    return [Line("kv_cache", "KV blocks, draft", job.workload.sequences * blocks * draft_block_bytes(job), formula, SPECULATIVE_SOURCE, device=share.device,
                 note="in the target's group of blocks") for share in shares_of(job)]  # fmt: skip


def buffer_lines(job: Job, length: int) -> list[Line]:
    """Inputs of the draft's pass, made before the weights and so outside of what the pool is reckoned from.

    bytes = 2 e T h          hidden states and embeddings of max_num_batched_tokens

    Source: vllm v0.19.0 v1/spec_decode/eagle.py L162-200.
    """
    if not draft_layers(job):
        return []
    draft = draft_job(job) or job
    symbols = {"e": element_bytes(job), "T": batch_limits(job, length)[0], "h": draft.model.hidden_size}
    return [Line("overhead", BUFFERS, 2 * symbols["e"] * symbols["T"] * symbols["h"], Formula("2 × {e} × {T} (tokens) × {h}", symbols),
                 "vllm v0.19.0 v1/spec_decode/eagle.py L162-200", device=share.device, note="made before the weights: the pool isn't smaller by them")
            for share in shares_of(job)]  # fmt: skip


def peaks(job: Job, length: int, *, samples: bool = True) -> tuple[int, Peak, int]:
    """Low end, peak and high end of the profiling run, with the draft's pass and the rejection sampler.

    rejection, sort:   B V (3 e + 12 + 32) + e T h + 2 e B h + workspace
    rejection, Triton: B V (3 e + 24) + the same                              modelled
    draft's pass:      its own peak + e T h of the target's outputs           modelled

    PASS_NOTE. Source: REJECTION_SOURCE, PASS_SOURCE.
    """
    low, peak, high = profile.peaks(job, length, samples=samples)
    if not method_of(job):
        return low, peak, high
    found = [peak]
    tokens, sequences = batch_limits(job, length)
    if draft_layers(job):
        blind = replace(job, deployment=replace(job.deployment, settings={**job.deployment.settings, "language_model_only": True}))  # a draft sees no images
        _, own, own_high = profile.peaks(draft_job(job) or blind, length, samples=False)
        outputs = 1 + (STATES if method_of(job) == "eagle3" else 0)
        kept = Buffer("target's outputs", outputs * element_bytes(job) * tokens * job.model.hidden_size, f"{outputs} × " * (outputs > 1) + "{e} × {T} × {t}")
        step = Step("draft's pass", (*own.step.buffers, kept))
        found.append(Peak("prefill", step, step.nbytes, {**own.symbols, "t": job.model.hidden_size}))
        high = max(high, own_high + kept.nbytes)
    if samples:
        found.append(_rejection(job, peak, tokens, sequences))
    best = max(found, key=lambda p: p.nbytes)
    if best is peak:
        return low, peak, high
    share = UNHELD_SHARE if HISTORY.covered(job.deployment.engine_version) <= READ else UNREAD_SHARE
    return low, best, max(high, best.nbytes * share // 100)


def _rejection(job: Job, peak: Peak, tokens: int, sequences: int) -> Peak:
    """Logits of drafted and bonus tokens, what the bonus token's sampling leaves, and the choice among the target's."""
    e, v, h = element_bytes(job), job.model.vocab_size, job.model.hidden_size
    cells, workspace = sequences * v, int(peak.symbols["w"])
    buffers = [
        Buffer("logits of drafted and bonus tokens", 2 * e * cells, "2 × {e} × {B} × {V}"),
        Buffer("bonus logits", e * cells, "{e} × {B} × {V}"),
        Buffer("bonus logits kept, target logits twice", 12 * cells, "12 × {B} × {V}"),
    ]
    if version_of(job).sampler == "sort" or sequences < SORT_BELOW:
        buffers.append(Buffer("sorted values and indices, radix sort", 32 * cells, "32 × {B} × {V}"))
    else:
        buffers.append(Buffer("probabilities, noise and its reciprocal", 12 * cells, "12 × {B} × {V}"))
    buffers += [
        Buffer("hidden states", e * tokens * h, "{e} × {T} × {h}"),
        Buffer("last hidden states, twice", 2 * e * sequences * h, "2 × {e} × {B} × {h}"),
        Buffer("cuBLAS workspace", workspace, "{w}"),
    ]
    step = Step("rejection sampler", tuple(buffers))
    return Peak("prefill", step, step.nbytes, {"e": e, "B": sequences, "V": v, "T": tokens, "h": h, "w": workspace})
