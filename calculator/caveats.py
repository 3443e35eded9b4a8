"""What a reader of an estimate must know beside its numbers."""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import build_inventory
from calculator.catalog import Model
from calculator.engines import ENGINES, Job
from calculator.engines.base import Encodes
from calculator.engines.llama_cpp import builds
from calculator.engines.partial import whole_rows_bytes
from calculator.engines.server import Server
from calculator.engines.transformers.placement import layers_on_gpus
from calculator.ledger import Ledger
from calculator.quantization import quantize, stored_nbytes
from calculator.quantization.conventions import NOTE
from calculator.quantization.gguf import quantizer_of
from calculator.quantization.gguf_types import NEEDS_IMATRIX
from calculator.steps import Peak
from calculator.units import tokens


def caveats(model: Model, job: Job, peak: Peak, ledger: Ledger) -> tuple[str, ...]:
    """The warnings of an estimate, one line each."""
    limit, context = job.model.max_position_embeddings, job.workload.context
    found = []
    if context > limit:
        found.append(
            f"context {tokens(context)} is beyond the {tokens(limit)} that {job.model.id} was trained for "
            f"(max_position_embeddings); {job.deployment.engine} runs it all the same"
        )
    if "math kernel" in peak.step.name:
        found.append("grouped heads in float32, or on a card before Ampere, leave sdpa the math kernel, which holds S x S "
                     "scores; 16 bits on a newer card, or --engine llama.cpp, avoids it")  # fmt: skip
    if missing := [line for line in ledger.lines if line.name == "not modelled" and line.component == "activations"]:
        found.append(f"{job.deployment.engine}: the total is a lower bound, without {missing[0].note}")
    if job.deployment.engine == "llama.cpp" and (said := builds.described(job.deployment.engine_version)):
        found.append(said)
    engine = ENGINES[job.deployment.engine]
    if isinstance(engine, Server) and job.deployment.kv_dtype == "fp8" and engine.keeps_declared(job.scheme, job.deployment.engine_version):
        found.append(f"the cache is fp8, as the checkpoint's config.json declares and {job.deployment.engine} {job.deployment.engine_version} keeps it")
    found += _map_warnings(job)
    found += _file_warnings(model, job)
    if job.model.vision_parameters:
        encoded = isinstance(engine, Encodes) and engine.images_encoded(job)
        counted = "is counted, and the pass of the largest images at start-up" if encoded else "is counted, what it computes with is not"
        where = "is a file of its own (mmproj) and not counted" if job.scheme.recipe else counted
        found.append(f"{job.model.id} has a vision tower of {job.model.vision_parameters:,} parameters: it {where}")
    if job.scheme.assumed:
        found.append(f"{job.scheme.name} of {job.model.id}: {NOTE}")
    if model.record.get("own"):
        found.append(f"{job.model.id} is your own, from {model.record['file']}")
    found += _card_warnings(job)
    if model.own_quant == "fp32" and job.deployment.engine in ("vllm", "sglang") and job.scheme.name == "fp16":
        found.append(f"{job.deployment.engine} loads a float32 checkpoint in 16 bits; --quant fp32 (--dtype float32) keeps its own type")
    if any(line.name == "model buffer, no CUDA kernel" for line in ledger.lines):
        found.append(f"CUDA can't multiply {job.scheme.name}: its layers stay in host memory and run on the CPU")
    if job.scheme.family == "exl2":
        found.append("ExLlamaV2 is not modelled: weights are those of the EXL2 format, cache and activations are "
                     "those of transformers")  # fmt: skip
    if job.scheme.recipe in NEEDS_IMATRIX and not job.from_headers and not job.deployment.settings.get("imatrix"):
        found.append(f"{job.scheme.recipe} files are made with an importance matrix: --set imatrix=1 for their types")
    found += _checkpoint_warnings(model, job)
    for other in model.related:
        found.append(f"see also {other['id']}: {other['why']}")
    return tuple(found)


def _map_warnings(job: Job) -> list[str]:
    """What a device map depends on beside the model."""
    settings = job.deployment.settings
    if job.deployment.engine != "transformers" or not settings.get("device_map") or settings.get("max_memory") or job.gpu is None:
        return []
    least, most = layers_on_gpus(job)
    if least == most:
        return []
    return [f"device_map fills what is free: {least} to {most} of {job.model.num_hidden_layers} layers stay on the GPU by the size of the CUDA context; max_memory settles it"]


def _file_warnings(model: Model, job: Job) -> list[str]:
    """What published GGUF files of the model hold otherwise than today's converter writes from its config."""
    found = []
    if job.deployment.engine == "llama.cpp" and job.model.recurrent and job.model.mtp_layers and not job.from_headers:
        found.append(f"files that keep the MTP layer hold {build_inventory(job.model).mtp_parameters:,} parameters more; llama.cpp loads them only to draft tokens")
    rules = str(job.deployment.settings.get("quantizer", ""))
    if job.deployment.engine == "llama.cpp" and job.model.mla and not job.model.recurrent and rules != "2024":
        found.append(f"files converted before April 2025, as in ollama's library, keep attn_kv_b whole (--set quantizer=2024): llama.cpp then caches {whole_rows_bytes(job):,} bytes a token")
    if job.scheme.recipe and not job.from_headers and quantizer_of(job.model) == "2025":
        made = {year: stored_nbytes(quantize(job.model, job.scheme, imatrix=bool(job.deployment.settings.get("imatrix")), quantizer=year)) for year in {rules, "2025", "2026"}}
        other = "2026" if rules != "2026" else "2025"
        if made[rules] != made[other]:
            found.append(f"types are those of files quantized by the rules of {rules}; by those of {other} (--set quantizer={other}) the tensors have {made[other]:,} bytes")
    twice = job.model.tie_word_embeddings and model.record.get("difference", {}).get("value") == job.model.vocab_size * job.model.hidden_size
    if twice and job.scheme.recipe and not job.from_headers:  # convert_hf_to_gguf.py writes lm_head where the checkpoint has one
        untied = quantize(replace(job.model, tie_word_embeddings=False), job.scheme, imatrix=bool(job.deployment.settings.get("imatrix")), quantizer=rules or "2026")
        found.append(f"{job.model.id}'s checkpoint stores its tied head too: files with it as output.weight have {stored_nbytes(untied):,} bytes of tensors")
    return found


def _checkpoint_warnings(model: Model, job: Job) -> list[str]:
    """What the checkpoint's headers say otherwise than its config; or that another format than theirs is sized."""
    own = model.checkpoint
    if own is None:
        return []
    if job.from_headers or own.stored is None or job.scheme.name == own.scheme.name:
        return list(own.warnings)
    return [*own.warnings, f"the weights are sized as {job.scheme.name} from the dimensions; the files hold {own.scheme.name}"]


def _card_warnings(job: Job) -> list[str]:
    """What the card may not run, and whose kernels the formulas describe."""
    if job.gpu is None or job.deployment.engine != "transformers":
        return []
    if job.gpu.vendor != "NVIDIA":
        return [f"the activations are those of CUDA kernels; {job.gpu.vendor}'s may hold more, and some formats don't run there"]
    if job.gpu.compute_capability is None:
        return []
    major, _, minor = job.gpu.compute_capability.partition(".")
    capability, quant = (int(major), int(minor or 0)), job.scheme.name
    needed = {"fp8": (8, 9), "fp8-per-channel": (8, 9), "fp8-block": (8, 9), "mxfp4": (7, 5), "bf16": (8, 0)}.get(quant)
    if needed and capability < needed:
        what = "emulates" if quant == "bf16" else "has no kernel for"
        return [f"{job.gpu.name} (compute capability {major}.{minor or 0}) {what} {quant}; it needs {needed[0]}.{needed[1]}"]
    return []
