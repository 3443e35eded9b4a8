"""Files that mean harm: each is one line and exit 2, in under 1.5 seconds and 200 MB, measured on a process of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from readers.files import gguf_bytes, safetensors_bytes, text

from calculator.readers.stream import MAX_STRINGS

if not Path("/proc/self/status").exists():
    pytest.skip("memory is measured by /proc", allow_module_level=True)

F32, STR, ARR = 0, 8, 9
MILLION = 10**6


def tensor(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def deep(open_: bytes, close: bytes, n=10_000) -> bytes:
    return open_ * n + close * n


def array(kind, count, payload=b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def many(n: int) -> bytes:
    """A safetensors header of n tensors."""
    return b"{" + b",".join(b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}' % i for i in range(n)) + b"}"


ARCH = ("general.architecture", STR, text("llama"))
GGUF = {
    "a length of 2**63": gguf_bytes(keys=[("k", STR, struct.pack("<Q", 2**63))]),
    "a key of 2**63 bytes": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63),
    "2**63 tensors": gguf_bytes(tensor_count=2**63),
    "2**63 keys": gguf_bytes(key_count=2**63),
    "a million claimed": gguf_bytes(tensor_count=MILLION),
    "an array of 2**63 strings": gguf_bytes(keys=[("k", ARR, array(STR, 2**63))]),
    "an array of 2**61 numbers": gguf_bytes(keys=[("k", ARR, array(4, 2**61))]),
    "arrays of arrays": gguf_bytes(keys=[("k", ARR, struct.pack("<IQ", ARR, 1) * 10_000)]),
    "a negative shape": gguf_bytes(tensors=[("t", (2**64 - 4,), F32, 0)]),
    "a shape that overflows": gguf_bytes(tensors=[("t", (2**32, 2**32), F32, 0)]),
    "an offset of 2**63": gguf_bytes(tensors=[("t", (32,), F32, 2**63)]),
    "overlapping tensors": gguf_bytes(tensors=[("t", (64,), F32, 0), ("u", (64,), F32, 32)]),
    "a key twice": gguf_bytes(keys=[ARCH, ARCH]),
    "a tensor twice": gguf_bytes(tensors=[("t", (32,), F32, 0), ("t", (32,), F32, 128)]),
    "a key that is not UTF-8": gguf_bytes(keys=[(b"\xff\xfe", STR, text("x"))]),
    "a name that is not UTF-8": gguf_bytes(tensors=[(b"\xc3\x28", (32,), F32, 0)]),
    "a value that is not UTF-8": gguf_bytes(keys=[("k", STR, struct.pack("<Q", 2) + b"\xff\xff")]),
    "4 billion dimensions": gguf_bytes()[:-16] + struct.pack("<QQ", 1, 0) + struct.pack("<Q1sI", 1, b"t", 2**32 - 1),
    "an unknown type": gguf_bytes(tensors=[("t", (32,), 4_000_000, 0)]),
    "a removed type": gguf_bytes(tensors=[("t", (32,), 31, 0)]),
    "a torn block": gguf_bytes(tensors=[("t", (33,), 12, 0)]),
    "an alignment of 3": gguf_bytes(keys=[("general.alignment", 4, struct.pack("<I", 3))]),
    "dimensions that are NaN": gguf_bytes(keys=[ARCH, ("llama.embedding_length", 6, b"\0\0\xc0\x7f")], tensors=[("token_embd.weight", (32, 4), F32, 0)]),
    "dimensions that are text": gguf_bytes(keys=[ARCH, ("llama.block_count", STR, text("9" * 5000))], tensors=[("token_embd.weight", (32, 4), F32, 0)]),
    "nothing": b"", "a word": b"GGUF", "other bytes": os.urandom(4096), "zeros": bytes(2**20),
}  # fmt: skip
SAFETENSORS = {
    "a length of 2**63": safetensors_bytes({"t": tensor()}, length=2**63),
    "a length beyond the file": safetensors_bytes({"t": tensor()}, length=10_000),
    "a million tensors": lambda: safetensors_bytes(many(MILLION)),
    "110,000 tensors": lambda: safetensors_bytes(many(110_000)),
    "110,000 tensors in other words": lambda: safetensors_bytes(many(110_000).replace(b"_", b"\\u005f")),
    "five million lists": lambda: safetensors_bytes(b'{"t":[' + b"[]," * 5 * MILLION + b"0]}"),
    "eight million numbers": lambda: safetensors_bytes(b'{"t":[' + b"0," * 7 * MILLION + b"0]}"),
    "wide text": lambda: safetensors_bytes(('{"t":"' + "😀" * 3 * MILLION + '"}').encode()),
    "a negative shape": safetensors_bytes({"t": tensor(shape=[-2])}),
    "a shape that overflows": safetensors_bytes({"t": tensor(shape=[2**40, 2**40])}),
    "a shape of 2**63": safetensors_bytes({"t": tensor(shape=[2**63])}),
    "a shape of true": safetensors_bytes({"t": tensor(shape=[True, 2])}),
    "a shape of 1e999": safetensors_bytes(b'{"t":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}'),
    "offsets that run backwards": safetensors_bytes({"t": tensor(data_offsets=[8, 0])}),
    "overlapping tensors": safetensors_bytes({"t": tensor(), "u": tensor(data_offsets=[4, 12])}, data=12),
    "holes": safetensors_bytes({"t": tensor(), "u": tensor(data_offsets=[16, 24])}, data=24),
    "bytes after the end": safetensors_bytes({"t": tensor()}, data=9),
    "nesting 10,000 deep": safetensors_bytes(b'{"t":' + deep(b"[", b"]") + b"}"),
    "objects 10,000 deep": safetensors_bytes(deep(b'{"t":', b"}").replace(b":}", b":0}")),
    "a tensor twice": safetensors_bytes(b'{"t":{"dtype":"I8","shape":[],"data_offsets":[0,1]},"t":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}'),
    "a field twice": safetensors_bytes(b'{"t":{"dtype":"I8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    "NaN": safetensors_bytes(b'{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
    "not UTF-8": safetensors_bytes(b'{"\xff":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}'),
    "a number of 5,000 digits": safetensors_bytes(b'{"t":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}'),
    "an unknown dtype": safetensors_bytes({"t": tensor(dtype="F7\x1b[2J")}),
    "an array": safetensors_bytes(b"[1, 2]"), "nothing": b"", "zeros": bytes(2**20), "other bytes": os.urandom(4096),
}  # fmt: skip
CONFIG = {
    "nesting 10,000 deep": b'{"a":' + deep(b"[", b"]") + b"}",
    "objects 10,000 deep": deep(b'{"a":', b"}").replace(b":}", b":0}"),
    "a key twice": b'{"model_type":"llama","model_type":"gpt2"}',
    "NaN": b'{"model_type":"llama","hidden_size":NaN}',
    "infinity": b'{"model_type":"llama","hidden_size":1e999}',
    "not UTF-8": b'{"model_type":"\xff"}',
    "UTF-16": '{"model_type":"llama"}'.encode("utf-16"),
    "half a character": b'{"model_type":"\\ud800"}',
    "a million lists": b'{"a":[' + b"[]," * 600_000 + b"0]}",
    "50 MB": lambda: b'{"a":"' + b"x" * 50 * MILLION + b'"}',
    "a list": b"[]", "nothing": b"", "text_config of itself": b'{"model_type":"x","text_config":{"text_config":{}}}',
    "quantization that is deep": b'{"model_type":"llama","quantization_config":' + deep(b'{"a":', b"}").replace(b":}", b":0}") + b"}",
    "a width of 2**63": json.dumps({"model_type": "llama", "hidden_size": 2**63, "num_hidden_layers": 2**63, "num_attention_heads": 2**63, "intermediate_size": 2**63,
                                    "vocab_size": 2**63, "max_position_embeddings": 2**63, "torch_dtype": "float16"}).encode(),
}  # fmt: skip
_START = """
import contextlib, io, json, resource, sys, time
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from calculator.cli import main
found = []
for path in sys.argv[2:]:
    out, err, code, start = io.StringIO(), io.StringIO(), 0, time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([sys.argv[1], path])
        except SystemExit as e:
            code = e.code
    found.append((code, out.getvalue(), err.getvalue(), time.process_time() - start))
# the peak of this process alone: rusage would count the one it was forked from
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([int(peak), found]))
"""


def refused(*paths: Path, command: str = "estimate") -> list[str]:
    """The one line of each refusal. Fails on anything else, on 1.5 seconds, and on 200 MB for all of them."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _START, command, *map(str, paths)], capture_output=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr.decode()[-800:]
    kib, found = json.loads(done.stdout)
    for path, (code, out, err, seconds) in zip(paths, found, strict=True):
        assert (code, out) == (2, ""), (path, err[-500:])
        assert err.startswith("error: "), path
        assert err.removesuffix("\n").isprintable(), (path, err)  # one line
        assert len(err) < 1000, (path, err)
        assert seconds < 1.5, (path, seconds)  # 0.2 to 0.6 where nobody else computes
    assert kib < 200 * 1024
    return [err for _, _, err, _ in found]


def write(folder: Path, cases: dict, name: str) -> list[Path]:
    """A folder a case; the large ones are made when they are needed."""
    paths = []
    for i, case in enumerate(cases.values()):
        (folder / str(i)).mkdir()
        paths.append(folder / str(i) / name)
        paths[-1].write_bytes(case() if callable(case) else case)
    return paths


def test_gguf(tmp_path):
    refused(*write(tmp_path, GGUF, "m.gguf"))


def test_safetensors(tmp_path):
    refused(*write(tmp_path, SAFETENSORS, "m.safetensors"), command="inspect")


def test_config(tmp_path):
    refused(*write(tmp_path, CONFIG, "config.json"))


def test_as_many_strings_as_are_read_of_a_sparse_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(keys=[("k", ARR, array(STR, MAX_STRINGS - 1)), ("l", ARR, array(STR, 2**40))], key_count=3))
    with path.open("r+b") as file:
        file.truncate(10**11)
    refused(path)


@pytest.mark.parametrize("link", ["config.json", "model.safetensors"])
def test_a_link_out_of_a_folder(tmp_path, link):
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type":"llama"}')
        (folder / "model.safetensors").write_bytes(safetensors_bytes({"t": tensor()}, data=8))
    (inside / link).unlink()
    (inside / link).symlink_to(outside / link)
    assert "leads out" in refused(inside, command="inspect" if link == "model.safetensors" else "estimate")[0]


def test_an_index_that_points_elsewhere(tmp_path):
    names = ["../../etc/passwd.safetensors", "/dev/zero.safetensors", "a/../../b.safetensors", "\0.safetensors"]
    indexes = {name: json.dumps({"weight_map": {"t": name}}).encode() for name in names}
    refused(*write(tmp_path, indexes, "model.safetensors.index.json"), command="inspect")


def test_an_index_of_a_million_tensors(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {f"t{i}": "m.safetensors" for i in range(MILLION)}}))
    refused(tmp_path, command="inspect")


def test_a_pipe_a_loop_and_a_device_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    (tmp_path / "folder.gguf").mkdir()
    refused(*(tmp_path / f"{name}.gguf" for name in ("pipe", "loop", "zero", "folder")))
