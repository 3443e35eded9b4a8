from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.errors import UnreadableFile
from calculator.readers.safetensors import TYPES, read_safetensors

np = pytest.importorskip("numpy")
reference = pytest.importorskip("safetensors")
from readers.files import read_or_refuse, safetensors_bytes  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

_TORCH = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8,
          "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "U16": 16, "U32": 32, "U64": 64, "C64": 64, "F6_E2M3": 6, "F6_E3M2": 6,
          "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(TYPES))
def test_the_reference_reader_takes_each_type_at_our_size(tmp_path, dtype):
    size = 12 * _TORCH[dtype] // 8
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"t": {"dtype": dtype, "shape": [3, 4], "data_offsets": [0, size]}}, data=size))
    assert read_safetensors(path).tensors[0].nbytes == size
    with reference.safe_open(path, framework="np") as theirs:
        assert list(theirs.keys()) == ["t"]


@given(st.dictionaries(st.text(min_size=1, max_size=12).filter(lambda s: s != "__metadata__"),
                       st.tuples(st.sampled_from(["float32", "float16", "int8", "uint8", "int64", "bool"]), st.lists(st.integers(0, 4), max_size=3)), max_size=6))  # fmt: skip
def test_any_file_of_the_reference_writer_reads_alike(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("s") / "m.safetensors"
    save_file({name: np.zeros(shape, dtype=dtype) for name, (dtype, shape) in tensors.items()}, path, {"format": "np"})
    header = read_safetensors(path)
    assert header.metadata == {"format": "np"}
    assert header.file_bytes == path.stat().st_size
    assert not header.truncated
    with reference.safe_open(path, framework="np") as theirs:
        assert {t.name: (t.type, list(t.shape)) for t in header.tensors} == {
            name: (theirs.get_slice(name).get_dtype(), theirs.get_slice(name).get_shape()) for name in theirs.keys()  # noqa: SIM118
        }


def _sharded(folder, files=2):
    weight_map = {}
    for i in range(files):
        save_file({f"t{i}": np.zeros((2, 3), dtype=np.float16)}, folder / f"model-{i}.safetensors")
        weight_map[f"t{i}"] = f"model-{i}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 12 * files}, "weight_map": weight_map}))
    return weight_map


def test_an_index_is_one_model(tmp_path):
    _sharded(tmp_path, 3)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        header = read_safetensors(path)
        assert [t.name for t in header.tensors] == ["t0", "t1", "t2"]
        assert header.tensor_bytes == 36
        assert header.file_bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))


def test_a_folder_with_one_file_needs_no_index(tmp_path):
    save_file({"t": np.zeros(3, dtype=np.float32)}, tmp_path / "model.safetensors")
    assert read_safetensors(tmp_path).tensor_bytes == 12


@pytest.mark.parametrize(("change", "what"), [
    ({"t9": "model-0.safetensors"}, "lack"), ({"t9": "model-9.safetensors"}, "missing"), ({"t9": "../x.safetensors"}, "leads out"),
    ({"t9": "/etc/x.safetensors"}, "leads out"), ({"t9": 5}, "weight_map"), ({"t9": "a.bin"}, "weight_map"), ({"t9": "\0.safetensors"}, "not a file name"),
])  # fmt: skip
def test_an_index_that_lies_is_refused(tmp_path, change, what):
    weight_map = _sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map | change}))
    with pytest.raises(UnreadableFile, match=what):
        read_safetensors(tmp_path)


def test_a_link_out_of_the_folder_is_refused_and_a_hugging_face_cache_is_one_folder(tmp_path):
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"t": np.zeros(3, dtype=np.float32)}, blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert read_safetensors(snapshot).tensor_bytes == 12
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to(blobs / "123")
    with pytest.raises(UnreadableFile, match="leads out"):
        read_safetensors(plain)


def test_a_header_alone_is_enough(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"t": {"dtype": "BF16", "shape": [1000], "data_offsets": [0, 2000]}}))
    header = read_safetensors(path)
    assert (header.tensor_bytes, header.truncated) == (2000, True)


_GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "b": {"dtype": "I8", "shape": [4], "data_offsets": [24, 28]}}


@given(st.binary(max_size=300), st.integers(0, 200), st.binary(min_size=1, max_size=8))
def test_any_bytes_are_read_or_refused(tmp_path_factory, noise, at, patch):
    folder = tmp_path_factory.mktemp("s")
    good = safetensors_bytes(_GOOD, data=28)
    for data in (noise, safetensors_bytes(noise), good[:at] + patch + good[at + len(patch) :]):
        (folder / "m.safetensors").write_bytes(data)
        header = read_or_refuse(read_safetensors, folder / "m.safetensors")
        if header is None or header.truncated:
            continue
        with reference.safe_open(folder / "m.safetensors", framework="np") as theirs:  # what we take, it takes
            assert set(theirs.keys()) == {t.name for t in header.tensors}
