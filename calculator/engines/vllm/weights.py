"""Weights as a rank holds them: stored tensors after repacking, the rotary table, scales, what the allocator rounds up."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import GPTQ_PARTS, PACKED, dropped, element_bytes, held_by, rank_of, ranks_of, shares_of
from calculator.engines.vllm.allocator import MAX_SPLIT, unsplit
from calculator.engines.vllm.by_layer import held_by_layer, lines_by_layer
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of, version_of
from calculator.engines.vllm.families import DEEP_LAYERS, family_of, image_buffer_elements, rotary_rows, rotary_width
from calculator.engines.vllm.formats import plugin_note
from calculator.engines.vllm.latent import absorbed_pair_line
from calculator.engines.vllm.layouts import (
    absorbed_line,
    decay_line,
    multipliers_line,
    padded_line,
    router_line,
    scales_line,
)
from calculator.engines.vllm.offload import SOURCE as OFFLOAD_SOURCE
from calculator.engines.vllm.offload import budget_of, left_on_gpu, offloaded
from calculator.engines.vllm.rocm import left_behind, padding_line, segments_line
from calculator.engines.vllm.sparse import choice_line
from calculator.engines.vllm.tensors import layers_made
from calculator.engines.weights import banded, weight_lines
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import Stored, experts_in_mxfp4
from calculator.quantization.hf import Storage
from calculator.spec import ModelSpec
from calculator.units import MIB, align_up, ceil_div

IMAGES_SOURCE = "vllm v0.19.0 model_executor/models/qwen3_vl.py L1503-1509: deepstack_input_embeds"
ROPE_SOURCE = "vllm v0.19.0 model_executor/layers/rotary_embedding/base.py, _compute_cos_sin_cache"
ROUNDING_SOURCE = "pytorch c10/cuda/CUDACachingAllocator.cpp should_split: up to 1 MiB of a block is not split off"
FP8_MARLIN_SOURCE = "vllm v0.6.6 model_executor/layers/quantization/utils/marlin_utils_fp8.py prepare_fp8_layer_for_marlin; marlin_utils.py"
LORA_SOURCE = "vllm v0.11.0 lora/layers/base_linear.py L36-80, column_parallel_linear.py L190-223, vocal_parallel_embedding.py, logits_processor.py"
BNB_NOTE = "how many scales a release holds in 8 bits is not understood: four logs of 0.8 and later print 0.4 to 0.9 of what they would be in float32"
TOWER_ROUNDING = 128 * MIB  # about as many tensors of a tower, up to 1 MiB each
FP8_SINCE = (8, 9)  # compute capability: below it, FP8 weights run on the Marlin kernel. vllm v0.6.6 layers/quantization/fp8.py


def lines_of(job: Job) -> list[Line]:
    """Stored tensors, the rotary table, scales, and what the allocator doesn't split off; the ranks of a stage hold the same."""
    made: dict[tuple[range, bool, bool], list[Line]] = {}
    lines = []
    for share in shares_of(job):
        stage = (share.layers, share.first, share.last)
        if stage not in made:
            made[stage] = _lines_on(job, share)
        lines += [line if line.device == "host" else replace(line, device=share.device) for line in made[stage]]
    return lines


def _lines_on(job: Job, share: Share) -> list[Line]:
    model, size = job.model, element_bytes(job)
    release = HISTORY.covered(job.deployment.engine_version)
    rows, width = rotary_rows(model, release, length_of(job)), rotary_width(model)
    element = 4 if family_of(model).wide_rotary else size
    tokens = batch_limits(job, length_of(job))[0]
    images = image_buffer_elements(model, tokens) * size
    rank = rank_of(job)
    stored = held_by(job, share)
    held = held_by_layer(job, stored)
    if job.deployment.settings["language_model_only"]:
        held = tuple(g for g in held if g.group.role != "vision")
    tied = model.tie_word_embeddings
    if job.deployment.settings["runner"] == "pooling":
        held, tied = tuple(g for g in held if g.group.role != "output"), False
    if budget := budget_of(job):
        held = offloaded(held, share.layers, budget)
    mine = weight_lines(job.scheme, held, device=share.device, tied=tied)
    mine = [replace(line, source=f"{line.source}; {OFFLOAD_SOURCE}", note="cpu_offload_gb") if line.device == "host" else line for line in mine]
    if rank.vocab_size * ranks_of(job) != model.vocab_size:
        note = f"vocabulary of {model.vocab_size:,} padded to {rank.vocab_size * ranks_of(job):,}"
        mine = [replace(line, note=note) if line.name in ("embedding", "output head") and line.nbytes else line for line in mine]
    if job.scheme.name == "bnb-nf4":
        saved = compressed(held)
        mine = [replace(line, basis="modelled", low=line.nbytes - saved, high=line.nbytes, note=f"{line.note}; {BNB_NOTE}") if line.name == "linear layers" else line for line in mine]
    if said := plugin_note(job):
        mine = [replace(line, note=f"{line.note}; {said}") if line.name == "linear layers" else line for line in mine]
    lines = banded(job, mine, lambda j: held_by(j, share))
    lines.append(Line("weights", "rotary cos and sin", sum(rows) * width * element,
                      Formula("{P} (positions) × {d} (head_dim) × {e}", {"P": sum(rows), "d": width, "e": element}),
                      ROPE_SOURCE, device=share.device,
                      note="run by transformers' own code, which keeps no table" if rows == (0,) else "positions aren't turned" if not width else "one table, shared by the layers" if len(rows) == 1 else "one for windowed layers, one for the others"))  # fmt: skip
    if images:
        lines.append(Line("weights", "image buffers", images,
                          Formula("{n} (deep layers) × {T} (tokens) × {h} × {e}", {"n": DEEP_LAYERS, "T": tokens, "h": model.hidden_size, "e": size}),
                          IMAGES_SOURCE, device=share.device))  # fmt: skip
    lines += lines_by_layer(job, share, stored)
    lines += [line for line in (router_line(job, share, held), absorbed_line(job, rank, share), absorbed_pair_line(job, rank, share), padded_line(job, rank, share), padding_line(job, share, held), choice_line(job, share), decay_line(job, rank, share), multipliers_line(job, rank, share)) if line]
    if version_of(job).v1:
        lines.append(scales_line(len(share.layers), share.device))
    if job.deployment.settings["enable_lora"]:
        lines.append(_lora_line(job, rank, share))
    if by_marlin(job):
        lines.append(_marlin_line(job, rank, share))
    matrices = sum(g.count for g in held if len(g.parts) > 1)
    eight_bits = job.scheme.name in ("fp8-block", "fp8-per-channel") and not by_marlin(job)  # made as they stay
    packed = job.scheme.storage if eight_bits or (job.scheme.name.startswith(PACKED) and not rank.num_experts) else None
    mxfp4 = experts_in_mxfp4(model, job.scheme)
    simulated = (not matrices or packed is not None or mxfp4) and not job.scheme.apart
    head = any(g.group.role == "output" for g in held)
    counted, slack = _unsplit(rank, left_on_gpu(held, share), size, rows, packed, head=head, mxfp4=mxfp4, gone=dropped(job), max_split=MAX_SPLIT if version_of(job).loads_unsplit else 0) if simulated else (0, 0)
    tower = TOWER_ROUNDING if model.vision_parameters else 0
    if on_rocm(job):
        return [*lines, segments_line(share, slack=slack, left=left_behind(job, held), tower=tower)]
    lines.append(Line("weights", "allocator rounding", counted, Formula("{n}", {"n": counted}), ROUNDING_SOURCE,
                      basis="modelled", low=0, high=counted + 4 * MIB + MIB * matrices + tower, device=share.device,
                      note=_rounding_note(matrices, simulated)))  # fmt: skip
    return lines


def compressed(held: Stored) -> int:
    """What double quantization would save of the scales of blocks of 64 [bytes]: 4 bytes a block to one, and 4 for 256 of them."""
    return sum(3 * p.nbytes // 4 - p.nbytes // 256 for g in held for p in g.parts * g.count if p.name == "absmax")


def _rounding_note(matrices: int, packed: bool) -> str:
    simulated = "simulated over the tensors in the order in which they are made"
    if not matrices:
        return simulated
    return f"{simulated}; repacking adds up to 1 MiB a matrix" if packed else "quantized weights are repacked: up to 1 MiB a matrix"


def by_marlin(job: Job) -> bool:
    """Whether FP8 weights run on the Marlin kernel, for want of FP8 units."""
    capability = job.gpu.compute_capability if job.gpu else None
    return job.scheme.name.startswith("fp8") and capability is not None and tuple(map(int, capability.split("."))) < FP8_SINCE


def _marlin_line(job: Job, rank: ModelSpec, share: Share) -> Line:
    """Scales spread over the output columns, and the kernel's locks, on GPUs without FP8 units.

    blocks of 128: a scale of e bytes for each column and 128 inputs, in place of 4 bytes a block; experts too.
    Qwen3 Coder 30B on an A100 prints 29.54 GiB, 0.43 more than on cards with FP8 units.

    bytes = L x (e x columns [a scale a tensor] + columns)                   locks: 16 int32 for 64 columns, until 0.9
          = L x (e x columns [a scale a tensor] + 4 x ceil512(4 x SMs))      locks: one int32 a multiprocessor, since
    """
    if job.scheme.name == "fp8-block":
        return _marlin_blocks(job, rank, share)
    spread = element_bytes(job) if job.scheme.name in ("fp8", "fp8-dynamic") else 0
    columns = sum(group.rows for group in build_inventory(rank).groups if group.role in LINEAR_ROLES)
    symbols = {"L": len(share.layers), "e": spread, "N": columns}
    scales = symbols["e"] * symbols["N"]
    if version_of(job).locks_a_column:
        locks, formula = symbols["N"], "{L} (layers) × ({e} + 1) × {N} (output columns)"
    else:
        locks, formula = 4 * 1024, "{L} (layers) × ({e} × {N} (output columns) + 4 × 1,024 (locks as allocated))"
    return Line("weights", "Marlin scales and locks", symbols["L"] * (scales + locks), Formula(formula, symbols),
                FP8_MARLIN_SOURCE, device=share.device, note="no FP8 units: weights alone are in FP8")  # fmt: skip


def _marlin_blocks(job: Job, rank: ModelSpec, share: Share) -> Line:
    """Scales of blocks of 128 x 128 repeated for each of their columns, in the model's type."""
    size, added = element_bytes(job), 0
    for group in build_inventory(rank).groups:
        if group.role in LINEAR_ROLES:
            rows, row = group.shape[-2:]
            matrices = group.elements // (rows * row) * len(set(group.indices) & set(share.layers))
            added += matrices * ceil_div(row, 128) * (size * rows - 4 * ceil_div(rows, 128))
    symbols = {"L": len(share.layers), "n": added, "l": 4 * 1024}
    return Line("weights", "Marlin scales and locks", added + symbols["L"] * symbols["l"], Formula("{n} (spread scales less those of blocks) + {L} (layers) × {l} (locks as allocated)", symbols),
                FP8_MARLIN_SOURCE, device=share.device, note="no FP8 units: weights alone are in FP8")


def _lora_line(job: Job, rank: ModelSpec, share: Share) -> Line:
    """Slots of every linear layer, and of embedding and head in families whose vocabulary may be adapted (llama).

    bytes = e x max_loras x r x (L sum(in + out) + (V + 256) + 2 h + align(V, 256))        r max_lora_rank
    """
    size, settings = element_bytes(job), job.deployment.settings
    widths = [n for group in build_inventory(rank).groups if group.role in LINEAR_ROLES for n in (group.row_length, group.rows)]
    linear, vocabulary = sum(widths), 0
    if job.model.model_type in ("llama", "mistral"):
        vocabulary += (job.model.vocab_size + 256 + rank.hidden_size) if share.first else 0
        vocabulary += (align_up(job.model.vocab_size, 256) + rank.hidden_size) if share.last else 0
    symbols = {"e": size, "n": int(settings["max_loras"]), "r": int(settings["max_lora_rank"]), "L": len(share.layers), "I": linear, "V": vocabulary}
    each = symbols["e"] * symbols["n"] * symbols["r"]
    unsplit = symbols["L"] * sum(MIB if each * n > MIB else 512 for n in widths)  # what the allocator may not split off: ROUNDING_SOURCE
    return Line("weights", "LoRA slots", each * (symbols["L"] * linear + vocabulary),
                Formula("{e} × {n} (adapters) × {r} (rank) × ({L} (layers) × {I} (in + out) + {V} (vocabulary))", symbols), LORA_SOURCE,
                basis="modelled", low=each * symbols["L"] * linear, high=each * (symbols["L"] * linear + vocabulary) + unsplit,
                device=share.device, note="not held against a log")  # fmt: skip


def _unsplit(rank: ModelSpec, share: Share, size: int, rows: tuple[int, ...], packed: Storage | None = None, *, head: bool, mxfp4: bool = False, gone: tuple[str, ...] = GPTQ_PARTS, max_split: int = 0) -> tuple[int, int]:
    """Bytes that the allocator counts, and reserves, beyond the tensors, in the order in which vLLM makes them.

    `packed` is how a quantized layer is stored: q, k and v are one layer, gate and up too. Zero points and the group index
    that repacking drops are left out. Source: vllm v0.19.0 layers/quantization/awq_marlin.py L414-442.
    """
    vocabulary, h = rank.vocab_size * rank.hidden_size * size, rank.hidden_size
    first = (vocabulary,) if share.first or rank.tie_word_embeddings else ()
    last = (h * size, *((vocabulary,) if head else ())) if share.last else ()
    made, at = layers_made(rank, size, packed, mxfp4=mxfp4, gone=gone)
    positions, width = rows[0], rotary_width(rank)
    table = positions * width
    rope = (4 * positions, 2 * table, 2 * table, 2 * table, 4 * table, size * table)
    where = (0, rank.full_indices[0] or next(i for i in range(rank.num_hidden_layers) if i not in rank.full_indices)) if len(rows) == 2 else (0,)
    return unsplit(first, tuple(made[i] for i in share.layers), last, rope, at, where, max_split)
