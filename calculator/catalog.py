"""The only reader of data/: models and GPUs by name, every value with its source."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from calculator.checkpoints import Checkpoint
from calculator.datafiles import DATA, read_json
from calculator.errors import UnknownName
from calculator.names import key, lookup
from calculator.readers.hf_config import model_from_config
from calculator.readers.untrusted import printable
from calculator.slices import part_of
from calculator.spec import GpuSpec, ModelSpec, Quantity

_CLIP = 80


class Model(NamedTuple):
    """A model and what is known about it beside its dimensions."""

    spec: ModelSpec
    record: dict[str, Any]
    checkpoint: Checkpoint | None = None

    @property
    def related(self) -> list[dict[str, str]]:
        """Entries that a reader of this one must know about: id and why."""
        return list(self.record.get("related", []))

    def source(self, field: str) -> str:
        """Where a field's value comes from."""
        sources = self.record["sources"]
        return str(sources.get(field, sources["config"]))


def data_version() -> str:
    """Date of the shipped data."""
    return str(read_json("version.json")["data_version"])


def model_ids() -> list[str]:
    """Ids of the catalog models, sorted."""
    return sorted(path.stem for path in (DATA / "models").glob("*.json"))


@lru_cache(maxsize=512)
def load_model(name: str) -> Model:
    """A model by catalog id, Hugging Face id, alias, or path to a config.json or its folder.

    Raises UnknownName with the nearest names, UnreadableFile, UnknownArchitecture.
    """
    if not name.strip() or len(name) > 1024:
        raise UnknownName(f"model {name[:40]!r} is not a name", hint="vram models lists all")
    if name.startswith("hf:"):
        return _model_of_file(name)
    if name in model_ids():
        return _catalog_model(name)
    if _looks_like_a_path(name):
        return _model_of_file(name)
    index = _model_index()
    return _catalog_model(lookup(name, index, kind="model", known=_known_models(), listing="vram models"))


def gpu_names() -> list[str]:
    """Names of all GPUs of the catalog, in its order."""
    return [gpu.name for gpu in load_gpus()]


@lru_cache(maxsize=1)
def load_gpus() -> tuple[GpuSpec, ...]:
    """All GPUs of the catalog."""
    return tuple(_gpu(record) for record in _gpu_records())


def load_gpu(name: str) -> GpuSpec:
    """A GPU by name or alias; an ambiguous short name ("h100") is the alias of the commonest card.

    "H100 MIG 3g.40gb" is a slice, "H100:0.5" a share of its memory. Raises UnknownName with the nearest names.
    """
    index = _gpu_index()
    if key(name) not in index and (part := part_of(name, load_gpu)) is not None:
        return part
    return _gpu(lookup(name, index, kind="GPU", known=[r["name"] for r in _gpu_records()], listing="vram gpus"))


def siblings(gpu: GpuSpec, name: str) -> list[str]:
    """Other cards that a short name could have meant: it is an alias, and begins their names too."""
    if key(name) == key(gpu.name):
        return []
    return [r["name"] for r in _gpu_records() if r["name"] != gpu.name and key(name) in key(r["name"])]


def _catalog_model(id: str) -> Model:
    record = read_json(f"models/{id}.json")
    return Model(model_from_config(record["config"], id=id, trusted=True), record)


def _looks_like_a_path(name: str) -> bool:
    return name.endswith((".json", ".gguf", ".safetensors")) or name.startswith((".", "/", "~")) or (key(name) not in _model_index() and os.path.isdir(name))


def _model_of_file(name: str) -> Model:
    from calculator.checkpoints.load import load_hub, load_path  # readers of other people's files cost start-up time

    path = Path(name).expanduser()
    spec, checkpoint = load_hub(name) if name.startswith("hf:") else load_path(path, id=printable(str(path)[-_CLIP:]))
    return Model(spec, {"name": spec.id, "family": spec.model_type, "sources": {"config": name}}, checkpoint)


def _known_models() -> Iterator[str]:
    for id in model_ids():
        yield id
        if hf_id := read_json(f"models/{id}.json")["hf_id"]:
            yield hf_id


@lru_cache(maxsize=1)
def _model_index() -> dict[str, str]:
    index: dict[str, str] = {}
    for id in model_ids():
        record = read_json(f"models/{id}.json")
        for name in (id, record["hf_id"], record["name"], *record.get("aliases", ())):
            if name:
                index[key(name)] = id
    return index


@lru_cache(maxsize=1)
def _gpu_records() -> list[dict[str, Any]]:
    files = sorted((DATA / "gpus").glob("*.json"), key=lambda path: (path.stem != "nvidia", path.stem))
    return [record for path in files for record in json.loads(path.read_text(encoding="utf-8"))["gpus"]]


@lru_cache(maxsize=1)
def _gpu_index() -> dict[str, dict[str, Any]]:
    return {key(name): r for r in _gpu_records() for name in (r["name"], *r["aliases"])}


@lru_cache(maxsize=256)
def _gpu_by_name(name: str) -> GpuSpec:
    record = _gpu_index()[key(name)]
    values: dict[str, Any] = {n: Quantity(**v) if isinstance(v, dict) else v for n, v in record.items()}
    values["aliases"] = tuple(record["aliases"])
    return GpuSpec(**values)


def _gpu(record: dict[str, Any]) -> GpuSpec:
    return _gpu_by_name(record["name"])
