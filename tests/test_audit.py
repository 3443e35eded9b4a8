from __future__ import annotations

import json

import pytest

from calculator.audit import AMBIGUITY, audit
from calculator.catalog import load_model, model_ids, user_model


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
    found = audit(load_model(id))
    assert {c.field: c.verdict for c in found.claims}["parameters"] == "agrees"
    assert not [c for c in found.claims if c.verdict == "contradicts" and "rope" not in c.field]
    assert found.reconciling_sets == ()


def config_with(tmp_path, published, **config):
    """A user's record: Llama 3.1 8B with something changed."""
    base = load_model("llama-3.1-8b").record["config"]
    (tmp_path / "mine.json").write_text(json.dumps({"config": base | config, "published_parameters": published}))
    return user_model("mine", tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [({"tie_word_embeddings": True}, {"tie_word_embeddings": False}), ({"num_key_value_heads": 32}, {"num_key_value_heads": 8}),
     ({"num_hidden_layers": 31}, {"num_hidden_layers": 32}), ({"intermediate_size": 14000}, {"intermediate_size": 14336}),
     ({"vocab_size": 128000}, {"vocab_size": 128256})],
)  # fmt: skip
def test_one_wrong_field_is_found_from_the_total(tmp_path, wrong, right):
    found = audit(config_with(tmp_path, 8_030_261_248, **wrong))
    assert right in [s.changes for s in found.reconciling_sets]
    assert {c.field: c.verdict for c in found.claims}["parameters"] == "contradicts"


def test_tied_or_untied_is_told_by_the_total(tmp_path):
    claims = {c.field: c.verdict for c in audit(config_with(tmp_path, 8_030_261_248, tie_word_embeddings=True)).claims}
    assert claims["tie_word_embeddings, by the total"] == "contradicts"


def test_a_context_that_rope_scaling_does_not_reach(tmp_path):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    for length, verdict in ((131_072, "agrees"), (262_144, "contradicts")):
        found = audit(config_with(tmp_path, 8_030_261_248, rope_scaling=rope, max_position_embeddings=length))
        assert [c.verdict for c in found.claims if "rope_scaling" in c.field] == [verdict]


def test_a_published_file_is_held_against_its_recipe():
    claims = [c for c in audit(load_model("llama-3.2-1b")).claims if c.field.startswith("file")]
    assert claims
    assert all(c.verdict == "agrees" and c.claimed == c.implied for c in claims)
