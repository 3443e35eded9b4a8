"""What one GPU of SGLang holds: tensor-parallel ranks, with experts dealt out and attention's own ranks where they are asked for."""

from __future__ import annotations

from dataclasses import replace

from calculator.engines.base import Job
from calculator.engines.ranks import VOCAB_MULTIPLE, held_by, rank_of, ranks_of
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.families import family_of, tower_left_out
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.parallelism import Share, pipeline_stages, tensor_rank
from calculator.quantization import Stored
from calculator.spec import ModelSpec
from calculator.units import align_up

ALIGNED_SINCE = (0, 5, 11)  # AITER's experts in 8 bits are padded to blocks of 128: v0.5.12 srt/layers/quantization/fp8.py L888-905
DP_SOURCE = "sglang v0.5.6 srt/server_args.py _handle_data_parallelism L1490-1502; srt/models/deepseek_v2.py L3138-3144, L3376-3384"


def attention_groups(job: Job) -> int:
    """dp_size under DP attention: groups of ranks that have attention, and a cache, of their own; else 1."""
    settings = job.deployment.settings
    return int(settings["dp_size"]) if settings["enable_dp_attention"] else 1


def rank_spec(job: Job) -> ModelSpec:
    """What one rank holds, as a model of its own.

    Attention is divided over tp / dp ranks, feed-forwards and the head over tp, experts by number over ep and by width over
    tp / ep. Under DP attention the embedding is whole on each rank: `held`.

    Source: DP_SOURCE; layers/moe/fused_moe_triton/layer.py moe_ep_size, moe_tp_size.
    """
    tp, dp, ep, model = ranks_of(job), attention_groups(job), int(job.deployment.settings["ep_size"]), job.model
    if dp == 1 and ep == 1:
        return rank_of(job)
    size = tp // dp
    plain = replace(model, num_experts=0, expert_intermediate_size=0, shared_expert_intermediate_size=0, intermediate_size=size)
    return replace(
        tensor_rank(plain, size, vocab_multiple=VOCAB_MULTIPLE), intermediate_size=model.intermediate_size // tp, num_experts=model.num_experts // ep,
        expert_intermediate_size=model.expert_intermediate_size // (tp // ep), shared_expert_intermediate_size=model.shared_expert_intermediate_size // tp,
        vocab_size=align_up(model.vocab_size, VOCAB_MULTIPLE) // tp,
    )  # fmt: skip


def held(job: Job, share: Share) -> Stored:
    """Stored tensors of one GPU. Embeddings are whole under DP attention, and in Gemma 4, which has them in plain tables.

    Source: DP_SOURCE; srt/models/gemma4_causal.py @03826cdd9 _shard_weight.
    """
    stored = held_by(job, share, rank_spec(job))
    if tower_left_out(job.model, HISTORY.covered(job.deployment.engine_version)):
        stored = tuple(g for g in stored if g.group.role != "vision")
    if attention_groups(job) == 1 and job.model.by_layer is None:
        return stored
    whole = {g.group.name: g for g in job.stored if g.group.role in ("embedding", "layer_embedding")}
    return tuple(whole.get(g.group.name, g) for g in stored)


def check_ranks(job: Job) -> None:
    """Refuse ranks, stages and groups that the model can't be split over."""
    model, settings, tp = job.model, job.deployment.settings, ranks_of(job)
    dp, ep = int(settings["dp_size"]), int(settings["ep_size"])
    if job.deployment.gpus % tp:
        raise BadValue(f"{job.deployment.gpus} GPUs are no multiple of tensor_parallel_size {tp}", hint=f"--gpus {tp}")
    if dp > 1 and not settings["enable_dp_attention"]:
        raise NotModelled(f"dp_size {dp} without enable_dp_attention: {dp} servers side by side", hint="an estimate of one of them, or --set enable_dp_attention=1")
    if settings["enable_dp_attention"]:
        if dp == 1:
            raise BadValue("enable_dp_attention without dp_size", hint=f"--set dp_size={tp}" if tp > 1 else "--tp")
        if not family_of(model).dp_attention or model.tie_word_embeddings:
            raise NotModelled(f"enable_dp_attention with {model.model_type}", hint="leaving it out")
    if tp % dp or tp % ep:
        raise BadValue(f"tensor_parallel_size {tp} is no multiple of {'dp_size' if tp % dp else 'ep_size'} {dp if tp % dp else ep}", hint=f"{tp}")
    if ep > 1 and (not model.num_experts or model.num_experts % ep):
        raise Unsupported(f"ep_size {ep} with {model.num_experts} experts", hint="a number that divides them")
    if dp > 1 or ep > 1:
        widths = (("feed-forward", model.intermediate_size, tp), ("experts", model.expert_intermediate_size, tp // ep), ("shared experts", model.shared_expert_intermediate_size, tp))
        for name, width, size in widths:
            if width % size:
                raise Unsupported(f"tensor_parallel_size {tp} doesn't split {name} of {width}", hint="a smaller --tp")
    rank = rank_spec(job)
    padded = job.vendor == "AMD" and HISTORY.covered(job.deployment.engine_version) >= ALIGNED_SINCE
    if job.scheme.name == "fp8-block" and rank.num_experts and rank.expert_intermediate_size % 128 and not padded:
        raise Unsupported(f"The output_size of gate's and up's weight = {rank.expert_intermediate_size} is not divisible by weight quantization block_n = 128.",
                          hint="a smaller --tp, or --set ep_size" if rank.expert_intermediate_size < job.model.expert_intermediate_size else "--quant fp8 or bf16")  # fmt: skip
    pipeline_stages(model.num_hidden_layers, job.deployment.gpus // tp)
