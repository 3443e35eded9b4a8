"""What commands need before they print or write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from calculator.errors import CalculatorError, UnreadableFile


def need(*modules: str, extra: str) -> None:
    """Raise CalculatorError for modules that aren't installed, naming the extra that brings them."""
    from importlib.util import find_spec

    if missing := [m for m in modules if find_spec(m) is None]:
        raise CalculatorError(f"{', '.join(missing)} not installed", hint=f"pip install 'vram-calculator[{extra}]'")


def write_file(output: str, write: Callable[[Path], Any]) -> None:
    """Call `write` with the path that a user gave; its folder is made. Raises UnreadableFile."""
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as e:
        raise UnreadableFile(f"can't write {output[-80:]} ({e.strerror})", hint="another folder") from None
