"""llama.cpp's settings under its own names, and the context that llama-server makes of them."""

from __future__ import annotations

from calculator.architectures import architecture
from calculator.engines.base import Job
from calculator.engines.llama_cpp import buffers, builds, draft, fit, lora, overrides
from calculator.engines.llama_cpp.fit_search import fitted
from calculator.engines.settings import COUNT, Setting, Shares, Text
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.quantization.gguf import QUANTIZERS

HELD_IN = {  # the model types whose buffers were held against the older engine itself
    buffers.FEBRUARY_2025: ("llama", "mistral", "mixtral", "qwen2"),
    buffers.AUGUST_2025: ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text"),
}
_IN_LOGS = {buffers.FEBRUARY_2025: ("gemma2",)}  # exact in public logs of three builds of 2024
_BETWEEN = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")  # builds of April to June 2025
_MASK_PADDING, _PADS_TO_64 = 64, 3609  # rows; builds before b3609 pad to 32, as the log of one with n_ubatch=32 has it
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, src/llama-cparams.h @0c1e57098
MAX_GPUS = 16  # GGML_CUDA_MAX_DEVICES, ggml/include/ggml-cuda.h @0c1e57098

SETTINGS: dict[str, Setting] = {
    "backend": Setting("cuda", ("cuda", "metal", "vulkan", "cpu"), "CUDA; Metal and Vulkan by CUDA's rules, within a band; or the CPU as device 0"),
    "preset": Setting("llama-server", ("llama-server", "ollama"), "whose defaults: llama-server's, or those that ollama passes to it"),
    "n_ctx": Setting(None, range(0, COUNT.stop), "total cells over all sequences; default context x sequences; 0: the model's own, or what fit leaves"),
    "flash_attn": Setting(True, bool, "flash attention"),
    "n_batch": Setting(2048, COUNT, "logical batch [tokens]"),
    "n_ubatch": Setting(512, COUNT, "micro-batch that the compute buffer is sized for [tokens]"),
    "n_seq_max": Setting(None, range(1, MAX_SEQUENCES + 1), "slots; default the number of sequences"),
    "kv_unified": Setting(False, bool, "one cache shared by all sequences"),
    "n_outputs_max": Setting(None, range(0, COUNT.stop), "outputs reserved a micro-batch; 0 all; default n_seq_max, as llama-server"),
    "swa_full": Setting(False, bool, "full-size cache for sliding-window layers"),
    "type_k": Setting(None, KV_TYPES, "type of K; default --kv-dtype"),
    "type_v": Setting(None, KV_TYPES, "type of V; default --kv-dtype"),
    "n_gpu_layers": Setting(None, range(-1, 10_002), "layers on GPUs, the last ones first, the output counted as one; -1 or more than there are: all"),
    "n_cpu_moe": Setting(0, range(0, 10_001), "first layers whose experts stay on the host"),
    "override_tensor": Setting(None, Text(2000, "ffn_.*_exps=CPU"), "tensors elsewhere than their layer: PATTERN=BUFFER,...; CPU, CUDA0, ..."),
    "offload_kqv": Setting(True, bool, "the cache on the GPUs of its layers; otherwise all of it on the host"),
    "op_offload": Setting(True, bool, "GPUs take over large products with weights of the host"),
    "split_mode": Setting("layer", ("layer", "row", "tensor", "none"), "how several GPUs share the model: by layers; by rows in builds before 2026"),
    "tensor_split": Setting(None, Shares(), "shares of the layers, one a GPU: 3,1; default by free memory, so equal GPUs equally"),
    "lora_rank": Setting(0, range(0, 8193), "rank of LoRA adapters; 0: none"),
    "lora_targets": Setting("all", Text(200, "attn_q,attn_v"), "matrices that the adapters have: all of the layers, or names as in the file or Hugging Face's"),
    "lora_type": Setting("f32", lora.TYPES, "type that the adapter was converted to"),
    "lora_adapters": Setting(1, range(1, 65), "adapters applied together, all of this rank and these targets"),
    "draft": Setting(None, Text(400, "qwen3-0.6b"), "draft model of speculative decoding (--model-draft)"),
    "draft_quant": Setting(None, Text(40, "Q8_0"), "recipe of the draft; default the target's"),
    "draft_max": Setting(3, range(0, 257), "tokens that the draft proposes at once"),
    "draft_n_gpu_layers": Setting(None, range(-1, 10_002), "layers of the draft on GPUs; default all"),
    "draft_type": Setting("f16", KV_TYPES, "type of the draft's cache"),
    "fit": Setting(False, bool, "llama-server's --fit: layers, experts and, with n_ctx=0, cells as free memory allows"),
    "fit_target": Setting(1024, range(0, 10_000_001), "memory that fit leaves free on each GPU [MiB]"),
    "fit_ctx": Setting(4096, COUNT, "cells a sequence that fit doesn't go below"),
    "fit_free": Setting(None, range(1, 10_000_001), "memory free on each GPU before loading [MiB]; default the GPU's less a CUDA context"),
    "imatrix": Setting(False, bool, "the file was quantized with an importance matrix"),
    "quantizer": Setting(None, QUANTIZERS, "whose rules the file's types follow, where those of 2025 and 2026 differ; default those of the model's published files"),
}  # fmt: skip

_EXAONE4_WINDOWED, _LLAMA4_CHUNK = 64, 8192  # src/models/{exaone4,llama4}.cpp load_arch_hparams @0c1e57098


def context_of(job: Job, context: int = 0, sequences: int = 0) -> buffers.Context:
    """The context that llama-server would make for the job's workload, or for another."""
    asked = _asked(job, context, sequences)
    if not job.deployment.settings["fit"] or not asked.cuda:
        return asked
    fit.check(job)  # what it isn't modelled for has no context
    return fitted(job.model, job.stored, asked, fit.asked(job))


def _asked(job: Job, context: int, sequences: int) -> buffers.Context:
    """The context before anything is fitted."""
    s = job.deployment.settings
    context, sequences = context or job.workload.context, sequences or job.workload.sequences
    release = builds.rules_of(job.deployment.engine_version)
    if job.model.mla and release.latent != "heads" and any(g.group.role == "attn_kv_b" and "kv_b" in g.group.name for g in job.stored):
        # a file with attn_kv_b whole is run as before (src/models/deepseek2.cpp, is_mla)
        release = release._replace(latent="heads", graph=False)
    n_ubatch = min(int(s["n_ubatch"]), max(int(s["n_batch"]), release.least_batch))
    n_seq_max = int(s.get("n_seq_max", sequences))
    n_outputs = int(s.get("n_outputs_max", draft.outputs(job, n_seq_max) if release.outputs_by_slots else 0)) or n_ubatch
    wanted = int(s.get("n_gpu_layers", -1))
    n_ctx = int(s.get("n_ctx", context * sequences))
    if not n_ctx:
        n_ctx = job.model.max_position_embeddings * (n_seq_max if s["fit"] and not s["kv_unified"] else 1)
    return buffers.Context(
        n_ctx=n_ctx, n_batch=int(s["n_batch"]), n_ubatch=n_ubatch,
        n_seq_max=n_seq_max, n_outputs=n_outputs, kv_unified=bool(s["kv_unified"]), flash_attn=bool(s["flash_attn"]),
        type_k=str(s["type_k"]).upper(), type_v=str(s["type_v"]).upper(), cuda=s["backend"] != "cpu", swa_full=bool(s["swa_full"]),
        split=split_of(job), n_gpu_layers=-1 if wanted > job.model.num_hidden_layers else wanted, n_cpu_moe=int(s["n_cpu_moe"]),
        kv_offload=bool(s["offload_kqv"]), op_offload=bool(s["op_offload"]), release=release, by_rows=s["split_mode"] == "row",
        overrides=overrides.parse(str(s["override_tensor"]), job.deployment.gpus) if "override_tensor" in s else (),
        adapters=lora.adapters_of(job),
    )  # fmt: skip


def split_of(job: Job) -> tuple[float, ...]:
    """Shares of the layers, one a GPU."""
    given = job.deployment.settings.get("tensor_split")
    return tuple(float(x) for x in str(given).split(",")) if given else (1.0,) * job.deployment.gpus


def check(job: Job, *, graph: bool = True) -> None:
    """Refuse what the formulas don't cover, or the engine itself refuses; without `graph` what weights and cache don't need is let through."""
    settings = job.deployment.settings
    if settings["preset"] == "ollama" and job.workload.context > job.model.max_position_embeddings:
        raise BadValue(f"ollama lowers a context of {job.workload.context:,} to the {job.model.max_position_embeddings:,} that the model was "
                       "trained for", hint=f"--context {job.model.max_position_embeddings}, or --set preset=llama-server")  # fmt: skip
    if job.workload.sequences > MAX_SEQUENCES:
        raise BadValue(f"sequences {job.workload.sequences} is out of range for llama.cpp", allowed=f"1 to {MAX_SEQUENCES}")
    overrides.check(job)
    fit.check(job)
    _check_cells(job, context_of(job))
    if job.gpu is not None and job.gpu.name.startswith("Gaudi"):
        raise Unsupported(f"llama.cpp has no backend for {job.gpu.name}", hint="another GPU")
    if settings["backend"] == "cpu":
        _check_cpu(job)
    else:
        _check_gpus(job)
    _check_release(job, context_of(job))
    if graph and (unknown := without_graph(job)) is not None:
        raise unknown
    if int(settings["n_cpu_moe"]) and not job.model.num_experts:
        raise BadValue(f"n_cpu_moe={settings['n_cpu_moe']}: {job.model.id} has no experts", hint="n_gpu_layers")
    _check_model(job, context_of(job))
    draft.check(job)
    if "draft" in settings:
        check(draft.job_of(job, context_of(job)))
    lora.check(job)


def _check_model(job: Job, context: buffers.Context) -> None:
    """What llama.cpp takes for granted of a model type."""
    model = job.model
    if model.mla and context.release.latent == "row" and context.type_k != context.type_v:
        raise NotModelled("keys and values of two types with latent attention, which keeps no values", hint="--kv-dtype")
    if model.mla and not context.kv_offload and context.cuda and context.flash_attn and context.type_k != "F16":
        raise NotModelled("a cache of latent attention on the host in another type than f16: what CUDA converts of its copies", hint="--kv-dtype f16")
    if model.mla and job.deployment.settings["lora_rank"]:
        raise NotModelled("LoRA adapters with latent attention", hint="leaving lora_rank out")
    if model.model_type == "exaone4" and (model.num_hidden_layers == _EXAONE4_WINDOWED) != bool(model.full_every and model.sliding_window):
        raise NotModelled(f"{model.id}: llama.cpp gives EXAONE 4 a window in {_EXAONE4_WINDOWED} layers, and in no other number", hint="--engine transformers")
    if model.model_type == "llama4_text" and model.sliding_window != _LLAMA4_CHUNK:
        raise NotModelled(f"{model.id}: llama.cpp's chunks have {_LLAMA4_CHUNK:,} tokens, whatever the config says", hint="--engine transformers")


def without_graph(job: Job) -> NotModelled | None:
    """Why the compute buffers of an older build aren't known: what was not held against the engine itself. None where they are."""
    context = context_of(job)
    if context.release is buffers.NEWEST:
        return None
    version = f"llama.cpp {job.deployment.engine_version}"
    if job.model.mla and context.release.latent == "heads":
        return NotModelled(f"{version} with keys and values of every head of latent attention", hint="--set quantizer=2025")
    if not context.release.graph:
        return NotModelled(f"{version}, whose graph is between those of the modelled builds", hint="--engine-version 794fe23f or 4227c9be")
    if context.overrides or context.n_cpu_moe or not (context.kv_offload and context.op_offload):
        return NotModelled(f"{version} with tensors, the cache or products elsewhere than their layer", hint="leaving --engine-version out")
    if context.release is buffers.AUGUST_2025 and (not context.on_gpus_alone or context.gpus > 1):
        return NotModelled(f"{version} with a part on the host or on several GPUs", hint="leaving --engine-version out")
    held = HELD_IN[context.release] + _IN_LOGS.get(context.release, ()) if context.release in HELD_IN else _BETWEEN
    build = builds.build_of(job.deployment.engine_version)
    if build and 0 < build.number < _PADS_TO_64 and context.n_ubatch % _MASK_PADDING:
        return NotModelled(f"{version} with n_ubatch={context.n_ubatch}", hint=f"a multiple of {_MASK_PADDING}")
    if job.model.model_type not in held:
        return NotModelled(f"{version} with {job.model.model_type}", allowed=", ".join(held), hint="leaving --engine-version out")
    if not context.release.row_indices and "F32" in (context.type_k, context.type_v):
        return NotModelled(f"{version} with a cache in f32", hint="f16")
    return None


def _check_release(job: Job, context: buffers.Context) -> None:
    """What an older build doesn't run, or may do in one of two ways."""
    if context.release is buffers.NEWEST:
        return
    model, build = job.model, job.deployment.engine_version
    version = f"llama.cpp {build}"
    if not builds.runs(build, architecture(model.model_type).gguf or model.model_type):
        raise Unsupported(f"{version} and {model.model_type}: it learned that later, or it isn't known here when", hint="a later --engine-version, or leaving it out")
    if (context.overrides or context.n_cpu_moe) and context.release is buffers.FEBRUARY_2025:
        raise Unsupported(f"{version} has no override_tensor: ggml-org/llama.cpp#11397 brought it in April 2025", hint="a later --engine-version")
    concerned = {"latent attention": model.mla is not None, "sliding windows": bool(model.full_every), "several sequences": context.n_seq_max > 1}
    for change in builds.CHANGES:
        if change.subject in context.release.unsure and concerned[change.subject]:
            raise NotModelled(f"{version}: the cache of {change.subject} changed between b{change.without} and b{change.since}, on {change.day} "
                              f"({change.source})", hint=f"--engine-version b{change.without} or b{change.since}")  # fmt: skip
    if job.scheme.recipe in ("Q1_0", "Q2_0") or (job.scheme.recipe == "MXFP4_MOE" and not context.release.row_indices):
        raise Unsupported(f"{version} doesn't know {job.scheme.recipe}", hint="leaving --engine-version out")
    if int(job.deployment.settings.get("n_outputs_max", 0)) not in (0, context.n_ubatch):
        raise Unsupported(f"{version} has no n_outputs_max: it reserves all outputs of a micro-batch", hint="leaving n_outputs_max out")
    if job.deployment.settings["preset"] == "ollama":
        raise NotModelled(f"preset=ollama with {version}", hint="leaving --engine-version out")


def _check_cells(job: Job, context: buffers.Context) -> None:
    work = job.workload
    if context.n_seq_max < work.sequences:
        raise BadValue(f"n_seq_max {context.n_seq_max} has no slots for {work.sequences} sequences",
                       hint=f"--set n_seq_max={work.sequences}")  # fmt: skip
    if context.n_ctx < work.context * work.sequences:
        raise BadValue(
            f"n_ctx {context.n_ctx:,} doesn't hold {work.sequences:,} x {work.context:,} tokens",
            hint="leaving n_ctx out, or a smaller --context",
        )
    if (where := buffers.layout(context)).streams > 1 and where.cells < work.context:
        raise BadValue(f"n_seq_max {context.n_seq_max} leaves {where.cells:,} cells a sequence for {work.context:,} tokens",
                       hint=f"--set n_ctx={work.context * context.n_seq_max}")  # fmt: skip


def _check_cpu(job: Job) -> None:
    settings = job.deployment.settings
    if job.deployment.gpus > 1:
        raise BadValue("backend=cpu runs on one device", hint="leaving --gpus out")
    if job.gpu:
        raise BadValue(f"backend=cpu doesn't use {job.gpu.name}", hint="leaving --gpu or backend=cpu out")
    if settings.get("n_gpu_layers", -1) not in (-1, 0) or "tensor_split" in settings or "override_tensor" in settings:
        raise BadValue("backend=cpu has no GPU to put layers on", hint="leaving backend=cpu, n_gpu_layers, tensor_split or override_tensor out")


def _check_gpus(job: Job) -> None:
    settings, gpus, layers = job.deployment.settings, job.deployment.gpus, job.model.num_hidden_layers
    if gpus > min(layers, MAX_GPUS):
        what = f"{layers} layers" if layers < MAX_GPUS else "llama.cpp"
        raise BadValue(f"{gpus} GPUs for {what}", allowed=f"1 to {min(layers, MAX_GPUS)}", hint=f"--gpus {min(layers, MAX_GPUS)} or fewer")
    mode = settings["split_mode"]
    if mode == "row" and builds.rules_of(job.deployment.engine_version) is buffers.NEWEST:
        raise BadValue("split_mode=row: llama.cpp @0c1e57098 refuses it, its CUDA devices have no split buffers", hint="split_mode=layer, or an --engine-version of 2024 or 2025")
    if mode == "tensor":
        raise NotModelled("split_mode=tensor, which llama.cpp calls experimental", hint="split_mode=layer")
    if mode == "none" and gpus > 1:
        raise BadValue("split_mode=none uses one GPU", hint="leaving --gpus out")
    split = split_of(job)
    if len(split) != gpus:
        raise BadValue(f"tensor_split has {len(split)} shares for {gpus} GPU{'s' if gpus > 1 else ''}", hint=f"--gpus {len(split)}")
    if not any(split):
        raise BadValue("tensor_split of nothing but zeros means by free memory", hint="leaving tensor_split out")
