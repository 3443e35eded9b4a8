"""Where data/ lies: inside the wheel as calculator/data, beside the package in a checkout."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
DATA = _HERE / "data" if (_HERE / "data").is_dir() else _HERE.parent / "data"


@cache
def read_json(name: str) -> Any:
    """The parsed content of one shipped data file, read once a process."""
    return json.loads((DATA / name).read_text(encoding="utf-8"))
