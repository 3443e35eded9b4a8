"""Encoders (BERT and its kin) in vLLM: no cache, hence no pool and no profiling run; tables as the engine pads them."""

from __future__ import annotations

from calculator.architectures import architecture, build_inventory
from calculator.architectures.inventory import TensorGroup
from calculator.engines.base import Job
from calculator.engines.ranks import element_bytes, held_by, rank_of, replicas_of, shares_of
from calculator.engines.releases import Release
from calculator.engines.vllm.allocator import MAX_SPLIT, unsplit
from calculator.engines.vllm.deployment import HISTORY, version_of
from calculator.engines.vllm.layouts import scales_line
from calculator.engines.weights import weight_lines
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.spec import ModelSpec
from calculator.units import align_up

SOURCE = "vllm v0.19.0 model_executor/models/bert.py L49-68, roberta.py L47-69, bert_with_rope.py L47-63, modernbert.py; v0.9.2 the same files"
NO_RUN = "vllm v0.19.0 v1/engine/core.py L233-251: without layers that cache no memory is measured; v0.6.6 engine/llm_engine.py L275, v0.9.2 L267: no cache is made for the pooling runner"
HEAD_SOURCE = "vllm v0.19.0 config/model.py L1608-1642, head_dtype: float32 in the pooling runner"
ROWS = 64  # a table of embeddings has a multiple of it: vllm v0.19.0 model_executor/layers/vocab_parallel_embedding.py L28
WIDE_HEAD_SINCE: Release = (0, 10, 1)  # head_dtype: in 0.11.0, not in 0.9.2
IDS_BUFFER_SINCE: Release = (0, 10, 1)  # position ids of int64; a parameter of the model's type in 0.9.2
ONE_TABLE_SINCE: Release = (0, 12, 0)  # ModernBERT's rotary tables, one of each base; one in every layer in 0.11.0
PADS_TABLES = frozenset({"bert"})  # RoBERTa's are plain ones
RERANKS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert"})


def encodes(model: ModelSpec) -> bool:
    """Whether it is an encoder."""
    return architecture(model.model_type).encoder


def makes_no_pool(job: Job) -> bool:
    """Whether start-up makes no cache and runs no profile: encoders, and the V0 engine's pooling runner. Source: NO_RUN."""
    return encodes(job.model) or (job.deployment.settings["runner"] == "pooling" and not version_of(job).v1)


def check_encoder(job: Job) -> None:
    """Refuse what the engine doesn't do with an encoder, and what would change nothing."""
    model, settings, release = job.model, job.deployment.settings, HISTORY.covered(job.deployment.engine_version)
    if settings["runner"] != "pooling":
        raise Unsupported(f"vllm generates nothing with {model.model_type}: it is an encoder", allowed="runner=pooling", hint="leaving runner out")
    if job.vendor != "NVIDIA":
        raise NotModelled(f"vllm with an encoder on {job.vendor}: no record to hold that against", hint="an NVIDIA GPU")
    if job.scheme.family != "plain":
        raise NotModelled(f"vllm with {job.scheme.name} of an encoder: no record to hold that against", hint="--quant fp16")
    if job.deployment.gpus > replicas_of(job):
        raise NotModelled("an encoder split over GPUs: how the ranks share its tables has no record", hint=f"one GPU, or --set data_parallel_size={job.deployment.gpus}")
    if model.labels and model.model_type not in RERANKS:
        raise NotModelled(f"vllm with a classifier of {model.model_type}", allowed=", ".join(sorted(RERANKS)), hint="--engine transformers")
    for name in ("enable_lora", "cpu_offload_gb", "enable_prefix_caching", "kv_pool_bytes", "speculative_method", "cudagraph_mode"):
        if settings.get(name) not in (None, False, 0, 0.0, ""):
            why = "keeps no cache that it could change" if name in ("enable_prefix_caching", "kv_pool_bytes") else "has no record with it"
            raise BadValue(f"{name} of an encoder, which {why}", hint=f"leaving {name} out")
    if job.deployment.kv_dtype == "fp8":
        raise BadValue("an fp8 cache of an encoder, which keeps none", hint="leaving --kv-dtype out")
    if model.model_type == "modernbert" and not model.labels and release < (0, 9):
        raise NotModelled(f"vllm {job.deployment.engine_version} has no modernbert without a classifier", allowed="0.9 or later", hint="a later --engine-version")


def cache_line(job: Job, device: int) -> Line:
    """No bytes, and why."""
    why = "an encoder keeps no tokens" if encodes(job.model) else "V0 pools without a cache"
    return Line("kv_cache", "none", 0, Formula("0"), f"{NO_RUN}; gpu_memory_utilization takes nothing", device=device, note=f"{why}: no pool is made")


def lines_of(job: Job) -> list[Line]:
    """Weights of every copy."""
    return [line for share in shares_of(job) for line in _lines_on(job, share)]


def _lines_on(job: Job, share: Share) -> list[Line]:
    model, rank, release, size = job.model, rank_of(job), HISTORY.covered(job.deployment.engine_version), element_bytes(job)
    held = held_by(job, share)
    head = [g for g in held if g.group.role == "pooler"]
    lines = weight_lines(job.scheme, tuple(g for g in held if g.group.role != "pooler"), device=share.device, tied=False)
    if head and model.labels:  # a sentence's embedding is taken without it
        width, elements = 4 if release >= WIDE_HEAD_SINCE else size, sum(g.group.elements * g.count for g in head)
        lines.append(Line("weights", "classifier", elements * width, Formula("{n} × {w} (bytes)", {"n": elements, "w": width}), HEAD_SOURCE, device=share.device,
                          note="in float32" if width == 4 else ""))  # fmt: skip
    if rows := _padding(model):
        lines.append(Line("weights", "padded tables", rows * model.hidden_size * size, Formula("{n} (rows) × {h} × {e}", {"n": rows, "h": model.hidden_size, "e": size}),
                          SOURCE, device=share.device, note=f"positions and segments in multiples of {ROWS} rows"))  # fmt: skip
    if ids := _positions(model):
        width = 8 if release >= IDS_BUFFER_SINCE else size
        lines.append(Line("weights", "position ids", ids * width, Formula("{P} (positions) × {w} (bytes)", {"P": ids, "w": width}), SOURCE, device=share.device))
    if tables := rotary_tables(model, release):
        symbols = {"n": tables, "P": model.max_position_embeddings, "d": model.head_dim, "e": size}
        lines.append(Line("weights", "rotary cos and sin", tables * model.max_position_embeddings * model.head_dim * size,
                          Formula("{n} (tables) × {P} (positions) × {d} (head_dim) × {e}", symbols), SOURCE, device=share.device))  # fmt: skip
    if version_of(job).v1:
        lines.append(scales_line(len(share.layers), share.device))
    point = _unsplit(rank, size, rotary_tables(model, release), MAX_SPLIT if version_of(job).loads_unsplit else 0)
    lines.append(Line("weights", "allocator rounding", point, Formula("{n}", {"n": point}), "pytorch c10/cuda/CUDACachingAllocator.cpp should_split", basis="modelled",
                      low=0, high=point + 4 * 2**20, device=share.device, note="simulated over the tensors in the order in which they are made; none where segments expand"))  # fmt: skip
    return lines


def _positions(model: ModelSpec) -> int:
    """Rows of the table of learned positions."""
    return next((g.shape[0] for g in build_inventory(model).groups if "position_embeddings" in g.name), 0)


def _padding(model: ModelSpec) -> int:
    """Rows that are added to the tables of positions and segments."""
    padded = [_positions(model), model.token_types] if model.model_type in PADS_TABLES else [model.token_types] if model.model_type == "nomic_bert" else []
    return sum(align_up(rows, ROWS) - rows for rows in padded)


def rotary_tables(model: ModelSpec, release: Release) -> int:
    """Rotary tables: none with learned positions; ModernBERT has one of each base, until 0.11 one in each layer."""
    if model.model_type == "modernbert":
        return 2 if release >= ONE_TABLE_SINCE else model.num_hidden_layers
    return 0 if _positions(model) else 1


def _unsplit(rank: ModelSpec, size: int, tables: int, max_split: int) -> int:
    """Bytes that the allocator counts beyond the tensors, in the order in which vLLM makes them: queries, keys and values are one."""
    groups = build_inventory(rank).groups
    before = tuple(align_up(g.shape[0], ROWS) * g.shape[1] * size for g in groups if not g.layers and g.role in ("embedding", "position"))
    layers = [_layer([g for g in groups if g.layers and index in g.indices], size) for index in range(rank.num_hidden_layers)]
    table = rank.max_position_embeddings * rank.head_dim
    rope = (4 * rank.max_position_embeddings, 2 * table, 2 * table, 2 * table, 4 * table, size * table) if tables else ()
    return unsplit(before, tuple(layers), (), rope, 1 if rank.model_type == "nomic_bert" else 0, tuple(range(min(tables, rank.num_hidden_layers))), max_split)[0]


def _layer(groups: list[TensorGroup], size: int) -> tuple[int, ...]:
    """Tensors of a layer [bytes]: attention's matrices each with its bias, then the feed-forward's, and the norms."""
    made: list[int] = []
    for roles in (("attn_q", "attn_k", "attn_v", "attn_qkv"), ("attn_output",), ("ffn_up", "ffn_gate"), ("ffn_down",)):
        matrices = [g for g in groups if g.role in roles]
        made.append(size * sum(g.elements for g in matrices))
        stems = tuple(g.name.removesuffix("weight") + "bias" for g in matrices)
        made += [size * n] if (n := sum(g.elements for g in groups if g.name in stems)) else []
    return (*made, *(size * g.elements for g in groups if g.role == "norm"))
