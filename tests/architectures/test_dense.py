from __future__ import annotations

import pytest
from hypothesis import given
from strategies import models

from calculator.architectures import architecture, build_inventory
from calculator.catalog import load_model
from calculator.errors import UnknownArchitecture
from calculator.readers.hf_config import model_from_config

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


GOLDEN = {  # parameters of published checkpoints, safetensors totals as transformers prints them
    "qwen3": (596_049_920, {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
                            "intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True}),
    "phi3": (3_821_079_552, {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
                             "intermediate_size": 8192, "vocab_size": 32064}),
    "gemma3_text": (999_885_952, {"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
                                  "intermediate_size": 6912, "vocab_size": 262144, "sliding_window": 512, "sliding_window_pattern": 6}),
    "gemma2": (2_614_341_888, {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
                               "intermediate_size": 9216, "vocab_size": 256000, "sliding_window": 4096}),
    "mixtral": (46_702_792_704, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                                 "intermediate_size": 14336, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": (30_532_122_624, {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                                   "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
                                   "vocab_size": 151936}),
}  # fmt: skip


@pytest.mark.parametrize("model_type", GOLDEN)
def test_parameters_of_published_models(model_type):
    """Qwen3-0.6B, Phi-3-mini, Gemma 3 1B, Gemma 2 2B, Mixtral 8x7B, Qwen3-30B-A3B."""
    parameters, config = GOLDEN[model_type]
    spec = model_from_config({"model_type": model_type, "torch_dtype": "bfloat16", "max_position_embeddings": 32768, **config}, id=model_type)
    assert build_inventory(spec).parameters == parameters
