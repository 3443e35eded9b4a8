"""`make oracle`: random configs of every modelled family, the closed forms against the real model code under FakeTensor."""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import Any

from calculator.architectures import ARCHITECTURES
from calculator.catalog import Model
from calculator.checks import tracing
from calculator.estimate import estimate
from calculator.readers.hf_config import model_from_config

TOLERANCE = 4096  # bytes
MODELLED = sorted(name for name, row in ARCHITECTURES.items() if "transformers" in row.engines)
QUANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def draw(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """A config that transformers builds, and a pass over it."""
    model_type = rng.choice(MODELLED)
    dim = rng.choice([32, 64, 80, 96, 128, 256, rng.choice([16, 24, 40, 48, 72, 112, 160, 192])])
    kv_heads, repeats = rng.choice([1, 2, 4, 8, rng.randint(1, 12)]), rng.choice([1, 2, 4, 8, 3, 7])
    heads = kv_heads * repeats
    if heads * dim > 8192:
        return draw(rng)
    hidden = rng.choice([256, 512, 896, 1024, 1536, 2048, 3072, 4096, 8 * rng.randint(8, 512)])
    config: dict[str, Any] = {
        "model_type": model_type, "hidden_size": heads * max(1, hidden // heads) if model_type in ("llama", "gemma3_text") else hidden,
        "num_hidden_layers": rng.randint(1, 4), "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim,
        "intermediate_size": max(8, rng.choice([hidden // 2, hidden, 2 * hidden, 4 * hidden, 8 * rng.randint(8, 1500)])),
        "vocab_size": rng.choice([100, 1000, 32000, 50257, 128256, rng.randint(100, 150_000)]),
        "tie_word_embeddings": rng.random() < 0.5, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
    }  # fmt: skip
    if model_type == "llama":
        config |= {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
    elif model_type == "mistral":
        config["sliding_window"] = None
    elif model_type.startswith("qwen"):
        config["use_sliding_window"] = False
    elif model_type in ("phi3", "granite", "smollm3"):  # their config classes have no head_dim
        config |= {"hidden_size": heads * dim, "sliding_window": None}
        del config["head_dim"]
    elif model_type == "gemma3_text":
        every = rng.choice([2, 6])
        config |= {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": rng.choice([64, 512, 1024]), "sliding_window_pattern": every,
                   "num_hidden_layers": rng.randint(every, 14), "query_pre_attn_scalar": dim}  # fmt: skip
    if model_type in ("mixtral", "qwen3_moe"):
        count = rng.choice([2, 8, 16, 60, 128])
        name = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts"}[model_type]
        config |= {name: count, "num_experts_per_tok": rng.randint(1, min(count, 8)), "sliding_window": None,
                   "intermediate_size": rng.choice([256, 768, 1024, 1408]), "moe_intermediate_size": rng.choice([128, 256, 768, 1536])}  # fmt: skip
    run = {
        "phase": rng.choice(["prefill", "decode"]), "batch": rng.choice([1, 1, 2, 3, 4, 8]),
        "seq": rng.choice([1, 5, 17, 128, 333, 1000, 1024, 4096, 16384, rng.randint(1, 20_000)]), "attn": rng.choice(["sdpa", "eager"]),
        "logits_to_keep": rng.choice([0, 1, 7]), "cache": rng.choice(["dynamic", "dynamic", "static"]),
        "dtype": rng.choice(["bfloat16", "bfloat16", "float16", "float32"]),
    }  # fmt: skip
    if "num_experts_per_tok" in config:
        run["dtype"] = "bfloat16"  # torch's grouped product takes no other
    if model_type == "gemma3_text":
        run |= {"cache": "dynamic", "dtype": rng.choice(["bfloat16", "float16"])}
    return config, run


def predicted(config: dict[str, Any], run: dict[str, Any]) -> int:
    """Activations by formula [bytes]."""
    model = Model(model_from_config(config, id="random"), {"name": "random", "family": config["model_type"], "sources": {"config": "drawn"}})
    settings = {"phase": run["phase"], "attn_implementation": run["attn"], "logits_to_keep": run["logits_to_keep"], "cache_implementation": run["cache"]}
    said = estimate(model, quant=QUANTS[run["dtype"]], context=run["seq"], sequences=run["batch"], engine="transformers", settings=settings)
    return sum(line.nbytes for line in said.ledger.on_devices if line.component == "activations")


def main() -> int:
    """Exit 1 unless 99 % are within 4 KiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20261125)
    asked = parser.parse_args()
    rng, start, within, exact = random.Random(asked.seed), time.monotonic(), 0, 0
    for _ in range(asked.configs):
        config, run = draw(rng)
        traced = tracing.trace(config, backend="fake_cuda", **run)["act_bytes"]
        off = predicted(config, run) - traced
        within, exact = within + (abs(off) <= TOLERANCE), exact + (off == 0)
        if abs(off) > TOLERANCE:
            print(f"off by {off:,} of {traced:,} bytes: {run} {config}")
    share = 100 * within / asked.configs
    print(f"{asked.configs} random configs of {', '.join(MODELLED)}: {share:.1f} % within 4 KiB, {100 * exact / asked.configs:.1f} % exact, "
          f"in {time.monotonic() - start:.0f} s")  # fmt: skip
    return int(share < 99)


if __name__ == "__main__":
    sys.exit(main())
