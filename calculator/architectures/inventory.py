"""What a model is made of: groups of equal tensors. The one noun between architectures and quantization."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

Role = Literal[
    "embedding", "output", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "attn_q_a", "attn_q_b", "attn_kv_a", "attn_kv_b", "router", "norm", "bias", "vision",
    "projection", "layer_embedding", "position", "small", "side", "pooler",
    "ssm_in", "ssm_out", "ssm",
]
LINEAR_ROLES: frozenset[Role] = frozenset(
    {"attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_q_a", "attn_q_b", "attn_kv_a", "attn_kv_b",
     "ssm_in", "ssm_out"}
)


# projection: any other matrix of a layer; layer_embedding: a table of inputs by layer; position: learned positions, segments;
# small: vectors and matrices of a few elements; side: matrices beside the layers that GGUF recipes leave in 16 bits;
# pooler: a sentence's, which GGUF files don't hold


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Equal tensors, one in each of `layers` layers; 0 layers: one tensor outside the layers. `which` names them where they
    aren't the first ones.

    `shape` is (out_features, in_features) as Hugging Face stores a Linear, (n,), or (experts, out, in) for all experts
    of a layer in one [elements]. `ffn_up` may hold gate and up. `ssm_in` and `ssm_out` are the matrices of recurrent layers,
    `ssm` their convolution and decay: small, and never quantized.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layers: int = 0
    which: tuple[int, ...] = ()

    @property
    def indices(self) -> tuple[int, ...]:
        """The layers that hold one; () is outside the layers."""
        return self.which or tuple(range(self.layers))

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
    """All tensors of a model, tied ones once. `mtp` are layers that predict further tokens: in the checkpoint, but not loaded."""

    groups: tuple[TensorGroup, ...]
    tied: bool
    mtp: tuple[TensorGroup, ...] = ()

    @property
    def parameters(self) -> int:
        """Parameters, tied embeddings counted once; without MTP layers."""
        return sum(g.elements * g.count for g in self.groups)

    @property
    def vision_parameters(self) -> int:
        """Those of the vision tower and its projector among them."""
        return sum(g.elements * g.count for g in self.groups if g.role == "vision")

    @property
    def mtp_parameters(self) -> int:
        """Those of the MTP layers, beside `parameters`."""
        return sum(g.elements * g.count for g in self.mtp)

    def active_parameters(self, *, experts: int, used: int) -> int:
        """Text parameters that one token uses: `used` of the `experts` in each stack of experts, and all else."""
        idle = sum(g.elements * g.count // experts * (experts - used) for g in self.groups if len(g.shape) == 3 and g.role.startswith("ffn")) if experts else 0
        return self.parameters - self.vision_parameters - idle

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(g.count for g in self.groups)
