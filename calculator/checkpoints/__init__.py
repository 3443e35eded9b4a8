"""A path -> a model and what its own files say is stored. Headers win over what a config implies; differences are named."""

from __future__ import annotations

from dataclasses import dataclass

from calculator.errors import CalculatorError
from calculator.quantization import Scheme, Stored

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint is stored as. `stored` is None where only a config names the scheme; `refused` says why it can't be sized as it is."""

    scheme: Scheme
    stored: Stored | None = None
    parameters: int | None = None
    file_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    refused: CalculatorError | None = None
