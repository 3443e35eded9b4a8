"""A user's own models: a folder of JSON files, each a record like the catalog's or a Hugging Face config.json under a name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from calculator.errors import UnreadableFile
from calculator.readers.hf_config import read_config

VARIABLE = "VRAM_MODELS"
_FILES = 1000


def user_folder() -> Path:
    """$VRAM_MODELS, or a folder in the platform's place for settings."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return base / "vram-calculator" / "models"


def user_model_files(folder: Path) -> dict[str, Path]:
    """Its files by id, which is a file's name without .json; none where there is no such folder."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
    except OSError:
        return {}
    return {name.removesuffix(".json"): folder / name for name in names[:_FILES]}


def user_record(id: str, path: Path) -> dict[str, Any]:
    """The record in a file, with what a bare config leaves out. Raises UnreadableFile."""
    data = read_config(path)
    config = data.get("config", data)
    if not isinstance(config, dict):
        raise UnreadableFile(f"{path}: config is not a JSON object", hint="a config.json, or a record as in data/models")
    text = {name: data[name] for name in ("name", "family", "licence", "release", "hf_id") if isinstance(data.get(name), str)} if config is not data else {}
    record: dict[str, Any] = {"name": id, "family": config.get("model_type", "own"), "hf_id": None, **text}
    published = data.get("published_parameters") if config is not data else None
    if isinstance(published, dict):
        published = published.get("value")
    if isinstance(published, int) and not isinstance(published, bool) and 0 < published < 2**60:
        record["published_parameters"] = {"value": published, "source": str(path)}
    return {**record, "id": id, "config": config, "sources": {"config": str(path)}, "file": str(path), "own": True}
