"""GGUF files that llama.cpp's own converter made of small real checkpoints (validation/conversions.py, @0c1e57098).

For each model type: the file is read as the model that it was made of, every recipe takes what llama-quantize says, and
the cache is what a context takes.
"""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import fields, replace
from math import prod
from pathlib import Path

import pytest

pytest.importorskip("gguf")
from readers.files import gguf_bytes, text

from calculator.architectures import ARCHITECTURES
from calculator.catalog import Model, load_model
from calculator.estimate import estimate
from calculator.formats import FORMATS
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.readers.gguf import TYPES
from calculator.readers.gguf_families import FAMILIES
from calculator.readers.hf_config import model_from_config

RECORDS = {r["name"]: r for r in map(json.loads, gzip.decompress((Path(__file__).parent / "conversions.jsonl.gz").read_bytes()).splitlines())}
CONTEXTS = ((1024, 1, 512), (2048, 4, 64))
U32, BOOL, STR, ARR = 4, 7, 8, 9
NAMED_OTHERWISE = {"mistral": "llama", "glm4_moe_lite": "deepseek_v3", "solar_open": "glm4_moe", "roberta": "bert", "xlm-roberta": "bert"}
# not written; always 8192 in llama.cpp; from a field that transformers' own configs lack
UNKNOWN_TO_THE_FILE = {"mistral": {"sliding_window"}, "llama4_text": {"sliding_window"}, "bloom": {"max_position_embeddings"},
                       "solar_open": {"rotary_dim"}}  # the file is read as glm4_moe, half of whose heads turn  # fmt: skip


def payload(value) -> tuple[int, bytes]:
    if isinstance(value, list):
        kind = payload(value[0])[0]
        return ARR, struct.pack("<IQ", kind, len(value)) + b"".join(payload(v)[1] for v in value)
    return (BOOL, bytes([value])) if isinstance(value, bool) else (U32, struct.pack("<I", value))


def as_file(record, path: Path) -> Path:
    arch, numbers, offset, tensors = record["architecture"], {v: k for k, v in TYPES.items()}, 0, []
    keys = [("general.architecture", STR, text(arch)), ("general.file_type", *payload(1))]
    keys += [(f"{arch}.{name}", *payload(value)) for name, value in record["keys"].items()]
    for name, shape, kind in record["tensors"]:
        tensors.append((name, tuple(reversed(shape)), numbers[kind], offset))
        offset += -(-prod(shape[:-1]) * FORMATS[kind].nbytes(shape[-1]) // 32) * 32
    path.write_bytes(gguf_bytes(keys=keys, tensors=tensors))
    return path


def of_config(record):
    return model_from_config(record["config"], id=record["name"])


@pytest.mark.parametrize("name", RECORDS)
def test_a_converted_file_is_read_as_its_config(tmp_path, name):
    spec, found = of_config(RECORDS[name]), load_model(str(as_file(RECORDS[name], tmp_path / "m.gguf")))
    assert found.spec.model_type == NAMED_OTHERWISE.get(spec.model_type, spec.model_type)
    left_out = {"id", "dtype", "model_type", "rope_type"} | UNKNOWN_TO_THE_FILE.get(spec.model_type, set())
    unscaled = [replace(s, routing=replace(s.routing, scale=1.0)) for s in (found.spec, spec)]  # the records hold whole numbers alone
    ours, theirs = ({f.name: getattr(s, f.name) for f in fields(s) if f.name not in left_out} for s in unscaled)
    assert ours == theirs
    assert [w for w in found.checkpoint.warnings if "ends before" not in w] == []


@pytest.mark.parametrize("name", RECORDS)
def test_recipes_take_what_llama_quantize_says(name):
    spec, wrong = of_config(RECORDS[name]), {}
    for recipe, sizes in RECORDS[name]["recipes"].items():
        if spec.indexer and recipe == "F16":
            continue  # quantizing to F16 narrows what the converter leaves in 32 bits; published F16 files are the converter's
        ours = [stored_nbytes(quantize(spec, parse(recipe), imatrix=imatrix)) for imatrix in (False, True)]
        if ours != sizes:
            wrong[recipe] = (ours, sizes)
    assert wrong == {}


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record["cache_mib"] and name != "llama4"])
def test_caches_take_what_a_context_says(name):
    record = RECORDS[name]
    model = Model(of_config(record), {"name": name, "family": name, "sources": {"config": "made"}})
    for (cells, sequences, micro_batch), printed in zip(CONTEXTS, record["cache_mib"], strict=True):
        found = estimate(model, quant="F16", context=cells // sequences, sequences=sequences, settings={"n_ubatch": micro_batch, "backend": "cpu"}, partial=True)
        ours = sorted(line.nbytes / 2**20 for line in found.ledger.lines if line.component == "kv_cache" and line.nbytes)
        assert ours == pytest.approx(sorted(printed), abs=0.0051)


def test_every_model_type_that_llama_cpp_runs_was_converted():
    read = {family.model_type for family in FAMILIES.values()}
    hybrids = {name for name in read if ARCHITECTURES[name].recurrent}  # held to the library in tests/engines/test_hybrid_states.py, test_gguf_hybrid.py
    assert read - hybrids <= {r["config"]["model_type"] for r in RECORDS.values()} | {"qwen3"}
    assert read <= set(ARCHITECTURES)


def test_a_file_that_keeps_attn_kv_b_whole_is_read_and_caches_every_head(tmp_path):
    """As files from before ggml-org/llama.cpp#12801: one matrix of keys and values, lengths of a head in the metadata."""
    made = RECORDS["deepseek_v2"]
    heads = made["keys"]["attention.head_count"]
    rank = made["keys"]["attention.kv_lora_rank"]
    key, value, rope = (made["keys"][k] for k in ("attention.key_length_mla", "attention.value_length_mla", "rope.dimension_count"))
    tensors = [(name.replace("attn_k_b", "attn_kv_b"), [heads * (key - rope + value), rank] if "attn_k_b" in name else shape, kind)
               for name, shape, kind in made["tensors"] if "attn_v_b" not in name]  # fmt: skip
    old = made | {"tensors": tensors, "keys": made["keys"] | {"attention.key_length": key, "attention.value_length": value}}
    for name in ("attention.key_length_mla", "attention.value_length_mla"):
        del old["keys"][name]
    file, now = as_file(old, tmp_path / "old.gguf"), as_file(made, tmp_path / "new.gguf")
    whole, split = (load_model(str(path)) for path in (file, now))
    assert replace(whole.spec, id="") == replace(split.spec, id="")
    assert stored_nbytes(whole.checkpoint.stored) == stored_nbytes(split.checkpoint.stored)  # in 16 bits
    found = estimate(whole, context=1024, engine="llama.cpp", partial=True)
    cache = [line.nbytes for line in found.ledger.lines if line.component == "kv_cache"]
    assert cache == [1024 * made["keys"]["block_count"] * 2 * heads * (key + value)]
    assert found.partial
