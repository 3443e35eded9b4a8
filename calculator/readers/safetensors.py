"""safetensors headers: one file, the files of an index, or a folder. Tensor data is never read.

What the reference reader refuses is refused here: overlaps, holes, sizes that don't follow from shape and type.

Source: huggingface/safetensors safetensors/src/tensor.rs (Metadata, Dtype); the format section of its README.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calculator.errors import UnreadableFile
from calculator.formats import FORMATS, SOURCES
from calculator.readers.header import MAX_ALL_TENSORS, MAX_ELEMENTS, MAX_TENSORS, Header, Tensor, check_offsets, joined
from calculator.readers.untrusted import LocalFile, Source, inside, loads, quoted, read_json, shown

MAX_HEADER = 16 * 2**20  # the format allows 100 MB; the largest published file's is below 2 MB
MAX_FILES = 2000
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TYPES = frozenset({"F32", "F16", "BF16"} | {name for name in SOURCES if SOURCES[name].startswith("safetensors dtype")}
                  | {"I8", "I16", "I32", "I64", "F64"})  # fmt: skip
_HINT = "another copy of the file"


def read_safetensors(path: Path) -> Header:
    """The header of a .safetensors file, of the files of an index, or of a folder's checkpoint.

    Raises UnreadableFile.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.name.endswith(".index.json"):
        return _read_index(path)
    with LocalFile(path) as source:
        return read_source(source)


def _read_folder(folder: Path) -> Header:
    if (index := folder / INDEX).is_file():
        return _read_index(index)
    names = [SINGLE] if (folder / SINGLE).is_file() else sorted(p.name for p in folder.glob("*.safetensors"))
    if len(names) != 1:
        what = "no .safetensors file" if not names else f"{len(names)} .safetensors files and no {INDEX}"
        raise UnreadableFile(f"{shown(folder)} holds {what}", hint="the folder of a checkpoint, as published")
    with LocalFile(inside(folder, names[0])) as source:
        return read_source(source)


def _read_index(index: Path) -> Header:
    folder = index.parent
    with LocalFile(inside(folder, index.name)) as source:
        weight_map = index_files(read_json(source), name=source.name)
    headers = []
    for name in dict.fromkeys(weight_map.values()):
        part = inside(folder, name)
        if not part.is_file():
            raise UnreadableFile(f"{shown(part)} is missing: {shown(index)} names it", hint="all files of the checkpoint in one folder")
        with LocalFile(part) as source:
            headers.append(read_source(source))
    return check_index(joined(headers), weight_map)


def index_files(index: dict[str, Any], *, name: str) -> dict[str, str]:
    """The file of each tensor, from an index. Raises UnreadableFile."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) and f.endswith(".safetensors") for f in weight_map.values()):
        raise UnreadableFile(f"{name} has no weight_map of .safetensors files", hint="the index as published")
    files = len(set(weight_map.values()))
    if len(weight_map) > MAX_ALL_TENSORS or files > MAX_FILES:
        raise UnreadableFile(f"{name} names {len(weight_map):,} tensors in {files:,} files", allowed=f"up to {MAX_ALL_TENSORS:,} in {MAX_FILES:,}")
    return weight_map


def check_index(whole: Header, weight_map: dict[str, str]) -> Header:
    """The header, if it holds what the index says. Raises UnreadableFile."""
    held = {t.name for t in whole.tensors}
    if missing := [name for name in weight_map if name not in held]:
        raise UnreadableFile(f"{whole.files[0]} and the other files lack {len(missing):,} tensors of the index, first {quoted(missing[0])}",
                             hint="the files and the index of one checkpoint")  # fmt: skip
    return whole


def read_source(source: Source) -> Header:
    """The header of one file. Raises UnreadableFile."""
    length = int.from_bytes(source.read_at(0, 8), "little")
    if source.size < 10 or length > MAX_HEADER or length < 2:
        raise UnreadableFile(f"{source.name} is not a safetensors file (a header of {length:,} bytes)", allowed=f"2 to {MAX_HEADER:,}",
                             hint="a .safetensors file")  # fmt: skip
    data = source.read_at(8, length)
    if len(data) < length:
        raise UnreadableFile(f"{source.name} ends inside its header", hint="the whole header")
    if data[:1] != b"{":
        raise UnreadableFile(f"{source.name} is not a safetensors file (its header is not a JSON object)", hint="a .safetensors file")
    if (count := data.count(b'"data_offsets"')) > MAX_TENSORS:
        raise UnreadableFile(f"{source.name} claims {count:,} tensors", allowed=f"up to {MAX_TENSORS:,}")
    found = loads(data, name=source.name, hook=_compact, nested=3 * MAX_TENSORS + 2)
    if not isinstance(found, dict):
        raise UnreadableFile(f"{source.name}: its header is one tensor", hint=_HINT)
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UnreadableFile(f"{source.name}: __metadata__ is not a map of strings", hint=_HINT)
    tensors = tuple(_tensor(source, name, entry) for name, entry in found.items())
    end = check_offsets(tensors, name=source.name)
    if end != sum(t.nbytes for t in tensors):
        raise UnreadableFile(f"{source.name}: there are holes between its tensors", hint=_HINT)
    whole = 8 + length + end
    if source.size > whole:
        raise UnreadableFile(f"{source.name} is {source.size - whole:,} bytes longer than its header says", hint=_HINT)
    return Header("safetensors", metadata, tensors, (source.name,), whole, source.size < whole)


def _compact(entry: dict[str, Any]) -> Any:
    """A tensor's three fields as a tuple, which takes a third of the memory of a dict."""
    return (entry["dtype"], entry["shape"], entry["data_offsets"]) if entry.keys() == {"dtype", "shape", "data_offsets"} else entry


def _tensor(source: Source, name: str, entry: Any) -> Tensor:
    if not isinstance(entry, tuple):
        raise UnreadableFile(f"{source.name}: {quoted(name)} is not a tensor of dtype, shape and data_offsets", hint=_HINT)
    dtype, shape, offsets = entry
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise UnreadableFile(f"{source.name}: tensor {quoted(name)} has dtype {quoted(str(dtype))}", allowed=", ".join(sorted(TYPES)))
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise UnreadableFile(f"{source.name}: tensor {quoted(name)} has an impossible shape or data_offsets", hint=_HINT)
    elements = 1
    for n in shape:
        elements *= n
        if elements > MAX_ELEMENTS:
            raise UnreadableFile(f"{source.name}: tensor {quoted(name)} is larger than any file", hint=_HINT)
    fmt, nbytes = FORMATS[dtype], offsets[1] - offsets[0]
    if nbytes * fmt.block_elements != elements * fmt.block_bytes:
        raise UnreadableFile(f"{source.name}: tensor {quoted(name)} of {elements:,} {dtype} elements can't be {nbytes:,} bytes", hint=_HINT)
    return Tensor(name, dtype, tuple(shape), nbytes, offsets[0])


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in values)


