"""SGLang on AMD's Instinct cards: fraction, attention's buffers, weights held otherwise, refusals. Figures without a source are the server's own sums."""

from __future__ import annotations

import pytest

from calculator.engines.sglang.attention import backend_of
from calculator.engines.sglang.defaults import decode_graphs, static_fraction
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.units import GIB


def run(model, version="0.5.23", quant="bf16", gpu="MI355X", gpus=1, kv_dtype=None, **settings):
    if gpus > 1:
        settings.setdefault("tensor_parallel_size", gpus)
    return estimate(model, quant=quant, engine="sglang", engine_version=version, gpu=gpu, gpus=gpus, context=8192, settings=settings, kv_dtype=kv_dtype, partial=True)


def held(found, name):
    lines = [line for line in found.ledger.on(0).lines if line.name == name]
    return sum(line.nbytes for line in lines)


@pytest.mark.parametrize(("gpu", "gpus", "fraction"), [("MI355X", 1, 0.911), ("MI355X", 8, 0.908), ("MI300X", 4, 0.865)])
def test_the_fraction_is_by_the_card_and_less_where_aiter_attends(gpu, gpus, fraction):
    """0.911, 0.908 and 0.865 as sglang#18262, a log of eight MI355X and sglang#12419 have them."""
    assert static_fraction(run("llama-3.1-70b", "0.5.7", gpu=gpu, gpus=gpus).job) == pytest.approx(0.85 * fraction)
    assert static_fraction(run("llama-3.1-70b", "0.5.7", gpu=gpu, gpus=gpus, attention_backend="triton").job) == pytest.approx(fraction)


def test_a_fraction_that_was_set_is_lowered_too_and_the_command_gives_what_was_set():
    found = run("qwen3-8b", mem_fraction_static=0.8)
    assert static_fraction(found.job) == pytest.approx(0.68)
    assert "--mem-fraction-static 0.8" in found.start_command.replace("0.80 ", "0.8 ")
    assert static_fraction(run("qwen3-8b", mem_fraction_static=0.8, context_length=8192).job) == 0.8
    assert static_fraction(run("qwen3-8b", "0.5.4.post1", mem_fraction_static=0.8).job) == pytest.approx(0.72)


@pytest.mark.parametrize(("model", "version", "gpus", "backend"), [
    ("llama-3.1-8b", "0.4.7", 1, "aiter"), ("qwen3-8b", "0.5.23", 1, "aiter"), ("deepseek-r1", "0.5.6", 8, "aiter"),
    ("deepseek-r1", "0.5.6", 4, "triton"), ("gemma-4-31b-it", "0.5.12", 1, "triton"),
])  # fmt: skip
def test_the_attention_backend_is_by_model_and_release(model, version, gpus, backend):
    assert backend_of(run(model, version, gpus=gpus, quant="fp8-block" if model == "deepseek-r1" else "bf16").job) == backend


def test_partial_results_of_paged_attention_are_what_fails_in_public_logs():
    """sglang#20888: 16.25 GiB for Llama 3.1 8B; sglang#18263: 51.75 for 3,261 requests of Qwen3 30B-A3B."""
    found = run("llama-3.1-8b", "0.5.9", gpu="MI325X", max_running_requests=2048)
    assert held(found, "attention workspace") == 16.25 * GIB
    assert round(held(run("qwen3-30b-a3b-instruct-2507", "0.5.16", max_running_requests=3261), "attention workspace") / GIB, 2) == 51.75
    for other in (run("deepseek-r1", "0.5.9", quant="fp8-block", gpus=8), run("gpt-oss-20b", "0.5.12"), run("llama-3.1-8b", attention_backend="triton")):
        assert held(other, "attention workspace") == 0


def test_partial_results_that_outgrow_the_card_are_a_refusal():
    """sglang#18262: 65 GiB for 4,096 requests of 262,144 tokens, on a card that has 60 left."""
    found = run("qwen3-30b-a3b-instruct-2507", "0.5.7", max_running_requests=4096)
    assert held(found, "attention workspace") == 65 * GIB
    assert any("HIP out of memory" in said for said in found.pool.warnings)
    assert not any("HIP out of memory" in said for said in run("qwen3-30b-a3b-instruct-2507", "0.5.7", max_running_requests=256).pool.warnings)


@pytest.mark.parametrize(("settings", "nbytes"), [({}, 5 * 512 * 131072), ({"attention_backend": "triton"}, 9 * 512 * 131072 + 4 * 512 * 32 * 16 * 129), ({"disable_cuda_graph": True}, 0)])
def test_captured_batches_read_places_of_all_their_tokens(settings, nbytes):
    assert held(run("llama-3.1-8b", "0.5.9", **settings), "graph index buffers") == nbytes


def test_batches_are_captured_at_the_sizes_that_a_log_lists():
    """sglang#12419: 1, 2, 4, 8, 12, 16, 24 ... 256, 272 ... 512."""
    assert (decode_graphs(512), decode_graphs(4), decode_graphs(256)) == (52, 3, 36)


def test_qwen3_moe_keeps_its_experts_as_loaded_until_0_5_9():
    """48 layers of 128 experts of 3 x 2048 x 768 in 16 bits, or in 8."""
    experts = 48 * 128 * 3 * 2048 * 768
    kept = [held(run("qwen3-30b-a3b", version, quant), "experts as loaded") for version, quant in (("0.4.9", "bf16"), ("0.5.7", "bf16"), ("0.5.7", "fp8"), ("0.5.7", "fp8-block"), ("0.5.10", "bf16"))]
    assert kept == [0, 2 * experts, experts, 0, 0]


def test_experts_that_are_dealt_out_are_held_twice_by_two_releases():
    """58 layers of 32 of DeepSeek R1's 256 experts a rank. sglang#7691: 166.59 GiB, where the next release has 90."""
    dealt = {"enable_dp_attention": True, "dp_size": 8, "ep_size": 8}
    kept = [held(run("deepseek-r1", version, "fp8-block", "MI300X", 8, **settings), "experts as loaded")
            for version, settings in (("0.4.8", dealt), ("0.4.8.post1", dealt), ("0.4.9.post2", dealt), ("0.4.10", dealt), ("0.4.9", {}))]  # fmt: skip
    assert kept == [0, 58 * 32 * 3 * 7168 * 2048, 58 * 32 * 3 * 7168 * 2048, 0, 0]


def test_experts_in_8_bits_are_padded_to_aiters_blocks_since_0_5_11():
    """235B over 8 ranks: 192 of 1,536 columns each, made 256."""
    padding = 94 * 128 * 3 * 4096 * (256 - 192)
    assert held(run("qwen3-235b-a22b", "0.5.12", "fp8-block", "MI300X", 8), "padded experts") == padding
    assert held(run("qwen3-235b-a22b", "0.5.12", "bf16", "MI300X", 8), "padded experts") == 0
    with pytest.raises(CalculatorError, match="192"):
        run("qwen3-235b-a22b", "0.5.10", "fp8-block", "MI300X", 8)


def test_absorbed_matrices_and_rotary_tables_are_narrower():
    """61 layers of 16 heads, 128 + 128 by 512 each; 163,840 positions of 64 in 16 bits, since 0.5.22 in 32."""
    on = {name: run("deepseek-r1", version, "fp8-block", gpu, 8) for name, version, gpu in (("amd", "0.5.12", "MI300X"), ("later", "0.5.22", "MI300X"), ("nvidia", "0.5.12", "h200"))}
    weights = {name: found.ledger.on(0).component_bytes("weights") for name, found in on.items()}
    assert held(on["nvidia"], "absorbed key and value matrices") == 2 * held(on["amd"], "absorbed key and value matrices") == 2 * 61 * 16 * 256 * 512
    assert weights["later"] - weights["amd"] == 163840 * 64 * 2


@pytest.mark.parametrize(("options", "says"), [
    ({"model": "qwen3-8b", "gpu": "MI210"}, "gfx942 and gfx950 alone"), ({"model": "qwen3-8b", "gpu": "RX 7900 XTX"}, "gfx942 and gfx950 alone"),
    ({"model": "qwen3-8b", "gpu": "MI300A"}, "sglang on MI300A"), ({"model": "qwen3-8b", "version": "0.4.6"}, "0.4.6 on AMD"),
    ({"model": "qwen3-8b", "quant": "bnb-nf4"}, "bitsandbytes quantization is currently not supported in ROCm"),
    ({"model": "qwen3-8b", "quant": "nvfp4"}, "modelopt_fp4 quantization is currently not supported in ROCm"),
    ({"model": "qwen3-8b", "quant": "gptq-int4-g128"}, "gptq quantization is currently not supported in ROCm"),
    ({"model": "qwen3-8b", "version": "0.5.12", "quant": "gptq-int4-g128"}, "gptq in sglang on AMD"),
    ({"model": "qwen3-30b-a3b", "quant": "awq-int4-g128"}, "awq-int4-g128 of qwen3_moe"),
    ({"model": "gpt-oss-120b", "quant": "mxfp4", "gpu": "MI300X"}, "Current platform gfx942 not support mxfp4"),
    ({"model": "gpt-oss-120b", "quant": "mxfp4", "version": "0.5.8"}, "gpt_oss in mxfp4"),
    ({"model": "deepseek-v3.2", "quant": "fp8-block", "gpus": 8}, "sparse attention"),
    ({"model": "qwen3-next-80b-a3b-instruct", "version": "0.5.14", "gpus": 4}, "extra_buffer needs"),
    ({"model": "qwen3-8b", "enable_lora": True}, "enable_lora in sglang on AMD"), ({"model": "qwen3-8b", "speculative_algorithm": "ngram"}, "speculative_algorithm in sglang on AMD"),
    ({"model": "qwen3-8b", "attention_backend": "fa3"}, "fa3"),
])  # fmt: skip
def test_what_has_no_kernels_or_was_not_read_is_refused(options, says):
    with pytest.raises(CalculatorError, match=says):
        run(**options)


def test_gpt_oss_in_its_own_format_is_sized_on_gfx950():
    found = run("gpt-oss-120b", "0.5.12", "mxfp4")
    assert 60 < found.ledger.on(0).component_bytes("weights") / GIB < 70
    assert found.pool.tokens > 0


def test_aiter_is_no_backend_of_nvidias_cards():
    with pytest.raises(CalculatorError, match="aiter"):
        run("qwen3-8b", gpu="h200", attention_backend="aiter")
