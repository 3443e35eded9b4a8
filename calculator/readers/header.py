"""What a checkpoint's header says: tensors with their stored type, shape and bytes, and metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from calculator.errors import UnreadableFile
from calculator.readers.untrusted import quoted

MAX_TENSORS = 100_000  # of one file; DeepSeek V3 has 91,991 in 163
MAX_ALL_TENSORS = 300_000  # of all files; Kimi K2 in INT4 has about 210,000
MAX_ELEMENTS = 2**63 - 1


class Tensor(NamedTuple):
    """One stored tensor. `shape` is in Hugging Face's order (rows first); `offset` counts from where data begins."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int

    @property
    def elements(self) -> int:
        """Elements as they are stored: packed types count what packs them."""
        total = 1
        for n in self.shape:
            total *= n
        return total


class Skipped(NamedTuple):
    """A metadata value too long to keep: its type and length."""

    type: str
    length: int


class Header(NamedTuple):
    """The headers of a checkpoint: one file, or all of its parts."""

    format: str
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]
    files: tuple[str, ...]
    file_bytes: int
    """What the complete files take, whether or not they are complete here [bytes]."""
    truncated: bool
    """A file ends before its tensors do: a header alone, or an unfinished download."""

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)


def check_offsets(tensors: Iterable[Tensor], *, name: str) -> int:
    """End of the last tensor [bytes]. Raises UnreadableFile where two overlap."""
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset < end:
            raise UnreadableFile(f"{name}: tensors {quoted(last)} and {quoted(tensor.name)} overlap", hint="another copy of the file")
        end, last = tensor.offset + tensor.nbytes, tensor.name
    return end


def joined(headers: list[Header]) -> Header:
    """The headers of a checkpoint's parts as one; the first one's metadata. A tensor in two files is refused."""
    tensors = tuple(t for header in headers for t in header.tensors)
    names: set[str] = set()
    if len(tensors) > MAX_ALL_TENSORS:
        raise UnreadableFile(f"{headers[0].files[0]} and its parts hold {len(tensors):,} tensors", allowed=f"up to {MAX_ALL_TENSORS:,}")
    for header in headers:
        for t in header.tensors:
            if t.name in names:
                raise UnreadableFile(f"{header.files[0]}: tensor {quoted(t.name)} is in two files", hint="the files of one checkpoint")
            names.add(t.name)
    return Header(
        headers[0].format, headers[0].metadata, tensors, tuple(f for h in headers for f in h.files),
        sum(h.file_bytes for h in headers), any(h.truncated for h in headers),
    )  # fmt: skip
