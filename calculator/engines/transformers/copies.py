"""What formats make a pass hold beside their stored weights, and torch's own records by vendor and card."""

from __future__ import annotations

from functools import lru_cache

from calculator.engines.base import Job
from calculator.engines.records import Record, record
from calculator.quantization import Scheme, StoredGroup

# bytes a weight that a forward pass holds beside the stored weights, and when: from the kernels' sources
COPIES: dict[str, tuple[str, int, str]] = {
    "bnb-int8": ("int8", 0, "bitsandbytes 0.50 backends/cuda/ops.py int8_mm_dequant, autograd/_functions.py MatMul8bitLt"),
    "bnb": ("prefill", 2, "bitsandbytes 0.50 backends/cuda/ops.py L904: 16-bit copy above a kernel-dependent batch"),
    "awq": ("prefill", 2, "AutoAWQ awq/modules/linear/gemm.py L48: 16-bit copy from 1024 tokens; none with Marlin"),
    "gptq": ("prefill", 2, "GPTQModel exllamav2 q_gemm.cu L118: 16-bit copy above 50 rows; none with Marlin"),
    "torchao-int8wo": ("always", 2, "torchao 0.18.0 int8_tensor.py L346: 16-bit copy each pass unless compiled"),
    "torchao-fp8wo": ("always", 2, "torchao 0.18.0 float8_tensor.py L465: 16-bit copy each pass; more unless fused"),
    "quanto-int8": ("always", 2, "optimum-quanto 0.2.7 library/qbytes_mm.py L25"),
    "quanto-fp8": ("always", 4, "optimum-quanto 0.2.7 library/qbytes_mm.py L25: two 16-bit copies"),
    "quanto-int4": ("always", 4, "optimum-quanto 0.2.7 tensor/qbits.py L28"),
    "hqq": ("always", 6, "hqq @e0b1d00 core/quantize.py L183: three 16-bit tensors in the default backend"),
    "exl2": ("prefill", 2, "exllamav2 q_gemm.cu L233: 16-bit copy above 32 rows"),
}
# compressed-tensors formats without a kernel in transformers become 16-bit on the first forward pass, for good
DECOMPRESSED = ("int8-w8a8", "nvfp4", "w4a16", "w8a16", "compressed-tensors")  # beginnings of names
DECOMPRESSED_SOURCE = "huggingface/transformers PR #47652: compressed weights are decompressed on the first forward pass"


@lru_cache(maxsize=64)
def records_of(vendor: str, capability: str | None) -> tuple[Record, Record, Record]:
    """Allocator slack, context and cuBLAS workspace of a card."""
    context = {"AMD": "hip_context", "Apple": "metal_context"}.get(vendor, "cuda_context")
    if vendor == "AMD":
        workspace = "hipblas_workspace"
    elif capability is None:
        workspace = "cublas_workspace_unknown"
    else:
        large = capability.split(".")[0] in ("9", "10", "12")
        workspace = "cublas_workspace_sm90" if large else "cublas_workspace"
    return record("torch", "allocator_slack"), record("torch", context), record("torch", workspace)


def math_kernel(dtype: str, job: Job) -> bool:
    """Whether sdpa with grouped heads is left the math kernel: float32, and cards before Ampere."""
    capability = job.gpu.compute_capability if job.gpu and job.vendor == "NVIDIA" else None
    return dtype == "float32" or (capability is not None and int(capability.split(".")[0]) < 8)


def copies_of(scheme: Scheme) -> tuple[str, int, str]:
    """When a format's weights are copied, bytes a weight of the copy, and the source; never where it isn't."""
    if scheme.name.startswith("torchao-int4"):
        return ("never", 0, "")
    if scheme.name in COPIES:
        return COPIES[scheme.name]
    return COPIES.get(scheme.name.split("-")[0], ("never", 0, ""))


def decompressed_bytes(held: tuple[StoredGroup, ...]) -> int:
    """16-bit copies of the packed tensors [bytes]."""
    return sum(2 * g.group.elements * g.count for g in held if len(g.parts) > 1)
