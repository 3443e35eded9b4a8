"""Multi-head latent attention (DeepSeek): a compressed row a token is cached, and expanded to keys and values of all heads.

Source: transformers v5.23.0 models/deepseek_v3/modeling_deepseek_v3.py DeepseekV3Attention.forward, expand_kv.
"""

from __future__ import annotations

from calculator.engines.transformers import kernels
from calculator.engines.transformers.attention import Output, Slot
from calculator.engines.transformers.families import Family
from calculator.engines.transformers.run import Run


def latent_attention(run: Run, family: Family, slot: Slot) -> Output:
    """Attention over what the caller holds."""
    run.at("attention projections")
    if run.model.mla and run.model.mla.q_lora_rank:
        low = run.new("compressed query", "nle")
        low = family.norm(run, "nl", "n")
        query = run.new("query", "nHde")
        del low
    else:
        query = run.new("query", "nHde")
    compressed = run.new("compressed keys and values, rotary key", "nce"), run.new("compressed keys and values, rotary key", "nre")
    latent = family.norm(run, "nc", "n")
    run.at("rope")
    turned, key = family.rope(run, "")
    held = slot.update(run, latent, key)
    del latent, key
    run.at("expansion of keys and values")
    joined = run.new("query, joined", "nHde")
    expanded = run.new("values, and keys without rotation", "BTHae"), run.new("values, and keys without rotation", "BTHve")
    keys = run.new("keys", "BTHde")
    weights, heads = None, (run.heads, run.heads)
    if run.eager:
        output, weights = kernels.eager(run, run.masks[False], "T", heads, contiguous=True, latent=True)
    else:
        output = kernels.sdpa(run, run.masks[False], "T", heads, contiguous=True)
    run.at("o_proj")
    states = run.new("attention, projected", "nhe")
    del query, joined, turned, compressed, held, expanded, keys, output
    return Output(states, weights)
