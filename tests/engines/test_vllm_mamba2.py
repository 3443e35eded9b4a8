"""Falcon-H1, whose layers attend and carry a state, and Bamba, whose layers do one of them, in vLLM."""

from __future__ import annotations

import json

import pytest

from calculator.engines.ranks import shares_of
from calculator.engines.vllm.blocks import blocks_for, groups_of, layers_of_block
from calculator.engines.vllm.hybrid import block_size, state_bytes
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.report.text import estimate_text
from calculator.units import GIB

NAMES = {"mamba_n_heads": 24, "mamba_d_head": 64, "mamba_d_ssm": 1536, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_expand": 2}


def run(model, version="0.19.0", **options):
    return estimate(model, engine="vllm", engine_version=version, **{"gpu": "h200", "context": 4096} | options)


@pytest.mark.parametrize(("model", "state", "tokens", "padding"), [
    ("falcon-h1-1.5b-instruct", 1_594_368, 1568, "0.71"),  # vLLM's log in AgileRL/AgileRL agilerl-arena/agilerl/arena/memory/README.md, "Page alignment moves the block size"
    ("bamba-9b-v2", 2_147_840, 528, "0.69"),  # Granite 4.0 H Small, whose state and heads are Bamba's: a log of 0.11.1 (text index 57101392759)
    ("granite-4.0-h-small", 2_147_840, 528, "0.69"),
])  # fmt: skip
def test_blocks_hold_a_state_as_logs_print_them(model, state, tokens, padding):
    job = run(model, "0.16.0").job
    assert (state_bytes(job), block_size(job)) == (state, tokens)
    page = layers_of_block(job, shares_of(job)[0])
    row = 2 * job.model.num_key_value_heads * job.model.head_dim * 2
    assert page == groups_of(job).size
    assert f"{100 * (tokens * row - state) / state:.2f}" == padding


def test_both_branches_of_a_layer_are_a_layer_of_their_own_in_the_pool():
    """v0.19.0 falcon_h1.py: the state's layers are numbered behind those that attend, so there are as many of either, in a group each."""
    job = run("falcon-h1-7b-base").job
    assert groups_of(job)[:] == (1, 0, 44, 1)
    assert blocks_for(job, 4096) == 3 + 1  # of 1,568 tokens, and a state
    pool = run("falcon-h1-7b-base", settings={"kv_pool_bytes": 40 * GIB}).pool
    assert pool.blocks == 40 * GIB // (44 * 1568 * 1024)


def test_bamba_has_ten_groups_of_three_layers():
    job = run("bamba-9b-v1").job
    assert groups_of(job)[:] == (1, 0, 3, 10)  # 3 layers attend, 29 carry a state
    assert run("bamba-9b-v1").kv_bytes_per_token == 3 * 2 * 8 * 128 * 2


def test_multipliers_of_the_projections_are_in_no_checkpoint():
    """Falcon-H1 34B on two ranks: 2 x 2,048 of gate and states, 2 x 256 of B and C, 16 heads of each of 72 layers."""
    found = run("falcon-h1-34b-base", gpus=2, settings={"tensor_parallel_size": 2})
    assert [line.nbytes for line in found.ledger.lines if line.name == "projection multipliers"] == [2 * (4096 + 512 + 16) * 72] * 2
    assert not [line for line in run("bamba-9b-v2").ledger.lines if line.name == "projection multipliers"]


def test_bamba_turns_half_of_a_head_and_falcon_a_whole_one():
    for model, elements in (("bamba-9b-v2", 262144 * 64), ("falcon-h1-7b-base", 262144 * 128)):
        assert [line.nbytes for line in run(model).ledger.lines if line.name == "rotary cos and sin"] == [2 * elements]


def test_attention_s_output_waits_for_the_state_s_branch():
    """The 0.5B's projections are wider than its feed-forward: with one sequence they are the peak."""
    found = run("falcon-h1-0.5b-base", settings={"max_num_seqs": 1, "max_num_batched_tokens": 8192, "enforce_eager": True})
    assert found.peak.step.name == "recurrent layer"
    tokens, inner, channels, heads, hidden = 8192, 1536, 1792, 24, 1024
    assert [b.nbytes for b in found.peak.step.buffers][:4] == [
        2 * tokens * (inner + channels + heads), 2 * 2 * tokens * channels, 2 * tokens * hidden, 4 * 2 * tokens * hidden,
    ]  # fmt: skip


def test_cache_types_are_the_convolution_s_and_the_state_s():
    """v0.19.0 mamba_utils.py _mamba_state_dtype: the state follows mamba_cache_dtype unless it has a type of its own."""
    inputs, state = 3 * 3584, 48 * 64 * 256

    def held(**settings):
        return state_bytes(run("falcon-h1-1.5b-base", settings=settings).job)

    assert held() == 2 * (inputs + state)
    assert held(mamba_ssm_cache_dtype="float32") == 2 * inputs + 4 * state
    assert held(mamba_cache_dtype="float32") == 4 * (inputs + state)
    assert held(mamba_cache_dtype="float32", mamba_ssm_cache_dtype="float16") == 4 * inputs + 2 * state
    assert "--mamba-cache-dtype float32" in estimate_text(run("falcon-h1-1.5b-base", settings={"mamba_cache_dtype": "float32"}), explain=False)


def test_prefixes_are_kept_in_blocks_of_whole_chunks_until_0_27():
    """The 7B's chunks are 128 tokens in the base model and 256 in the other; 1,568 tokens hold a state."""
    kept = {"enable_prefix_caching": True}
    assert [block_size(run(f"falcon-h1-7b-{name}", settings=kept).job) for name in ("base", "instruct")] == [1664, 1792]
    assert block_size(run("falcon-h1-7b-instruct", "0.28.0", settings=kept).job) == 1568


@pytest.mark.parametrize(("model", "version", "options", "says"), [
    ("bamba-9b-v2", "0.24.0", {}, "was supported in vLLM until v0.23.0"),
    ("falcon-h1-7b-base", "0.8.5", {}, "has no falcon_h1"),
    ("falcon-h1-7b-base", "0.10.1", {}, "--engine-version 0.10.2"),
    ("bamba-9b-v1", "0.10.2", {"settings": {"use_v1": False}}, "V0 engine"),
    ("falcon-h1-34b-base", "0.19.0", {"gpus": 4, "settings": {"tensor_parallel_size": 4}}, "num_groups must equal 1"),
    ("falcon-h1-7b-base", "0.14.1", {"quant": "fp8", "gpus": 2, "settings": {"tensor_parallel_size": 2}}, "only if tensor parallel world size divides num groups"),
    ("falcon-h1-3b-instruct", "0.19.0", {"settings": {"enable_prefix_caching": True}}, "mamba_chunk_size isn't known"),
    ("falcon-h1-3b-base", "0.19.0", {"settings": {"mamba_cache_dtype": "bfloat16"}}, "0.22.0 or later"),
    ("llama-3.1-8b", "0.19.0", {"settings": {"mamba_cache_dtype": "float32"}}, "without recurrent layers"),
])  # fmt: skip
def test_what_the_engine_or_the_formulas_refuse(model, version, options, says):
    with pytest.raises(CalculatorError) as refused:
        run(model, version, **options)
    assert says in f"{refused.value} {refused.value.hint}"
    assert "\n" not in str(refused.value)


def test_ranks_that_share_a_group_each_hold_it():
    """One group on two ranks: 768 channels of states and 2 x 128 of B and C each; quantized since 0.15."""
    state = run("falcon-h1-0.5b-base", "0.16.0", quant="fp8", gpus=2, settings={"tensor_parallel_size": 2}).job
    assert state_bytes(state) == 2 * (3 * (768 + 256) + 12 * 64 * 128)


def test_a_config_says_its_chunk(tmp_path):
    config = {"model_type": "falcon_h1", "hidden_size": 1024, "num_hidden_layers": 36, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 2048,
              "vocab_size": 32784, "max_position_embeddings": 16384, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "mamba_chunk_size": 512, **NAMES}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert block_size(run(str(tmp_path / "config.json"), settings={"enable_prefix_caching": True}).job) == 1024
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text(json.dumps(config | {"mamba_chunk_size": 0}))
    with pytest.raises(CalculatorError, match="mamba_chunk_size"):
        run(str(tmp_path / "none"))
