"""What the kernels that servers share hold of experts in MXFP4, beyond the checkpoint's bytes."""

from __future__ import annotations

from calculator.units import align_up


def mxfp4_extra(*, capability: tuple[int, int] | None, hidden: int, width: int, triton: bool = True) -> tuple[int, str, str]:
    """What the kernel of a GPU adds to an expert [bytes], its formula, and the kernel's name.

    Marlin (Ampere, Ada, consumer Blackwell)  3 (h' f' - h f) 17 / 32 + 2 (2 (f' - f) + h' - h)     h' to 256, f' to 128
    FlashInfer (Blackwell)                    the same, f' to 256
    Triton (Hopper since 0.11)                f' to 64, a second copy of the scales, swizzled, its rows to 256, biases in float32

    Equals 65.9651 and 13.72 GiB (Marlin) and 64.38 and 13.47 (Triton) of the 120B and the 20B to 0.06 %.     derived

    Source: vllm v0.11.0 layers/quantization/mxfp4.py, sglang v0.5.6 srt/layers/quantization/mxfp4.py; triton_kernels tensor_details/layout_details/hopper_scale.py, swizzle_data.
    """
    h, f = hidden, width
    if capability is not None and capability[0] == 9 and triton:
        wide = align_up(f, 64)
        swizzled = align_up(2 * wide, 256) * (h // 32) + align_up(h, 256) * (wide // 32)  # scales
        stored = 3 * h * f * 17 // 32 + 2 * (2 * f + h)
        held = 3 * h * wide * 17 // 32 + swizzled + 4 * (2 * wide + h)
        formula = f"(3 × {{h}} × {wide} × 17 / 32 + {swizzled} (swizzled scales) + 4 × (2 × {wide} + {{h}}) - 3 × {{h}} × {{f}} × 17 / 32 - 2 × (2 × {{f}} + {{h}}))"
        return held - stored, formula, "Triton"
    blackwell = capability is not None and capability[0] == 10
    extra, formula = _padded(h, f, align_up(h, 256), align_up(f, 256 if blackwell else 128))
    return extra, formula, "FlashInfer" if blackwell else "Marlin"


def rocm_extra(*, align: int, hidden: int, width: int) -> tuple[int, str, str]:
    """As mxfp4_extra, on AMD: both widths to `align`, a second copy of the scales, biases in float32.

    Source: vllm v0.14.0 layers/quantization/mxfp4.py L321-326, utils/mxfp4_utils.py L111-116; v0.19.0 layers/fused_moe/oracle/mxfp4.py L395-397.
    """
    wide, padded = align_up(hidden, align), align_up(width, align)
    extra, formula = _padded(hidden, width, wide, padded)
    copied = 3 * wide * padded // 32 + 2 * (2 * padded + wide)
    return extra + copied, f"({formula} + {copied} (scales again, biases in float32))", "Triton on ROCm"


def aiter_extra(*, hidden: int, width: int) -> tuple[int, str, str]:
    """As mxfp4_extra, of AITER's kernels in SGLang: both widths to 256, biases in float32; scales are rearranged in place.

    Source: sglang v0.5.12 srt/layers/quantization/mxfp4.py L466-476, L769-818; v0.5.23 L517-533.
    """
    wide, padded = align_up(hidden, 256), align_up(width, 256)
    extra, formula = _padded(hidden, width, wide, padded)
    biases = 2 * (2 * padded + wide)
    return extra + biases, f"({formula} + {biases} (biases in float32))", "AITER"


def _padded(h: int, f: int, wide: int, padded: int) -> tuple[int, str]:
    formula = f"(3 × ({wide} × {padded} - {{h}} × {{f}}) × 17 / 32 + 2 × (2 × ({padded} - {{f}}) + {wide} - {{h}}))"
    return 3 * (wide * padded - h * f) * 17 // 32 + 2 * (2 * (padded - f) + wide - h), formula
