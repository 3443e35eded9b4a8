from __future__ import annotations

import pytest

from calculator.audit import AMBIGUITY, audit
from calculator.catalog import load_model, model_ids


@pytest.fixture(scope="module")
def card():
    return audit(load_model("llama-3.2-1b-card"))


def test_every_claim_of_the_card_is_gone_through(card):
    verdicts = {c.field: c.verdict for c in card.claims}
    assert verdicts["parameters"] == "contradicts"
    assert verdicts["num_layers" if "num_layers" in verdicts else "num_hidden_layers"] == "agrees"
    assert {c.field for c in card.claims} >= {
        "max_position_embeddings", "modality", "licence", "release", "knowledge cutoff", "attention", "hidden_size",
        "num_attention_heads", "num_key_value_heads", "vocab_size", "normalization", "activation function", "context slider",
    }  # fmt: skip


def test_the_parameter_claim_is_three_times_what_the_dimensions_give(card):
    claim = next(c for c in card.claims if c.field == "parameters")
    assert (claim.implied, claim.released) == (374_637_568, 1_235_814_400)
    assert claim.ratio == pytest.approx(0.3046, abs=1e-4)


def test_the_cache_claim_is_half_of_the_released(card):
    claim = next(c for c in card.claims if c.field == "kv_bytes_per_token")
    assert (claim.claimed, claim.released, claim.verdict) == (16_384, 32_768, "contradicts")


def test_all_minimal_reconciling_sets(card):
    """16 heads of 128 and 32 of 64 give the same count; only the checkpoint decides; or the count itself is wrong."""
    sets = [s.changes for s in card.reconciling_sets]
    assert {"hidden_size": 2048, "intermediate_size": 8192, "head_dim": 128} in sets
    released = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert released in sets
    assert any("parameters" in s for s in sets)
    assert [s.changes for s in card.reconciling_sets if s.agrees_with_released] == [released]
    for a in sets:
        assert not any(b is not a and b.items() <= a.items() for b in sets), "not minimal"
    assert AMBIGUITY in card.notes


@pytest.mark.parametrize("id", [i for i in model_ids() if i != "llama-3.2-1b-card"])
def test_other_models_are_held_to_their_published_count(id):
    (claim,) = audit(load_model(id)).claims
    assert claim.verdict == "agrees"
