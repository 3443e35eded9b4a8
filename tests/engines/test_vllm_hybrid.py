"""Recurrent layers in vLLM: blocks as large as a state, groups of layers, what logs print of them."""

from __future__ import annotations

import pytest

from calculator.engines.vllm.blocks import blocks_for, groups_of
from calculator.engines.vllm.hybrid import block_size, group_size
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.report.text import estimate_text
from calculator.units import GIB


def run(model, **options):
    return estimate(model, engine="vllm", partial=True, **options)


def pool(model, gib, ranks=1, **options):
    settings = {"kv_pool_bytes": int(gib * GIB), "tensor_parallel_size": ranks, **options.pop("settings", {})}
    return run(model, settings=settings, **options).pool


# pool as printed to 0.01 GiB, tokens, concurrency; each found before the formulas were written, which were changed for none of them
@pytest.mark.parametrize(
    ("model", "version", "context", "gib", "options", "tokens", "concurrency"),
    [
        ("qwen3.6-35b-a3b", "0.19.1", 131072, 47.55, {}, 623_040, "18.44"),
        ("qwen3.5-35b-a3b", "0.18.0", 262144, 55.72, {"settings": {"enable_prefix_caching": True}}, 729_696, "10.85"),
        ("qwen3.5-122b-a10b", "0.22.1", 262144, 13.84, {"settings": {"enable_prefix_caching": True}}, 571_950, "2.18"),
        ("qwen3.6-35b-a3b", "0.23.1", 131072, 50.81, {"kv_dtype": "fp8"}, 5_046_272, "38.50"),
        ("qwen3.6-35b-a3b", "0.23.1", 262144, 51.93, {"kv_dtype": "fp8"}, 5_277_426, "20.13"),
        ("qwen3-next-80b-a3b-instruct", "0.13.0", 16384, 7.09, {"ranks": 2}, 154_496, "33.47"),
        ("nemotron-3-nano-4b", "0.13.0", 8192, 11.15, {"kv_dtype": "fp8", "settings": {"mamba_ssm_cache_dtype": "float16"}}, 208_320, "98.20"),
        ("nemotron-3-nano-4b", "0.19.1", 49152, 103.39, {"kv_dtype": "fp8"}, 1_934_432, "216.94"),
        ("qwen3.5-4b", "0.22.0", 4096, 10.21, {}, 235_706, "57.55"),
        # two logs of Qwen3.8 27B, of the same widths, on 0.29.0 and on the way to 0.27 with mamba_cache_mode align
        ("qwen3.6-27b", "0.29.0", 8192, 31.24, {}, 314_187, "38.35"),
        ("qwen3.6-27b", "0.27.0", 196608, 7.33, {"kv_dtype": "fp8", "settings": {"enable_prefix_caching": True}}, 227_886, "1.16"),
        ("kimi-linear-48b-a3b-instruct", "0.14.1", 120000, 2.30, {"ranks": 2}, 75_840, "2.49"),  # prints 2.48, its pool to 0.01 GiB
    ],
)  # fmt: skip
def test_tokens_and_concurrency_of_a_pool_equal_the_logs(model, version, context, gib, options, tokens, concurrency):
    found = pool(model, gib, engine_version=version, context=context, **options)
    assert (found.tokens, f"{found.max_concurrency:.2f}") == (tokens, concurrency)


def test_a_block_holds_a_state_and_is_a_multiple_of_the_kernels():
    """Qwen3.6 35B: 2,146,304 bytes in blocks of 2,048 a token, 1,056 of them; heads of 256 on B200 in 32s; a larger one as set."""
    size = run("qwen3.6-35b-a3b", quant="bf16", context=4096)
    assert size.engine.resolved_settings(size.job)["block_size"] == 1056
    b200 = run("qwen3.5-122b-a10b", quant="bf16", gpu="B200", context=4096)
    assert b200.engine.resolved_settings(b200.job)["block_size"] == 2112
    wide = run("qwen3.6-35b-a3b", quant="bf16", context=4096, settings={"block_size": 2000})
    assert wide.engine.resolved_settings(wide.job)["block_size"] == 2000


@pytest.mark.parametrize(
    ("model", "version", "options", "states"),
    [
        ("qwen3.6-35b-a3b", "0.27.0", {}, 1),
        ("qwen3.6-35b-a3b", "0.28.0", {}, 2),
        ("qwen3.6-35b-a3b", "0.29.0", {"settings": {"enable_prefix_caching": False}}, 1),
        ("qwen3.6-35b-a3b", "0.33.0", {"gpu": "H200 SXM 141GB"}, 3),  # FlashInfer saves one within a pass
        ("qwen3.6-35b-a3b", "0.33.0", {"gpu": "A100 SXM4 80GB"}, 2),
        ("nemotron-3-nano-4b", "0.31.0", {}, 2),
        ("nemotron-3-nano-4b", "0.33.0", {}, 3),
    ],
)
def test_prefixes_are_kept_by_default_since_0_28_and_cost_a_state_or_two(model, version, options, states):
    found = run(model, quant="bf16", context=32768, engine_version=version, **options)
    groups = groups_of(found.job)
    assert blocks_for(found.job, 32768) == groups.full * -(-32768 // block_size(found.job)) + groups.recurrent * states


def test_mamba_2_keeps_a_state_for_every_block_until_0_27():
    found = run("nemotron-3-nano-4b", quant="bf16", context=32768, engine_version="0.27.0", settings={"enable_prefix_caching": True})
    assert block_size(found.job) % 128 == 0  # whole chunks
    assert blocks_for(found.job, 32768) == groups_of(found.job).tables * -(-32768 // block_size(found.job))
    grown = run("nemotron-3-nano-4b", quant="bf16", context=32768 + block_size(found.job), engine_version="0.27.0", settings={"enable_prefix_caching": True})
    added = grown.ledger.component_bytes("kv_cache") - found.ledger.component_bytes("kv_cache")
    assert found.kv_bytes_per_token == added // block_size(found.job)


MTP = {"speculative_method": "mtp"}


@pytest.mark.parametrize(
    ("model", "version", "context", "gib", "options", "tokens", "concurrency"),
    [
        ("qwen3.6-27b", "0.23.1", 262144, 48.60, {"kv_dtype": "fp8", "settings": MTP | {"num_speculative_tokens": 2, "enable_prefix_caching": True}}, 1_394_129, "5.32"),
        ("qwen3.6-35b-a3b", "0.25.1", 262144, 74.23, {"settings": MTP | {"num_speculative_tokens": 3}}, 3_366_051, "12.84"),  # prints 74.22
        ("qwen3.6-27b", "0.25.1", 262144, 80.17, {"settings": MTP | {"num_speculative_tokens": 3}}, 1_191_213, "4.54"),
    ],
)  # fmt: skip
def test_an_mtp_layer_attends_and_drafted_tokens_have_states_of_their_own(model, version, context, gib, options, tokens, concurrency):
    """Logs that were there before the formula, which no comparison has changed."""
    found = pool(model, gib, engine_version=version, context=context, **options)
    assert (found.tokens, f"{found.max_concurrency:.2f}") == (tokens, concurrency)


def test_the_refusal_names_the_longest_sequence_that_the_engine_finds():
    """A log on the way to 0.27: 7.0 GiB is needed of 6.42, the estimated maximum model length is 177600."""
    found = pool("qwen3.8-27b", 6.42, engine_version="0.27.0", context=196608, kv_dtype="fp8", settings=MTP | {"num_speculative_tokens": 2, "enable_prefix_caching": True})
    assert "(7.00 GiB KV cache is needed" in found.warnings[0]
    assert "the estimated maximum model length is 177600." in found.warnings[0]


def test_an_mtp_layer_is_in_16_bits_beside_a_format_that_leaves_modules_out():
    """Logs of NVIDIA's 27B in NVFP4 print 19.78 GiB without and 20.57 with it; RedHat's 35B 21.86 and 23.45."""
    for model, more in (("qwen3.6-27b", 20.57 - 19.78), ("qwen3.6-35b-a3b", 23.45 - 21.86)):
        without, drafting = (run(model, quant="nvfp4", context=4096, engine_version="0.25.1", settings=s).ledger.component_bytes("weights") for s in ({}, MTP | {"num_speculative_tokens": 2}))
        assert (drafting - without) / GIB == pytest.approx(more, abs=0.02)


def test_a_state_for_each_of_max_num_seqs_or_no_start_since_0_20():
    """A log of 0.29.0 on an RTX PRO 6000: max_num_seqs (1024) exceeds available Mamba cache blocks (635)."""
    def start(**options):
        found = estimate("qwen3.6-27b", engine="vllm", context=8192, gpu="RTX PRO 6000 Blackwell Server Edition", **options)
        return fit(found, found.job.gpu).verdict, found.pool

    verdict, held = start(engine_version="0.29.0", settings={"max_num_seqs": 1024})
    assert verdict == "does_not_fit"
    assert held.warnings[0].startswith(f"vllm refuses: max_num_seqs (1024) exceeds available Mamba cache blocks ({held.blocks}).")
    assert held.blocks == pytest.approx(635, rel=0.05)
    assert start(engine_version="0.29.0", settings={"max_num_seqs": 256})[0] == "fits"
    assert start(engine_version="0.29.0", settings={"max_num_seqs": 1024, "enforce_eager": True})[0] == "fits"
    assert start(engine_version="0.19.0", settings={"max_num_seqs": 1024})[0] == "fits"
    verdict, held = start(engine_version="0.29.0", settings={"max_num_seqs": held.blocks})
    assert verdict == "tight"
    assert "states of recurrent layers" in held.warnings[0]


def test_groups_are_as_large_as_the_rarer_kind_and_the_last_one_is_padded():
    assert group_size(run("qwen3.6-35b-a3b", context=4096).job.model) == (1, 3, 10)
    assert group_size(run("nemotron-3-nano-4b", context=4096).job.model) == (1, 6, 4)


@pytest.mark.parametrize(
    ("model", "version", "options", "printed"),
    [
        ("qwen3.6-35b-a3b", "0.19.1", {"quant": "bf16", "settings": {"language_model_only": True}}, 64.69),
        ("qwen3.5-35b-a3b", "0.18.0", {"quant": "fp8-block"}, 34.22),
        ("qwen3.6-27b", "0.26.0", {"quant": "fp8-block", "settings": {"language_model_only": True}}, 27.64),
        ("nemotron-3-nano-4b", "0.19.1", {"quant": "bf16"}, 7.43),
        ("qwen3.5-4b", "0.22.0", {"quant": "bf16"}, 8.61),
    ],
)
def test_weights_equal_what_logs_print_to_a_thousandth(model, version, options, printed):
    found = run(model, engine_version=version, context=4096, **options)
    assert found.ledger.component_bytes("weights") / GIB == pytest.approx(printed, rel=0.001)


def test_ranks_hold_the_whole_and_halve_the_state():
    whole, half = (run("qwen3.6-35b-a3b", context=4096, quant="bf16", settings={"tensor_parallel_size": n}) for n in (1, 2))
    linear = [sum(line.nbytes for line in found.ledger.lines if line.name == "linear layers") for found in (whole, half)]
    assert linear[0] == linear[1]


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("qwen3.6-35b-a3b", {"quant": "bnb-nf4"}, "leave in 16 bits"),
        ("qwen3.6-35b-a3b", {"gpus": 2, "settings": {"tensor_parallel_size": 1}}, "pipeline stages"),
        ("nemotron-3-nano-4b", {"engine_version": "0.14.0", "settings": {"enable_prefix_caching": True}}, "prefix caching"),
        ("qwen3-next-80b-a3b-instruct", {"engine_version": "0.10.2", "settings": {"use_v1": False}}, "V0 engine"),
        ("llama-3.1-8b", {"settings": {"mamba_ssm_cache_dtype": "float32"}}, "without recurrent layers"),
        ("llama-3.1-8b", {"settings": {"language_model_only": True}}, "language_model_only"),
    ],
)
def test_what_is_not_known_is_refused(model, options, why):
    with pytest.raises(CalculatorError, match=why):
        run(model, context=4096, **options)


def test_the_peak_of_a_log_is_met_without_the_scans():
    """vLLM 0.23.1 on an RTX PRO 6000 prints 1.42 GiB, 0.76 of which are the graphs' estimate: the scans aren't run."""
    found = run("qwen3.6-35b-a3b", quant="fp8-block", kv_dtype="fp8", engine_version="0.23.1", context=131072, gpu="RTX PRO 6000 Blackwell Workstation Edition",
                settings={"max_num_seqs": 32, "max_num_batched_tokens": 8192, "language_model_only": True})  # fmt: skip
    line = next(line for line in found.ledger.lines if line.name == "peak activation")
    assert line.nbytes / GIB == pytest.approx(1.42 - 0.76, rel=0.06)
    assert line.low_bytes <= 0.66 * GIB <= line.high_bytes


@pytest.mark.parametrize("model", ["nemotron-3-nano-4b", "nemotron-3-nano-30b-a3b", "granite-4.0-h-tiny", "kimi-linear-48b-a3b-instruct", "qwen3-next-80b-a3b-instruct"])
def test_a_recurrent_model_without_a_tower_gets_a_whole_estimate(model):
    settings = {"mamba_ssm_cache_dtype": "float32", "max_num_seqs": 8}
    found = run(model, quant="bf16", gpu="H200 SXM 141GB", gpus=4, context=4096, settings=settings)
    assert not found.partial
    assert found.pool.tokens > 4096


@pytest.mark.parametrize(("version", "name"), [("0.11.2", "states times gates in float32"), ("0.14.0", "the convolution's inputs, twice")])
def test_a_mamba_layer_holds_its_projections_and_what_is_copied_of_them(version, name):
    """Nemotron 3 Nano 4B, 2,048 tokens: gate, states, B, C and dt; the convolution's inputs once, or twice since 0.12."""
    found = run("nemotron-3-nano-4b", quant="bf16", engine_version=version, context=4096,
                settings={"max_num_seqs": 2, "max_num_batched_tokens": 2048, "mamba_ssm_cache_dtype": "float32"})  # fmt: skip
    step, state = found.peak.step, found.job.model.recurrent
    assert step.name == "recurrent layer"
    sizes = {b.name: b.nbytes for b in step.buffers}
    assert sizes["gate, states, B, C and time step"] == 2 * 2048 * (state.inner + state.conv_channels + state.heads)
    assert sizes[name] == 2048 * (8 * state.inner if version == "0.11.2" else 4 * state.conv_channels)


def test_a_gated_delta_layer_of_0_11_0_projects_inside_what_is_not_run():
    def peak(version):
        return run("qwen3-next-80b-a3b-instruct", quant="bf16", engine_version=version, context=4096, settings={"max_num_seqs": 2, "max_num_batched_tokens": 2048}).peak

    assert peak("0.11.0").step.name == "experts"
    assert peak("0.14.0").step.name in ("experts", "recurrent layer")
    assert peak("0.14.0").nbytes >= peak("0.11.0").nbytes


def test_the_headline_says_why_what_would_fit_by_its_bytes_does_not():
    found = run("qwen3.6-27b", gpu="H100 SXM5 80GB", context=8192)
    why = estimate_text(found, explain=False).splitlines()[2]
    assert "max_num_seqs (1024) exceeds available Mamba cache blocks" in why
    assert not run("qwen3.6-27b", gpu="H100 SXM5 80GB", context=8192, settings={"max_num_seqs": int(why.rpartition("max_num_seqs=")[2])}).pool.refusal
