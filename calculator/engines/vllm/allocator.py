"""What torch's caching allocator counts for the weights beyond their bytes: blocks that it doesn't split.

A request is rounded to 512 bytes and served from the smallest free block that holds it; without one, from a new segment:
2 MiB for requests up to 1 MiB, 20 MiB for those below 10 MiB, else the request rounded up to 2 MiB. A block is split
unless 1 MiB or less would be left (512 bytes in the small pool): what is left then counts as allocated. Since 0.21 vLLM
loads with max_split_size_mb 20: from that size on no request splits a block, and smaller ones take none that large.

Source: pytorch c10/cuda/CUDACachingAllocator.cpp round_size, get_allocation_size, should_split; c10/core/AllocatorConfig.h; get_free_block.
vllm v0.33.0 v1/worker/gpu_worker.py L594-601, _scoped_allocator_max_split; vllm#41268, merged between 0.20 and 0.21.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from functools import lru_cache

from calculator.units import MIB, align_up

_SMALL = MIB
MAX_SPLIT = 20 * MIB


class Allocator:
    """Counts like torch.cuda.memory_allocated. Freed blocks are not merged: start-up frees few."""

    def __init__(self, *, max_split: int = 0) -> None:
        """`max_split`: requests that large split no block; 0: no such limit."""
        self._free: dict[bool, list[int]] = {True: [], False: []}
        self._max_split = max_split
        self.reserved = 0

    def take(self, nbytes: int) -> int:
        """Allocate; returns the size of the block that is counted [bytes]."""
        size = max(512, align_up(nbytes, 512))
        small = size <= _SMALL
        free = self._free[small]
        at, large = bisect_left(free, size), bool(self._max_split) and size >= self._max_split
        found = at < len(free) and (small or not self._max_split or (free[at] < size + MAX_SPLIT if large else free[at] < self._max_split))
        block = free.pop(at) if found else self._reserve(size)
        left = block - size
        if left >= 512 if small else left > _SMALL and not large:
            insort(free, left)
            return size
        return block

    def _reserve(self, size: int) -> int:
        segment = _segment(size)
        self.reserved += segment
        return segment

    def give(self, block: int) -> None:
        """Free a block."""
        insort(self._free[block <= _SMALL], block)


def _segment(size: int) -> int:
    if size <= _SMALL:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else align_up(size, 2 * MIB)


@lru_cache(maxsize=256)
def unsplit(before: tuple[int, ...], layers: tuple[tuple[int, ...], ...], after: tuple[int, ...], rope: tuple[int, ...],
            at: int = 1, rope_layers: tuple[int, ...] = (0,), max_split: int = 0) -> tuple[int, int]:  # fmt: skip
    """Bytes counted and bytes reserved beyond the requests, for tensors in the order in which they are made.

    `rope` is made in `rope_layers` after the tensor at `at`: temporaries, then the table that stays.
    """
    allocator = Allocator(max_split=max_split)
    extra, asked = 0, sum(before) + sum(map(sum, layers)) + sum(after)
    for size in before:
        extra += allocator.take(size) - size
    for i, layer in enumerate(layers):
        for j, size in enumerate(layer):
            extra += allocator.take(size) - size
            if i in rope_layers and j == at and rope:
                blocks = [allocator.take(n) for n in rope[:-1]]
                extra, asked = extra + allocator.take(rope[-1]) - rope[-1], asked + rope[-1]
                for block in blocks:
                    allocator.give(block)
    for size in after:
        extra += allocator.take(size) - size
    return extra, allocator.reserved - asked
