"""Golden figures: recorded runs, each file with its origin in the first line."""

from __future__ import annotations

import csv
import gzip
import json
from functools import cache
from pathlib import Path

from calculator.readers.hf_config import model_from_config
from calculator.spec import ModelSpec

GOLDEN = Path(__file__).parent / "golden"


@cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """The records of one golden file."""
    data = (GOLDEN / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def architecture(name: str, layers: int | None = None) -> ModelSpec:
    """A measured architecture, possibly cut to fewer layers."""
    config = json.loads((GOLDEN / "architectures.json").read_text())[name]
    return model_from_config(config | ({"num_hidden_layers": layers} if layers else {}), id=name)
