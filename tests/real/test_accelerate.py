"""transformers' own device map over models and limits drawn anew: ours must be equal. Needs torch, transformers and accelerate."""

from __future__ import annotations

import importlib.util
import random

import pytest

from calculator.engines.transformers.device_map import (
    CPU_SHARE,
    EMBEDDING,
    HEAD,
    NORM,
    ROTARY,
    DeviceMap,
    Limits,
    Sizes,
    balanced,
    place,
)

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate isn't installed"),
]
TYPES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma3_text", "gemma2", "granite", "smollm3", "qwen3_moe", "olmo2", "seed_oss")
KINDS = ("auto", "balanced", "balanced_low_0", "sequential")


@pytest.mark.parametrize("seed", range(60))
def test_our_map_is_theirs(seed, monkeypatch):
    import torch
    import transformers.integrations.accelerate as theirs
    from transformers import AutoConfig, AutoModelForCausalLM

    rng = random.Random(seed)
    layers, heads = rng.randint(1, 24), rng.choice([2, 4])
    config = AutoConfig.for_model(
        rng.choice(TYPES), hidden_size=rng.choice([64, 128, 256]), num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=2,
        intermediate_size=rng.choice([64, 300, 1024]), vocab_size=rng.choice([100, 1000, 20000]), tie_word_embeddings=rng.random() < 0.5,
        pad_token_id=0, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    size = theirs.compute_module_sizes(model, only_modules=False)[0]
    tied = bool(model.all_tied_weights_keys)
    sizes = Sizes(size[EMBEDDING], tuple(size[f"model.layers.{i}"] for i in range(layers)), size[NORM], size[ROTARY], 0 if tied else size[HEAD], tied)
    free = {i: int(size[""] * rng.choice([0.1, 0.3, 0.5, 0.8, 1.5]) * rng.uniform(0.7, 1.3)) for i in range(rng.randint(1, 4))}
    host, given, kind = int(size[""] * rng.choice([0.05, 0.3, 3]) * rng.uniform(0.7, 1.3)), rng.random() < 0.5, rng.choice(KINDS)
    monkeypatch.setattr(theirs, "accelerate_max_memory", lambda limits: dict(limits or {**free, "cpu": host}))
    real = theirs._get_device_map(model, kind, {**free, "cpu": host} if given else None, None)

    def where(name):
        while name not in real:
            assert name
            name = name.rpartition(".")[0]
        return real[name]

    limits = Limits(tuple(free.items()), host if given else host * CPU_SHARE)
    if kind != "sequential":
        limits = balanced(sizes, limits, given=given, low_zero=kind == "balanced_low_0")
    assert place(sizes, limits) == DeviceMap(where(EMBEDDING), tuple(where(f"model.layers.{i}") for i in range(layers)), where(NORM), where(ROTARY), where(HEAD))
