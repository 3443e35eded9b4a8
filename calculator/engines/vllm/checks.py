"""What vLLM refuses at start-up, in its words, and what the formulas don't cover."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import before_ampere, rank_of, replicas_of
from calculator.engines.server import Server
from calculator.engines.vllm import graphs, speculative, weights
from calculator.engines.vllm.by_layer import check_by_layer
from calculator.engines.vllm.deployment import HISTORY, length_of, version_of
from calculator.engines.vllm.encoders import check_encoder, encodes, makes_no_pool
from calculator.engines.vllm.families import check_family
from calculator.engines.vllm.formats import check_format
from calculator.engines.vllm.hybrid import check_hybrid
from calculator.engines.vllm.images import check_images
from calculator.engines.vllm.latent import check_latent
from calculator.engines.vllm.layouts import check_blocks
from calculator.engines.vllm.offload import check_offload
from calculator.engines.vllm.rocm import check_rocm
from calculator.engines.vllm.samplers import check_sampler
from calculator.engines.vllm.sparse import check_sparse
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.quantization import compute_dtype

SMALL_BLOCKS = (1, 8)  # v0.9.2 config.py L1476, v0.11.2 config/cache.py L23; v0.33.0 v1/attention/backends/triton_attn.py L340: multiples of 16
REPLICAS_SINCE = (0, 9, 0)  # --data-parallel-size: v0.9.2 engine/arg_utils.py L655


def check(job: Job, server: Server) -> None:
    """Refuse what the engine refuses, and what the formulas don't cover."""
    model, settings, length = job.model, job.deployment.settings, length_of(job)
    server.check_card(job)
    release = HISTORY.covered(job.deployment.engine_version)
    check_format(job)
    check_rocm(job, release)
    check_family(model, release, job.deployment.engine_version)
    if before_ampere(job) and compute_dtype(model, job.scheme) == "bfloat16" and release < (0, 9):
        raise Unsupported(  # later releases fall back to float16, which takes as much
            f"Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your {job.gpu.name if job.gpu else ''} GPU has "
            f"compute capability {job.gpu.compute_capability if job.gpu else ''}. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for example: "
            "--dtype=half.", hint="--quant fp16",
        )  # fmt: skip
    if length > model.max_position_embeddings and not settings["allow_long_max_model_len"]:
        raise Unsupported(
            f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={model.max_position_embeddings} or model_max_length=None in model's config.json)",
            hint="--set allow_long_max_model_len=1 (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1)",
        )
    if settings.get("use_v1") is not None and not (0, 8) <= release < (0, 11):
        raise BadValue(f"use_v1 has no choice in vllm {job.deployment.engine_version}", hint="leaving it out: 0.8 to 0.10 have both engines")
    if (size := int(settings["block_size"])) % 16 and size not in SMALL_BLOCKS:
        raise BadValue(f"block_size {size}, which no attention kernel of vllm takes", allowed="1, 8 or a multiple of 16", hint=f"block_size={max(size // 16, 1) * 16}")
    check_sampler(job)
    if job.workload.context > length:
        raise BadValue(f"max_model_len {length:,} is below the context of {job.workload.context:,}", hint="leaving max_model_len out")
    if encodes(model):
        check_encoder(job)
        graphs.check_graphs(job)
        return
    if makes_no_pool(job) and settings.get("kv_pool_bytes"):
        raise BadValue("kv_pool_bytes of the V0 engine's pooling runner, which makes no cache", hint="leaving kv_pool_bytes out")
    if job.scheme.name == "fp8-block" and weights.by_marlin(job) and release < (0, 9):
        raise NotModelled("vllm before 0.9 with fp8 in blocks on a GPU without FP8 units: no record to hold that against", hint="a newer GPU, or a later --engine-version")
    if not version_of(job).hybrid:
        server.check_window(job)
    if settings["language_model_only"] and (release < (0, 15) or not model.vision_parameters):
        raise BadValue(f"language_model_only of {model.id} in vllm {job.deployment.engine_version}", allowed="0.15 or later, a model with a tower", hint="leaving it out")
    if settings["enable_lora"] and (model.num_experts or model.mla or model.vision_parameters):
        raise NotModelled("vllm with LoRA on experts, latent attention or a vision tower has no formula yet", hint="leaving enable_lora out")
    check_by_layer(job)
    check_sparse(job)
    check_latent(job)
    server.check_split(job)
    if replicas_of(job) > 1 and release < REPLICAS_SINCE:
        raise NotModelled(f"data_parallel_size in vllm {job.deployment.engine_version}", allowed="0.9 or later", hint="a later --engine-version")
    check_images(job)
    check_hybrid(job)
    check_offload(job)
    speculative.check(job)
    graphs.check_graphs(job)
    check_blocks(job, rank_of(job))
