"""Formats of weights that releases of vLLM have: what came late, and what has gone.

Source: QUANTIZATION_METHODS of vllm model_executor/layers/quantization/__init__.py in v0.6.6, v0.7.2, v0.8.5, v0.9.2, v0.11.0, v0.14.0,
v0.19.0, v0.27.0, v0.28.0 and v0.33.0; vllm#32681 (HQQ, gone in 0.15), vllm#43529 (bitsandbytes, a plugin since 0.28), vllm#39612 (GGUF,
a plugin since 0.24).
"""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.releases import Release
from calculator.engines.vllm.deployment import HISTORY
from calculator.errors import Unsupported
from calculator.quantization import experts_in_mxfp4

HQQ_UNTIL: Release = (0, 15, 0)
BNB_PLUGIN_SINCE: Release = (0, 28, 0)
_SINCE: dict[str, tuple[str, Release]] = {"torchao-": ("torchao", (0, 8, 0)), "nvfp4": ("modelopt_fp4", (0, 8, 0)), "mxfp4": ("mxfp4", (0, 10, 0))}
DENSE_MXFP4: Release = (0, 14, 0)  # before, only experts: compressed_tensors_w4a16_mxfp4.py isn't in v0.12.0


def check_format(job: Job) -> None:
    """Refuse a format that the release doesn't have, in its words, or a layout that its kernels don't take."""
    name, version = job.scheme.name, job.deployment.engine_version
    release = HISTORY.covered(version)
    if name.startswith("hqq-"):
        if release >= HQQ_UNTIL:
            raise Unsupported(f"Unknown quantization method: hqq (vllm has had none since 0.15, and this is {version})", hint="--quant awq-int4-g128, or --engine-version 0.14")
        if name != "hqq-int4-g64":  # v0.11.0 layers/quantization/hqq_marlin.py L39-42
            raise Unsupported(f"{name} in vllm: the only supported HQQ group size is 64, and 4 bits", hint="--quant hqq-int4-g64")
    for prefix, (method, since) in _SINCE.items():
        if name.startswith(prefix) and release < since:
            raise Unsupported(f"Unknown quantization method: {method} (vllm has it since {'.'.join(map(str, since[:2]))}, and this is {version})", hint="a later --engine-version")
    if name == "mxfp4" and not experts_in_mxfp4(job.model, job.scheme) and release < DENSE_MXFP4:
        raise Unsupported(f"mxfp4 of linear layers in vllm {version}, which has it for experts", allowed="0.14 or later", hint="a later --engine-version, or --quant nvfp4")


def plugin_note(job: Job) -> str:
    """What has to be installed beside the release; empty for nothing."""
    bnb = job.scheme.name.startswith("bnb-") and HISTORY.covered(job.deployment.engine_version) >= BNB_PLUGIN_SINCE
    return "since 0.28 with vllm-bnb-plugin installed" if bnb else ""
