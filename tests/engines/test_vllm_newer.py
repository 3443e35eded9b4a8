"""Types of 2026 in vLLM, and those it dropped: Step 3.5 and 3.7, Mistral Small 4, MiniMax-01 and M1, Command R+, K-EXAONE. By the sources alone, without a log."""

from __future__ import annotations

import pytest

from calculator.catalog import load_model
from calculator.engines.vllm.blocks import blocks_for, groups_of
from calculator.engines.vllm.hybrid import block_size
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.parallelism import tensor_rank


def run(model, **options):
    return estimate(model, engine="vllm", partial=True, **{"gpu": "H200", "gpus": 8, "context": 32768} | options)


def line(found, name):
    return next(line for line in found.ledger.on(0).lines if line.name == name)


def test_windowed_layers_of_step_have_groups_of_their_own_and_their_own_heads():
    """12 of 45 layers see everything, the first among them: a group of them, three of the 33 others; 512 tokens and those of a step."""
    found = run("step-3.5-flash")
    assert groups_of(found.job)[:3] == (1, 3, 12)
    # vllm v0.33.0 v1/kv_cache_interface.py: ceil((512 - 1 + 2 x 8,192) / 16) + 1 blocks of a windowed group; 2 batches since 0.26
    assert blocks_for(found.job, 32768) == 2048 + 3 * (-(-(511 + 2 * 8192) // 16) + 1)
    rank = tensor_rank(load_model("step-3.5-flash").spec, 8, vocab_multiple=64)
    assert (rank.num_attention_heads, rank.windowed.num_attention_heads, rank.windowed.num_key_value_heads) == (8, 12, 1)
    assert found.engine.kv_bytes_per_token(found.job) == 12 * 2 * 8 * 128 * 2


def test_step_turns_half_of_a_head_where_everything_is_seen_and_keeps_routers_in_float32():
    found = run("step-3.5-flash")
    assert line(found, "rotary cos and sin").nbytes == 262144 * (64 + 128) * 2
    assert line(found, "routers in float32").nbytes == 42 * 288 * 4096 * 2
    with pytest.raises(CalculatorError, match="has no step3p5"):
        run("step-3.5-flash", engine_version="0.14.1")


def test_k_exaone_has_windows_in_three_of_four_layers_and_one_rotary_table():
    """vllm v0.16.0 model_executor/models/exaone4.py L172-192: layers that see everything aren't turned, and share the table; routers stay in 16 bits."""
    found = run("k-exaone-236b-a23b")
    assert groups_of(found.job)[:3] == (1, 3, 12)
    assert line(found, "rotary cos and sin").nbytes == found.job.model.max_position_embeddings * 128 * 2
    assert not [each for each in found.ledger.lines if each.name == "routers in float32"]


def test_hy3_keeps_routers_in_float32():
    """vllm v0.20.1 model_executor/models/hy_v3.py L154-159; 79 layers of 192 experts."""
    found = run("hy3")
    assert line(found, "routers in float32").nbytes == 79 * 192 * 4096 * 2
    assert found.engine.kv_bytes_per_token(found.job) == 80 * 2 * 8 * 128 * 2
    with pytest.raises(CalculatorError, match="has no hy_v3"):
        run("hy3", engine_version="0.19.0")


def test_the_tower_of_step_makes_a_lower_bound():
    found = run("step-3.7-flash")
    assert found.partial
    assert line(found, "vision tower").nbytes == 2 * -(-1_981_014_784 // 8)


def test_mistral_small_4_keeps_a_row_of_320_and_its_tensors_in_8_bits():
    """vllm v0.18.0 model_executor/layers/attention/mla_attention.py L1154: heads of 320, which v0.16.0 has not."""
    found = run("mistral-small-4-119b-2603", gpus=2)
    assert found.job.scheme.name == "fp8"
    assert found.engine.kv_bytes_per_token(found.job) == 2 * 36 * (256 + 64) * 2  # the whole row on every rank
    assert line(found, "absorbed key and value matrices").nbytes == 36 * 256 * 16 * (64 + 128) * 2
    with pytest.raises(CalculatorError, match="has no mistral4"):
        run("mistral-small-4-119b-2603", engine_version="0.16.0")


def test_lightning_attention_has_a_state_of_16_bits_a_head_and_layer():
    """80 layers, 10 of them attend: 1 and 7 groups of 10; a state of 8 x 128 x 128 x 2 bytes is 512 tokens of a rank's 2 x 128 x 2."""
    found = run("minimax-m1-40k", engine_version="0.23.0")
    assert groups_of(found.job) == (1, 0, 10, 7)
    assert block_size(found.job) == 512
    assert blocks_for(found.job, 32768) == 64 + 7
    assert line(found, "rotary cos and sin").nbytes == 32768 * 64 * 4  # ends where max_model_len does
    alone = run("minimax-m1-40k", engine_version="0.23.0", settings={"max_num_seqs": 8, "max_num_batched_tokens": 65536}, gpus=1)
    peak = alone.engine.peak(alone.job, "prefill")
    assert peak.step.name == "recurrent layer"
    assert sum(b.nbytes for b in peak.step.buffers[:2]) == (3 * 2 + 24 + 12) * 65536 * 8192
    assert peak.nbytes > 42 * 65536 * 8192


def test_what_vllm_dropped_is_refused_in_its_words_and_what_changes_nothing_too():
    with pytest.raises(CalculatorError, match=r"was supported in vLLM until v0\.23\.0"):
        run("minimax-text-01")
    with pytest.raises(CalculatorError, match="mamba_ssm_cache_dtype of lightning attention"):
        run("minimax-text-01", engine_version="0.23.0", settings={"mamba_ssm_cache_dtype": "float32"})


def test_command_r_plus_has_norms_of_queries_and_keys_with_weights_for_each_head():
    found = run("c4ai-command-r-plus", gpus=2)
    plain = load_model("c4ai-command-r-v01").spec
    assert not plain.qk_norm
    norms = 64 * (12288 + (96 // 2 + 8 // 2) * 128) + 12288
    assert line(found, "norms and biases").nbytes == norms * 2
    with pytest.raises(CalculatorError, match="no formula"):
        estimate("c4ai-command-r-plus", engine="llama.cpp", quant="Q4_K_M")


@pytest.mark.parametrize("model", ["step-3.5-flash", "mistral-small-4-119b-2603"])
def test_what_was_not_read_in_llama_cpp_is_refused(model):
    with pytest.raises(CalculatorError, match="wasn't read"):
        estimate(model, engine="llama.cpp", quant="Q4_K_M", partial=True)
