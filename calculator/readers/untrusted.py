"""What a stranger's file may do to us: nothing. Bounded reads, strict JSON, no links out of a folder."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from calculator.errors import UnreadableFile

MAX_JSON_BYTES = 26 * 2**20  # the largest published index, of 200,000 tensors, is about 25 MB
MAX_WIDE_BYTES = 2 * 2**20  # of JSON beyond ASCII, which Python may hold in four bytes a character
MAX_VALUES = 1_000_000  # commas and brackets: what is made of them takes about 100 bytes each
MAX_NESTED = 200_000  # brackets alone
CLIP = 60


class Source(Protocol):
    """Bytes at an offset: a local file, or one behind HTTP range requests."""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        ...

    @property
    def size(self) -> int:
        """Its length [bytes]."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end."""
        ...


class LocalFile:
    """A regular file, read by offset. Devices, pipes and folders are refused."""

    def __init__(self, path: Path) -> None:
        self.name = shown(path)
        try:
            self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "not a path"
            raise UnreadableFile(f"can't open {self.name} ({reason})", hint="a path to a file that is there") from None
        found = os.fstat(self._handle)
        self.size = found.st_size
        if not stat.S_ISREG(found.st_mode):
            os.close(self._handle)
            raise UnreadableFile(f"{self.name} is not a regular file", hint="a file of the model")

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at an offset; fewer at the end."""
        try:
            return os.pread(self._handle, length, offset)
        except OSError as e:
            raise UnreadableFile(f"can't read {self.name} ({e.strerror})", hint="another copy of the file") from None

    def __enter__(self) -> LocalFile:
        """The file, closed at the end."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._handle)


def read_json(source: Source, *, limit: int = MAX_JSON_BYTES, unlimited: bool = False) -> dict[str, Any]:
    """The JSON object that a file holds; `unlimited`: Infinity, which configs give as a limit, is read as null. Raises UnreadableFile."""
    if source.size > limit:
        raise UnreadableFile(f"{source.name} is larger than {limit // 2**20} MiB", hint="the model's own file, as published")
    return parse_json(source.read_at(0, limit), name=source.name, unlimited=unlimited)


def parse_json(data: bytes, *, name: str, unlimited: bool = False) -> dict[str, Any]:
    """One object of strict JSON: UTF-8, finite numbers, each key once, nesting that Python can hold.

    Raises UnreadableFile.
    """
    found = loads(data, name=name, unlimited=unlimited)
    if not isinstance(found, dict):
        raise UnreadableFile(f"{name} doesn't hold a JSON object", hint="the model's own file, as published")
    return found


def loads(data: bytes, *, name: str, hook: Any = None, nested: int = MAX_NESTED, unlimited: bool = False) -> Any:
    """Strict JSON of any kind; `hook` makes an object of its pairs, after the check that no key comes twice.

    Counted before it is parsed, so that what it becomes in memory has a bound.
    """
    brackets = data.count(b"[") + data.count(b"{")
    if brackets > nested or brackets + data.count(b",") > MAX_VALUES + nested or (len(data) > MAX_WIDE_BYTES and not data.isascii()):
        raise UnreadableFile(f"{name} holds more than any model's file does", hint="the model's own file, as published")

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        if len(found := dict(pairs)) < len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ValueError(f"{quoted(twice)} is given twice")
        return hook(found) if hook else found

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_limit if unlimited else _refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as e:
        raise UnreadableFile(f"{name} is not UTF-8 at byte {e.start}", hint="the model's own file, as published") from None
    except RecursionError:
        raise UnreadableFile(f"{name} is nested too deeply", hint="the model's own file, as published") from None
    except ValueError as e:
        raise UnreadableFile(f"{name} is not readable JSON ({str(e)[:120]})", hint="the model's own file, as published") from None


def inside(folder: Path, name: str) -> Path:
    """A file of a folder. Raises UnreadableFile for a name or a link that leads out of it.

    A Hugging Face cache is one folder in this sense: its snapshots are links to its blobs.
    """
    try:
        root, path = folder.resolve(), (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):
        raise UnreadableFile(f"{quoted(name)} is not a file name", hint="the model's own files, as published") from None
    if root.parent.name == "snapshots":
        root = root.parent.parent
    if os.path.isabs(name) or ".." in Path(name).parts or not path.is_relative_to(root):
        raise UnreadableFile(f"{quoted(name)} leads out of {shown(folder)}", hint="a folder that holds the files themselves")
    return folder / name


def local_path(name: str) -> Path:
    """A path that this system can look up, `~` written out; whether anything is there is the readers' question.

    Raises UnreadableFile: a user who isn't there, a name that is too long, a folder that may not be entered.
    """
    if not name.strip():
        raise UnreadableFile("an empty path", hint="a path to a file that is there")
    try:
        path = Path(name).expanduser()
        (path / "config.json" if path.is_dir() else path).is_file()
    except (OSError, RuntimeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "no such user"
        raise UnreadableFile(f"can't open {shown(name)} ({reason})", hint="a path to a file that is there") from None
    return path


def shown(path: Path | str) -> str:
    """A path for a message: its end, without what a terminal would act on."""
    return printable(str(path)[-80:])


def quoted(text: str) -> str:
    """A stranger's text for a message: clipped and escaped."""
    return repr(text if len(text) <= CLIP else text[:CLIP] + "...")


def printable(text: str) -> str:
    """Text without control characters or lone surrogates: each as its escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _no_limit(constant: str) -> None:
    """Nemotron's time_step_limit ends at Infinity; NaN is refused like anywhere."""
    if constant == "NaN":
        _refuse_constant(constant)


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text[:20]} is too large")
