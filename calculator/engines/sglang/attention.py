"""The attention backend that SGLang's server takes by card, model and release, its workspace, and the page that it asks for."""

from __future__ import annotations

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.releases import Release
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.rocm import default_backend
from calculator.engines.sglang.sparse import PAGE
from calculator.errors import Unsupported
from calculator.units import MIB

BACKENDS = ("flashinfer", "fa3", "triton", "trtllm_mha", "trtllm_mla", "aiter")
BACKEND_SOURCE = (
    "sglang v0.4.3 srt/model_executor/model_runner.py L236, v0.4.5 L317, v0.4.8 L322; v0.5.3 srt/server_args.py L836-871, v0.5.9 L1277-1341, L1448, "
    "L1506, L1782-1833, v0.5.13 L2765; v0.5.23 srt/arg_groups/overrides.py and model_overrides/"
)
WORKSPACE_SOURCE = (
    "sglang v0.4.3 srt/layers/attention/flashinfer_backend.py L107, v0.5.13 L217-259, v0.5.23 L425-470; global_config.py flashinfer_workspace_size; "
    "v0.5.9 trtllm_mha_backend.py L40-84, trtllm_mla_backend.py L41"
)
PAGE_SOURCE = "sglang v0.5.13 srt/server_args.py L2880-2960; v0.5.23 srt/arg_groups/overrides.py L1150-1200"
_WIDE_WORKSPACE = frozenset({"qwen2", "qwen3"})  # Qwen2ForCausalLM and Qwen3ForCausalLM
_OWN_CHOICE: dict[str, Release] = {"gpt_oss": (0, 5, 1), "llama4_text": (0, 4, 5), "gemma4_text": (0, 5, 10)}  # FA3 on Hopper but for Gemma 4, else Triton
MHA_ON_BLACKWELL_SINCE = (0, 5, 9)
INT_WORKSPACE = 8 * MIB  # of each FlashInfer wrapper


def backend_of(job: Job) -> str:
    """attention_backend: as set, or the server's choice; "" without a card. Source: BACKEND_SOURCE."""
    given = job.deployment.settings.get("attention_backend")
    if given is not None:
        return str(given)
    if on_rocm(job):
        return default_backend(job)
    if job.gpu is None or not job.gpu.compute_capability:
        return ""
    release, major, model = HISTORY.covered(job.deployment.engine_version), int(job.gpu.compute_capability.split(".")[0]), job.model
    hopper, blackwell = major == 9 and release >= (0, 4, 5), major == 10
    if model.indexer:
        return "nsa"
    if model.mla:
        if hopper:
            return "fa3"
        return "trtllm_mla" if blackwell and release >= (0, 5, 2) else "flashinfer" if blackwell and release >= (0, 4, 8) else "triton"
    if model.model_type in _OWN_CHOICE:
        if blackwell and (release >= (0, 5, 3) if model.model_type != "gemma4_text" else release >= (0, 5, 20)):
            return "trtllm_mha"
        return "fa3" if hopper and model.model_type != "gemma4_text" else "triton"
    if hopper:
        return "fa3"
    if blackwell and model.model_type == "falcon_h1" and release >= MHA_ON_BLACKWELL_SINCE:  # read in v0.5.12 srt/server_args.py L2381-2390
        return "triton"
    return "trtllm_mha" if blackwell and release >= MHA_ON_BLACKWELL_SINCE else "flashinfer"


def check_backend(job: Job) -> None:
    """Refuse a backend that was set where the server refuses it, in its words."""
    backend, capability = job.deployment.settings.get("attention_backend"), job.gpu.compute_capability if job.gpu else None
    major = int(capability.split(".")[0]) if capability else None
    hint = "leaving attention_backend out"
    maker = {None: job.vendor, "triton": job.vendor, "aiter": "AMD"}.get(backend, "NVIDIA")  # type: ignore[arg-type]
    if job.gpu and maker != job.vendor:
        raise Unsupported(f"attention_backend={backend} on {job.gpu.name}: its kernels are {maker}'s", hint=hint)
    if backend == "trtllm_mla" and not job.model.mla:
        raise Unsupported("trtllm_mla backend can only be used with MLA models.", hint=hint)
    if backend == "trtllm_mha" and job.model.mla:
        raise Unsupported(f"trtllm_mha with {job.model.model_type}, which has latent attention", hint=hint)
    if backend == "fa3" and major is not None and not 8 <= major <= 9:
        raise Unsupported("FlashAttention v3 Backend requires SM>=80 and SM<=90. Please use `--attention-backend flashinfer`.", hint=hint)
    if str(backend).startswith("trtllm") and major is not None and major < 9:
        raise Unsupported(f"{str(backend).upper().replace('_', ' ')} backend is only supported on Blackwell GPUs (SM100).", hint=hint)


def page_of(job: Job) -> int:
    """page_size in force: as set, or the 64 tokens that a backend insists on. Source: PAGE_SOURCE."""
    page, backend = int(job.deployment.settings["page_size"]), backend_of(job)
    if job.model.indexer:
        return PAGE
    pages = {"trtllm_mha": (16, 32, 64), "trtllm_mla": (32, 64)}.get(backend)
    return 64 if pages and page not in pages else page


def workspace(job: Job) -> tuple[int, str]:
    """Bytes of the backend's buffers, beside the pool, and what they are.

    FlashInfer: one of 384 MiB, 512 for Qwen 2 and 3, and 8 MiB a wrapper: ragged, and paged, verifying and decoding ones, twice with
    windows. TensorRT-LLM's kernels have one of 512 MiB, or with latent attention 128, beside FlashInfer's. Source: WORKSPACE_SOURCE.
    """
    backend, model = backend_of(job), job.model
    release = HISTORY.covered(job.deployment.engine_version)
    if backend not in ("flashinfer", "trtllm_mha", "trtllm_mla"):
        return 0, backend or "unknown"
    wide = model.model_type in _WIDE_WORKSPACE and (not model.vision_parameters or (model.model_type == "qwen3" and release >= (0, 5, 9)))
    own = (512 if wide and release >= (0, 4, 2) and (model.model_type == "qwen2" or release >= (0, 4, 6)) else 384) * MIB
    wrappers = 1 + 3 * (2 if model.sliding_window else 1)
    more = {"trtllm_mha": 512 * MIB, "trtllm_mla": 128 * MIB}.get(backend, 0)
    return own + wrappers * INT_WORKSPACE + more, backend
