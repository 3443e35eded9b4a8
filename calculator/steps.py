"""A forward pass as data: named steps with the buffers that live in them. The peak is the largest step.

The peak, its name and its formula come from the same list, so they can't disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from calculator.ledger import Formula


class Buffer(NamedTuple):
    """Memory that lives in a step [bytes]; `expression` is its arithmetic over the pass's symbols."""

    name: str
    nbytes: int
    expression: str


class Step(NamedTuple):
    """One moment of a forward pass and all that lives in it."""

    name: str
    buffers: tuple[Buffer, ...]

    @property
    def nbytes(self) -> int:
        """Bytes alive in this step."""
        return sum(buffer[1] for buffer in self.buffers)


class Peak(NamedTuple):
    """The largest step of a pass."""

    phase: str
    step: Step
    nbytes: int
    symbols: Mapping[str, int]

    @property
    def formula(self) -> Formula:
        """Sum of the buffers of the largest step."""
        template = " + ".join(f"{b.expression} ({b.name})" for b in self.step.buffers if b.nbytes)
        return Formula(template or "0", dict(self.symbols))


def largest(steps: list[Step]) -> tuple[Step, int]:
    """The step with the most live bytes, the first of equals."""
    best, most = steps[0], -1
    for step in steps:
        nbytes = 0
        for buffer in step[1]:
            nbytes += buffer[1]
        if nbytes > most:
            best, most = step, nbytes
    return best, most
