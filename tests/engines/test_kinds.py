"""Caches of models whose layers differ: bytes that transformers 5.23 really held, after a prompt of 100 tokens in two sequences, in bfloat16.

The models are those of tests/checkpoints/conversions.jsonl.gz, executed with random weights on the CPU.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from calculator.catalog import Model, load_model
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.readers.hf_config import model_from_config

with gzip.open(Path(__file__).parents[1] / "checkpoints" / "conversions.jsonl.gz", "rt", encoding="utf-8") as lines:
    CONFIGS = {r["name"]: r["config"] for r in map(json.loads, lines)}
HELD = {  # KV bytes
    "gpt2": 3_276_800, "gpt_neox": 3_276_800, "falcon7": 409_600, "falcon40": 3_276_800, "bloom": 3_276_800, "mpt": 3_276_800, "gpt_bigcode": 409_600,
    "gemma3n": 1_024_128, "gemma4": 716_880, "gemma4moe": 921_720, "dsv32": 4_505_600, "glmdsa": 4_505_600, "hunyuan": 819_200, "exaone_moe": 819_296,
    "bert": 0, "roberta": 0, "xlmr": 0, "nomic": 0, "modernbert": 0,
}  # fmt: skip


def of(name: str) -> Model:
    return Model(model_from_config(CONFIGS[name], id=name), {"name": name, "family": name, "sources": {"config": "made"}})


@pytest.mark.parametrize("name", HELD)
def test_transformers_caches_what_it_was_seen_to_hold(name):
    found = estimate(of(name), quant="bf16", context=100, sequences=2, engine="transformers", partial=True)
    assert sum(line.nbytes for line in found.ledger.lines if line.component == "kv_cache") == HELD[name]


@pytest.mark.parametrize("name", ["gemma3n", "gemma4"])
def test_transformers_leaves_keys_of_shared_layers_out(name):
    """llama.cpp loads what the checkpoint holds."""
    model = of(name)
    weights = estimate(model, quant="bf16", context=100, engine="transformers", partial=True).ledger.component_bytes("weights")
    shared, loaded = model.spec.by_layer.kv_shared_layers, weights // 2
    assert found_parameters(model) - loaded > shared * model.spec.hidden_size * model.spec.head_dim


def found_parameters(model: Model) -> int:
    return estimate(model, quant="bf16", context=100, engine="transformers", partial=True).parameters


def test_an_image_is_the_most_that_cross_attention_keeps():
    """Llama 3.2 11B Vision: 8 layers, 6,404 rows of an image of four tiles; nothing for text alone."""
    found = estimate("llama-3.2-11b-vision-instruct", quant="bf16", context=1024, partial=True)
    line = next(line for line in found.ledger.lines if line.name == "cross-attention")
    assert (line.nbytes, line.high) == (0, 2 * 8 * 8 * 128 * 2 * 6404)
    assert found.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2


def test_an_encoder_grows_no_cache():
    found = estimate("bge-large-en-v1.5", quant="Q8_0", context=512, partial=True)
    assert found.kv_bytes_per_token == 0
    assert next(line for line in found.ledger.lines if line.component == "kv_cache").note


@pytest.mark.parametrize(("model", "options"), [
    ("bge-large-en-v1.5", {"context": 513}), ("gpt2", {"context": 2048}), ("llama-3.2-11b-vision-instruct", {"quant": "Q4_K_M"}),
    ("gemma-3n-e4b-it", {"quant": "bnb-nf4"}), ("gemma-4-e4b-it", {"quant": "Q4_K_M", "settings": {"n_gpu_layers": 10}}),
])  # fmt: skip
def test_what_isnt_known_of_them_is_refused(model, options):
    with pytest.raises(CalculatorError, match="try:"):
        estimate(load_model(model), **({"quant": "bf16", "context": 256} | options), partial=True)
