"""Random models and workloads for the laws."""

from __future__ import annotations

from hypothesis import strategies as st

from calculator.catalog import Model
from calculator.spec import ModelSpec


@st.composite
def models(draw: st.DrawFn) -> Model:
    """A llama-like model of any plausible shape."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 8]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4, 7]))
    spec = ModelSpec(
        id="random",
        model_type=draw(st.sampled_from(["llama", "mistral"])),
        hidden_size=64 * draw(st.integers(1, 80)),
        num_hidden_layers=draw(st.integers(1, 90)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([32, 64, 128, 256])),
        intermediate_size=64 * draw(st.integers(1, 300)),
        vocab_size=draw(st.integers(1, 300_000)),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=2**20,
        dtype=draw(st.sampled_from(["bfloat16", "float16", "float32"])),
        rope_type=draw(st.sampled_from(["default", "llama3"])),
    )
    return Model(spec, {"name": "random", "family": "llama", "sources": {"config": "drawn"}})


contexts = st.integers(1, 2**18)
sequences = st.integers(1, 64)
