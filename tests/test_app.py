"""The dashboard shows what the functions say: its total, its verdict, its hints. One page, run without a browser."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")
pytest.importorskip("plotly")

from streamlit.testing.v1 import AppTest

from calculator import charts
from calculator.catalog import load_gpu, load_gpus, load_model, model_ids
from calculator.engines import ENGINES
from calculator.errors import CalculatorError, UnknownName
from calculator.estimate import estimate
from calculator.fit import fit, usable_memory
from calculator.quantization import CATALOG
from calculator.recommend import recommend
from calculator.report import estimate_document
from calculator.ui import tables
from calculator.ui.state import catalog_id
from calculator.units import gib

APP = str(Path(__file__).parent.parent / "app.py")
FEW_GPUS = {"vendor": "Intel"}  # the table of GPUs is the slow part of the page
RELEASED, CARD = "llama-3.2-1b", "llama-3.2-1b-card"


def open_page(**url: str) -> AppTest:
    at = AppTest.from_file(APP, default_timeout=60)
    for name, value in {**FEW_GPUS, **url}.items():
        at.query_params[name] = value
    return run(at)


def run(page_or_widget: Any) -> AppTest:
    at: AppTest = page_or_widget.run()
    assert not at.exception, at.exception[0].message
    return at


def total_of(at: AppTest) -> int:
    found = [m[1] for c in at.caption if (m := re.match(r"([\d,]+) bytes", c.value))]
    return int(found[0].replace(",", ""))


def cases(n: int) -> list[tuple[str, str, int, int]]:
    rng = random.Random(20)
    found = []
    while len(found) < n:
        model = load_model(rng.choice(model_ids()))
        case = (model.spec.id, rng.choice(CATALOG), rng.choice(tables.contexts(model)), rng.choice((1, 2, 7, 32)))
        try:
            estimate(case[0], quant=case[1], context=case[2], sequences=case[3])
        except CalculatorError:
            continue
        found.append(case)
    return found


def test_the_total_is_that_of_estimate_in_20_random_cases():
    at = open_page()
    for id, quant, context, sequences in cases(20):
        released = load_model(id).record.get("released", id)
        if at.selectbox(key="model").value != released:
            run(at.selectbox(key="model").set_value(released))
        if released == RELEASED and at.segmented_control(key="entry").value != id:
            run(at.segmented_control(key="entry").set_value(id))
        at.selectbox(key="quant").set_value(quant)
        at.select_slider(key="context").set_value(context)
        at.number_input(key="sequences").set_value(sequences)
        run(at)
        wanted = estimate(id, quant=quant, context=context, sequences=sequences)
        assert total_of(at) == wanted.total_bytes, (id, quant, context, sequences)
        assert at.metric[0].value == gib(wanted.total_bytes)
        assert not at.warning or not [w for w in at.warning if "instead" in w.value]


def test_a_url_restores_the_page_and_the_page_writes_the_url():
    url = {"model": CARD, "quant": "q4_k_m", "context": "10000", "sequences": "3", "kv_dtype": "q8_0", "gpu": "rtx4090",
           "n_ubatch": "256", "sort": "speed"}  # fmt: skip
    at = open_page(**url)
    options: dict[str, Any] = {"quant": "Q4_K_M", "context": 10_000, "sequences": 3, "kv_dtype": "q8_0",
                               "settings": {"n_ubatch": 256}}  # fmt: skip
    assert not at.warning
    assert total_of(at) == estimate(CARD, **options, gpu="RTX 4090").total_bytes
    run(at.number_input(key="n_ubatch").set_value(1024))
    run(at.selectbox(key="gpu").set_value("A40"))
    options["settings"] = {"n_ubatch": 1024}
    assert total_of(at) == estimate(CARD, **options, gpu="A40").total_bytes
    written = {name: value[0] if isinstance(value, list) else value for name, value in at.query_params.items()}
    assert written == {"model": CARD, "quant": "Q4_K_M", "context": "10000", "sequences": "3", "kv_dtype": "q8_0",
                       "gpu": "A40", "n_ubatch": "1024", "sort": "speed", **FEW_GPUS}  # fmt: skip
    again = open_page(**written)
    assert not again.warning
    assert total_of(again) == total_of(at)


def test_bad_values_in_the_url_give_hints_and_the_defaults():
    bad = {"model": "/etc/passwd", "quant": "q9", "context": "abc", "sequences": "-1", "kv_dtype": "zz",
           "engine": "mlx", "gpu": "rtx 9999", "gpus": "99", "attn_implementation": "![x](http://x)", "logits_to_keep": str(2**40), "ctx": "8k"}  # fmt: skip
    at = open_page(**bad)
    assert len(at.warning) == len(bad)
    text = "\n".join(w.value for w in at.warning)
    assert "context" in text
    assert "![" not in text
    assert total_of(at) == estimate(RELEASED, quant="bf16", context=8192).total_bytes


def test_vllm_in_the_url_is_sized_by_its_reservation():
    at = open_page(engine="vllm", gpu="rtx4090", gpu_memory_utilization="0.5")
    assert not at.warning
    wanted = estimate(RELEASED, quant="bf16", context=8192, engine="vllm", gpu="rtx 4090", settings={"gpu_memory_utilization": 0.5})
    assert total_of(at) == wanted.total_bytes
    assert f"usable {gib(wanted.pool.usable.value)}" in at.success[0].value
    assert "a GPU of NVIDIA or AMD" in open_page(engine="vllm", gpu="M3 Max (40-core) 48GB").info[0].value


def test_a_url_opens_no_file_of_the_server(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(load_model("qwen2.5-0.5b").record["config"]))
    with pytest.raises(UnknownName):
        catalog_id(str(config))
    at = open_page(model=str(config))
    assert "model" in at.warning[0].value
    assert total_of(at) == estimate(RELEASED, quant="bf16", context=8192).total_bytes


@pytest.mark.parametrize("name", ["Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B", "LLAMA 3.2 1B"])
def test_a_url_names_a_model_as_the_command_line_does(name):
    assert catalog_id(name) == load_model(name).spec.id == RELEASED


def test_values_that_do_not_go_together_give_a_hint():
    at = open_page(model="tinyllama-1.1b", context="64k", kv_dtype="q4_0")
    too_long, no_such_cache = at.warning
    assert "2,048" in too_long.value
    assert "q4" in no_such_cache.value
    assert total_of(at) == estimate("tinyllama-1.1b", quant="bf16", context=2048).total_bytes


def test_an_engine_that_refuses_the_quantization_stops_the_page_with_its_hint():
    at = open_page(quant="Q4_K_M", engine="transformers")
    assert "\\-\\-engine llama.cpp" in at.info[0].value
    assert not at.metric
    run(at.selectbox(key="engine").set_value("llama.cpp"))
    assert total_of(at) == estimate(RELEASED, quant="Q4_K_M", context=8192, engine="llama.cpp").total_bytes


def test_the_verdict_is_that_of_fit():
    at = open_page(model="llama-3.3-70b", gpu="rtx 4060")
    assert "does not fit" in at.error[0].value
    short = -fit(estimate("llama-3.3-70b", context=8192, gpu="RTX 4060"), load_gpu("RTX 4060")).binding.headroom_bytes
    assert f"{gib(short)} short" in at.error[0].value
    run(at.selectbox(key="gpu").set_value("H200 SXM 141GB"))
    held = fit(estimate("llama-3.3-70b", context=8192, gpu="H200 SXM 141GB"), load_gpu("H200 SXM 141GB"))
    box = {"fits": at.success, "tight": at.warning, "does_not_fit": at.error}[held.verdict]
    assert tables.VERDICTS[held.verdict] in box[0].value
    run(at.number_input(key="gpus").set_value(2))
    assert total_of(at) == estimate("llama-3.3-70b", context=8192, gpu="H200 SXM 141GB", gpus=2).total_bytes


def test_the_table_of_gpus_is_that_of_recommend():
    at = open_page(vendor="AMD", segment="consumer", sort="headroom", model="llama-3.1-8b", context="32k")
    options = {"quant": "bf16", "context": 32768, "sequences": 1}
    cards = [gpu for gpu in load_gpus() if gpu.vendor == "AMD" and gpu.segment == "consumer"]
    found = recommend(load_model("llama-3.1-8b"), options, objective="headroom", gpus=cards)
    table = next(d.value for d in at.dataframe if "headroom" in d.value)
    assert list(table["GPU"]) == [c.gpu.name if c.count == 1 else f"{c.count} x {c.gpu.name}" for c in found.candidates]
    assert list(table["change"]) == ["; ".join(c.changes) for c in found.candidates]
    assert list(table["headroom"] * 2**30) == pytest.approx([c.fit.binding.headroom_bytes for c in found.candidates])
    rejected = next(d.value for d in at.dataframe if "reason" in d.value)
    assert list(rejected["reason"]) == [r.reason for r in found.rejected]


def test_the_card_shows_the_released_checkpoint_beside_it_and_what_contradicts_it():
    at = open_page(model=CARD)
    twins = at.table[0].value
    assert list(twins.loc["KV cache a token, bf16 (bytes)"]) == ["32,768", "16,384"]
    assert list(twins.loc["parameters"]) == ["1,235,814,400", "374,637,568"]
    totals = [gib(estimate(id, context=8192).total_bytes) for id in (RELEASED, CARD)]
    assert list(twins.loc["total at this setting"]) == totals
    rows = {row["field"]: row for row in tables.spec_table(load_model(CARD))}
    assert {f for f, row in rows.items() if row["contradicted by"]} == set(load_model(CARD).record["contradicted"])
    claims = tables.claim_rows(load_model(CARD))
    assert [c["the card says"] for c in claims] == [c["text"] for c in load_model(CARD).record["claims"]]


def test_the_downloads_are_the_lines_and_the_document_of_the_command_line():
    estimated = estimate(RELEASED, quant="Q4_K_M", context=32768, gpu="RTX 4090")
    rows = list(csv.DictReader(io.StringIO(tables.lines_csv(estimated))))
    assert sum(int(row["bytes"]) for row in rows if row["device"] != "host") == estimated.total_bytes
    assert json.loads(tables.estimate_json(estimated)) == json.loads(json.dumps(estimate_document(estimated)))


def test_what_ranks_hold_alike_is_one_row_and_adds_up_over_them():
    estimated = estimate("llama-3.1-70b", engine="vllm", context=8192, gpus=8, gpu="H100 SXM5 80GB")
    rows = tables.line_rows(estimated)
    assert {row["on"] for row in rows} == {"GPU 0-7, each"}
    assert len(rows) == len(tables.line_paragraphs(estimated)) == len(estimated.ledger.on(0).lines)
    assert sum(8 * row["GiB"] for row in rows) * 2**30 == pytest.approx(estimated.total_bytes, abs=1)
    stages = tables.line_rows(estimate("llama-3.1-70b", engine="vllm", context=8192, gpus=8, gpu="H100 SXM5 80GB", settings={"tensor_parallel_size": 4}))
    assert {row["on"] for row in stages if row["line"] == "embedding"} == {"GPU 0-3, each"}
    assert {row["on"] for row in stages if row["line"] == "output head"} == {"GPU 4-7, each"}


def test_the_bar_adds_up_to_the_total():
    import plotly.graph_objects as go

    estimated = estimate("llama-3.1-8b", context=8192, gpus=2, gpu="RTX 4090")
    figure = go.Figure(charts.ledger_bar(estimated.ledger, usable_bytes=usable_memory(load_gpu("RTX 4090")).value))
    assert sum(t.x[0] for t in figure.data if t.type == "bar") * 2**30 == pytest.approx(estimated.total_bytes, abs=1)


def test_the_chart_has_every_quantization_with_the_totals_of_estimate():
    import plotly.graph_objects as go

    options = {"quant": "bnb-nf4", "sequences": 2, "engine": None, "kv_dtype": "int8",
               "settings": {"logits_to_keep": 0}}  # fmt: skip
    series = tables.context_series(RELEASED, options, (1024, 131072))
    assert [s.name for s in series] == list(CATALOG)
    by_name = {s.name: s for s in series}
    mine = [estimate(RELEASED, **options, context=n).total_bytes for n in (1024, 131072)]
    assert by_name["bnb-nf4"].nbytes == tuple(mine)
    other = estimate(RELEASED, quant="Q4_K_M", sequences=2, context=1024).total_bytes
    assert by_name["Q4_K_M"].nbytes[0] == other
    marks = tables.marks("RTX 4090")
    figure = go.Figure(charts.context_chart(series, chosen="bnb-nf4", context=1024, marks=marks))
    widest = max((t for t in figure.data if t.mode == "lines"), key=lambda t: t.line.width)
    assert widest.name == "bnb-nf4"
    assert [a.text for a in figure.layout.annotations if a.text.startswith("RTX 4090")]


def test_the_line_of_several_cards_is_what_they_have_together():
    one, four = (tables.marks("RTX 4090", n)[-1] for n in (1, 4))
    assert (four.nbytes, four.label.split(" · ")[0]) == (4 * one.nbytes, "4 x RTX 4090")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_s_curves_are_drawn(engine):
    import plotly.graph_objects as go

    quant = "Q4_K_M" if engine == "llama.cpp" else "bf16"
    series = tables.context_series(RELEASED, {"quant": quant, "sequences": 1, "engine": engine, "kv_dtype": None, "settings": {}, "gpu": "RTX 4090"}, (1024,))
    figure = go.Figure(charts.context_chart(series, chosen=quant, context=1024, marks=()))
    assert len(series) > 5
    assert sum(t.mode == "lines" for t in figure.data) == len(series)


def test_what_stays_in_host_memory_is_said_in_the_verdict():
    at = open_page(model="llama-3.3-70b", quant="TQ1_0")
    beside = estimate("llama-3.3-70b", quant="TQ1_0", context=8192).ledger.host_bytes
    assert f"{gib(beside)} stays in host memory" in at.info[0].value


def test_a_checkpoint_that_is_published_quantized_starts_as_it_is():
    """And without formulas for its activations the page says what is known, as the command line does."""
    at = open_page(model="gpt-oss-20b")
    wanted = estimate("gpt-oss-20b", partial=True)
    assert (wanted.job.deployment.quant, wanted.partial) == ("mxfp4", True)
    assert total_of(at) == wanted.total_bytes
    assert f"more than {gib(wanted.total_bytes)}" in at.info[0].value
    held = open_page(model="gpt-oss-20b", gpu="H100 SXM5 80GB").info[0].value
    assert held.startswith("**not known**")


def test_gpus_of_a_server_are_ranks_and_layers_may_stay_on_the_host():
    at = open_page(model="llama-3.1-8b", engine="vllm", gpu="rtx 4090", gpus="2")
    assert total_of(at) == estimate("llama-3.1-8b", engine="vllm", gpu="rtx 4090", settings={"tensor_parallel_size": 2}).total_bytes
    at = open_page(model="llama-3.1-8b", engine="vllm", gpu="rtx 4090", gpus="3", max_num_seqs="64")
    wanted = estimate("llama-3.1-8b", engine="vllm", gpu="rtx 4090", gpus=3, settings={"tensor_parallel_size": 1, "max_num_seqs": 64})
    assert total_of(at) == wanted.total_bytes
    assert at.code[0].value == wanted.start_command
    at = open_page(model="llama-3.1-8b", quant="Q4_K_M", gpu="rtx 4060", n_gpu_layers="8")
    wanted = estimate("llama-3.1-8b", quant="Q4_K_M", gpu="rtx 4060", settings={"n_gpu_layers": 8})
    assert total_of(at) == wanted.total_bytes
    assert f"{gib(wanted.ledger.host_bytes)} stays in host memory" in at.success[0].value


def test_a_server_that_queues_is_tight_without_being_called_short():
    """`tight` and `short` in one line contradict each other: the server runs fewer sequences at once."""
    at = open_page(model="qwen3-14b", quant="awq-int4-g128", engine="vllm", gpu="rtx 4090", gpus="2", context="16384", sequences="16")
    headline = at.warning[0].value
    assert headline.startswith("**tight**")
    assert "some sequences queue" in headline
    assert "short**" not in headline
