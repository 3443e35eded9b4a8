"""`vram inspect`: what a config, a GGUF or a safetensors header holds, whether or not we have formulas for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.catalog import load_model
from calculator.errors import CalculatorError, UnreadableFile
from calculator.readers.gguf import read_gguf
from calculator.readers.header import Header, Skipped
from calculator.readers.hf_config import read_config
from calculator.readers.safetensors import INDEX, read_safetensors
from calculator.readers.untrusted import local_path, printable, shown
from calculator.report.documents import envelope
from calculator.report.text import table
from calculator.units import gib

DIMENSIONS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size",
    "max_position_embeddings", "sliding_window", "num_experts", "num_experts_per_tok", "expert_intermediate_size",
)  # fmt: skip
_SHOWN = 40  # metadata entries and characters of one in the text


class Inspection(NamedTuple):
    """A file's contents, and the model that it makes, if any."""

    path: str
    format: str
    architecture: str | None
    dimensions: dict[str, int]
    header: Header | None
    parameters: int | None
    metadata: dict[str, Any]
    refused: str | None
    warnings: tuple[str, ...]


def inspect(name: str) -> Inspection:
    """Read a .gguf, a .safetensors, an index, a config.json or a folder. Raises UnreadableFile.

    A model without formulas is no error here: `refused` says why it can't be sized.
    """
    remote = name.startswith("hf:")
    path = Path(name) if remote else local_path(name)
    if remote:
        from calculator.readers.hub import read_hub

        config, header = read_hub(name)
    else:
        header, config = _header(path), _config(path)
    if header is None and config is None:
        raise UnreadableFile(f"{shown(path)} is neither a config.json nor a GGUF or safetensors header", hint="a .gguf, a .safetensors, a config.json or their folder")
    architecture, refused, dimensions, parameters = _architecture(header, config), None, {}, None
    warnings: tuple[str, ...] = ()
    try:
        model = load_model(name if remote else str(path.absolute()))
        dimensions = {n: value for n in DIMENSIONS if isinstance(value := getattr(model.spec, n), int) and value}
        parameters = build_inventory(model.spec).parameters
        if model.checkpoint is not None:
            parameters = parameters if model.checkpoint.parameters is None else model.checkpoint.parameters
            warnings = model.checkpoint.warnings
    except CalculatorError as e:
        refused = str(e)
    if parameters is None and header is not None and header.format == "gguf":
        parameters = sum(t.elements for t in header.tensors)
    kind = header.format if header else "config"
    return Inspection(shown(path), kind, architecture, dimensions, header, parameters, dict(header.metadata if header else config or {}), refused, warnings)


def _header(path: Path) -> Header | None:
    if path.suffix == ".gguf":
        return read_gguf(path)
    if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
        return read_safetensors(path)
    if path.is_dir() and ((path / INDEX).is_file() or any(path.glob("*.safetensors"))):
        return read_safetensors(path)
    if path.is_dir() and not (path / "config.json").is_file() and (files := sorted(path.glob("*.gguf"))):
        return read_gguf(files[0])
    return None


def _config(path: Path) -> dict[str, Any] | None:
    if path.suffix == ".gguf":
        return None
    index = path.name.endswith(".index.json")
    if path.suffix == ".json" and not index:
        return read_config(path)
    if not (path.is_dir() or index or path.suffix == ".safetensors"):
        return None
    folder = path if path.is_dir() else path.parent
    return read_config(folder) if (folder / "config.json").is_file() else None


def _architecture(header: Header | None, config: dict[str, Any] | None) -> str | None:
    found = header.metadata.get("general.architecture") if header else None
    if found is None and config is not None:
        text = config.get("text_config")
        found = (text if isinstance(text, dict) else config).get("model_type")
    return printable(found[:80]) if isinstance(found, str) else None


def inspect_document(found: Inspection) -> dict[str, Any]:
    """`vram inspect --json`."""
    header = found.header
    return envelope(
        path=found.path, format=found.format, architecture=found.architecture, parameters=found.parameters, dimensions=found.dimensions,
        files=list(header.files) if header else [], file_bytes=header.file_bytes if header else None, truncated=bool(header and header.truncated),
        tensor_count=len(header.tensors) if header else 0, tensor_bytes=header.tensor_bytes if header else None,
        types=[{"type": kind, "count": n, "elements": elements, "bytes": size} for kind, n, elements, size in types_of(header)],
        tensors=[{"name": printable(t.name), "type": t.type, "shape": list(t.shape), "bytes": t.nbytes} for t in (header.tensors if header else ())],
        metadata={printable(key): _plain(value) for key, value in found.metadata.items()}, sizable=found.refused is None, refused=found.refused,
        warnings=list(found.warnings),
    )  # fmt: skip


def types_of(header: Header | None) -> list[tuple[str, int, int, int]]:
    """Type, tensors, elements and bytes, the largest first."""
    sums: dict[str, list[int]] = {}
    for t in header.tensors if header else ():
        row = sums.setdefault(t.type, [0, 0, 0])
        for i, n in enumerate((1, t.elements, t.nbytes)):
            row[i] += n
    return sorted(((kind, *row) for kind, row in sums.items()), key=lambda r: (-r[3], r[0]))  # type: ignore[misc]


def _plain(value: Any) -> Any:
    """A metadata value as JSON can hold it; numbers that aren't finite and long values as words."""
    if isinstance(value, Skipped):
        return {"type": value.type, "length": value.length}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {printable(str(k)): _plain(v) for k, v in value.items()}
    return value


def inspect_text(found: Inspection) -> str:
    """For people: what it is, its types, its metadata."""
    header, out = found.header, [f"{found.path}: {found.format}, {found.architecture or 'architecture not said'}"]
    if found.parameters is not None:
        out.append(f"parameters   {found.parameters:,}")
    if header:
        files = f" in {len(header.files)} files" if len(header.files) > 1 else ""
        out.append(f"tensors      {len(header.tensors):,}{files}, {gib(header.tensor_bytes)} ({header.tensor_bytes:,} bytes); file {header.file_bytes:,} bytes")
    if found.dimensions:
        out.append("dimensions   " + ", ".join(f"{k} {v:,}" for k, v in found.dimensions.items()))
    if header:
        rows = [(kind, f"{n:,}", f"{elements:,}", f"{size:,}", gib(size)) for kind, n, elements, size in types_of(header)]
        out.append("\n" + table(rows, header=("type", "tensors", "elements", "bytes", ""), right=frozenset({1, 2, 3, 4})))
    if found.metadata:
        entries = [(printable(k)[:60], _words(v)) for k, v in list(found.metadata.items())[:_SHOWN]]
        out.append("\n" + table(entries, header=("metadata", "value")))
        if (more := len(found.metadata) - _SHOWN) > 0:
            out.append(f"and {more:,} more (--json has all)")
    out += [f"warning: {w}" for w in found.warnings]
    if found.refused:
        out.append(f"can't be sized: {found.refused}")
    return "\n".join(out)


def _words(value: Any) -> str:
    if isinstance(value, Skipped):
        return f"{value.length:,} bytes of text" if value.type == "text" else f"{value.length:,} x {value.type}"
    if isinstance(value, (list, tuple)):
        return f"[{_join(value)}]"
    text = printable(str(value))
    return text if len(text) <= _SHOWN * 2 else text[: _SHOWN * 2] + "..."


def _join(values: Iterable[Any]) -> str:
    shown_values = [printable(str(v))[:20] for _, v in zip(range(8), values, strict=False)]
    return ", ".join(shown_values) + (", ..." if len(shown_values) == 8 else "")
