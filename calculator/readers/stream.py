"""Little-endian values of a file one after another, in bounded memory."""

from __future__ import annotations

import struct
from typing import Any

from calculator.errors import UnreadableFile
from calculator.readers.header import Skipped
from calculator.readers.untrusted import Source, quoted

MAX_NAME = 2**12  # bytes of a key or a tensor's name; llama.cpp itself takes 63 of a tensor's
MAX_TEXT = 2**16  # longer strings are stepped over
MAX_KEPT = 8 * 2**20  # of all values together [bytes, about]
MAX_STRINGS = 1_600_000  # of all arrays together: twice the largest tokenizer, tokens and merges
_CHUNK = 2**20
_HINT = "another copy of the file"


class Stream:
    """Little-endian values one after another, a chunk of the file in memory at a time."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.kept = 0  # bytes of values kept
        self.strings = 0  # strings stepped over
        self._buffer, self._base, self._at = b"", 0, 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._base + self._at

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        self._need(n)
        found = self._buffer[self._at : self._at + n]
        self._at += n
        return found

    def u32(self) -> int:
        """An unsigned 32-bit number."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """An unsigned 64-bit number."""
        return int.from_bytes(self.take(8), "little")

    def number(self, letter: str) -> Any:
        """One value of struct's kind."""
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self, what: str) -> str:
        """A short string that must be whole: a key or a name."""
        length = self.u64()
        if length > MAX_NAME:
            raise UnreadableFile(f"{self.source.name}: {what} is {length:,} bytes long", allowed=f"up to {MAX_NAME:,}")
        return self._decode(self.take(length), what)

    def string(self, key: str) -> str | Skipped:
        """A value: kept, or stepped over where it is long."""
        length = self.u64()
        if length > MAX_TEXT or self.kept + length > MAX_KEPT:
            self.skip(length, key)
            return Skipped("text", length)
        self.kept += length
        return self._decode(self.take(length), f"the value of {quoted(key)}")

    def skip(self, n: int, key: str) -> None:
        """Step over n bytes without reading them."""
        if self.position + n > self.source.size:
            raise UnreadableFile(f"{self.source.name} ends inside metadata key {quoted(key)}", hint="the whole header")
        if n <= len(self._buffer) - self._at:
            self._at += n
        else:
            self._base, self._buffer, self._at = self.position + n, b"", 0

    def skip_strings(self, count: int, key: str) -> None:
        """Step over strings: their lengths are read, their text is not made."""
        self.strings += count
        if self.strings > MAX_STRINGS or 8 * count > self.source.size:
            raise UnreadableFile(f"{self.source.name}: metadata key {quoted(key)} claims {count:,} strings", allowed=f"up to {MAX_STRINGS:,} in all, and those of the file")
        length_at = struct.Struct("<Q").unpack_from
        while count:
            self._need(8)
            buffer, at, last = self._buffer, self._at, len(self._buffer) - 8
            while count and at <= last:
                at += 8 + length_at(buffer, at)[0]
                count -= 1
            self._at = min(at, len(buffer))
            self.skip(at - self._at, key)

    def _need(self, n: int) -> None:
        """Have n bytes in the buffer."""
        if len(self._buffer) - self._at >= n:
            return
        rest = self._buffer[self._at :]
        self._base, self._at = self.position, 0
        self._buffer = rest + self.source.read_at(self._base + len(rest), max(n, _CHUNK))
        if len(self._buffer) < n:
            raise UnreadableFile(f"{self.source.name} ends inside its header", hint="the whole header")

    def _decode(self, data: bytes, what: str) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise UnreadableFile(f"{self.source.name}: {what} is not UTF-8", hint=_HINT) from None
