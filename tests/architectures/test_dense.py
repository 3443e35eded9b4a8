from __future__ import annotations

import pytest
from hypothesis import given
from strategies import models

from calculator.architectures import architecture, build_inventory
from calculator.catalog import load_model
from calculator.errors import UnknownArchitecture

# published safetensors totals; the card's from its own dimensions (design of the catalog entry)
PUBLISHED = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-1b-card": 374_637_568,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.mark.parametrize(("id", "total"), PUBLISHED.items())
def test_parameters_equal_the_published_total(id, total):
    assert build_inventory(load_model(id).spec).parameters == total


def test_names_and_shapes_of_the_released_1b():
    """Names and shapes as LlamaForCausalLM has them, transformers v5.23.0."""
    shapes = {g.name: g.shape for g in build_inventory(load_model("llama-3.2-1b").spec).groups}
    assert shapes["model.layers.{layer}.self_attn.k_proj.weight"] == (512, 2048)
    assert shapes["model.layers.{layer}.mlp.down_proj.weight"] == (2048, 8192)
    assert shapes["model.embed_tokens.weight"] == (128256, 2048)
    assert "lm_head.weight" not in shapes  # tied


def test_qwen2_has_biases_on_q_k_v_only():
    names = {g.name for g in build_inventory(load_model("qwen2.5-0.5b").spec).groups if g.role == "bias"}
    assert names == {f"model.layers.{{layer}}.self_attn.{p}_proj.bias" for p in "qkv"}


@given(models())
def test_parameters_follow_the_closed_form(model):
    m = model.spec
    q, kv = m.num_attention_heads * m.head_dim, m.num_key_value_heads * m.head_dim
    h, f = m.hidden_size, m.intermediate_size
    layer = 2 * h * q + 2 * h * kv + 3 * h * f + 2 * h
    outer = m.vocab_size * h * (1 if m.tie_word_embeddings else 2) + h
    assert build_inventory(m).parameters == m.num_hidden_layers * layer + outer


def test_an_unknown_type_is_refused_by_name():
    with pytest.raises(UnknownArchitecture, match="'llama5' has no formulas"):
        architecture("llama5")
