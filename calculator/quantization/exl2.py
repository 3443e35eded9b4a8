"""EXL2 (ExLlamaV2): a budget of bits a weight for the decoder's linear layers, a quantized head, 16-bit embeddings.

The budget counts codes, scales, groups and, since 0.1, the column permutation. A tied head is stored again as a
quantized copy, and the 16-bit embedding table stays in host memory.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.architectures import Inventory, TensorGroup
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.quantization.hf import plain
from calculator.quantization.stored import Part, Stored, StoredGroup
from calculator.spec import ModelSpec

SOURCE = "exllamav2 @da07fac conversion/qparams.py L60 total_bits, convert_exl2.py L25 head_bits, model.py embeddings on CPU"
RULE = "linear layers share a budget of bits a weight; head 6 bits; embeddings 16-bit in host memory; norms 16-bit"


class Generation(NamedTuple):
    """How a version of the converter spends bits outside the budget."""

    head_thousandths: int  # thousandths of a bit a weight of the 6-bit head, with its groups' scales
    permutation_bytes: int  # a column of a Linear, not counted in the budget


# head: 15 % at 8 bits, 85 % at 6, a 4-bit scale a group of 128
CURRENT = Generation(head_thousandths=6331, permutation_bytes=0)
# @c2efd2c: groups of 32, and `total_bits ++ rows * 32` forgot to count q_invperm
OCTOBER_2023 = Generation(head_thousandths=6425, permutation_bytes=4)


def quantize(model: ModelSpec, inventory: Inventory, *, bits: float, generation: Generation = CURRENT) -> Stored:
    """The tensors of an EXL2 folder at `bits` bits a weight."""
    thousandths = round(bits * 1000)
    stored = []
    for group in inventory.groups:
        layers = group.indices
        if group.role in LINEAR_ROLES:
            stored.append(StoredGroup(group, f"EXL2 {bits}", _linear(group, thousandths, generation), layers))
        elif group.role == "output":
            stored.append(_head(group, generation))
        else:
            on_host = group.role == "embedding"
            stored.append(StoredGroup(group, "float16", (plain(group, 2),), layers, on_host=on_host))
    if inventory.tied:
        stored.append(_head(TensorGroup("lm_head.weight", (model.vocab_size, model.hidden_size), "output"), generation))
    return tuple(stored)


def _head(group: TensorGroup, generation: Generation) -> StoredGroup:
    return StoredGroup(group, "EXL2 head", _linear(group, generation.head_thousandths, generation))


def _linear(group: TensorGroup, thousandths: int, generation: Generation) -> tuple[Part, ...]:
    codes = Part(
        "codes, scales, groups", -(-group.elements * thousandths // 8000), f"N × {thousandths} / 8000"
    )
    if not generation.permutation_bytes:
        return (codes,)
    return codes, Part("column permutation", generation.permutation_bytes * group.row_length, "4 × in")
