"""A stored inventory: which tensor is kept in which format, in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from calculator.architectures import TensorGroup


class Part(NamedTuple):
    """One stored piece of a tensor: codes, scales, zero points ... `expression` is its arithmetic, in words' terms."""

    name: str
    nbytes: int
    expression: str


@dataclass(frozen=True, slots=True)
class StoredGroup:
    """Equal tensors in one format. `layers` are the indices of the layers that hold them; () is outside the layers."""

    group: TensorGroup
    format: str
    parts: tuple[Part, ...]
    layers: tuple[int, ...] = ()
    on_host: bool = False  # the engine keeps it beside the GPU

    @property
    def count(self) -> int:
        """Number of tensors."""
        return len(self.layers) or 1

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of one tensor, all parts."""
        return sum(part.nbytes for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the group."""
        return self.tensor_nbytes * self.count


Stored = tuple[StoredGroup, ...]


def stored_nbytes(stored: Stored) -> int:
    """Bytes of all stored tensors, wherever they sit."""
    return sum(group.nbytes for group in stored)


def idle_nbytes(stored: Stored, *, experts: int, used: int) -> int:
    """Bytes that a token leaves unread: all but `used` of the `experts` in each stack of them [bytes]."""
    stacks = (group.nbytes for group in stored if len(group.group.shape) == 3 and group.group.role.startswith("ffn"))
    return sum(nbytes // experts * (experts - used) for nbytes in stacks) if experts else 0
