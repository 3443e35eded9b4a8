"""vLLM's CUDA graphs: sizes by release and settings, what they are beside, and the flags that give them."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.engines.vllm.graphs import graphs_of
from calculator.errors import BadValue, CalculatorError, NotModelled
from calculator.estimate import estimate

V0 = {"use_v1": False}


def run(model="llama-3.1-8b", **options):
    more = options.pop("settings", {})
    return estimate(model, **{"engine": "vllm", "context": 1024} | options, settings=more)


def counts(**options):
    return tuple(graphs_of(run(**options).job))


def line(found):
    return next(n for n in found.ledger.on_devices if n.name.startswith("CUDA graphs"))


# what logs print of captured sizes: in pieces, whole, the largest
@pytest.mark.parametrize(
    ("version", "settings", "printed"),
    [
        ("0.6.5", {}, (0, 35, 256)),  # vllm#11349: 35/35
        ("0.8.1", V0 | {"max_num_seqs": 320}, (0, 43, 320)),  # Llama 3.2 3B on an A100: 43/43
        ("0.8.3", V0 | {"max_num_seqs": 64}, (0, 11, 64)),  # vllm#16378: 11 of Gemma 3 27B
        ("0.8.5", {}, (67, 0, 512)),  # vllm#12529 prints the list
        ("0.10.2", {"max_num_seqs": 224}, (59, 31, 448)),  # 31/31 of Qwen3 8B FP8 on an L4
        ("0.19.0", {"max_num_seqs": 256}, (51, 35, 512)),  # vllm#39559
        ("0.22.0", {"max_num_seqs": 128}, (35, 19, 256)),  # Qwen2.5 7B
        ("0.23.0", {"max_num_seqs": 20}, (8, 5, 40)),  # Gemma 4 31B
        ("0.20.0", {"max_num_seqs": 1, "max_cudagraph_capture_size": 1}, (1, 1, 1)),  # Qwen3.6 35B on a GB10
    ],
)
def test_sizes_are_those_that_logs_print(version, settings, printed):
    assert counts(engine_version=version, settings=settings) == printed


@pytest.mark.parametrize(("mode", "pieces", "whole"), [("none", 0, 0), ("piecewise", 8, 0), ("full", 0, 8), ("full_decode_only", 0, 5), ("full_and_piecewise", 8, 5)])
def test_a_mode_captures_in_pieces_whole_or_both(mode, pieces, whole):
    assert counts(engine_version="0.19.0", settings={"cudagraph_mode": mode, "max_num_seqs": 20})[:2] == (pieces, whole)


def test_pooling_models_have_no_whole_graphs_and_eager_none():
    assert counts(engine_version="0.19.0", settings={"runner": "pooling"})[1] == 0
    assert counts(settings={"enforce_eager": True}) == (0, 0, 0)
    assert [line(run(settings=s)).high_bytes for s in ({"enforce_eager": True}, {"cudagraph_mode": "none"})] == [0, 0]


@given(st.sampled_from(["0.8.5", "0.11.0", "0.14.0", "0.19.0", "0.24.0", "0.33.0"]), st.integers(1, 1024), st.integers(1, 1024))
def test_more_sequences_never_take_less(version, few, more):
    few, more = sorted((few, more))
    a, b = (line(run(engine_version=version, settings={"max_num_seqs": n})) for n in (few, more))
    assert a.nbytes <= b.nbytes
    assert a.low_bytes <= a.nbytes <= a.high_bytes <= b.high_bytes


@given(st.sampled_from(["0.8.5", "0.19.0", "0.33.0"]), st.lists(st.integers(1, 512), min_size=1, max_size=12), st.sampled_from([None, "piecewise", "full", "full_decode_only"]))
def test_the_command_gives_the_graphs_again(version, sizes, mode):
    mode = None if version == "0.8.5" else mode
    asked = {"cudagraph_capture_sizes": ",".join(map(str, sizes))} | ({"cudagraph_mode": mode} if mode else {})
    found = run(engine_version=version, settings=asked)
    config = json.loads(shlex.split(found.start_command)[shlex.split(found.start_command).index("--compilation-config") + 1])
    assert config["cudagraph_capture_sizes"] == sorted(set(sizes))
    assert config.get("cudagraph_mode", "") == (mode or "").upper()
    graphs = graphs_of(found.job)
    assert graphs.largest == max(sizes)
    assert max(graphs.pieces, graphs.whole) <= len(set(sizes))


def test_one_number_is_a_flag_of_its_own_before_0_11_1():
    old, new = (run(engine_version=v, settings={"max_cudagraph_capture_size": 64}).start_command for v in ("0.9.2", "0.19.0"))
    assert "--cuda-graph-sizes 64" in old
    assert "--compilation-config '{\"max_cudagraph_capture_size\": 64}'" in new
    assert counts(engine_version="0.9.2", settings={"max_cudagraph_capture_size": 64}) == (11, 0, 64)


def test_stages_have_graphs_of_their_own_layers():
    whole, halves = run(engine_version="0.19.0"), run(engine_version="0.19.0", gpus=2, settings={"tensor_parallel_size": 1})
    (a,), (b, c) = ([n.nbytes for n in e.ledger.lines if n.name == "CUDA graphs"] for e in (whole, halves))
    assert b == c == a * 17 // 33


def test_what_the_second_runner_captures_is_beside_the_pool_until_0_29():
    """vllm v0.22.0 to v0.27.0 v1/worker/gpu/model_runner.py profile_cudagraph_memory returns 0; vllm#49224."""
    names = {v: line(run("qwen3-8b", quant="bf16", engine_version=v)).name for v in ("0.21.0", "0.22.0", "0.27.0", "0.29.0", "0.33.0")}
    assert names == {"0.21.0": "CUDA graphs, profiled", "0.22.0": "CUDA graphs", "0.27.0": "CUDA graphs", "0.29.0": "CUDA graphs, profiled", "0.33.0": "CUDA graphs, profiled"}
    first, second = (run("qwen3-8b", quant="bf16", gpu="rtx 4090", engine_version=v, settings={"max_num_seqs": 8}) for v in ("0.27.0", "0.29.0"))
    inside = sum(n.nbytes for n in first.ledger.lines if n.component != "kv_cache" and n.name != "CUDA graphs")
    assert first.pool.nbytes == first.pool.usable.value - inside
    inside = sum(n.nbytes for n in second.ledger.lines if n.component != "kv_cache")
    assert second.pool.nbytes == second.pool.usable.value - inside


def test_flashinfers_workspace_is_taken_where_its_kernels_run():
    def extra(**options):
        return "FlashInfer" in line(run(engine_version="0.23.0", **options)).formula.template

    assert extra(gpu="b200")
    assert extra(gpu="rtx 5090", kv_dtype="fp8")
    assert not extra(gpu="rtx 5090")
    assert not extra(gpu="h100", kv_dtype="fp8")


@pytest.mark.parametrize(
    ("version", "settings", "words"),
    [
        ("0.19.0", {"cudagraph_capture_sizes": "1,2,x"}, "cudagraph_capture_sizes"),
        ("0.19.0", {"cudagraph_capture_sizes": "0"}, "cudagraph_capture_sizes"),
        ("0.19.0", {"cudagraph_capture_sizes": "1,,2"}, "cudagraph_capture_sizes"),
        ("0.19.0", {"cudagraph_capture_sizes": "4096", "max_num_batched_tokens": 2048}, "beyond max_num_batched_tokens"),
        ("0.19.0", {"cudagraph_capture_sizes": "1,2", "max_cudagraph_capture_size": 8}, "should be consistent"),
        ("0.19.0", {"cudagraph_mode": "some"}, "cudagraph_mode"),
    ],
)
def test_what_contradicts_is_refused(version, settings, words):
    with pytest.raises(BadValue, match=words):
        run(engine_version=version, settings=settings)


@pytest.mark.parametrize("settings", [{"enforce_eager": True, "cudagraph_capture_sizes": "1,2"}, {"cudagraph_mode": "none", "max_cudagraph_capture_size": 8}])
def test_sizes_beside_a_mode_that_captures_nothing_are_taken_as_the_engine_takes_them(settings):
    assert line(run(engine_version="0.19.0", settings=settings)).nbytes == 0


@pytest.mark.parametrize(("version", "settings"), [("0.8.5", {"max_cudagraph_capture_size": 8}), ("0.9.2", {"cudagraph_mode": "full"}), ("0.8.5", V0 | {"cudagraph_capture_sizes": "1,2"})])
def test_what_a_release_does_not_have_is_refused(version, settings):
    with pytest.raises(NotModelled) as error:
        run(engine_version=version, settings=settings)
    assert isinstance(error.value, CalculatorError)


@pytest.mark.parametrize("version", ["0.6.4", "0.6.6", "0.8.5", "0.11.0", "0.17.1", "0.19.0", "0.24.0", "0.33.0"])
@pytest.mark.parametrize("gpu", ["rtx 4090", "h100", None])
def test_several_gpus_hold_more_outside_torch_than_one(version, gpu):
    """NCCL's buffers: no log prints less for ranks than for one card of the release and kind."""
    one, two = (next(n for n in run(engine_version=version, gpu=gpu, settings={"tensor_parallel_size": tp}).ledger.lines if n.name == "non-torch memory") for tp in (1, 2))
    assert one.nbytes <= two.nbytes
    assert two.low_bytes <= two.nbytes <= two.high_bytes
