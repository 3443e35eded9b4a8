from __future__ import annotations

import json

import pytest

from calculator import catalog
from calculator.architectures import build_inventory
from calculator.catalog import load_gpu, load_model, model_ids
from calculator.datafiles import read_json
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.report.documents import models_document
from calculator.search import parse_parameters, search


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of one's own models, and what it holds forgotten afterwards."""
    monkeypatch.setenv("VRAM_MODELS", str(tmp_path))
    caches = (catalog.model_ids, catalog.user_models, catalog.load_model, catalog._model_index)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


def test_at_least_150_models_of_many_families():
    models = [load_model(id) for id in model_ids()]
    assert len(models) >= 150
    assert len({m.spec.model_type for m in models}) >= 25


@pytest.mark.parametrize("family", ["qwen3", "Gemma", "gpt-oss", "qwen3_moe"])
def test_a_family_by_its_name_or_model_type(family):
    found = search(family=family).found
    assert found
    assert all(f.model.record["family"] in ("qwen3", "gemma", "gpt_oss") for f in found)


def test_size_and_gpu_narrow_the_search():
    gpu = load_gpu("rtx 4060")
    everything, small, held = search(), search(max_parameters=parse_parameters("2B")), search(family="llama", gpu=gpu)
    assert 0 < len(small.found) < len(everything.found)
    assert all(build_inventory(f.model.spec).parameters <= 2e9 for f in small.found)
    ids = {f.model.spec.id for f in held.found}
    assert "llama-3.2-1b" in ids
    assert "llama-3.3-70b" not in ids
    for f in held.found[:3]:
        assert f.verdict == fit(estimate(f.model, quant="Q4_K_M", gpu=gpu), gpu).verdict


def test_what_an_engine_has_no_formula_for_is_named_and_not_dropped():
    found = search(family="gemma3n_text", gpu=load_gpu("h100"))
    assert not found.found
    assert {id for id, _ in found.not_sized} == {"gemma-3n-e2b-it", "gemma-3n-e4b-it"}


@pytest.mark.parametrize(("text", "count"), [("8B", 8 * 10**9), ("1.5b", 1_500_000_000), ("500 M", 500 * 10**6), ("1234", 1234)])
def test_numbers_of_parameters(text, count):
    assert parse_parameters(text) == count


@pytest.mark.parametrize("text", ["", "B", "-1B", "1e9", "8BB", "nan", "1" * 40])
def test_what_is_no_number_of_parameters(text):
    with pytest.raises(CalculatorError, match="max-params"):
        parse_parameters(text)


def test_an_unknown_family_names_the_known():
    with pytest.raises(CalculatorError, match="qwen3"):
        search(family="qwen9")


def test_models_of_ones_own_come_first_and_name_their_file(own):
    config = read_json("models/llama-3.2-3b.json")["config"]
    (own / "mine.json").write_text(json.dumps(config))
    (own / "llama-3.2-1b.json").write_text(json.dumps({"name": "ours", "config": config | {"num_hidden_layers": 5}, "published_parameters": 7}))
    found = estimate("mine", quant="bf16")
    assert any(str(own / "mine.json") in w for w in found.warnings)
    assert load_model("llama-3.2-1b").spec.num_hidden_layers == 5
    rows = {m["id"]: m for m in models_document(search())["models"]}
    assert rows["mine"]["file"] == rows["mine"]["source"] == str(own / "mine.json")
    assert rows["llama-3.2-3b"]["file"] == "data/models/llama-3.2-3b.json"


@pytest.mark.parametrize("content", ["{", "[]", '{"config": 7}', '{"model_type": "llama5"}', '{"config": {"model_type": "llama"}}', "[" * 100_000])
def test_a_file_of_ones_own_that_is_wrong_is_named_and_harms_nothing(own, content):
    (own / "broken.json").write_text(content)
    assert "broken" not in model_ids()
    assert [id for id, _ in search().not_sized] == ["broken"]
    with pytest.raises(CalculatorError):
        load_model("broken")
