"""What torch's caching allocator counts for the weights beyond their bytes: blocks that it doesn't split.

A request is rounded to 512 bytes and served from the smallest free block that holds it; without one, from a new segment:
2 MiB for requests up to 1 MiB, 20 MiB for those below 10 MiB, else the request rounded up to 2 MiB. A block is split
unless 1 MiB or less would be left (512 bytes in the small pool): what is left then counts as allocated.

Source: pytorch c10/cuda/CUDACachingAllocator.cpp round_size, get_allocation_size, should_split; c10/core/AllocatorConfig.h.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from functools import lru_cache

from calculator.units import MIB, align_up

_SMALL = MIB


class Allocator:
    """Counts like torch.cuda.memory_allocated. Freed blocks are not merged: start-up frees few."""

    def __init__(self) -> None:
        self._free: dict[bool, list[int]] = {True: [], False: []}

    def take(self, nbytes: int) -> int:
        """Allocate; returns the size of the block that is counted [bytes]."""
        size = max(512, align_up(nbytes, 512))
        small = size <= _SMALL
        free = self._free[small]
        at = bisect_left(free, size)
        block = free.pop(at) if at < len(free) else _segment(size)
        left = block - size
        if left >= 512 if small else left > _SMALL:
            insort(free, left)
            return size
        return block

    def give(self, block: int) -> None:
        """Free a block."""
        insort(self._free[block <= _SMALL], block)


def _segment(size: int) -> int:
    if size <= _SMALL:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else align_up(size, 2 * MIB)


@lru_cache(maxsize=256)
def unsplit(before: tuple[int, ...], layers: tuple[tuple[int, ...], ...], after: tuple[int, ...], rope: tuple[int, ...],
            at: int = 1, rope_layers: tuple[int, ...] = (0,)) -> int:  # fmt: skip
    """Bytes counted beyond the requests, for tensors in the order in which they are made.

    `rope` is made in `rope_layers` after the tensor at `at`: temporaries, then the table that stays.
    """
    allocator = Allocator()
    extra = 0
    for size in before:
        extra += allocator.take(size) - size
    for i, layer in enumerate(layers):
        for j, size in enumerate(layer):
            extra += allocator.take(size) - size
            if i in rope_layers and j == at and rope:
                blocks = [allocator.take(n) for n in rope[:-1]]
                extra += allocator.take(rope[-1]) - rope[-1]
                for block in blocks:
                    allocator.give(block)
    for size in after:
        extra += allocator.take(size) - size
    return extra
