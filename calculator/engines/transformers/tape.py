"""A forward pass written down with tensors that have a shape and nothing else, and the moments at which much is alive.

Peak memory is a question of what is alive at the same time, and CPython says when a tensor dies: with its last
reference. So the code of a family is written down line by line with tensors that only count, and its references make
and end lives as the real ones do. What comes out is data: moments, each with the tensors alive in it. Those that are
never the largest are dropped, and the rest is a sum of products for any number of tokens and sequences.

A shape is a word: "nhe" is n × h × e bytes; digits are bytes an element ("nh4": float32). `run.py` says what the
letters are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from calculator.steps import Buffer, Step

VARIABLES = "BqTNWPQk"  # letters that depend on the workload; n is B × q

Held = tuple[str, str, int]  # name, shape, how many


class Tensor:
    """Memory that lives as long as somebody refers to it."""

    __slots__ = ("keeps", "tape")

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.keeps: tuple[Tensor, ...] = ()  # others that live as long

    def __del__(self) -> None:
        self.tape.release(self)


class Tape:
    """What is alive now, and what was whenever something was about to die."""

    def __init__(self) -> None:
        self.step = ""
        self.held: dict[int, Held] = {}
        self.moments: list[tuple[str, tuple[Held, ...]]] = []
        self._grown = False

    def new(self, name: str, shape: str, times: int = 1) -> Tensor:
        """Make room for a tensor; `times` of them under one name, or less than none where memory is accounted elsewhere."""
        tensor = Tensor(self)
        self.held[id(tensor)] = (name, shape, times)
        self._grown = True
        return tensor

    def release(self, tensor: Tensor) -> None:
        """A tensor dies; what was alive until now is a moment."""
        if self._grown:
            self.moments.append((self.step, tuple(self.held.values())))
            self._grown = False
        del self.held[id(tensor)]


class Moment(NamedTuple):
    """A step and what is alive in it, also as coefficients of a plan's monomials."""

    step: str
    held: tuple[Held, ...]
    terms: tuple[tuple[int, int], ...]  # coefficient, index of a monomial


class Plan(NamedTuple):
    """The moments of a pass that can be its peak."""

    moments: tuple[Moment, ...]
    monomials: tuple[str, ...]

    def largest(self, variables: Mapping[str, int]) -> tuple[Moment, int]:
        """The moment with the most bytes, the first of equals."""
        values = [prod([variables[letter] for letter in monomial]) for monomial in self.monomials]
        best, most = self.moments[0], -1
        for moment in self.moments:
            nbytes = 0
            for coefficient, index in moment[2]:
                nbytes += coefficient * values[index]
            if nbytes > most:
                best, most = moment, nbytes
        return best, most


def plan(tape: Tape, constants: Mapping[str, int]) -> Plan:
    """The moments of a tape without those that another one outweighs whatever the workload."""
    known = {**constants, "2": 2, "4": 4, "8": 8}
    sums = [(step, held, _sum(held, known)) for step, held in tape.moments]
    order = sorted(range(len(sums)), key=lambda i: (-sum(sums[i][2].values()), i))
    kept: list[int] = []
    for i in order:
        if not any(_outweighs(sums[j][2], sums[i][2]) for j in kept):
            kept.append(i)
    monomials = tuple(sorted({monomial for i in kept for monomial in sums[i][2]}))
    places = {monomial: i for i, monomial in enumerate(monomials)}
    return Plan(tuple(Moment(sums[i][0], sums[i][1], tuple((c, places[m]) for m, c in sums[i][2].items())) for i in sorted(kept)), monomials)


def step_of(moment: Moment, symbols: Mapping[str, int]) -> Step:
    """A moment as a step with buffers; tensors of one name and shape in one term."""
    merged: dict[tuple[str, str], int] = {}
    for name, shape, times in moment.held:
        merged[name, shape] = merged.get((name, shape), 0) + times
    letters = {**symbols, "2": 2, "4": 4, "8": 8}
    return Step(moment.step, tuple(Buffer(name, times * prod([letters[x] for x in shape]), _expression(shape, times))
                                   for (name, shape), times in merged.items() if times))  # fmt: skip


def _sum(held: tuple[Held, ...], known: Mapping[str, int]) -> dict[str, int]:
    """Coefficients by monomial of the variables."""
    found: dict[str, int] = {}
    for _, shape, times in held:
        coefficient, monomial = _split(shape, known)
        if times:
            found[monomial] = found.get(monomial, 0) + times * coefficient
    return found


def _split(shape: str, known: Mapping[str, int]) -> tuple[int, str]:
    shape = shape.replace("n", "Bq")
    return prod([known[x] for x in shape if x not in VARIABLES]), "".join(sorted(x for x in shape if x in VARIABLES))


def _outweighs(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether no variable can make the other larger; W alone may be below zero."""
    for monomial in one.keys() | other.keys():
        more = one.get(monomial, 0) - other.get(monomial, 0)
        if more < 0 or (more and "W" in monomial):
            return False
    return True


def _expression(shape: str, times: int) -> str:
    factors = [] if times == 1 else [str(times)]
    return " × ".join([*factors, *(letter if letter.isdigit() else f"{{{letter}}}" for letter in shape)])
