"""The `vllm serve` call of a deployment, none of its limits left to the server.

Source: vllm v0.19.0 engine/arg_utils.py add_cli_args; v0.6.6 the same flags; --kv-cache-memory-bytes since v0.11.0.
"""

from __future__ import annotations

import json
import shlex

from calculator.engines.base import Job
from calculator.engines.ranks import ranks_of, replicas_of, served_dtype, stages_of
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of
from calculator.engines.vllm.drafted import drafted, method_of
from calculator.engines.vllm.graphs import flags_of
from calculator.engines.vllm.hybrid import block_size
from calculator.engines.vllm.images import limits_of
from calculator.engines.vllm.speculative import draft_checkpoint

ON_LOAD = {"fp8": "fp8", "bnb-nf4": "bitsandbytes"}  # formats that the engine makes of a 16-bit checkpoint
RUNNER_SINCE = (0, 10, 2)  # read there; in 0.9.2 it is --task


def start_command(job: Job) -> str | None:
    """`vllm serve` and its environment; None where the release has no flag for a setting.

    The model is named by its Hugging Face id; a format that isn't made on loading is a checkpoint to be named after the model and the format.
    """
    settings, version = job.deployment.settings, HISTORY.covered(job.deployment.engine_version)
    given = settings.get("kv_pool_bytes")
    if given is not None and version < (0, 11):
        return None
    words = []
    if settings["allow_long_max_model_len"]:
        words.append("VLLM_ALLOW_LONG_MAX_MODEL_LEN=1")
    if (v1 := settings.get("use_v1")) is not None:
        words.append(f"VLLM_USE_V1={int(bool(v1))}")
    if (sampler := settings.get("use_flashinfer_sampler")) is not None:
        words.append(f"VLLM_USE_FLASHINFER_SAMPLER={int(bool(sampler))}")
    scheme = job.scheme
    made = scheme.family == "plain" or scheme.name in ON_LOAD or job.published
    tokens, sequences = batch_limits(job, length_of(job))
    dtype = served_dtype(job)
    words += ["vllm", "serve", job.checkpoint if made else f"{job.model.id}-{scheme.name}", "--dtype", dtype]
    if scheme.name in ON_LOAD:
        words += ["--quantization", ON_LOAD[scheme.name]]
    words += [
        "--tensor-parallel-size", str(ranks_of(job)), "--pipeline-parallel-size", str(stages_of(job)),
        "--max-model-len", str(length_of(job)), "--max-num-seqs", str(sequences), "--max-num-batched-tokens", str(tokens),
        "--gpu-memory-utilization", f"{float(settings['gpu_memory_utilization']):g}", "--block-size", str(block_size(job)),
    ]  # fmt: skip
    if replicas_of(job) > 1:
        words += ["--data-parallel-size", str(replicas_of(job))]
    if job.deployment.kv_dtype == "fp8":
        words += ["--kv-cache-dtype", "fp8"]
    elif job.model.indexer or job.scheme.declared_cache:  # 0.11 takes 8 bits otherwise; so does a checkpoint that declares them
        words += ["--kv-cache-dtype", dtype]
    if (cached := settings.get("enable_prefix_caching")) is not None:
        words.append("--enable-prefix-caching" if cached else "--no-enable-prefix-caching")
    for name in ("mamba_cache_dtype", "mamba_ssm_cache_dtype"):
        if name in settings:
            words += [f"--{name.replace('_', '-')}", str(settings[name])]
    if settings["runner"] == "pooling":
        words += ["--runner", "pooling"] if version >= RUNNER_SINCE else ["--task", "score" if job.model.labels else "embed"]
    if settings.get("language_model_only"):
        words.append("--language-model-only")
    if limits := limits_of(job):
        words += ["--limit-mm-per-prompt", json.dumps(limits)]
    if pixels := settings.get("max_pixels"):
        words += ["--mm-processor-kwargs", json.dumps({"max_pixels": pixels})]
    if settings["skip_mm_profiling"]:
        words.append("--skip-mm-profiling")
    if settings["enable_expert_parallel"]:
        words.append("--enable-expert-parallel")
    if settings["enable_lora"]:
        words += ["--enable-lora", "--max-loras", str(settings["max_loras"]), "--max-lora-rank", str(settings["max_lora_rank"])]
    if settings["cpu_offload_gb"]:
        words += ["--cpu-offload-gb", f"{float(settings['cpu_offload_gb']):g}"]
    if method := method_of(job):
        words += ["--speculative-config", _speculative_config(job, method)]
    if settings["enforce_eager"]:
        words.append("--enforce-eager")
    words += flags_of(job)
    if given is not None:
        words += ["--kv-cache-memory-bytes", str(given)]
    return shlex.join(words)


def _speculative_config(job: Job, method: str) -> str:
    """The JSON of --speculative-config; ngram's lookup is left to the server."""
    config: dict[str, str | int] = {"method": method, "num_speculative_tokens": drafted(job)}
    if model := draft_checkpoint(job):
        config |= {"model": model, "draft_tensor_parallel_size": ranks_of(job)}
    return json.dumps(config)
