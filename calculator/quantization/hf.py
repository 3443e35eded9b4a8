"""Formats of the Hugging Face world: what one Linear of `out` x `in` is stored as.

Every scheme here quantizes the linear layers of the decoder and leaves embeddings, lm_head, norms and biases in 16
bits; each storage function below says what a quantized Linear holds. N = out * in, G = groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from calculator.architectures import Inventory, TensorGroup
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.quantization.stored import Part, Stored, StoredGroup
from calculator.units import align_up, ceil_div

Storage = Callable[[int, int], tuple[Part, ...]]
QUANT_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}  # --quant of a plain type
KV_NAMES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # --kv-dtype of one
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Own(NamedTuple):
    """The storage of some layers of a group; None: 16 bits."""

    layers: tuple[int, ...]
    storage: Storage | None
    label: str


def quantize(inventory: Inventory, storage: Storage | None, *, dtype: str, label: str, experts_alone: bool = False, apart: Mapping[str, Sequence[Own]] | None = None) -> Stored:
    """Store the decoder's linear layers, or its experts alone, by `storage` and all else in `dtype`; storage None: all in `dtype`.

    `apart`, by a group's name: layers that are stored otherwise.
    """
    size = DTYPE_BYTES[dtype]
    stored: list[StoredGroup] = []

    def store(group: TensorGroup, layers: tuple[int, ...], by: Storage | None, name: str) -> None:
        if by is None:
            stored.append(StoredGroup(group, dtype, (plain(group, size),), layers))
            return
        out, in_ = group.shape[-2:]
        experts = group.elements // (out * in_)  # a matrix each
        stored.append(StoredGroup(group, name, tuple(part._replace(nbytes=part.nbytes * experts) for part in by(out, in_)), layers))

    for group in inventory.groups:
        layers, own = group.indices, apart.get(group.name, ()) if apart else ()
        for each in own:
            mine = tuple(i for i in layers if i in each.layers)
            if mine or not group.layers:
                store(group, mine, each.storage, each.label)
                layers = tuple(i for i in layers if i not in each.layers)
        if layers or not (group.layers or own):
            linear = group.role in LINEAR_ROLES and (len(group.shape) == 3 or not experts_alone)
            store(group, layers, storage if linear else None, label)
    return tuple(stored)


def plain(group: TensorGroup, size: int) -> Part:
    """A tensor stored element by element."""
    return Part("values", group.elements * size, f"{size}")


def bnb_int8(out: int, in_: int) -> tuple[Part, ...]:
    """Bitsandbytes LLM.int8(): N + 4 out: int8 codes, one float32 scale (SCB) a row.

    Source: bitsandbytes 0.50.2 nn/modules.py Int8Params; equals 1,500,057,856 bytes loaded for Llama 3.2 1B.
    """
    return Part("int8 codes", out * in_, "N"), Part("SCB scales", 4 * out, "4 × out")


def bnb_4bit(out: int, in_: int, *, double_quant: bool) -> tuple[Part, ...]:
    """Bitsandbytes nf4 or fp4: N/2 codes, absmax a block of 64, a 16-entry code table.

    plain:  N/2 + 4 ceil(N/64) + 64
    double: N/2 + ceil(N/64) + 4 ceil(ceil(N/64)/256) + 4 + 64 + 1024      (absmax itself in 8 bits, blocks of 256)

    Source: bitsandbytes 0.50.2 functional.py quantize_4bit, QuantState; equals 1,072,835,840 and 1,027,575,488 bytes
    loaded for Llama 3.2 1B.
    """
    n = out * in_
    blocks = ceil_div(n, 64)
    codes = Part("4-bit codes", ceil_div(n, 2), "N / 2")
    table = Part("code table", 64, "64")
    if not double_quant:
        return codes, Part("absmax", 4 * blocks, "4 × N / 64"), table
    return (
        codes,
        Part("8-bit absmax", blocks, "N / 64"),
        Part("absmax of absmax, offset", 4 * ceil_div(blocks, 256) + 4, "4 × N / 64 / 256 + 4"),
        table,
        Part("absmax code table", 1024, "1024"),
    )


def torchao_int8(out: int, in_: int) -> tuple[Part, ...]:
    """Torchao Int8WeightOnlyConfig: N + 5 out: float32 scale and int8 zero point a row.

    Source: torchao 0.18.0 quantization/quant_api.py; equals 1,500,434,688 bytes loaded for Llama 3.2 1B.
    """
    return Part("int8 codes", out * in_, "N"), Part("scales and zero points", 5 * out, "5 × out")


def torchao_fp8(out: int, in_: int) -> tuple[Part, ...]:
    """Torchao Float8WeightOnlyConfig: N + 4 out: one float32 scale a row.

    Source: torchao 0.18.0 quantization/quant_api.py; equals 1,500,057,856 bytes loaded for Llama 3.2 1B.
    """
    return Part("F8_E4M3 values", out * in_, "N"), Part("scales", 4 * out, "4 × out")


def torchao_int4(out: int, in_: int, *, group: int) -> tuple[Part, ...]:
    """Torchao Int4WeightOnlyConfig, tile-packed: rows padded to 8, columns to 1024; 16-bit scale and zero a group.

    Source: torchao 0.18.0 int4_tile_packed_to_4d_tensor.py (find_multiple 1024, 8). Not run: it needs CUDA.
    """
    rows, columns = align_up(out, 8), align_up(in_, 1024)
    groups = ceil_div(columns, group)
    return (
        Part("4-bit codes", rows * columns // 2, "N / 2"),
        Part("scale and zero", 4 * rows * groups, f"4 × N / {group}"),
    )


def quanto_8bit(out: int, in_: int) -> tuple[Part, ...]:
    """optimum-quanto qint8 or qfloat8: N + 2 out + 8: a 16-bit scale a row, two float32 scalars.

    Source: measured on quanto's QLinear; equals 630,848,832 bytes loaded for Qwen2.5 0.5B.
    """
    return Part("8-bit codes", out * in_, "N"), Part("scales", 2 * out + 8, "2 × out + 8")


def quanto_4bit(out: int, in_: int) -> tuple[Part, ...]:
    """optimum-quanto qint4: N/2 + 4 N/128 + 8: a 16-bit scale and shift a group of 128.

    Source: measured on quanto's QLinear; equals 462,509,376 bytes loaded for Qwen2.5 0.5B.
    """
    n = out * in_
    return Part("4-bit codes", n // 2, "N / 2"), Part("scale and shift", 4 * ceil_div(n, 128) + 8, "4 × N / 128 + 8")


def hqq(out: int, in_: int, *, bits: int, group: int) -> tuple[Part, ...]:
    """HQQ: N bits/8 codes, a 16-bit scale and zero a group.

    Source: hqq core/quantize.py Quantizer.quantize, BaseQuantizeConfig (quant_zero and quant_scale off).
    """
    n = out * in_
    return (
        Part("codes", ceil_div(n * bits, 8), f"N × {bits} / 8"),
        Part("scale and zero", 4 * ceil_div(n, group), f"4 × N / {group}"),
    )


def gptq(out: int, in_: int, *, bits: int, group: int) -> tuple[Part, ...]:
    """GPTQ (v1 layout): packed int32 codes and zero points, 16-bit scales, a group index a column.

    bytes = N bits/8 + G out bits/8 + 2 G out + 4 in          G = ceil(in / group), 1 when group is -1

    Source: AutoGPTQ auto_gptq/nn_modules/qlinear/qlinear_cuda.py (buffers qweight, qzeros, scales, g_idx).
    """
    groups = 1 if group < 0 else ceil_div(in_, group)
    return (
        Part("qweight", ceil_div(out * in_ * bits, 8), f"N × {bits} / 8"),
        Part("qzeros", ceil_div(groups * out * bits, 8), f"G × out × {bits} / 8"),
        Part("scales", 2 * groups * out, "2 × G × out"),
        Part("g_idx", 4 * in_, "4 × in"),
    )


def awq(out: int, in_: int, *, bits: int, group: int) -> tuple[Part, ...]:
    """AWQ GEMM layout: packed codes and zero points, 16-bit scales.

    bytes = N bits/8 + G out bits/8 + 2 G out

    Source: AutoAWQ awq/modules/linear/gemm.py WQLinear_GEMM (qweight, qzeros, scales).
    """
    return gptq(out, in_, bits=bits, group=group)[:3]


def fp8_tensor(out: int, in_: int) -> tuple[Part, ...]:
    """FP8, one float32 scale for the weight and one for the input of each Linear (compressed-tensors, static)."""
    return Part("F8_E4M3 values", out * in_, "N"), Part("weight and input scale", 8, "8")


def fp8_dynamic(out: int, in_: int) -> tuple[Part, ...]:
    """FP8, one float32 scale for the weight of each Linear; inputs are scaled as they come."""
    return Part("F8_E4M3 values", out * in_, "N"), Part("weight scale", 4, "4")


def fp8_block(out: int, in_: int) -> tuple[Part, ...]:
    """FP8 with one float32 scale a block of 128 x 128: the checkpoints of DeepSeek V3 and of Qwen3 in FP8.

    bytes = N + 4 ceil(out / 128) ceil(in / 128)

    Source: transformers v5.23.0 integrations/finegrained_fp8.py FP8Linear (weight, weight_scale_inv); the scales of DeepSeek-V3 and
    MiniMax-M2.5 make up what their safetensors totals have beyond their parameters, 41,540,496 and 13,880,064.
    """
    return Part("F8_E4M3 values", out * in_, "N"), Part("weight_scale_inv", 4 * ceil_div(out, 128) * ceil_div(in_, 128), "4 × N / 128²")


def packed_int(out: int, in_: int, *, bits: int, group: int) -> tuple[Part, ...]:
    """compressed-tensors pack-quantized, symmetric: codes packed into int32 along a row, 16-bit scales, the shape.

    bytes = 4 out ceil(in bits / 32) + 2 G out + 16          G = ceil(in / group), 1 when group is -1

    Source: compressed-tensors compressors/pack_quantized/{base,helpers}.py (weight_packed, weight_scale, weight_shape).
    """
    groups = 1 if group < 0 else ceil_div(in_, group)
    return (
        Part("weight_packed", 4 * out * ceil_div(in_ * bits, 32), f"N × {bits} / 8"),
        Part("weight_scale", 2 * groups * out, "2 × G × out"),
        Part("weight_shape", 16, "16"),
    )


def channel_8bit(out: int, in_: int) -> tuple[Part, ...]:
    """8-bit values with one 16-bit scale a row: compressed-tensors FP8 dynamic and INT8 W8A8."""
    return Part("8-bit values", out * in_, "N"), Part("scales", 2 * out, "2 × out")


def mxfp4(out: int, in_: int) -> tuple[Part, ...]:
    """MXFP4: 4-bit values and one 8-bit exponent a block of 32.

    Source: OCP Microscaling Formats v1.0, section 5; transformers integrations/mxfp4.py (blocks, scales).
    """
    n = out * in_
    return Part("4-bit values", ceil_div(n, 2), "N / 2"), Part("block scales", out * ceil_div(in_, 32), "N / 32")


def nvfp4(out: int, in_: int) -> tuple[Part, ...]:
    """NVFP4: 4-bit values, an FP8 scale a block of 16, a float32 global scale and input scale."""
    n = out * in_
    return (
        Part("4-bit values", ceil_div(n, 2), "N / 2"),
        Part("block scales", out * ceil_div(in_, 16), "N / 16"),
        Part("global and input scale", 8, "8"),
    )


def storage_of(function: Callable[..., tuple[Part, ...]], **options: int | bool) -> Storage:
    """A storage function with its options bound."""
    return partial(function, **options)
