"""vLLM on AMD GPUs: what its ROCm build runs on and refuses, and what it holds otherwise than on CUDA.

The figure that it prints for loading is what the device lost (mem_get_info), where CUDA's is what torch allocated: whole
segments of the allocator, and the kernels that were loaded. Public logs of an AI PRO R9700 print whole even numbers of MiB.

Source: vllm v0.14.0 platforms/rocm.py get_current_memory_usage, supported_quantization, supports_fp8; v0.11.0 L178-181, L392-394.
"""

from __future__ import annotations

from calculator.engines.amd import architecture_of, on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import PACKED, element_bytes
from calculator.engines.releases import Release
from calculator.errors import NotModelled, Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import Stored, experts_in_mxfp4
from calculator.units import MIB

SINCE: Release = (0, 9, 0)
FP8_ARCHITECTURES = ("gfx94", "gfx95", "gfx12")
PADDING_SOURCE = (
    "vllm v0.14.0 model_executor/layers/fused_moe/unquantized_fused_moe_method.py L185-197 (VLLM_ROCM_MOE_PADDING); "
    "quantization/utils/fp8_utils.py L1378-1392 (VLLM_ROCM_FP8_PADDING)"
)
KERNELS = (30 * MIB, 46 * MIB, 56 * MIB)
KERNELS_SOURCE = (
    "start-up logs of an AI PRO R9700 (kyuz0/amd-r9700-vllm-toolboxes @18a88f1) less simulated segments: 34 MiB (Qwen3 14B in FP8, on one and on two), "
    "54 and 46 (Llama 3.1 8B); pytorch c10/cuda/CUDACachingAllocator.cpp get_allocation_size"
)
WITHOUT_LOG = ("nvfp4", "bnb")


def check_rocm(job: Job, release: Release) -> None:
    """Refuse what the ROCm build has no kernels for, and what no log of it is known of."""
    if not on_rocm(job):
        return
    assert job.gpu is not None
    target, quant = architecture_of(job.gpu), job.scheme.name
    if not target:
        raise Unsupported(f"vLLM has no ROCm kernels for {job.gpu.name}", allowed="MI200, MI300, MI350, RX 7000, RX 9000, AI PRO, Ryzen AI", hint="--engine llama.cpp")
    if release < SINCE:
        raise NotModelled(f"vllm {job.deployment.engine_version} on AMD: no public start-up log to hold it against", allowed="0.9 or later", hint="a later --engine-version, or --engine llama.cpp")
    if quant.startswith(WITHOUT_LOG):
        raise NotModelled(f"{quant} in vllm on AMD: no public start-up log to hold it against", hint="--quant fp8, gptq-int4-g128 or awq-int4-g128")
    if quant.startswith("fp8") and not target.startswith(FP8_ARCHITECTURES):
        raise Unsupported(f"{quant} on {job.gpu.name} ({target}): it has no FP8 units, and vLLM no other kernel on AMD", hint="--quant bf16, gptq-int4-g128 or awq-int4-g128")
    if job.model.indexer:
        raise Unsupported("Sparse Attention is not supported on ROCm.", hint="an NVIDIA GPU")  # v0.11.0 platforms/rocm.py L199-201


def padding_line(job: Job, share: Share, held: Stored) -> Line | None:
    """256 bytes behind each row of experts in 16 bits, and of FP8 matrices but those scaled by channel, whose rows are multiples of 512 bytes."""
    if not on_rocm(job):
        return None
    plain, eight = job.scheme.storage is None, job.scheme.name in ("fp8", "fp8-block")
    size, rows = 1 if eight else element_bytes(job), 0
    for stored in held:
        expert = len(stored.group.shape) == 3
        linear = len(stored.parts) > 1
        if (plain and expert) or (eight and linear and not expert):
            length = stored.group.row_length
            rows += stored.group.elements // length * stored.count if length * size % 512 == 0 else 0
    if not rows:
        return None
    return Line("weights", "padded rows", 256 * rows, Formula("256 × {r} (rows)", {"r": rows}), PADDING_SOURCE, device=share.device)


def left_behind(job: Job, held: Stored) -> int:
    """What repacked experts leave: two layers of packed codes; of MXFP4 the largest matrix of a layer [bytes].

    5.5 % of Qwen3 Coder 30B in 4 bits, on one GPU as on two, and 2 % of gpt-oss 20B.                    modelled
    """
    experts = [s for s in held if len(s.group.shape) == 3]
    if experts_in_mxfp4(job.model, job.scheme):
        return max((p.nbytes for s in experts for p in s.parts), default=0)
    return 2 * sum(s.nbytes // s.count for s in experts) if job.scheme.name.startswith(PACKED) else 0


def segments_line(share: Share, *, slack: int, left: int, tower: int) -> Line:
    """What the device loses beyond the tensors: the allocator's segments, and kernels.

    `slack`: segments less tensors, simulated as they are made. `left`: what repacked experts leave behind. `tower`: what a tower's
    matrices may add.                                                                                              modelled
    """
    low, point, high = KERNELS
    symbols = {"s": slack, "p": left, "k": point}
    nbytes = sum(symbols.values())
    return Line("weights", "allocator segments, kernels", nbytes,
                Formula("{s} (segments beyond the tensors) + {p} (left by repacked experts) + {k} (kernels)", symbols), KERNELS_SOURCE,
                basis="modelled", low=min(low, nbytes), high=slack + 3 * left // 2 + high + tower, device=share.device,
                note="on AMD vLLM counts what the device lost")  # fmt: skip
