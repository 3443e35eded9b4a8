"""A model of the Hugging Face Hub by range requests: its config.json and the headers of its weights, never the weights.

huggingface_hub (extra `hub`) makes the addresses, the token and the session; it is imported when it is used.
What a server answers is a stranger's file like any other, and its answers have limits in size and in time.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from calculator.errors import CalculatorError, UnknownName, UnreadableFile
from calculator.readers import gguf, safetensors
from calculator.readers.header import Header, joined
from calculator.readers.untrusted import MAX_JSON_BYTES, parse_json, printable, quoted, read_json

TIMEOUT_S = 10.0  # between two parts of an answer
ANSWER_S = 60.0  # for a whole answer
RETRY_S = 5.0  # the longest that a server may ask us to wait
TRIES = 3
WINDOW = 2**17  # bytes asked for at once, at least: most headers whole
AT_ONCE = 8
_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@([\w][\w./-]{0,99}))?(?:/([\w][\w./ +-]{0,300}\.gguf))?", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


class Place(NamedTuple):
    """A repository, a revision of it and perhaps a file."""

    repository: str
    revision: str
    file: str | None


class Remote(NamedTuple):
    """What a repository holds of a model."""

    config: dict[str, Any] | None
    header: Header | None


def parse_name(name: str) -> Place:
    """hf:org/name, hf:org/name@revision, hf:org/name/file.gguf. Raises UnknownName."""
    match = _NAME.fullmatch(name)
    if not match or ".." in name or "//" in name:
        raise UnknownName(f"{quoted(name)} is not a model of the Hub", allowed="hf:org/name, hf:org/name@revision, hf:org/name/file.gguf")
    return Place(match[1], match[2] or "main", match[3])


def read_hub(name: str) -> Remote:
    """Config and headers of a model of the Hub. Raises CalculatorError: not there, not allowed, too slow, not understood."""
    place = parse_name(name)
    session = _Session()
    if place.file is not None:
        return Remote(None, _read_gguf(session, place, place.file))
    names = _files(session, place)
    if "config.json" not in names:
        ggufs = [n for n in names if n.endswith(".gguf")]
        what = "no config.json" + (f"; GGUF files: {', '.join(printable(n) for n in ggufs[:6])}" if ggufs else "")
        raise UnreadableFile(f"{name} holds {what}", hint=f"hf:{place.repository}/{printable(ggufs[0])}" if ggufs else "another repository")
    config = read_json(RemoteFile(session, place, "config.json"), limit=2 * 2**20, unlimited=True)
    return Remote(config, _read_safetensors(session, place, names))


def _read_safetensors(session: _Session, place: Place, names: list[str]) -> Header | None:
    if safetensors.INDEX not in names:
        return safetensors.read_source(RemoteFile(session, place, safetensors.SINGLE)) if safetensors.SINGLE in names else None
    weight_map = safetensors.index_files(read_json(RemoteFile(session, place, safetensors.INDEX)), name=safetensors.INDEX)
    parts = list(dict.fromkeys(weight_map.values()))
    if missing := [part for part in parts if part not in names]:
        raise UnreadableFile(f"{place.repository} lacks {quoted(missing[0])}, which its index names", hint="another revision")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        headers = list(pool.map(lambda part: safetensors.read_source(RemoteFile(session, place, part)), parts))
    return safetensors.check_index(joined(headers), weight_map)


def _read_gguf(session: _Session, place: Place, file: str) -> Header:
    first = gguf.read_source(RemoteFile(session, place, file))
    names = gguf.part_names(file, first)
    if len(names) == 1:
        return first
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return gguf.check_parts(list(pool.map(lambda part: gguf.read_source(RemoteFile(session, place, part)), names)))


def _files(session: _Session, place: Place) -> list[str]:
    """Names of the files of a repository."""
    url = f"{session.endpoint}/api/models/{place.repository}/revision/{place.revision.replace('/', '%2F')}"
    data, _ = session.get(url, f"the list of files of {place.repository}", 0, MAX_JSON_BYTES, ranged=False)
    siblings = parse_json(data, name=f"the list of files of {place.repository}").get("siblings")
    if not isinstance(siblings, list):
        raise UnreadableFile(f"the Hub's answer about {place.repository} lists no files", hint="trying again")
    return [s["rfilename"] for s in siblings if isinstance(s, dict) and isinstance(s.get("rfilename"), str)]


class RemoteFile:
    """A file of the Hub, read by range requests; the last answer is kept."""

    def __init__(self, session: _Session, place: Place, file: str) -> None:
        self.name = printable(f"{place.repository}/{file}"[-120:])
        self._ask = partial(session.get, session.url(place, file), self.name)
        self._at, self._data = 0, b""
        self._data, self.size = self._ask(0, WINDOW)

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes at an offset; fewer at the end."""
        length = max(0, min(length, self.size - offset))
        start = offset - self._at
        if start < 0 or start + length > len(self._data):
            self._data, _ = self._ask(offset, max(length, min(WINDOW, self.size - offset)))
            self._at, start = offset, 0
        return self._data[start : start + length]


class _Session:
    """Requests through huggingface_hub's session, so that its token, proxies and endpoint hold."""

    def __init__(self) -> None:
        try:
            self._hub, utils = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".utils"))
        except ImportError:
            raise CalculatorError("hf: names need huggingface_hub, which is not installed", hint="pip install 'vram-calculator[hub]'") from None
        self.endpoint = (os.environ.get("HF_ENDPOINT") or importlib.import_module("huggingface_hub.constants").ENDPOINT).rstrip("/")
        self._headers = {**utils.build_hf_headers(library_name="vram-calculator"), "Accept-Encoding": "identity"}

    def url(self, place: Place, file: str) -> str:
        """The address of a file."""
        return str(self._hub.hf_hub_url(place.repository, file, revision=place.revision, endpoint=self.endpoint))

    def get(self, url: str, what: str, offset: int, length: int, *, ranged: bool = True) -> tuple[bytes, int]:
        """Bytes of an address and the size of the whole. Raises CalculatorError after a few tries."""
        said = "no answer"
        for attempt in range(TRIES):
            try:
                return self._once(url, what, offset, length, ranged)
            except _Again as again:
                said = again.why
                if again.wait_s > RETRY_S or attempt == TRIES - 1:
                    break
                time.sleep(again.wait_s)
            except CalculatorError:
                raise
            except Exception as e:  # the session's own kinds differ between versions of huggingface_hub
                said = f"{type(e).__name__}: {printable(str(e))[:80]}"
        raise UnreadableFile(f"the Hub didn't give {what} ({said})", hint="trying again later, or a file on this machine")

    def _once(self, url: str, what: str, offset: int, length: int, ranged: bool) -> tuple[bytes, int]:
        headers = self._headers | ({"Range": f"bytes={offset}-{offset + length - 1}"} if ranged else {})
        start = time.monotonic()
        with self._hub.get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            self._check(answer, what)
            if answer.status_code == 416:
                return b"", 0
            whole, expected = self._extent(answer, what, offset, length)
            data = bytearray()
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > expected:
                    raise UnreadableFile(f"{what} is more than was asked for", hint="another endpoint (HF_ENDPOINT)")
                if time.monotonic() - start > ANSWER_S:
                    raise UnreadableFile(f"{what} comes too slowly: {len(data):,} bytes in {ANSWER_S:.0f} s", hint="trying again, or a file on this machine")
        if len(data) < expected and not (whole < 0):
            raise _Again(f"{len(data):,} of {expected:,} bytes")
        return bytes(data), len(data) if whole < 0 else whole

    def _extent(self, answer: Any, what: str, offset: int, length: int) -> tuple[int, int]:
        """Size of the whole, and of what this answer holds. -1: not said, and at most `length`."""
        if answer.status_code == 206:
            match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            if not match or int(match[1]) != offset or not offset <= int(match[2]) < min(offset + length, int(match[3])):
                raise UnreadableFile(f"the Hub answered with another part of {what}", hint="another endpoint (HF_ENDPOINT)")
            return int(match[3]), int(match[2]) - offset + 1
        said = answer.headers.get("Content-Length", "")
        size = int(said) if said.isdigit() and len(said) < 20 else -1
        if offset or size > length:  # the whole file instead of a part of it
            raise UnreadableFile(f"the server sends {what} whole, not in parts", hint="another endpoint (HF_ENDPOINT)")
        return size, length if size < 0 else size

    def _check(self, answer: Any, what: str) -> None:
        """Raise for a refusal, in words that say what to do."""
        status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
        if status in (200, 206, 416):
            return
        if status == 429 or status >= 500:
            after = answer.headers.get("Retry-After", "")
            raise _Again("too many requests (429); a token (HF_TOKEN) raises the limit" if status == 429 else f"status {status}",
                         float(after) if after.isdigit() and len(after) < 6 else 0.5)  # fmt: skip
        if status in (401, 403):
            why = "is gated: accept its conditions on its page" if code == "GatedRepo" else "is not there, or private"
            raise UnreadableFile(f"{what} {why} (status {status})", hint="HF_TOKEN with access, or huggingface-cli login")
        if status == 404:
            where = {"RevisionNotFound": "no such revision", "RepoNotFound": "no such repository"}.get(code, "no such file or repository")
            raise UnknownName(f"{what}: {where} (status 404)", hint="the name as its page writes it")
        raise UnreadableFile(f"the Hub answered {what} with status {status}", hint="trying again later")


class _Again(Exception):
    """An answer that may be better the next time."""

    def __init__(self, why: str, wait_s: float = 0.2) -> None:
        self.why, self.wait_s = why, wait_s
