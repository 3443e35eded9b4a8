"""Quantized formats that SGLang has no layers for, or none on a card."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.sglang.deployment import HISTORY
from calculator.errors import Unsupported
from calculator.quantization import experts_in_mxfp4

CARD_SOURCE = "sglang v0.5.23 srt/model_loader/loader.py L253-265; get_min_capability of srt/layers/quantization/fp8.py v0.5.9 L158, modelopt_quant.py v0.5.12 and v0.5.13, compressed_tensors/schemes/compressed_tensors_wNa16.py v0.5.9 L95"
MXFP4_SOURCE = "sglang v0.5.23 srt/layers/quantization/mxfp4.py L356-381: experts alone, others are left without a method"
BNB_SOURCE = "sglang v0.4.6.post5, v0.5.9 L1816 and v0.5.23 srt/model_loader/loader.py BitsAndBytesModelLoader: classes of srt/models/ with bitsandbytes_stacked_params_mapping"
_BNB = frozenset({"llama", "mistral", "phi3", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma4_text"})
FP4_ANYWHERE_SINCE = (0, 5, 13)  # before, NVFP4 needs Blackwell


def check_format(job: Job) -> None:
    """Refuse a format without layers, and a card that is too old for it, in the server's words."""
    name, release = job.scheme.name, HISTORY.covered(job.deployment.engine_version)
    if name == "mxfp4" and not experts_in_mxfp4(job.model, job.scheme):
        raise Unsupported(f"sglang has mxfp4 for gpt-oss's experts, not for {job.model.model_type}", hint="--quant nvfp4, or --engine vllm")
    if name.startswith("bnb") and (job.model.model_type not in _BNB or job.model.num_experts):
        raise Unsupported(f"Model {job.model.model_type} does not support BitsAndBytes quantization yet.", allowed=", ".join(sorted(_BNB)), hint="--quant awq-int4-g128")
    least = _least(name, release)
    if job.gpu and job.gpu.compute_capability:
        major, minor = job.gpu.compute_capability.split(".")
        if (found := int(major) * 10 + int(minor)) < least:
            raise Unsupported(f"The quantization method {_flag(name)} is not supported for the current GPU. Minimum capability: {least}. Current capability: {found}.",
                              hint="another card, or --quant awq-int4-g128")  # fmt: skip


def _least(name: str, release: tuple[int, int, int]) -> int:
    """Least compute capability, major and minor as one number. Source: CARD_SOURCE."""
    if name.startswith(("fp8", "w4a16", "w8a16")):
        return 80
    if name == "nvfp4":
        return 80 if release >= FP4_ANYWHERE_SINCE else 100
    return 0


def _flag(name: str) -> str:
    return "modelopt_fp4" if name == "nvfp4" else "fp8" if name.startswith("fp8") else "compressed-tensors"
