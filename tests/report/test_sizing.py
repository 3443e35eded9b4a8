from __future__ import annotations

import csv
import io
import json

import pytest

from calculator.catalog import load_model
from calculator.estimate import estimate
from calculator.ledger import COMPONENTS
from calculator.quantization import CATALOG
from calculator.report import sizing


@pytest.fixture(scope="module")
def both():
    return [sizing.size(load_model(m)) for m in ("llama-3.2-1b", "llama-3.2-1b-card")]


def test_csv_has_every_quantization_at_eight_contexts_for_both_entries(both):
    rows = list(csv.DictReader(io.StringIO(sizing.as_csv(both))))
    assert len(rows) == 2 * len(CATALOG) * 8
    assert {int(r["context"]) for r in rows} == {1024 * 2**i for i in range(8)}
    for row in rows[::37]:
        one = estimate(row["model"], quant=row["quant"], context=int(row["context"]))
        assert int(row["total_bytes"]) == one.total_bytes == sum(int(row[f"{c}_bytes"]) for c in COMPONENTS)
        assert row["smallest_gpu"]


def test_html_is_whole_and_tells_the_entries_apart(both):
    page = sizing.as_html(both)
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    for text in ("llama-3.2-1b-card", "Recommended GPUs", "Audit of the published card", "hidden_size", "Q4_K_M", "128k", "contradicted by"):
        assert text in page
    assert "http-equiv" not in page
    assert "<script" not in page


def test_markdown_and_json(both):
    assert "## Llama 3.2 1B (published card)" in sizing.as_markdown(both)
    document = json.loads(json.dumps(sizing.as_document(both)))
    assert len(document["reports"]) == 2


def test_spec_table_gives_sources_and_flags(both):
    card = {row.field: row for row in both[1].spec}
    assert "2048" in card["hidden_size"].contradicted_by
    assert "8" in card["num_key_value_heads"].contradicted_by
    assert all(row.source for row in card.values())


def test_a_short_context_model_is_sized_up_to_its_limit():
    tiny = sizing.size(load_model("tinyllama-1.1b"), quants=["bf16", "Q4_K_M"])
    assert {e.job.workload.context for e in tiny.estimates} == {1024, 2048}
