"""Hardware sizing for language models: memory, GPUs and speed, every number with its formula and source."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

# name -> module, imported when asked for: start-up stays small
_PUBLIC = {
    "estimate": "calculator.estimate",
    "fit": "calculator.fit",
    "recommend": "calculator.recommend",
    "runs_on": "calculator.recommend",
    "solve": "calculator.solve",
    "sweep": "calculator.sweep",
    "audit": "calculator.audit",
    "load_model": "calculator.catalog",
    "load_gpu": "calculator.catalog",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'calculator' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
