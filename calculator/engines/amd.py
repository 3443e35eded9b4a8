"""AMD's GPUs as serving engines see them: whose card it is, and the LLVM target that kernels are built for."""

from __future__ import annotations

import re

from calculator.engines.base import Job
from calculator.spec import GpuSpec

# by the series in a card's name. vllm v0.19.0 CMakeLists.txt HIP_SUPPORTED_ARCHS
ARCHITECTURES = {
    r"MI2[15]0": "gfx90a", r"MI3(00|08|25)": "gfx942", r"MI35\d": "gfx950", r"(RX|PRO W) ?7[89]\d0": "gfx1100",
    r"RX 7[67]\d0": "gfx1102", r"RX 90\d0|R9\d00": "gfx1201", r"Ryzen AI": "gfx1151",
}  # fmt: skip


def on_rocm(job: Job) -> bool:
    """Whether the GPU is AMD's."""
    return job.vendor == "AMD"


def architecture_of(gpu: GpuSpec | None) -> str:
    """The LLVM target of a card, by its series; empty for one that no wheel is built for."""
    name = gpu.name if gpu else ""
    return next((target for series, target in ARCHITECTURES.items() if re.search(series, name)), "")
