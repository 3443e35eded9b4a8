"""What can go wrong, as a tree. Every error says what was given, what is allowed and what to try, in one line.

CalculatorError
    BadValue             a number or setting outside what is allowed
    UnknownName          a model, GPU, quantization or engine that nobody knows, with the nearest names
    Unsupported          a combination that the engine itself refuses or cannot run
    UnknownArchitecture  a model type whose formulas we don't have: never guessed
    UnreadableFile       a file that is not what it should be
    NotModelled          part of the contract that this version doesn't do
"""

from __future__ import annotations


class CalculatorError(Exception):
    """Base of all errors that a user can cause and mend."""

    def __init__(self, given: str, *, allowed: str = "", hint: str = "") -> None:
        self.given, self.allowed, self.hint = given, allowed, hint
        super().__init__(given)

    def __str__(self) -> str:
        parts = [self.given]
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.hint:
            parts.append(f"try: {self.hint}")
        return " ".join("; ".join(parts).split())


class BadValue(CalculatorError):
    """A value outside what is allowed."""


class UnknownName(CalculatorError):
    """A name that no catalog knows."""


class Unsupported(CalculatorError):
    """A combination that the engine refuses or cannot run."""


class UnknownArchitecture(CalculatorError):
    """A model type without formulas."""


class UnreadableFile(CalculatorError):
    """A file that cannot be read as what it claims to be."""


class NotModelled(CalculatorError):
    """A part of the contract that this version doesn't do."""
