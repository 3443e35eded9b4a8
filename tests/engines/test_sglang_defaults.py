"""SGLang's own choices of chunk, captured batches and static fraction, as each release's function computes them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calculator.catalog import load_model
from calculator.engines.sglang.defaults import (
    graph_sequences,
    prefill_in_graphs,
    static_fraction,
    tower_factor,
    whole_chunk,
)
from calculator.engines.sglang.deployment import card_mib
from calculator.engines.sglang.pool import image_bytes, running_requests
from calculator.errors import NotModelled
from calculator.estimate import estimate
from calculator.readers.hf_config import model_from_config
from calculator.units import MIB

DP = {"enable_dp_attention": 1, "dp_size": 2}


def job_of(model, version, gpu, tp=1, **settings):
    return estimate(model, engine="sglang", engine_version=version, gpu=gpu, gpus=tp, context=256, settings=settings | {"tensor_parallel_size": tp}).job


@pytest.mark.parametrize(
    ("version", "gpu", "model", "tp", "settings", "fraction", "chunk", "graphs"),
    [  # what handle_gpu_memory_settings of the release's wheel returns for the card; 432 random settings agreed
        ("0.5.13", "H100 SXM5 80GB", "llama-3.1-8b", 1, {"context_length": 3000}, 0.831, 8192, 256),
        ("0.5.14", "L40S", "llama-3.1-8b", 1, {"disable_cuda_graph": 1}, 0.851, 4096, 32),
        ("0.5.15", "L40S", "llama-3.1-8b", 1, {"disable_cuda_graph": 1}, 0.853, 4096, 32),
        ("0.5.16", "RTX 4090", "llama-3.1-8b", 2, {}, 0.828, 2048, 24),
        ("0.5.17", "B200", "deepseek-v3", 8, {}, 0.852, 16384, 512),
        ("0.5.18", "B200", "deepseek-v3", 8, {}, 0.844, 16384, 512),
        ("0.5.19", "RTX 4090", "llama-3.1-8b", 1, {}, 0.833, 2048, 24),
        ("0.5.20", "RTX 4090", "llama-3.1-8b", 1, {}, 0.704, 4096, 48),
        ("0.5.21", "RTX 5090", "llama-3.1-8b", 4, {}, 0.758, 4096, 160),
        ("0.5.23", "RTX 4090", "llama-3.1-8b", 1, {"max_running_requests": 8}, 0.707, 4096, 8),
        ("0.5.23", "H200", "qwen3-30b-a3b", 4, DP, 0.865, 8192, 512),
    ],
)
def test_the_static_fraction_is_the_releases_own(version, gpu, model, tp, settings, fraction, chunk, graphs):
    job = job_of(model, version, gpu, tp, **settings)
    assert (static_fraction(job), whole_chunk(job), graph_sequences(job)) == (fraction, chunk, graphs)


def test_captured_batches_as_set_move_the_fraction_and_have_a_flag():
    """sglang v0.5.6 srt/server_args.py L829-836, v0.5.10 L1290: 2 MiB a captured sequence are left to the graphs."""
    for version, flag in (("0.5.6", "--cuda-graph-max-bs 8"), ("0.5.23", "--cuda-graph-max-bs-decode 8")):
        few, usual = (job_of("llama-3.1-8b", version, "L40S", **s) for s in ({"cuda_graph_max_bs": 8}, {}))
        freed = (graph_sequences(usual) - 8) * 2 * MIB
        assert graph_sequences(few) == 8
        assert static_fraction(few) - static_fraction(usual) == pytest.approx(freed / ((card_mib(usual) or 0) * MIB), abs=0.001)
        found = estimate("llama-3.1-8b", engine="sglang", engine_version=version, gpu="L40S", context=256, settings={"cuda_graph_max_bs": 8})
        assert flag in found.start_command
    uncaptured = job_of("llama-3.1-8b", "0.5.6", "L40S", cuda_graph_max_bs=8, disable_cuda_graph=1)  # the server's log states both
    assert static_fraction(uncaptured) == static_fraction(job_of("llama-3.1-8b", "0.5.6", "L40S", cuda_graph_max_bs=8))


@pytest.mark.parametrize(
    ("version", "model", "tp", "settings", "captured"),
    [
        ("0.5.9", "llama-3.1-8b", 1, {}, False), ("0.5.13", "llama-3.1-8b", 1, {"disable_cuda_graph": 1}, True), ("0.5.14", "llama-3.1-8b", 1, {"disable_cuda_graph": 1}, False),
        ("0.5.14", "deepseek-v3", 8, {}, True), ("0.5.15", "deepseek-v3", 8, {}, False), ("0.5.18", "deepseek-v3", 8, {}, True),
        ("0.5.16", "qwen3-30b-a3b", 2, DP, False), ("0.5.17", "qwen3-30b-a3b", 2, DP, True),
    ],
)  # fmt: skip
def test_prefill_is_captured_where_the_release_has_no_rule_against_it(version, model, tp, settings, captured):
    assert prefill_in_graphs(job_of(model, version, "H200", tp, **settings)) is captured


def test_stages_are_not_captured_but_for_four_releases():
    def captured(version):
        return prefill_in_graphs(estimate("llama-3.1-8b", engine="sglang", engine_version=version, gpu="H200", gpus=2, settings={"tensor_parallel_size": 1}).job)

    assert [captured(v) for v in ("0.5.14", "0.5.15", "0.5.18", "0.5.19")] == [False, True, True, False]


def test_a_tower_lowers_the_fraction_by_its_layers_and_width():
    """ViT-L/14 leaves 0.95; a wide one no less than 0.76; before 0.4.9 a fraction that was set is lowered too."""
    assert tower_factor(24, 1024) == 0.95
    assert 0.848 * tower_factor(27, 1152) == 0.7714564062499999  # printed for Kimi K2.5 on 8 RTX PRO 6000: magik6k/glm-kimi-sm120-rtx6000bw @3ef3c8d
    assert tower_factor(24, 3584) == pytest.approx(0.76)
    assert tower_factor(2, 64) == pytest.approx(0.95 * 1.05, rel=0.01)
    job = job_of("llama-3.1-8b", "0.5.9", "H200")
    model = replace(load_model("llama-3.1-8b").spec, vision_parameters=10**8, vision_layers=27, vision_hidden_size=1152)
    text = static_fraction(job)

    def of(version, **settings):
        deployment = replace(job.deployment, engine_version=version, settings=job.deployment.settings | settings)
        return static_fraction(replace(job, model=model, deployment=deployment))

    assert of("0.5.9") == pytest.approx(text * tower_factor(27, 1152))
    assert of("0.5.9", mem_fraction_static=0.8) == 0.8
    assert of("0.4.8", mem_fraction_static=0.8) == pytest.approx(0.72)
    assert of("0.4.3", mem_fraction_static=0.8) == pytest.approx(0.76)


def test_layers_and_width_of_a_tower_are_read_under_the_names_that_the_server_reads():
    """Qwen's towers say depth: the server takes 24 layers then."""
    config = {
        "model_type": "qwen3_vl", "dtype": "bfloat16",
        "text_config": {"model_type": "qwen3_vl_text", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                        "intermediate_size": 128, "vocab_size": 256, "max_position_embeddings": 512},
        "vision_config": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 64, "num_heads": 16, "patch_size": 16, "temporal_patch_size": 2,
                          "spatial_merge_size": 2, "in_channels": 3, "num_position_embeddings": 2304, "deepstack_visual_indexes": [0]},
    }  # fmt: skip
    spec = model_from_config(config, id="x")
    assert spec.vision_parameters
    assert (spec.vision_layers, spec.vision_hidden_size) == (0, 1152)


def test_requests_at_once_are_bounded_by_the_pool_as_each_release_bounds_them():
    """Half the tokens since 0.5.10; what is set is divided over attention groups, and until 0.5.13 no more than the default."""

    def most(version, model="llama-3.1-8b", tp=1, **settings):
        found = estimate(model, engine="sglang", engine_version=version, gpu="H200", gpus=tp, context=256, settings=settings | {"tensor_parallel_size": tp})
        return running_requests(found.job, found.pool)

    small = {"max_total_tokens": 1000}
    assert [most(v, **small) for v in ("0.5.9", "0.5.10", "0.5.23")] == [2048, 500, 500]
    assert [most(v, max_running_requests=5000, **small) for v in ("0.5.9", "0.5.13", "0.5.14")] == [5000, 2048, 500]
    assert most("0.5.18", "qwen3-30b-a3b", 2, max_running_requests=64, **DP) == 32


def test_what_images_are_kept_free_for_comes_off_the_pool():
    job = job_of("qwen3-8b", "0.5.18", "H200")
    seen = replace(job, model=replace(job.model, vision_parameters=10**8))

    def of(version, job=seen, **settings):
        return image_bytes(replace(job, deployment=replace(job.deployment, engine_version=version, settings=job.deployment.settings | settings)))

    assert [of("0.5.18", job), of("0.5.17"), of("0.5.18"), of("0.5.20"), of("0.5.20", max_running_requests=400)] == [0, 0, 100 * MIB, 1024 * MIB, 3072 * MIB]


def test_memory_shared_with_the_cpu_is_what_the_system_calls_available_since_0_5_9():
    """Free before loading on a DGX Spark of 121.69 GiB: 111.97, 112.26 and 112.86 GiB (public logs); the defaults go by what CUDA says, as nvidia-smi says nothing."""

    def held(version):
        found = estimate("llama-3.1-8b", engine="sglang", engine_version=version, gpu="DGX Spark", context=256)
        return {line.name: line for line in found.ledger.lines if line.name in ("CUDA context", "load slack")}, found.job

    newer, job = held("0.5.9")
    assert all(newer["CUDA context"].low <= (121.69 - free) * 2**30 <= newer["CUDA context"].high for free in (111.97, 112.26, 112.86))
    assert newer["load slack"].nbytes > held("0.5.8")[0]["load slack"].nbytes
    assert held("0.5.8")[0]["CUDA context"].nbytes == 2**29
    assert card_mib(job) == 124610


def test_a_setting_that_has_no_formula_may_be_given_as_off():
    """ServerArgs as logs print them name every setting."""
    plain = estimate("qwen3-8b", engine="sglang", gpu="H100 SXM", context=4096)
    said = estimate("qwen3-8b", engine="sglang", gpu="H100 SXM", context=4096, settings={"cpu_offload_gb": "0", "enable_hierarchical_cache": "False"})
    assert [line.nbytes for line in said.ledger.lines] == [line.nbytes for line in plain.ledger.lines]
    with pytest.raises(NotModelled, match="outside of the GPU"):
        estimate("qwen3-8b", engine="sglang", gpu="H100 SXM", context=4096, settings={"cpu_offload_gb": "4"})
