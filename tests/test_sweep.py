from __future__ import annotations

import random

import pytest

from calculator.catalog import load_gpu, load_model
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.quantization import CATALOG
from calculator.sweep import formats_that_run, sweep

MODELS = ("llama-3.1-8b", "llama-3.2-1b", "llama-3.2-1b-card", "llama-3.2-3b", "llama-3.3-70b", "qwen2.5-0.5b", "qwen2.5-7b", "tinyllama-1.1b")
CONTEXTS, SEQUENCES = [1024 * 2**i for i in range(8)], [1, 3, 16]


@pytest.fixture(scope="module")
def grid():
    return sweep([load_model(m) for m in MODELS], CATALOG, CONTEXTS, SEQUENCES)


def test_every_cell_equals_the_estimate(grid):
    rng, high = random.Random(7), grid.high_bytes()
    for _ in range(400):
        m, q, c, s = (rng.randrange(n) for n in grid.total_bytes.shape)
        one = estimate(grid.models[m], quant=grid.quants[q], context=CONTEXTS[c], sequences=SEQUENCES[s])
        assert one.total_bytes == grid.total_bytes[m, q, c, s]
        assert one.ledger.high_bytes == high[m, q, c, s]
        assert one.job.deployment.engine == grid.engines[q]


def test_rows_name_the_gpus_that_hold_them(grid):
    frame = grid.frame(all_gpus=True)
    assert len(frame) == grid.cells
    gpu = load_gpu("rtx 4090")
    for row in frame.sample(40, random_state=1).to_dict("records"):
        one = estimate(row["model"], quant=row["quant"], context=row["context"], sequences=row["sequences"])
        assert (gpu.name in row["gpus"].split("; ")) == (fit(one, gpu).verdict == "fits")


def test_settings_reach_every_cell():
    model = load_model("llama-3.2-1b")
    grid = sweep([model], ["Q8_0"], [8192], [2], {"kv_dtype": "q4_0", "settings": {"n_ubatch": "128"}})
    one = estimate(model, quant="Q8_0", context=8192, sequences=2, kv_dtype="q4_0", settings={"n_ubatch": "128"})
    assert grid.total_bytes.item() == one.total_bytes


@pytest.mark.parametrize(
    ("contexts", "sequences", "words"),
    [([], [1], "empty"), ([2**40], [2**40], "64 bits"), (list(range(1, 100_001)), list(range(1, 1001)), "too large")],
)
def test_grids_that_cannot_be_are_refused(contexts, sequences, words):
    with pytest.raises(CalculatorError, match=words):
        sweep([load_model("llama-3.2-1b")], ["bf16"], contexts, sequences)


def test_what_a_model_s_engine_refuses_is_left_out_of_the_default_grid():
    models = [load_model("llama-3.2-1b"), load_model("qwen3-30b-a3b")]
    kept, left_out = formats_that_run(models, CATALOG, [1024], [1])
    assert [q for q in CATALOG if q in kept or q in left_out] == list(CATALOG)
    assert {"bf16", "Q4_K_M"} <= set(kept)
    assert "bfloat16 only" in left_out["fp32"]
    assert sweep(models, kept, [1024], [1]).cells == 2 * len(kept)
    assert formats_that_run(models[:1], CATALOG, [1024], [1]) == (list(CATALOG), {})


def test_a_model_that_no_format_runs_says_why():
    with pytest.raises(CalculatorError, match="foo"):
        formats_that_run([load_model("llama-3.2-1b")], CATALOG, [1024], [1], {"engine": "foo"})
