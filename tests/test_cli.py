from __future__ import annotations

import json

import jsonschema
import pytest

from calculator.cli import LATER, vram
from calculator.report.schemas import DOCUMENTS, schema_of

CALLS = {
    "estimate": ["estimate", "llama-3.2-1b", "--gpu", "h100", "--quant", "Q4_K_M"],
    "compare": ["compare", "llama-3.2-1b", "llama-3.2-1b-card --quant bnb-nf4", "--json"],
    "sweep": ["sweep", "llama-3.2-1b", "--quants", "bf16,Q8_0", "--contexts", "1k:4k", "--sequences", "1,2", "--all-gpus"],
    "recommend": ["recommend", "llama-3.2-1b", "--context", "128k"],
    "solve": ["solve", "llama-3.1-8b", "--gpu", "rtx 4090", "--for", "context"],
    "audit": ["audit", "llama-3.2-1b-card"],
    "report": ["report", "llama-3.2-1b", "--json"],
    "validate": ["validate"],
    "models": ["models"],
    "gpus": ["gpus"],
    "quants": ["quants"],
    "engines": ["engines"],
}


@pytest.mark.parametrize(("command", "call"), CALLS.items())
def test_json_is_one_object_that_keeps_its_schema(run, command, call):
    keeps_schema(run, command, call)


H100, BIG = ["--gpu", "h100"], ["--set", "total_memory_bytes=85000000000"]
DEPLOYMENTS = [
    [*H100],
    [],
    ["--engine", "vllm", *H100],
    ["--engine", "vllm"],
    ["--engine", "vllm", *H100, "--tp", "2", "--pp", "2"],
    ["--engine", "sglang", *BIG],
    ["--engine", "sglang", *H100, "--tp", "2"],
    ["--quant", "Q4_K_M", "--gpu", "rtx 4060", "--set", "n_gpu_layers=8"],
    ["--quant", "Q4_K_M", "--gpu", "rtx 4060", "--gpus", "2"],
]


@pytest.mark.parametrize("options", DEPLOYMENTS, ids=" ".join)
def test_estimates_of_every_engine_keep_the_schema(run, options):
    """A pool, offloaded layers and several devices fill fields that a plain estimate leaves null."""
    document = keeps_schema(run, "estimate", ["estimate", "llama-3.2-1b", *options])
    assert (document["kv_pool"] is not None) == ("sglang" in options or ("vllm" in options and H100[0] in options))
    call = " ".join(["llama-3.2-1b", *options]).replace("rtx 4060", "rtx4060")
    keeps_schema(run, "compare", ["compare", call, "llama-3.2-1b"])


def keeps_schema(run, command, call):
    """The call's JSON, which holds to the schema that `vram schema` prints."""
    status, out, err = run(*call, *([] if "--json" in call else ["--json"]))
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["schema_version"] == 1
    assert document["calculator_version"]
    assert document["data_version"]
    jsonschema.validate(document, schema_of(command))
    DOCUMENTS[command].model_validate_json(out)
    return document


@pytest.mark.parametrize(("command", "call"), [c for c in CALLS.items() if c[0] != "report"])
def test_text_is_for_people(run, command, call):
    status, out, err = run(*[word for word in call if word != "--json"])
    assert (status, err) == (0, "")
    assert len(out.splitlines()) > 1
    assert "{" not in out.splitlines()[0]


def test_estimate_json_has_the_contracts_fields(run):
    document = json.loads(run(*CALLS["estimate"], "--json")[1])
    assert list(document) >= ["schema_version"]
    assert set(document) >= {
        "model", "deployment", "components", "total_bytes", "total_low_bytes", "total_high_bytes", "memory", "host_bytes",
        "tensor_bytes", "file_bytes", "kv_bytes_per_token", "peak", "kv_pool", "reserved_bytes", "lines", "devices",
        "speed", "start_command", "related", "verdict", "warnings",
    }  # fmt: skip
    assert sum(document["components"].values()) == document["total_bytes"] == document["memory"]["process_bytes"]
    assert document["memory"]["allocated_bytes"] <= document["memory"]["reserved_bytes"] <= document["total_bytes"]
    assert document["tensor_bytes"] == 799_862_912
    assert document["file_bytes"] == 807_694_464
    assert document["related"][0]["id"] == "llama-3.2-1b-card"
    assert document["related"][0]["kv_bytes_per_token"] == 16_384
    assert document["deployment"]["settings"]["n_ctx"] == 8192
    host = sum(line["bytes"] for line in document["lines"] if line["device"] == "host")
    assert host == document["host_bytes"] > 0
    assert any("H100 PCIe" in w for w in document["warnings"])  # h100 is ambiguous, and says what it took


BAD = [
    ["estimate", "llama-3.2-1b", "--context", "0"],
    ["estimate", "llama-3.2-1b", "--context", "-1"],
    ["estimate", "llama-3.2-1b", "--context", str(10**30)],
    ["estimate", "llama-3.2-1b", "--context", "12q"],
    ["estimate", "llama-3.2-1b", "--context", "NaN"],
    ["estimate", "llama-3.2-2b"],
    ["estimate", "llama-3.2-1b", "--quant", "exl2-4.0", "--engine", "vllm"],
    ["estimate", "llama-3.2-1b", "--quant", "Q8_0", "--set", "flash_attn=0", "--set", "type_v=q8_0"],
    ["estimate", "llama-3.2-1b", "--set", "nonsense=1"],
    ["estimate", "llama-3.2-1b", "--set", "nonsense"],
    ["estimate", "llama-3.2-1b", "--set", "phase=decode", "--set", "phase=prefill"],
    ["estimate", "llama-3.2-1b", "--tp", "3"],
    ["estimate", "llama-3.2-1b", "--tp", "2"],
    ["estimate", "llama-3.2-1b", "--gpus", "17"],
    ["estimate", "llama-3.2-1b", "--gpus", "2", "--pp", "3"],
    ["estimate", "llama-3.2-1b", "--engine", "vllm", "--gpus", "2", "--tp", "4"],
    ["estimate", "llama-3.2-1b", "--gpu", "8xH100"],
    ["estimate", "llama-3.2-1b", "--quant", "Q4_K_M", "--gpu", "Gaudi 3"],
    ["estimate", "llama-3.2-1b", "--engine", "vllm", "--set", "block_size=17"],
    ["estimate", "llama-3.2-1b", "--check"],
    ["estimate", "llama-3.2-1b", "--no-such-option"],
    ["estimate"],
    ["nonsense"],
    ["compare", "llama-3.2-1b"],
    ["compare", "llama-3.2-1b", "llama-3.2-1b 'unclosed"],
    ["compare", "llama-3.2-1b", "llama-3.2-1b --bad"],
    ["sweep", "llama-3.2-1b", "--contexts", "8k:1k"],
    ["sweep", "llama-3.2-1b", "--contexts", "1:1m:1"],
    ["sweep", "llama-3.2-1b", "--quants", "nope"],
    ["sweep", "llama-3.2-1b", "--quants", ""],
    ["sweep", "llama-3.2-1b", "-o", "x.xlsx"],
    ["recommend"],
    ["recommend", "llama-3.2-1b", "--objective", "price"],
    ["recommend", "--here"],
    ["solve", "llama-3.2-1b", "--gpu", "t4", "--for", "n_gpu_layers", "--engine", "vllm"],
    ["solve", "llama-3.2-1b", "--gpu", "t4", "--for", "love"],
    ["solve", "llama-3.2-1b", "--for", "context"],
    ["report", "llama-3.2-1b", "-o", "x.pdf"],
    ["estimate", "llama-3.2-1b", "--quant", "Q8_0", "--set", "n_ctx=1024"],
    ["estimate", "llama-3.2-1b", "--quant", "Q8_0", "--sequences", "4", "--set", "n_seq_max=2"],
    ["schema", "nope"],
    *([name] for name in LATER),
    *([name, "anything", "--at", "all"] for name in LATER),
]


@pytest.mark.parametrize("call", BAD, ids=" ".join)
@pytest.mark.parametrize("as_json", [False, True])
def test_bad_input_is_one_line_and_exit_2(run, call, as_json):
    takes_json = as_json and call[0] != "nonsense"
    status, out, err = run(*call, *(["--json"] if takes_json else []))
    assert status == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("error: ")
    assert len(err) < 700


@pytest.mark.parametrize("path", ["~no-such-user/config.json", "x" * 300 + ".json", "./" + "x" * 300 + "/model.safetensors", "~", "."])
@pytest.mark.parametrize("command", ["estimate", "inspect", "audit", "quants", "sweep", "recommend"])
def test_a_path_that_cannot_be_looked_up_is_bad_input(run, tmp_path, monkeypatch, command, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    status, out, err = run(command, path)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("error: ")


def test_check_exits_1_when_it_does_not_fit(run):
    assert run("estimate", "llama-3.3-70b", "--gpu", "rtx 4090", "--check")[0] == 1
    assert run("estimate", "llama-3.2-1b", "--gpu", "rtx 4090", "--check")[0] == 0


def test_explain_prints_formula_and_source_of_every_line(run):
    document = json.loads(run(*CALLS["estimate"], "--json")[1])
    out = run(*CALLS["estimate"], "--explain")[1]
    for line in document["lines"]:
        assert line["formula"] in out
        assert line["source"] in out


def test_every_command_of_the_contract_exists():
    wanted = {
        "estimate", "compare", "sweep", "recommend", "solve", "plan", "train", "audit", "inspect", "report", "validate",
        "measure", "verify", "trace", "models", "gpus", "quants", "engines", "detect", "app", "schema",
    }  # fmt: skip
    assert set(vram.commands) >= wanted


def test_help_is_not_an_error(run):
    status, out, _ = run("estimate", "--help")
    assert status == 0
    assert "--kv-dtype" in out


def test_sweep_takes_what_an_estimate_takes(run):
    options = ["--engine", "vllm", "--gpu", "A100 80GB PCIe", "--tp", "2", "--set", "max_num_seqs=16"]
    rows = json.loads(run("sweep", "llama-3.1-8b", "--quants", "fp8", "--contexts", "4k,8k", "--json", *options)[1])["rows"]
    each = [json.loads(run("estimate", "llama-3.1-8b", "--quant", "fp8", "--context", c, "--json", *options)[1])["total_bytes"] for c in ("4k", "8k")]
    assert [row["total_bytes"] for row in rows] == each
    assert run("sweep", "llama-3.1-8b", "--set", "nonsense=1")[0] == 2
    assert run("sweep", "llama-3.1-8b", "--tp", "2")[2] == run("estimate", "llama-3.1-8b", "--tp", "2")[2] != ""


def test_sweep_writes_files(run, tmp_path):
    file = tmp_path / "new" / "grid.csv"
    status, out, _ = run("sweep", "tinyllama-1.1b", "--quants", "bf16", "--contexts", "1k,2k", "-o", str(file))
    assert status == 0
    assert "2 rows" in out
    assert len(file.read_text().splitlines()) == 3
    assert run("sweep", "tinyllama-1.1b", "-o", str(tmp_path / "grid.parquet"))[0] == 0


def test_related_entries_are_sized_in_the_same_deployment(run):
    call = ["estimate", "llama-3.2-1b", "--quant", "Q8_0", "--set", "type_k=q8_0", "--set", "type_v=q4_0", "--json"]
    document = json.loads(run(*call)[1])
    card = json.loads(run(call[0], "llama-3.2-1b-card", *call[2:])[1])
    assert document["related"][0]["total_bytes"] == card["total_bytes"]
    assert document["related"][0]["kv_bytes_per_token"] == card["kv_bytes_per_token"] == document["kv_bytes_per_token"] // 2


def test_the_page_that_vram_app_starts_is_there():
    from calculator.commands.dashboard import PAGE

    assert PAGE.is_file()


@pytest.mark.parametrize(
    ("engine", "setting", "hint"),
    [
        ("vllm", "max_num_seq=5", "max_num_seqs"), ("vllm", "kv_cache_dtype=fp8", "--kv-dtype"), ("vllm", "ep_size=2", "enable_expert_parallel"),
        ("sglang", "gpu_memory_utilization=0.8", "mem_fraction_static"), ("sglang", "n_ctx=4096", "context_length"),
    ],
)  # fmt: skip
def test_a_setting_of_another_name_is_hinted_at_in_a_line(run, engine, setting, hint):
    status, _, err = run("estimate", "llama-3.1-8b", "--engine", engine, "--set", setting)
    assert status == 2
    assert f"try: {hint}," in err
    assert len(err) < 130


def test_what_is_left_for_a_pool_is_never_negative(run):
    call = ["estimate", "gpt-oss-120b", "--engine", "vllm", "--gpu", "h100", "--context", "128k", "--sequences", "8", "--json"]
    pool = json.loads(run(*call)[1])["kv_pool"]
    assert 0 == pool["low_bytes"] < pool["bytes"] <= pool["high_bytes"]


def test_sglang_computes_in_float16_on_cards_without_bfloat16(run):
    assert "--dtype float16" in run("estimate", "llama-3.1-8b", "--engine", "sglang", "--gpu", "t4", "--tp", "2")[1]
    assert "--dtype bfloat16" in run("estimate", "llama-3.1-8b", "--engine", "sglang", "--gpu", "h100")[1]
