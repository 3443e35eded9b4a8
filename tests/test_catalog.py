from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from calculator.catalog import load_gpu, load_gpus, load_model, model_ids, siblings
from calculator.datafiles import DATA
from calculator.errors import CalculatorError, UnknownName
from calculator.names import key
from calculator.readers.inputs import GpuInput, check_model


@pytest.mark.parametrize("name", ["llama-3.2-1b", "meta-llama/Llama-3.2-1B", "Llama 3.2 1B", "LLAMA-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"])
def test_a_model_by_any_of_its_names(name):
    assert load_model(name).spec.id == "llama-3.2-1b"


@pytest.mark.parametrize("id", model_ids())
def test_every_model_has_sources_and_a_published_total(id):
    model = load_model(id)
    assert model.record["id"] == id
    if "claims" not in model.record:  # the card's parameter count is a claim, and wrong
        assert model.record["published_parameters"]["source"]
    assert all(model.source(field) for field in model.record["config"])
    assert all(load_model(r["id"]) and r["why"] for r in model.related)


def test_shipped_data_keeps_the_rules_for_a_strangers_file():
    """What the catalog reads without validation is validated here."""
    for id in model_ids():
        check_model(asdict(load_model(id).spec))
    for path in (DATA / "gpus").glob("*.json"):
        for record in json.loads(path.read_text())["gpus"]:
            GpuInput.model_validate(record)


def test_dimensions_field_by_field():
    """A matching total doesn't prove head counts: hidden 2048 with 16/4 heads of 128 has the same total."""
    spec = load_model("llama-3.2-1b").spec
    assert (spec.hidden_size, spec.num_hidden_layers, spec.intermediate_size) == (2048, 16, 8192)
    assert (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim) == (32, 8, 64)
    assert (spec.vocab_size, spec.tie_word_embeddings, spec.max_position_embeddings) == (128256, True, 131072)
    card = load_model("llama-3.2-1b-card").spec
    assert (card.hidden_size, card.num_attention_heads, card.num_key_value_heads, card.head_dim) == (1024, 16, 4, 64)


@pytest.mark.parametrize(("name", "id"), [
    ("meta-llama/Llama-3.1-70B", "meta-llama-3.1-70b"),  # the repositories were renamed, the old names lead there
    ("meta-llama/Llama-3.1-405B-Instruct", "meta-llama-3.1-405b-instruct"),
    ("llama-3.1-405b", "meta-llama-3.1-405b"),
    ("Llama 3.1 8B Instruct", "llama-3.1-8b"),
    ("Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
])  # fmt: skip
def test_a_model_is_found_by_what_its_repository_is_called(name, id):
    assert load_model(name).spec.id == id


def test_at_least_forty_gpus_with_plausible_numbers():
    gpus = load_gpus()
    assert len(gpus) >= 40
    for gpu in gpus:
        numbers = [q.value for q in (gpu.cuda_total_bytes, gpu.nvml_total_bytes, gpu.memory_sold_bytes) if q]
        assert numbers == sorted(numbers), gpu.name
        assert 50e9 <= gpu.bandwidth_bytes_per_s.value <= 12e12, gpu.name


def test_gpu_names_and_aliases_are_unique():
    names = [key(n) for gpu in load_gpus() for n in {key(gpu.name): 1, **{key(a): 1 for a in gpu.aliases}}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("said", "card"), [("RTX 4090 24GB", "RTX 4090"), ("NVIDIA L40S (48 GB)", "L40S"), ("H100 94gb", "H100 NVL 94GB"), ("A100 40 GB", "A100 SXM4 40GB"), ("NVIDIA A100 80GB", "A100 SXM4 80GB")])
def test_a_card_s_memory_may_follow_its_name(said, card):
    assert load_gpu(said).name == card


@pytest.mark.parametrize(("said", "card"), [("NVIDIA H100", "H100 SXM5 80GB"), ("AMD MI300X", "MI300X"), ("Nvidia GeForce RTX 3060 12GB", "RTX 3060 12GB")])
def test_the_maker_s_name_may_stand_before(said, card):
    assert load_gpu(said).name == card


def test_another_memory_than_the_card_s_is_refused():
    with pytest.raises(UnknownName, match="RTX 4090 has 24 GB"):
        load_gpu("RTX 4090 48GB")


def test_an_ambiguous_gpu_takes_the_commonest_and_knows_the_others():
    gpu = load_gpu("h100")
    assert gpu.name == "H100 SXM5 80GB"
    assert "H100 PCIe 80GB" in siblings(gpu, "h100")
    assert siblings(gpu, gpu.name) == []


def test_shipped_data_names_no_local_path():
    for path in DATA.rglob("*.json"):
        text = path.read_text()
        assert not any(local in text for local in ("/work/", "/root/", "/tmp/")), path


def write(tmp_path, **config):
    base = json.loads((DATA / "models" / "llama-3.2-1b.json").read_text())["config"]
    merged = {k: v for k, v in (base | config).items() if v != "REMOVE"}
    (tmp_path / "config.json").write_text(json.dumps(merged))
    return str(tmp_path / "config.json")


def test_a_config_file_and_its_folder_work_as_a_model(tmp_path):
    path = write(tmp_path)
    spec = load_model(path).spec
    assert replace(spec, id="llama-3.2-1b") == load_model("llama-3.2-1b").spec
    assert load_model(str(tmp_path)).spec.hidden_size == 2048


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"hidden_size": "REMOVE"}, "lacks hidden_size"),
        ({"model_type": "REMOVE"}, "no model_type"),
        ({"model_type": "llama5"}, "has no formulas"),
        ({"model_type": 7}, "no model_type"),
        ({"num_key_value_heads": 5}, "doesn't divide"),
        ({"hidden_size": -4}, "hidden_size"),
        ({"hidden_size": 10**30}, "hidden_size"),
        ({"hidden_size": 2048.5}, "hidden_size"),
        ({"hidden_size": "2048"}, "hidden_size"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_attention_heads": 0, "head_dim": None}, "head_dim is absent"),
        ({"hidden_size": "2048", "head_dim": None}, "hidden_size '2048' is not a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"vocab_size": [1]}, "vocab_size"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 0}, "head_dim"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"mlp_bias": "false"}, "mlp_bias"),
        ({"num_local_experts": 8}, "experts"),
    ],
)
def test_a_config_that_is_wrong_says_what_is_wrong(tmp_path, config, words):
    with pytest.raises(CalculatorError, match=words) as error:
        load_model(write(tmp_path, **config))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_hostile_files_get_one_line(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CalculatorError) as error:
        load_model(str(file))
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_there():
    with pytest.raises(CalculatorError, match="is not a file"):
        load_model("/no/such/config.json")


def test_mistral_config_and_its_window(tmp_path):
    """Mistral 7B v0.3 (no window) and v0.1 (4,096), Qwen2.5 with a window that is off."""
    spec = load_model(write(tmp_path, model_type="mistral", sliding_window=None, rope_scaling=None)).spec
    assert spec.sliding_window is None
    load_model.cache_clear()
    assert load_model(write(tmp_path, model_type="mistral", sliding_window=4096)).spec.sliding_window == 4096
    assert load_model("qwen2.5-7b").spec.sliding_window is None
