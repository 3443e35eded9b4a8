"""A path -> ModelSpec and Checkpoint, by what kind of file it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calculator.checkpoints import Checkpoint, gguf, hf
from calculator.readers.gguf import read_gguf
from calculator.spec import ModelSpec


def load_hub(name: str) -> tuple[dict[str, Any], ModelSpec, Checkpoint | None]:
    """Config, model and checkpoint of hf:org/name, by its config and headers alone. Raises CalculatorError."""
    from calculator.readers.hub import read_hub

    found = read_hub(name)
    if found.config is None and found.header is not None:
        return gguf.load(found.header, id=name)
    return hf.model_and_checkpoint(hf.split_config(found.config or {}, id=name), found.header, id=name)


def load_path(path: Path, *, id: str) -> tuple[dict[str, Any], ModelSpec, Checkpoint | None]:
    """Config, model and checkpoint of a .gguf, a .safetensors, a config.json or a folder of them.

    A folder that holds GGUF files and no config.json is that GGUF. Raises CalculatorError.
    """
    if path.suffix == ".gguf":
        return gguf.load(read_gguf(path), id=id)
    if path.is_dir() and not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        models = [f for f in files if "-of-" not in f.name or "-00001-of-" in f.name]
        if len(models) == 1:
            return gguf.load(read_gguf(models[0]), id=id)
    return hf.load(path, id=id)
