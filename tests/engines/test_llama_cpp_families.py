"""Compute buffers of every family's graph, as the engine itself reserved them for models of random dimensions."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from calculator.architectures import ARCHITECTURES
from calculator.engines.llama_cpp.buffers import Context
from calculator.engines.llama_cpp.families import FAMILIES, Decoder, Latent, Routes
from calculator.engines.llama_cpp.simulation import compute_buffers

RECORDS = [json.loads(line) for line in gzip.open(Path(__file__).parent / "llama_cpp_families.jsonl.gz", "rt", encoding="utf-8")]  # noqa: SIM115
BY_FAMILY = {family: [r for r in RECORDS if r["model"][0] == family] for family in dict.fromkeys(r["model"][0] for r in RECORDS)}


def decoder(fields: list) -> Decoder:
    *plain, routes, latent = fields
    return Decoder(*plain, Routes(*routes), Latent(*latent) if latent else None)


@pytest.mark.parametrize("family", BY_FAMILY)
def test_compute_buffers_are_the_engines(family):
    """llama.cpp @0c1e57098, its own scheduler and allocator over CPU and pretend CUDA devices [bytes]."""
    wrong = [r for r in BY_FAMILY[family] if [b.nbytes for b in compute_buffers(decoder(r["model"]), Context(*r["context"]))] != r["bytes"]]
    assert wrong == []
    assert len(BY_FAMILY[family]) >= 8


def test_every_family_that_has_a_graph_was_held_against_the_engine():
    modelled = {row.gguf for row in ARCHITECTURES.values() if "llama.cpp" in row.engines}
    assert modelled <= set(FAMILIES)
    assert modelled - set(BY_FAMILY) == {"llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3"}  # whose records are llama-cpp-contexts


def test_layers_of_one_kind_repeat_after_the_period():
    for record in RECORDS:
        model = decoder(record["model"])
        kinds = [(model.windowed(i), model.sparse(i), model.rotated(i)) for i in range(model.routes.first_dense, model.layers)]
        assert all(a == b for a, b in zip(kinds[model.period :], kinds, strict=False))
