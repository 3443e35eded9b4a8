"""MIG slices and fractions as devices, and several models on one GPU."""

from __future__ import annotations

import json
import statistics

import jsonschema
import pytest
from click.testing import CliRunner

from calculator.catalog import load_gpu
from calculator.cli import main, vram
from calculator.datafiles import read_json
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.memory import usable_memory
from calculator.report.schemas import schema_of
from calculator.slices import PRINTED_SHARES
from calculator.units import GIB


def run(*args):
    got = CliRunner().invoke(vram, [*args, "--json"])
    assert got.exit_code == 0, got.output
    return json.loads(got.stdout)


@pytest.mark.parametrize("name", ["H100 MIG 3g.40gb", "h100-3g.40gb", "H100 SXM5 80GB MIG 3g.40gb", "h100 3G.40GB"])
def test_a_slice_is_named_as_people_write_it(name):
    gpu = load_gpu(name)
    assert gpu.name == "H100 SXM5 80GB MIG 3g.40gb"
    assert gpu.cuda_total_bytes.value == round(39.38 * GIB)  # nvidia-smi mig -lgip


@pytest.mark.parametrize("record", read_json("slices.json")["slices"], ids=lambda r: f"{r['parent']} {r['profile']}")
def test_a_slice_is_near_its_eighths_of_the_card(record):
    card = load_gpu(record["parent"])
    total = record["cuda_total_bytes"]
    assert total["low"] <= total["value"] <= total["high"]
    assert 0.88 < total["value"] / (card.memory_sold_bytes.value * record["memory_slices"] / 8) <= 1.0
    assert load_gpu(f"{card.name} MIG {record['profile']}").bandwidth_bytes_per_s.value == card.bandwidth_bytes_per_s.value * record["memory_slices"] // 8


def test_the_band_of_a_slice_is_that_of_printed_ones():
    """Of the part of the card's usable memory: least, middle, most, in whole percent."""
    parts = []
    for record in read_json("slices.json")["slices"]:
        if record["memory_slices"] < 8:
            card = usable_memory(load_gpu(record["parent"])).value
            parts.append(100 * record["cuda_total_bytes"]["value"] * 8 / record["memory_slices"] / card)
    least, middle, most = PRINTED_SHARES
    assert least == int(min(parts))
    assert middle == round(statistics.median(parts))
    assert max(parts) <= most


@pytest.mark.parametrize(("profile", "printed_gib"), [("2g.24gb", 23.0), ("3g.48gb", 46.5), ("4g.48gb", 46.5)])
def test_a_slice_by_its_fraction_covers_what_is_printed(profile, printed_gib):
    """nvidia-smi mig -lgip of a GH200 96GB, public log, text index 47731255761."""
    usable = load_gpu(f"gh200 {profile}").cuda_total_bytes
    assert usable.low <= printed_gib * GIB <= usable.high
    assert usable.value == pytest.approx(printed_gib * GIB, rel=0.02)
    assert not usable.verified


@pytest.mark.parametrize("row", read_json("slices.json")["by_fraction"], ids=lambda r: r["parents"][0])
def test_profiles_are_named_after_their_memory(row):
    """The guide names a profile after its share of the sold memory, rounded; names are of cards of the catalog."""
    for parent in row["parents"]:
        sold = load_gpu(parent).memory_sold_bytes.value / GIB
        for name, (part, whole, *compute) in row["profiles"].items():
            gib = int(name.partition("g.")[2].removesuffix("gb"))
            assert gib == pytest.approx(sold * part / whole, abs=1.01)
            assert compute[0] <= compute[1]
            assert load_gpu(f"{parent} MIG {name}").name == f"{parent} MIG {name}"


def test_what_fits_the_card_may_not_fit_its_slice():
    found = estimate("llama-3.1-8b", quant="bf16", engine="vllm", context="32k", gpu="h100")
    assert fit(found, load_gpu("h100")).verdict == "fits"
    assert fit(found, load_gpu("h100 mig 1g.10gb")).verdict == "does_not_fit"


def test_a_fraction_is_a_share_of_the_memory():
    half, whole = load_gpu("h100:0.5"), load_gpu("h100")
    assert half.cuda_total_bytes.value == whole.cuda_total_bytes.value // 2
    assert run("estimate", "llama-3.2-1b", "--gpu", "h100:0.25")["devices"][0]["usable_bytes"] == int(whole.cuda_total_bytes.value * 0.25)


def test_several_models_on_one_gpu_add_up():
    calls = ["llama-3.2-1b --gpu rtx4090 --context 4k", "llama-3.2-3b --gpu rtx4090 --context 4k"]
    document = run("compare", *calls, "--sum")
    parts = [e["devices"][0]["required_bytes"] for e in document["estimates"]]
    assert document["sum"]["devices"][0]["required_bytes"] == sum(parts)
    assert document["sum"]["total_bytes"] == sum(e["total_bytes"] for e in document["estimates"])
    assert document["sum"]["verdict"] == "fits"
    assert "sum" not in run("compare", *calls)
    assert "together on RTX 4090 0: fits" in CliRunner().invoke(vram, ["compare", *calls, "--sum"]).stdout


@pytest.mark.parametrize(("shares", "verdict"), [((0.45, 0.4), "fits"), ((0.9, 0.9), "does_not_fit")])
def test_engines_that_reserve_add_up_by_their_shares(shares, verdict):
    calls = [f"llama-3.2-1b --engine vllm --gpu h100 --set gpu_memory_utilization={share}" for share in shares]
    assert run("compare", *calls, "--sum")["sum"]["verdict"] == verdict


def test_a_sum_of_lower_bounds_never_fits():
    """gpt-oss in transformers is weights and cache alone: with more it may not fit, and alone too large it doesn't."""
    calls = ["gpt-oss-20b --gpu h100", "llama-3.2-1b --gpu h100"]
    document = run("compare", *calls, "--sum")
    assert document["sum"]["verdict"] is None
    assert [d["fits"] for d in document["sum"]["devices"]] == [None]
    jsonschema.validate(document, schema_of("compare"))
    assert "together on H100 SXM5 80GB 0: not known" in CliRunner().invoke(vram, ["compare", *calls, "--sum"]).stdout
    assert run("compare", "gpt-oss-120b --gpu l4", "llama-3.2-1b --gpu l4", "--sum")["sum"]["verdict"] == "does_not_fit"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compare", "llama-3.2-1b --gpu rtx4090", "llama-3.2-1b --gpu h100", "--sum"], "the same --gpu NAME"),
        (["compare", "llama-3.2-1b", "llama-3.2-1b", "--sum"], "no GPU"),
        (["estimate", "llama-3.2-1b", "--gpu", "h100 mig 5g.50gb"], "allowed: 1g.10gb, 1g.20gb"),
        (["estimate", "llama-3.2-1b", "--gpu", "rtx 4090 mig 1g.10gb"], "has no MIG profile here"),
        (["estimate", "llama-3.2-1b", "--gpu", "nope mig 1g.10gb"], "not known"),
    ],
)
def test_what_is_refused_is_one_line(args, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert words in err
