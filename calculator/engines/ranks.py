"""A serving engine's GPUs: pipeline stages of tensor-parallel ranks, and the tensors that each holds after repacking."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from calculator.engines.base import Job
from calculator.engines.releases import Release, numbers
from calculator.parallelism import Share, expert_rank, pipeline_stages, replica_rank, share_of, tensor_rank
from calculator.quantization import Part, Scheme, Stored, compute_dtype, quantize
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec

TOKENS_DIVIDED: dict[str, Release] = {**dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2", "deepseek_v32", "glm_moe_dsa", "llama4_text"), (0, 11, 0)), "nemotron_h": (0, 14, 0)}
VOCAB_MULTIPLE = 64  # vllm v0.19.0 model_executor/layers/vocab_parallel_embedding.py L28
MARLIN_SOURCE = "vllm v0.19.0 model_executor/kernels/linear/mixed_precision/marlin.py: symmetric codes keep no zero points, g_idx emptied"


def ranks_of(job: Job) -> int:
    """Ranks that each layer is split over."""
    return int(job.deployment.settings["tensor_parallel_size"])


def replicas_of(job: Job) -> int:
    """Copies of the model, each with sequences of its own: vLLM's data parallelism."""
    return int(job.deployment.settings.get("data_parallel_size", 1))


def stages_of(job: Job) -> int:
    """Pipeline stages of a copy of the model."""
    return job.deployment.gpus // (ranks_of(job) * replicas_of(job))


def one_stage(job: Job) -> str:
    """What to type for ranks alone, where pipeline stages have no formula."""
    return f"--gpus {ranks_of(job) * replicas_of(job)} without --pp, or --tp {job.deployment.gpus} where the heads allow it"


def sequences_on(job: Job, share: Share, sequences: int = 0) -> int:
    """Sequences of the copy of the model that a GPU belongs to, of the workload's or so many: as even as they go."""
    copies = replicas_of(job)
    each, left = divmod(sequences or job.workload.sequences, copies)
    return each + (share.device // (job.deployment.gpus // copies) < left)


def element_bytes(job: Job) -> int:
    """Bytes of an element of the activations."""
    return DTYPE_BYTES[compute_dtype(job.model, job.scheme)]


def before_ampere(job: Job) -> bool:
    """Whether the card computes no bfloat16: a compute capability below 8.0."""
    capability = job.gpu.compute_capability if job.gpu else None
    return capability is not None and int(capability.split(".")[0]) < 8


def served_dtype(job: Job) -> str:
    """The type that a server computes in: float16 for bfloat16 on cards that don't compute it, as it does on its own; vLLM not where it is told bfloat16.

    Source: vllm v0.9.2 config.py _resolve_auto_dtype; sglang v0.5.12 srt/model_executor/model_runner.py L1380-1388.
    """
    dtype = compute_dtype(job.model, job.scheme)
    return "float16" if dtype == "bfloat16" and before_ampere(job) else dtype


def kv_element_bytes(job: Job) -> int:
    """Bytes of an element of the cache."""
    return 1 if job.deployment.kv_dtype == "fp8" else element_bytes(job)


def rank_of(job: Job) -> ModelSpec:
    """What one rank holds, as a model of its own."""
    ranks = ranks_of(job) * replicas_of(job)
    if replicas_of(job) > 1 and job.model.num_experts:
        dealt = job.deployment.settings.get("enable_expert_parallel")
        rank = (expert_rank if dealt else replica_rank)(job.model, ranks_of(job), vocab_multiple=VOCAB_MULTIPLE, over=ranks)
        return replace(rank, shared_expert_intermediate_size=job.model.shared_expert_intermediate_size) if divides_tokens(job) else rank
    split = expert_rank if job.deployment.settings.get("enable_expert_parallel") and job.model.num_experts else tensor_rank
    return split(job.model, ranks_of(job), vocab_multiple=VOCAB_MULTIPLE)


def row_elements(rank: ModelSpec) -> int:
    """Elements that a token adds to a layer's cache on one rank: keys and values, or the compressed row and a rotary key, whole on each."""
    return rank.mla.kv_lora_rank + rank.mla.qk_rope_head_dim if rank.mla else 2 * rank.num_key_value_heads * rank.head_dim


def divides_tokens(job: Job) -> bool:
    """Whether the ranks of a copy divide their tokens before the experts, so that shared experts are whole on each of them.

    Source: vllm v0.11.0 config/parallel.py L292-298 use_sequence_parallel_moe, models/deepseek_v2.py L97-117, llama4.py; v0.14.0 nemotron_h.py.
    """
    since = TOKENS_DIVIDED.get(job.model.model_type)
    if since is None or ranks_of(job) == 1 or replicas_of(job) == 1 or not job.deployment.settings.get("enable_expert_parallel"):
        return False
    found = numbers(job.deployment.engine_version)
    return found is not None and found >= since


def shares_of(job: Job) -> tuple[Share, ...]:
    """Every GPU: copies of pipeline stages, each over its tensor-parallel ranks."""
    tp, stages = ranks_of(job), stages_of(job)
    made = pipeline_stages(job.model.num_hidden_layers, stages)
    return tuple(stage._replace(device=(copy * stages + stage.device) * tp + rank) for copy in range(replicas_of(job)) for stage in made for rank in range(tp))


PACKED = ("awq-int4", "gptq-int4", "gptq-int8")  # codes and scales of a layer are tensors of their own


def repacked(scheme: Scheme) -> bool:
    """Marlin kernels keep neither zero points nor a group index of symmetric codes. Source: MARLIN_SOURCE."""
    return scheme.name.startswith(("gptq-int4", "gptq-int8"))


def held_by(job: Job, share: Share, rank: ModelSpec | None = None) -> Stored:
    """Stored tensors of one GPU, as they are after repacking; `rank` where the engine has ranks of its own."""
    stored = _rank_stored(rank or rank_of(job), job.scheme, dropped(job), widens_zeros(job))
    if job.model.num_experts:  # the router scores all experts on every rank
        routers = {g.group.name: g for g in job.stored if g.group.role == "router"}
        stored = tuple(routers.get(g.group.name, g) for g in stored)
    held = share_of(stored, share, head_with_embedding=True)
    if not share.last:  # each stage makes the tower
        held = (*held, *(g for g in stored if g.group.role == "vision"))
    if job.model.tie_word_embeddings and share.last and not share.first:
        held = (*(g for g in stored if g.group.role == "embedding"), *held)
    return held


GPTQ_PARTS = ("qzeros", "g_idx")
AWQ_ON_MACHETE: Release = (0, 19, 0)
ORDERS_UNTIL: Release = (0, 30, 0)  # g_idx is made in vllm v0.28.0 layers/quantization/auto_gptq.py L395, not in v0.30.0


def dropped(job: Job) -> tuple[str, ...]:
    """Parts of GPTQ's linear layers that are gone after loading: both, but for Machete, which vLLM runs on Hopper and which leaves them.

    GPTQ of Llama 3.1 8B on an H100 prints 5.38 GiB, 5.35 without them; of Mistral 7B 3.8844, 3.8556 without.

    Source: vllm v0.6.6 layers/quantization/kernels/machete.py, v0.19.0 kernels/linear/mixed_precision/machete.py process_weights_after_loading.
    """
    if not _by_machete(job):
        return GPTQ_PARTS
    found = numbers(job.deployment.engine_version)
    return ("g_idx",) if found is None or found >= ORDERS_UNTIL else ()


def widens_zeros(job: Job) -> bool:
    """Whether AWQ's zero points are in 16 bits after loading: Machete multiplies them by the scales. AWQ has run on it since 0.19.

    Source: vllm v0.19.0 layers/quantization/awq_marlin.py L392-405, kernels/linear/mixed_precision/machete.py transform_w_zp; not in v0.14.0.
    """
    found = numbers(job.deployment.engine_version)
    return job.scheme.name.startswith("awq-int4") and (found is None or found >= AWQ_ON_MACHETE) and _by_machete(job)


def _by_machete(job: Job) -> bool:
    """Whether 4-bit linear layers run on Machete: vLLM on Hopper, whole rows or groups of 64 and 128."""
    card = job.gpu
    hopper = card is not None and card.vendor == "NVIDIA" and (card.compute_capability or "").startswith("9.")
    return hopper and job.deployment.engine == "vllm" and job.scheme.name.rpartition("-g")[2] in ("-1", "64", "128")


def _widened(part: Part) -> Part:
    return part._replace(nbytes=4 * part.nbytes, expression="2 × G × out") if part.name == "qzeros" else part


@lru_cache(maxsize=1024)
def _rank_stored(rank: ModelSpec, scheme: Scheme, gone: tuple[str, ...], widens: bool) -> Stored:
    stored = quantize(rank, scheme)
    if widens:
        return tuple(replace(g, parts=tuple(_widened(p) for p in g.parts)) if len(g.group.shape) == 2 else g for g in stored)
    if not repacked(scheme):
        return stored
    return tuple(replace(g, parts=tuple(p for p in g.parts if p.name not in (gone if len(g.group.shape) == 2 else GPTQ_PARTS))) for g in stored)
