"""The llama-server call that makes a context.

Source: llama.cpp @0c1e57098 common/arg.cpp; n_outputs_max follows from the slots in tools/server, without a flag of its own.
"""

from __future__ import annotations

import shlex

from calculator.engines.base import Job
from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.draft import job_of, outputs
from calculator.engines.llama_cpp.overrides import text


def start_command(job: Job, context: Context) -> str | None:
    """`llama-server` with the flags that give this context, none left to --fit; None where no flag gives a setting."""
    if not context.release.outputs_by_slots:
        return _in_2025(job, context)
    if min(context.n_outputs, context.n_ubatch) != min(outputs(job, context.n_seq_max), context.n_ubatch):
        return None
    layers = job.model.num_hidden_layers + 1 if context.n_gpu_layers < 0 else context.n_gpu_layers
    words = [
        "llama-server", "-m", f"{job.model.id.replace('/', '_')}-{job.scheme.recipe}.gguf", "-c", str(context.n_ctx),
        "-np", str(context.n_seq_max), *(("--kv-unified",) if context.kv_unified else ("--no-kv-unified",)),
        *(("-ngl", str(layers)) if context.cuda else ("--device", "none")),
        "-fa", "on" if context.flash_attn else "off", "-ctk", context.type_k.lower(), "-ctv", context.type_v.lower(),
        "-b", str(int(job.deployment.settings["n_batch"])), "-ub", str(context.n_ubatch),
    ]  # fmt: skip
    if context.swa_full:
        words.append("--swa-full")
    if context.cuda:
        if context.gpus > 1:
            words += ["-sm", "layer", "-ts", ",".join(f"{share:g}" for share in context.split)]
        if not context.kv_offload:
            words.append("--no-kv-offload")
        if not context.op_offload:
            words.append("--no-op-offload")
        if context.overrides:  # before --n-cpu-moe: the first pattern that matches decides
            words += ["-ot", text(context.overrides, context.gpus)]
        if context.n_cpu_moe:
            words += ["--n-cpu-moe", str(context.n_cpu_moe)]
    if "draft" in job.deployment.settings:
        words += _draft(job, context)
    if context.adapters:
        words += ["--lora", ",".join(f"adapter-{i}.gguf" for i in range(1, context.adapters.number + 1))]
    return shlex.join([*words, "--fit", "off"])


def _draft(job: Job, context: Context) -> list[str]:
    own, s = job_of(job, context), job.deployment.settings
    words = ["-md", f"{own.model.id.replace('/', '_')}-{own.scheme.recipe}.gguf", "--spec-draft-n-max", str(s["draft_max"])]
    if context.cuda:
        words += ["-ngld", str(s.get("draft_n_gpu_layers", own.model.num_hidden_layers + 1))]
    return [*words, "-ctkd", str(s["draft_type"]), "-ctvd", str(s["draft_type"])]


def _in_2025(job: Job, context: Context) -> str | None:
    """Flags of 2025: flash attention is a switch, layers go to the GPU only where told, nothing is fitted."""
    if context.overrides or context.n_cpu_moe or not context.op_offload:
        return None
    layers = job.model.num_hidden_layers + 1 if context.n_gpu_layers < 0 else context.n_gpu_layers
    words = [
        "llama-server", "-m", f"{job.model.id.replace('/', '_')}-{job.scheme.recipe}.gguf", "-c", str(context.n_ctx),
        "-np", str(context.n_seq_max), *(("--kv-unified",) if context.kv_unified and context.release.streams else ()),
        *(("-ngl", str(layers)) if context.cuda else ("--device", "none")),
        *(("-sm", "row" if context.by_rows else "layer", "-ts", ",".join(f"{share:g}" for share in context.split)) if context.gpus > 1 else ()),
        *(() if context.kv_offload or not context.cuda else ("--no-kv-offload",)),
        *(("-fa",) if context.flash_attn else ()), "-ctk", context.type_k.lower(), "-ctv", context.type_v.lower(),
        "-b", str(int(job.deployment.settings["n_batch"])), "-ub", str(context.n_ubatch),
        *(("--swa-full",) if context.swa_full and context.release.streams else ()),
    ]  # fmt: skip
    return shlex.join(words)
