"""Small files made by the reference writers, for the readers to read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np

from calculator.errors import CalculatorError


def write_gguf(path: Path, tensors, metadata=(), *, arch="llama") -> Path:
    """A GGUF file: tensors as (name, shape, ggml type), headers real and data zero."""
    writer = gguf.GGUFWriter(path, arch)
    for add, *arguments in metadata:
        getattr(writer, add)(*arguments)
    for name, shape, kind in tensors:
        kind = gguf.GGMLQuantizationType[kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows = int(np.prod(shape)) // block * size
        data = np.zeros(rows, dtype=np.uint8).reshape((*shape[:-1], shape[-1] // block * size))
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_bytes(*, keys=(), tensors=(), version=3, tensor_count=None, key_count=None, endian="<") -> bytes:
    """A GGUF header by hand, to say what no writer would. keys: (name, type, payload); tensors: (name, dims, type, offset)."""
    out = b"GGUF" + struct.pack(endian + "IQQ", version, len(tensors) if tensor_count is None else tensor_count,
                                len(keys) if key_count is None else key_count)  # fmt: skip
    for name, kind, payload in keys:
        raw = name if isinstance(name, bytes) else name.encode()
        out += struct.pack("<Q", len(raw)) + raw + struct.pack("<I", kind) + payload
    for name, dims, kind, offset in tensors:
        raw = name if isinstance(name, bytes) else name.encode()
        out += struct.pack("<Q", len(raw)) + raw + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return out


def safetensors_bytes(header, *, length=None, data=0) -> bytes:
    """A safetensors file by hand: header an object or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\0" * data


def read_or_refuse(read, path):
    """What a reader makes of a file, or None where it refuses in one line."""
    try:
        return read(path)
    except CalculatorError as e:
        if len(lines := str(e).splitlines()) != 1:
            raise AssertionError(lines) from e
        return None


def text(value: str) -> bytes:
    """A GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()
