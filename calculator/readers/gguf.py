"""GGUF headers, versions 2 and 3, as a stream: metadata and tensor infos, never tensor data.

Memory is bounded whatever the file claims: long arrays are stepped over, strings are kept up to a limit. What llama.cpp
refuses is refused here, with its reason.

Source: llama.cpp ggml/src/gguf.cpp gguf_init_from_reader @067d44f6, ggml/include/ggml.h enum ggml_type @0c1e57098.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

from calculator.errors import UnreadableFile
from calculator.formats import FORMATS
from calculator.readers.header import MAX_ELEMENTS, MAX_TENSORS, Header, Skipped, Tensor, check_offsets, joined
from calculator.readers.stream import MAX_KEPT, Stream
from calculator.readers.untrusted import LocalFile, Source, inside, quoted, shown
from calculator.units import align_up

TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
_REMOVED = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}

# value types: struct's letter, None for strings and arrays
_VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 8: None, 9: None, 10: "Q", 11: "q", 12: "d"}
_NAMES = {0: "u8", 1: "i8", 2: "u16", 3: "i16", 4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string", 10: "u64", 11: "i64", 12: "f64"}
_STRING, _ARRAY = 8, 9

MAX_KEYS = 10_000
KEPT_ELEMENTS = 4096  # longer arrays are stepped over; a value a layer fits
KEPT_STRINGS = 64
MAX_PARTS = 1000
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_HINT = "another copy of the file"


def read_gguf(path: Path) -> Header:
    """The header of a GGUF file, or of all files of a split one, whichever of them is named.

    Raises UnreadableFile.
    """
    with LocalFile(path) as source:
        first = read_source(source)
    names = part_names(path.name, first)
    if len(names) == 1:
        return first
    parts = []
    for name in names:
        part = path if name == path.name else inside(path.parent, name)
        if not part.is_file():
            raise UnreadableFile(f"{shown(part)} is missing: the model is in {len(names)} files", hint="all parts in one folder")
        with LocalFile(part) as source:
            parts.append(read_source(source))
    return check_parts(parts)


def part_names(name: str, header: Header) -> list[str]:
    """Names of all parts of a split file, from one of them; the name itself of one that isn't split."""
    count = header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [name]
    match = _SPLIT.fullmatch(name)
    if not match or int(match[3]) != count or count > MAX_PARTS:
        raise UnreadableFile(f"{shown(name)} is a part of {count} and not named so", allowed=f"NAME-00001-of-{count:05d}.gguf" if count <= MAX_PARTS else "")
    return [f"{match[1]}-{i:05d}-of-{match[3]}.gguf" for i in range(1, count + 1)]


def check_parts(parts: list[Header]) -> Header:
    """The parts of a split file as one header. Raises UnreadableFile where they aren't of one file."""
    whole, name = joined(parts), parts[0].files[0]
    for i, part in enumerate(parts):
        if part.metadata.get("split.no") != i or part.metadata.get("split.count") != len(parts):
            raise UnreadableFile(f"{part.files[0]} says it is part {str(part.metadata.get('split.no'))[:20]} (from 0), not {i}", hint="the parts as published")
    if (said := whole.metadata.get("split.tensors.count")) != len(whole.tensors):
        raise UnreadableFile(f"{name} and its parts hold {len(whole.tensors)} tensors, not the {str(said)[:20]} announced", hint="the parts as published")
    return whole


def read_source(source: Source) -> Header:
    """The header of one file. Raises UnreadableFile for anything that llama.cpp wouldn't read."""
    s = Stream(source)
    if s.take(4) != b"GGUF":
        raise UnreadableFile(f"{source.name} is not a GGUF file (it doesn't begin with GGUF)", hint="a .gguf file of a language model")
    version = s.u32()
    if version & 0xFFFF == 0 and version:
        raise UnreadableFile(f"{source.name} is big-endian", hint="the little-endian file: gguf_convert_endian.py of llama.cpp")
    if version not in (2, 3):
        raise UnreadableFile(f"{source.name} is GGUF version {version}", allowed="2, 3")
    tensor_count, key_count = s.u64(), s.u64()
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise UnreadableFile(f"{source.name} claims {tensor_count:,} tensors and {key_count:,} metadata keys",
                             allowed=f"up to {MAX_TENSORS:,} and {MAX_KEYS:,}")  # fmt: skip
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = s.text("a metadata key")
        if not key or key in metadata:
            raise UnreadableFile(f"{source.name}: metadata key {quoted(key)} is {'given twice' if key else 'empty'}", hint=_HINT)
        metadata[key] = _value(s, key)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
        raise UnreadableFile(f"{source.name}: general.alignment {str(alignment)[:30]} is not a power of two up to 1 MiB", hint=_HINT)
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(s)
        if tensor.name in tensors:
            raise UnreadableFile(f"{source.name}: tensor {quoted(tensor.name)} is given twice", hint=_HINT)
        if tensor.offset % alignment:
            raise UnreadableFile(f"{source.name}: tensor {quoted(tensor.name)} is not aligned to {alignment} bytes", hint=_HINT)
        tensors[tensor.name] = tensor
    end = align_up(check_offsets(tensors.values(), name=source.name), alignment)
    whole = (align_up(s.position, alignment) + end) if tensors else s.position
    held = max((t.offset + t.nbytes for t in tensors.values()), default=0)
    truncated = bool(held) and align_up(s.position, alignment) + held > source.size
    return Header("gguf", metadata, tuple(tensors.values()), (source.name,), whole, truncated)


def _value(s: Stream, key: str) -> Any:
    kind = s.u32()
    if kind == _STRING:
        return s.string(key)
    if kind != _ARRAY:
        return s.number(_letter(s, kind, key))
    kind, count = s.u32(), s.u64()
    if kind == _STRING:
        if count > KEPT_STRINGS:
            s.skip_strings(count, key)
            return Skipped("string", count)
        return [s.string(key) for _ in range(count)]
    letter = _letter(s, kind, key)
    size = struct.calcsize("<" + letter) * count
    if count > KEPT_ELEMENTS or s.kept + size > MAX_KEPT:
        s.skip(size, key)
        return Skipped(_NAMES[kind], count)
    s.kept += size
    return list(struct.unpack(f"<{count}{letter}", s.take(size)))


def _letter(s: Stream, kind: int, key: str) -> str:
    letter = _VALUES.get(kind)
    if letter is None:
        what = "an array of arrays" if kind == _ARRAY else f"of type {kind}, which GGUF doesn't have"
        raise UnreadableFile(f"{s.source.name}: metadata key {quoted(key)} is {what}", hint=_HINT)
    return letter


def _tensor(s: Stream) -> Tensor:
    name = s.text("a tensor's name")
    dimensions = s.u32()
    if dimensions > 4:
        raise UnreadableFile(f"{s.source.name}: tensor {quoted(name)} has {dimensions:,} dimensions", allowed="up to 4")
    shape = struct.unpack(f"<{dimensions}Q", s.take(8 * dimensions))
    kind, offset = s.u32(), s.u64()
    if (type_name := TYPES.get(kind)) is None:
        why = f"{_REMOVED[kind]}, which llama.cpp removed" if kind in _REMOVED else f"type {kind:,}, which ggml doesn't have"
        raise UnreadableFile(f"{s.source.name}: tensor {quoted(name)} is {why}", hint="a file made by a current llama.cpp")
    fmt, elements = FORMATS[type_name], 1
    for n in shape:
        elements *= n
    if max((elements, offset, *shape)) >= MAX_ELEMENTS:
        raise UnreadableFile(f"{s.source.name}: tensor {quoted(name)} is larger than any file", hint=_HINT)
    row = shape[0] if shape else 1
    if row % fmt.block_elements:
        raise UnreadableFile(f"{s.source.name}: a row of tensor {quoted(name)} has {row:,} elements, not whole blocks of {fmt.block_elements} ({type_name})",
                             hint=_HINT)  # fmt: skip
    return Tensor(name, type_name, tuple(reversed(shape)) if shape else (1,), elements // fmt.block_elements * fmt.block_bytes, offset)
