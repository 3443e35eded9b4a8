"""The command that starts SGLang's server as it was sized."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of, served_dtype, shares_of
from calculator.engines.sglang.defaults import lowered_if_set
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.pool import layers_of
from calculator.engines.sglang.speculative import draft_name, method_of, plan_of

DECODE_FLAG_SINCE = (0, 5, 14)  # --cuda-graph-max-bs-decode: v0.5.14 srt/server_args.py L6359-6364; v0.5.12 L6428 has the old name alone


def start_command(job: Job, chosen: Mapping[str, str | int | bool | float]) -> str:
    """`sglang.launch_server` with the flags of this deployment; `chosen`: settings with the server's choices filled in."""
    settings, scheme = job.deployment.settings, job.scheme
    words = ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"] if settings["allow_overwrite_longer_context_len"] else []
    words += ["python", "-m", "sglang.launch_server", "--model-path", job.checkpoint if scheme.family == "plain" or job.published else f"{job.model.id}-{scheme.name}",
              "--dtype", served_dtype(job), "--tensor-parallel-size", str(ranks_of(job))]  # fmt: skip
    if (stages := job.deployment.gpus // ranks_of(job)) > 1:
        words += ["--pipeline-parallel-size", str(stages)]
    for name in ("context_length", "mem_fraction_static", "max_running_requests", "chunked_prefill_size", "page_size"):
        value = chosen[name]
        if name == "max_running_requests" and settings.get(name) is None:
            continue  # set, it also bounds what is captured
        if name == "mem_fraction_static" and lowered_if_set(job):
            if settings.get(name) is None:
                continue
            value = float(settings[name])
        words += [f"--{name.replace('_', '-')}", f"{value:.9g}" if isinstance(value, float) else str(value)]
    if (limit := settings.get("max_total_tokens")) is not None:
        words += ["--max-total-tokens", str(limit)]
    words += _drafting(job)
    words += ["--attention-backend", str(settings["attention_backend"])] if settings.get("attention_backend") else []
    if job.deployment.kv_dtype == "fp8":
        words += ["--kv-cache-dtype", "fp8_e4m3"]
    elif job.model.indexer or job.scheme.declared_cache:  # Blackwell takes 8 bits otherwise; so does a checkpoint that declares them
        words += ["--kv-cache-dtype", "bfloat16"]
    for name in ("ep_size", "dp_size"):
        words += [f"--{name.replace('_', '-')}", str(settings[name])] if int(settings[name]) > 1 else []
    if layers_of(job, shares_of(job)[0])[1]:
        words += ["--swa-full-tokens-ratio", f"{settings['swa_full_tokens_ratio']:g}"]
    if job.model.recurrent:
        words += ["--mamba-full-memory-ratio", f"{settings['mamba_full_memory_ratio']:g}"]
        words += ["--max-mamba-cache-size", str(settings["max_mamba_cache_size"])] if settings.get("max_mamba_cache_size") else []
    words += ["--disable-radix-cache"] if settings["disable_radix_cache"] else []
    words += ["--enable-dp-attention"] if settings["enable_dp_attention"] else []
    if settings["enable_lora"]:
        modules = ["all"] if settings["lora_target_modules"] == "all" else ["q_proj", "k_proj", "v_proj", "o_proj"]
        words += ["--enable-lora", "--max-lora-rank", str(settings["max_lora_rank"]), "--max-loras-per-batch", str(settings["max_loras_per_batch"]),
                  "--lora-target-modules", *modules]  # fmt: skip
    if settings["disable_cuda_graph"]:
        words.append("--disable-cuda-graph")
    if (most := settings.get("cuda_graph_max_bs")) is not None:
        decode = HISTORY.covered(job.deployment.engine_version) >= DECODE_FLAG_SINCE
        words += ["--cuda-graph-max-bs-decode" if decode else "--cuda-graph-max-bs", str(most)]
    return shlex.join(words)


def _drafting(job: Job) -> list[str]:
    """Flags of speculative decoding, with the server's choices filled in."""
    method = method_of(job)
    if not method:
        return []
    plan, name = plan_of(job), draft_name(job)
    words = ["--speculative-algorithm", str(job.deployment.settings["speculative_algorithm"]).upper()]
    words += ["--speculative-draft-model-path", name] if name else []
    if method != "ngram":
        words += ["--speculative-num-steps", str(plan.steps), "--speculative-eagle-topk", str(plan.topk)]
    return [*words, "--speculative-num-draft-tokens", str(plan.tokens)]
