from __future__ import annotations

import json
import math
import struct

import jsonschema
import pytest
from checkpoints.test_hf_model import CONFIG, write_config, write_weights
from readers.files import gguf_bytes, text

from calculator.catalog import Model
from calculator.quantization import parse, quantize
from calculator.readers.hf_config import model_from_config
from calculator.report.schemas import DOCUMENTS, schema_of


def _spec():
    return Model(model_from_config(CONFIG, id="made"), {}).spec


def _document(run, path):
    status, out, err = run("inspect", str(path), "--json")
    assert (status, err) == (0, "")
    jsonschema.validate(json.loads(out), schema_of("inspect"))
    DOCUMENTS["inspect"].model_validate_json(out)
    return json.loads(out)


def test_a_folder_shows_its_tensors_and_its_model(run, tmp_path):
    write_weights(write_config(tmp_path), quantize(_spec(), parse("bf16")), files=2)
    found = _document(run, tmp_path)
    assert (found["format"], found["architecture"], found["sizable"]) == ("safetensors", "llama", True)
    assert found["tensor_bytes"] == 2 * found["parameters"] == sum(t["bytes"] for t in found["tensors"])
    assert [(t["type"], t["count"]) for t in found["types"]] == [("BF16", found["tensor_count"])]
    assert found["dimensions"]["num_key_value_heads"] == 2
    assert len(found["files"]) == 2
    assert "BF16" in run("inspect", str(tmp_path))[1]


def test_a_config_alone_has_dimensions_and_no_tensors(run, tmp_path):
    found = _document(run, write_config(tmp_path) / "config.json")
    assert (found["format"], found["tensor_count"], found["tensor_bytes"]) == ("config", 0, None)
    assert found["parameters"] > 0


def test_a_model_without_formulas_is_shown_all_the_same(run, tmp_path):
    keys = [("general.architecture", 8, text("deepseek9")), ("x", 6, struct.pack("<f", math.nan)), ("y", 9, struct.pack("<IQ2f", 6, 2, math.inf, 1)),
            ("evil\x1b[2J", 8, text("\x1b]0;title\x07"))]  # fmt: skip
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys=keys, tensors=[("a", (256, 3), 12, 0), ("b", (32,), 0, 448)]))
    found = _document(run, tmp_path / "m.gguf")
    assert (found["architecture"], found["sizable"]) == ("deepseek9", False)
    assert "deepseek9" in found["refused"]
    assert found["metadata"]["x"] == "nan"
    assert found["metadata"]["y"] == ["inf", 1.0]
    assert [(t["type"], t["bytes"]) for t in found["types"]] == [("Q4_K", 432), ("F32", 128)]
    status, out, _ = run("inspect", str(tmp_path / "m.gguf"))
    assert status == 0
    assert "can't be sized" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", ["llama-3.2-1b", "nothing.gguf", "nothing.json", "folder"])
def test_what_is_no_file_is_one_line(run, tmp_path, name):
    (tmp_path / "folder").mkdir()
    status, out, err = run("inspect", str(tmp_path / name))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
