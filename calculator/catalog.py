"""The only reader of data/: models and GPUs by name, every value with its source."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from calculator.checkpoints import Checkpoint
from calculator.datafiles import DATA, read_json
from calculator.errors import CalculatorError, UnknownName
from calculator.names import key, lookup
from calculator.quantization.hf import QUANT_NAMES
from calculator.readers.hf_config import model_from_config
from calculator.readers.untrusted import local_path, printable
from calculator.readers.user_models import user_folder as user_folder
from calculator.readers.user_models import user_model_files, user_record
from calculator.slices import part_of
from calculator.spec import GpuSpec, ModelSpec, Quantity
from calculator.units import GIB

_CLIP = 80
_MAKERS = re.compile(r"^(nvidia|amd|intel|apple)[ _-]+((geforce|tesla|quadro|radeon|instinct)[ _-]+)?", re.IGNORECASE)


class Model(NamedTuple):
    """A model and what is known about it beside its dimensions."""

    spec: ModelSpec
    record: dict[str, Any]
    checkpoint: Checkpoint | None = None

    @property
    def related(self) -> list[dict[str, str]]:
        """Entries that a reader of this one must know about: id and why."""
        return list(self.record.get("related", []))

    @property
    def own_quant(self) -> str:
        """The --quant of the checkpoint as it is published."""
        return self.checkpoint.scheme.name if self.checkpoint else QUANT_NAMES[self.spec.dtype]

    def source(self, field: str) -> str:
        """Where a field's value comes from."""
        sources = self.record["sources"]
        return str(sources.get(field, sources["config"]))


def data_version() -> str:
    """Date of the shipped data."""
    return str(read_json("version.json")["data_version"])


@lru_cache(maxsize=1)
def model_ids() -> tuple[str, ...]:
    """Ids of the catalog's models and of the user's own that can be read, sorted."""
    return tuple(sorted({*_records(), *(id for id in user_models() if _readable(id))}))


def _readable(id: str) -> bool:
    try:
        load_model(id)
    except CalculatorError:
        return False
    return True


@lru_cache(maxsize=512)
def load_model(name: str) -> Model:
    """A model by catalog id, Hugging Face id, alias, or path to a config.json or its folder.

    Raises UnknownName with the nearest names, UnreadableFile, UnknownArchitecture.
    """
    if not name.strip() or len(name) > 1024:
        raise UnknownName(f"model {name[:40]!r} is not a name", hint="vram models lists all")
    if name.startswith("hf:"):
        return _model_of_file(name)
    if name in user_models() or name in _records():
        return _catalog_model(name)
    if _looks_like_a_path(name):
        return _model_of_file(name)
    return load_named(name)


def load_named(name: str, *, listing: str = "vram models") -> Model:
    """A model of the catalog, or the user's own, by any of its names. Never opens a path that a stranger gives.

    Raises UnknownName with the nearest names and where they are listed.
    """
    found = _catalog_model(lookup(name, _model_index(), kind="model", known=_known_models(), listing=listing))
    meant = [alias for alias in found.record.get("aliases", ()) if "/" in alias and key(name) in (key(alias), key(alias.rpartition("/")[2]))]
    return found._replace(record={**found.record, "hf_id": meant[0]}) if meant else found  # another repository of the same dimensions


@lru_cache(maxsize=1)
def load_gpus() -> tuple[GpuSpec, ...]:
    """All GPUs of the catalog."""
    return tuple(_gpu(record) for record in _gpu_records())


def load_gpu(name: str) -> GpuSpec:
    """A GPU by name or alias; an ambiguous short name ("h100") is the alias of the commonest card.

    "RTX 4090 24GB" says its memory too. "H100 MIG 3g.40gb" is a slice, "H100:0.5" a share of its memory.
    Raises UnknownName with the nearest names.
    """
    if (record := _named(name)) is not None:
        return _gpu(record)
    if (found := _with_memory(name) or part_of(name, load_gpu)) is not None:
        return found
    if (several := re.fullmatch(r"(\d{1,4}) ?x ?(.{1,80})", name.strip(), re.IGNORECASE)) and (record := _named(several[2])) is not None:
        raise UnknownName(f"GPU {name!r} is {several[1]} of them", hint=f"--gpu {record['name']!r} --gpus {several[1]}")
    return _gpu(lookup(name, _gpu_index(), kind="GPU", known=[r["name"] for r in _gpu_records()], listing="vram gpus"))


def _named(name: str) -> dict[str, Any] | None:
    """A card's record by its name or alias, the maker's before it or not."""
    index = _gpu_index()
    return index.get(key(name)) or index.get(key(_MAKERS.sub("", name.strip())))


def _with_memory(name: str) -> GpuSpec | None:
    """The card whose name is followed by the memory that it is sold with; None where it isn't. Raises UnknownName for another size."""
    match = re.fullmatch(r"(.{1,80}?)[ _-]*\(?(\d{1,3}) ?g(?:i?b)?\)?", name.strip(), re.IGNORECASE)
    if match is None or (record := _named(match[1])) is None:
        return None
    card, size = _gpu(record), int(match[2])
    for other in (card, *map(load_gpu, siblings(card, match[1]))):
        if size in (round(other.memory_sold_bytes.value / GIB), round(other.memory_sold_bytes.value / 10**9)):
            return other
    raise UnknownName(f"GPU {name!r}: {card.name} has {card.memory_sold_bytes.value / GIB:.0f} GB", hint=f"{card.name}, or vram gpus")


def siblings(gpu: GpuSpec, name: str) -> list[str]:
    """Other cards that a short name could have meant: it is an alias, and begins their names too."""
    if key(name) == key(gpu.name):
        return []
    return [r["name"] for r in _gpu_records() if r["name"] != gpu.name and key(name) in key(r["name"])]


def _catalog_model(id: str) -> Model:
    if (own := user_models().get(id)) is not None:
        return user_model(id, own)
    record = _records()[id]
    spec = model_from_config(record["config"], id=id, trusted=True)
    return Model(spec, record, _declared(record["config"], spec))


def _declared(config: dict[str, Any], spec: ModelSpec) -> Checkpoint | None:
    """What a quantized checkpoint's config says that it is stored as."""
    if "quantization_config" not in config and "text_config" not in config:
        return None
    from calculator.checkpoints.hf import declared, split_config

    said = split_config(config, id=spec.id).quantization
    return None if said is None else declared(said, spec)


@lru_cache(maxsize=1)
def user_models() -> dict[str, Path]:
    """The user's own models: the files of their folder by id; they come before the catalog's."""
    return user_model_files(user_folder())


def user_model(id: str, path: Path) -> Model:
    """A model of the user's folder: a record like the catalog's, or a bare config.json. Raises as `load_model` does."""
    record = user_record(id, path)
    spec = model_from_config(record["config"], id=id)
    return Model(spec, record, _declared(record["config"], spec))


@lru_cache(maxsize=1)
def _records() -> dict[str, dict[str, Any]]:
    """All shipped records by id. A file holds one record, or a family: its models, and references that they name as sources."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((DATA / "models").glob("*.json")):
        data = read_json(f"models/{path.name}")
        for record in data.get("models", (data,)):
            found[record["id"]] = record if "models" not in data else _expanded(record, data["references"])
            found[record["id"]]["file"] = f"data/models/{path.name}"
    return found


def _expanded(record: dict[str, Any], references: dict[str, str]) -> dict[str, Any]:
    """A family's record with its sources written out."""
    sources = {field: "; ".join(references[name] for name in names) for field, names in record["sources"].items()}
    if "torch_dtype" in record.get("unverified", ()):
        sources["torch_dtype"] = references["dtype"]
    published = {"value": record["published_parameters"], "source": references["safetensors"]}
    return {"aliases": [], **record, "sources": sources, "published_parameters": published}


def _looks_like_a_path(name: str) -> bool:
    return name.endswith((".json", ".gguf", ".safetensors")) or name.startswith((".", "/", "~")) or (key(name) not in _model_index() and os.path.isdir(name))


def _model_of_file(name: str) -> Model:
    from calculator.checkpoints.load import load_hub, load_path  # readers of other people's files cost start-up time

    path = Path(name) if name.startswith("hf:") else local_path(name)
    config, spec, checkpoint = load_hub(name) if name.startswith("hf:") else load_path(path, id=printable(str(path)[-_CLIP:]))
    return Model(spec, {"config": config, "name": spec.id, "family": spec.model_type, "hf_id": None, "sources": {"config": name}, "file": name}, checkpoint)


def _known_models() -> Iterator[str]:
    yield from user_models()
    for id, record in _records().items():
        yield id
        if record["hf_id"]:
            yield record["hf_id"]


@lru_cache(maxsize=1)
def _model_index() -> dict[str, str]:
    index: dict[str, str] = {}
    for id, record in _records().items():
        for name in (id, record["hf_id"], record["name"], *record.get("aliases", ())):
            if name:
                index.setdefault(key(name), id)
    index |= {bare: ids.pop() for bare, ids in _repository_names().items() if len(ids) == 1 and bare not in index}
    return index | {key(id): id for id in user_models()}


def _repository_names() -> dict[str, set[str]]:
    """Hugging Face ids without their publisher, as people write them, and the models that each could mean."""
    names: dict[str, set[str]] = {}
    for id, record in _records().items():
        for name in (record["hf_id"], *record.get("aliases", ())):
            if name and "/" in name:
                names.setdefault(key(name.rpartition("/")[2]), set()).add(id)
    return names


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
