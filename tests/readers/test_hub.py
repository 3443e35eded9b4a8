"""hf: names against a local server that speaks the Hub's protocol, its refusals and its bad days."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("huggingface_hub")
from checkpoints.test_gguf_model import BASE, FAMILIES, as_gguf
from checkpoints.test_hf_model import CONFIG, write_config, write_weights

from calculator.checkpoints.load import load_hub, load_path
from calculator.errors import CalculatorError
from calculator.quantization import parse, quantize
from calculator.readers import hub
from calculator.readers.hf_config import model_from_config
from calculator.readers.safetensors import read_safetensors


class Hub(ThreadingHTTPServer):
    """Files of one repository, org/name. `mood` changes how they are answered; `log` is (path, range, authorization)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.mood, self.log, self.times = "", [], 0

    def handle_error(self, *_) -> None:
        """A client that hangs up is no error."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        s = self.server
        s.log.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        match = re.fullmatch(r"/(org/name|cdn)/(?:resolve/main/)?(.+)", self.path)
        if self.path.startswith("/api/models/org/name/revision/main"):
            return self._send(200, json.dumps({"siblings": [{"rfilename": n} for n in s.files]}).encode())
        if not match or match[2] not in s.files:
            code = "EntryNotFound" if match else "RepoNotFound"
            return self._send(404, b"", **{"X-Error-Code": code})
        if s.mood.isdigit():
            return self._send(int(s.mood), b"", **({"X-Error-Code": "GatedRepo"} if s.mood == "403" else {}))
        if s.mood in ("429 once", "500 once", "cut once") and s.times == 0:
            s.times += 1
            if s.mood == "cut once":
                return self._part(s.files[match[2]], cut=10)
            return self._send(int(s.mood[:3]), b"", **{"Retry-After": "0"})
        if s.mood == "429 for an hour":
            return self._send(429, b"", **{"Retry-After": "3600"})
        if s.mood in ("redirect", "elsewhere") and match[1] == "org/name":
            host = s.url if s.mood == "redirect" else s.url.replace("127.0.0.1", "localhost")
            return self._send(302, b"", Location=f"{host}/cdn/{match[2]}")
        if s.mood == "loop":
            return self._send(302, b"", Location=self.path)
        return self._part(s.files[match[2]], cut=10 if s.mood == "cut" else 0)

    def _part(self, data: bytes, *, cut: int = 0) -> None:
        mood = self.server.mood
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        last = min(last, len(data) - 1)
        if first >= len(data):
            return self._send(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
        if mood == "whole":
            return self._send(200, data)
        if mood == "endless":
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return None
        shift = 1 if mood == "another part" else 0
        body = data[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{len(data) + shift}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mood == "slow":
            try:
                for i in range(len(body)):
                    self.wfile.write(body[i : i + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                return None
        if mood == "silent":
            time.sleep(1)
        self.wfile.write(body[: len(body) - cut])
        if cut:
            self.close_connection = True
        return None

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    """A running Hub, in place of the real one."""
    running = Hub()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", running.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(hub, "RETRY_S", 0.3)
    yield running
    running.shutdown()
    running.server_close()


def _spec():
    return model_from_config(CONFIG, id="made")


@pytest.fixture
def checkpoint(server, tmp_path):
    """A sharded checkpoint, on the server and in a folder."""
    write_weights(write_config(tmp_path), quantize(_spec(), parse("bf16")), files=3)
    for path in tmp_path.iterdir():
        server.files[path.name] = path.read_bytes()
    return tmp_path


def _same(there, here) -> bool:
    return there[0].vocab_size == here[0].vocab_size and [g.nbytes for g in there[1].stored] == [g.nbytes for g in here[1].stored]


@pytest.mark.parametrize("mood", ["", "redirect", "elsewhere", "429 once", "500 once", "cut once"])
def test_a_sharded_checkpoint_is_the_same_there_and_here(server, checkpoint, mood):
    server.mood = mood
    assert _same(load_hub("hf:org/name")[1:], load_path(checkpoint, id="here")[1:])
    assert all(r for path, r, _ in server.log if path.startswith("/org"))


def test_weights_are_never_asked_for(server, tmp_path):
    write_weights(write_config(tmp_path), quantize(_spec(), parse("bf16")))
    server.files["config.json"] = (tmp_path / "config.json").read_bytes()
    data, whole = (tmp_path / "model.safetensors").read_bytes(), read_safetensors(tmp_path).file_bytes
    server.files["model.safetensors"] = data + bytes(whole - len(data))
    assert load_hub("hf:org/name")[2].file_bytes == whole > 20 * 2**20
    assert sum(int(r.split("-")[1]) - int(r.split("=")[1].split("-")[0]) + 1 for _, r, _ in server.log if r) < 2**20


def test_a_config_alone_is_sized_from_the_config(server):
    server.files["config.json"] = json.dumps(CONFIG).encode()
    _, spec, stored = load_hub("hf:org/name@main")
    assert spec.hidden_size == 512
    assert stored is None


def test_a_gguf_file_and_a_split_one(server, tmp_path):
    spec = model_from_config(BASE | FAMILIES["llama"][0], id="made")
    path = as_gguf(tmp_path / "m.gguf", spec, quantize(spec, parse("Q4_K_M")), arch="llama", recipe="Q4_K_M")
    server.files["sub/m.gguf"] = path.read_bytes() + bytes(4 * 2**20)
    assert _same(load_hub("hf:org/name/sub/m.gguf")[1:], load_path(path, id="here")[1:])
    with pytest.raises(CalculatorError, match=r"try: hf:org/name/sub/m\.gguf"):
        load_hub("hf:org/name")


def test_the_token_stays_with_the_hub(server, checkpoint):
    server.mood = "elsewhere"
    load_hub("hf:org/name")
    assert {a for path, _, a in server.log if path.startswith("/org")} == {"Bearer hf_secret"}
    assert {a for path, _, a in server.log if path.startswith("/cdn")} == {None}


@pytest.mark.parametrize(("mood", "what"), [
    ("401", "private .status 401"), ("403", "gated"), ("404", "no such file"), ("410", "status 410"), ("429", "too many requests"),
    ("429 for an hour", "too many requests"), ("500", "status 500"), ("503", "status 503"), ("cut", "of .* bytes|RemoteProtocolError"),
    ("another part", "another part"), ("endless", "more than was asked for"), ("loop", "TooManyRedirects"), ("slow", "too slowly"), ("silent", "Timeout"),
])  # fmt: skip
def test_a_refusal_is_one_line_that_says_what_to_do(server, checkpoint, monkeypatch, mood, what):
    server.mood = mood
    monkeypatch.setattr(hub, "ANSWER_S", 0.2)
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(CalculatorError, match=what) as e:
        load_hub("hf:org/name")
    assert len(str(e.value).splitlines()) == 1
    assert "hf_secret" not in str(e.value)
    assert time.monotonic() - start < 6


def test_a_server_without_ranges_gives_small_files_and_no_large_ones(server, checkpoint):
    server.mood = "whole"
    assert _same(load_hub("hf:org/name")[1:], load_path(checkpoint, id="here")[1:])
    server.files["model-00001-of-00003.safetensors"] += bytes(2**20)
    with pytest.raises(CalculatorError, match="whole, not in parts"):
        load_hub("hf:org/name")


def test_an_unknown_repository_is_not_found(server):
    with pytest.raises(CalculatorError, match="no such repository"):
        load_hub("hf:org/other")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:org/../x", "hf:org/name/x.bin", "hf:org/name@a//b", "hf:org/name/../x.gguf", "hf:o/n\n"])
def test_a_name_that_is_none_is_refused_before_anything_is_asked(server, name):
    with pytest.raises(CalculatorError, match="not a model of the Hub"):
        load_hub(name)
    assert server.log == []


def test_without_huggingface_hub_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CalculatorError, match=r"pip install 'vram-calculator\[hub\]'"):
        load_hub("hf:org/name")
