"""What a model is made of: groups of equal tensors. The one noun between architectures and quantization."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Role = Literal[
    "embedding", "output", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "router", "norm", "bias",
]
LINEAR_ROLES: frozenset[Role] = frozenset(
    {"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}
)


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Equal tensors, one in each of `layers` layers; 0 layers: one tensor outside the layers.

    `shape` is (out_features, in_features) as Hugging Face stores a Linear, (n,), or (experts, out, in) for all experts
    of a layer in one [elements]. `ffn_up` may hold gate and up.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layers: int = 0

    @property
    def count(self) -> int:
        """Number of tensors."""
        return self.layers or 1

    @property
    def elements(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Contiguous rows of one tensor: out_features of a Linear."""
        return prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        """Elements of one row: in_features of a Linear."""
        return self.shape[-1]


@dataclass(frozen=True, slots=True)
class Inventory:
    """All tensors of a model, tied ones once."""

    groups: tuple[TensorGroup, ...]
    tied: bool

    @property
    def parameters(self) -> int:
        """Parameters, tied embeddings counted once."""
        return sum(g.elements * g.count for g in self.groups)

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(g.count for g in self.groups)
