"""The recurrent state and the cache of small real models, run on the CPU, against the lines of an estimate."""

from __future__ import annotations

import importlib.util

import pytest
from test_inventories import BASE, CASES, NULLS

from calculator.architectures import ARCHITECTURES
from calculator.catalog import Model
from calculator.estimate import estimate
from calculator.readers.hf_config import model_from_config

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch isn't installed; make real installs it"),
]
TOKENS, SEQUENCES = 7, 2


def held(cache) -> int:
    """Bytes of all tensors that a cache keeps."""
    found = list(getattr(cache, "linear_cache", []))  # MiniMax
    for layer in cache.layers:
        for name in ("conv_states", "recurrent_states"):
            found += list((getattr(layer, name, None) or {}).values())
        found += [getattr(layer, name, None) for name in ("keys", "values")]
    return sum(t.nbytes for t in found if hasattr(t, "nbytes"))


@pytest.mark.parametrize("model_type", sorted(name for name, row in ARCHITECTURES.items() if row.recurrent))
def test_what_a_small_model_caches(model_type):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {k: v for k, v in (BASE | {"model_type": model_type} | CASES[model_type][0]).items() if v is not None or k in NULLS}
    made = AutoConfig.for_model(model_type, **{k: v for k, v in config.items() if k not in ("torch_dtype", "model_type")})
    out = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)(input_ids=torch.randint(0, 100, (SEQUENCES, TOKENS)), use_cache=True)
    real = held(getattr(out, "past_key_values", None) or out.cache_params)
    model = Model(model_from_config(config, id=model_type), {"name": model_type, "family": model_type, "sources": {}, "hf_id": None})
    found = estimate(model, context=TOKENS, sequences=SEQUENCES, engine="transformers", partial=True)
    assert found.ledger.component_bytes("kv_cache") == real > 0
