"""What llama-server's --fit is told, from the settings, and what it chose in words.

Source: llama.cpp @0c1e57098 common/fit.cpp; defaults common/common.h L480.
"""

from __future__ import annotations

from calculator.architectures import architecture
from calculator.engines.base import Job
from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.fit_search import Asked
from calculator.engines.llama_cpp.overrides import HELD
from calculator.engines.records import record
from calculator.errors import BadValue, NotModelled
from calculator.memory import usable_memory
from calculator.units import MIB

SOURCE = "llama.cpp common/fit.cpp common_params_fit_impl @0c1e57098"
CONTEXTS = {"AMD": "hip_context", "Apple": "metal_context"}  # records of what a driver's context takes


def asked(job: Job) -> Asked:
    """From the settings. Free is what the GPU's memory leaves beside the driver's context, unless told."""
    s = job.deployment.settings
    free = int(s["fit_free"]) * MIB if "fit_free" in s else 0
    if not free and job.gpu is not None:
        free = usable_memory(job.gpu).value - int(record("llama_cpp", CONTEXTS.get(job.vendor, "cuda_context")).value)
    own = any(name in s for name in ("n_gpu_layers", "tensor_split", "override_tensor")) or s["n_cpu_moe"]
    return Asked(free, int(s["fit_target"]) * MIB, int(s["fit_ctx"]), s.get("n_ctx") == 0, not own)


def check(job: Job) -> None:
    """Refuse what --fit isn't modelled for."""
    s = job.deployment.settings
    if not s["fit"]:
        return
    if s["backend"] == "cpu":
        raise NotModelled("fit with backend=cpu: it goes by the host's memory", hint="leaving fit out")
    if job.deployment.engine_version != "0c1e57098":
        raise NotModelled(f"fit with llama.cpp {job.deployment.engine_version}", hint="leaving --engine-version out")
    if (job.model.num_experts or "llama.cpp" not in architecture(job.model.model_type).engines) and job.model.model_type not in HELD:
        raise NotModelled(f"fit with {job.model.model_type}", allowed=", ".join(HELD), hint="n_gpu_layers")
    if asked(job).free <= 0:
        raise BadValue("fit needs to know the free memory", hint="--gpu NAME, or --set fit_free=MIB")


def note(job: Job, context: Context) -> str:
    """What was chosen and from what."""
    told, layers = asked(job), job.model.num_hidden_layers + 1
    held = layers if context.n_gpu_layers < 0 else context.n_gpu_layers
    moved = f", {len(context.overrides)} of them not whole" if context.overrides else ""
    return (f"--fit: {context.n_ctx:,} cells and {held} of {layers} layers{moved}, for {told.free // MIB:,} MiB free "
            f"and {told.target // MIB:,} to stay so")  # fmt: skip
