"""Which sampler vLLM's profiling run takes, where the release decides by what is installed."""

from __future__ import annotations

import pytest

from calculator.errors import BadValue
from calculator.estimate import estimate
from calculator.units import GIB

CELLS = 256 * 152064  # max_num_seqs x vocabulary of Qwen2 7B


def run(version, sampler=None, gpu="A100 80GB", **settings):
    own = {} if sampler is None else {"use_flashinfer_sampler": sampler}
    return estimate("qwen2-7b-instruct", engine="vllm", engine_version=version, gpu=gpu, context=16384, settings={**own, **settings})


def activation(found):
    return next(line for line in found.ledger.lines if line.component == "activations")


@pytest.mark.parametrize("version", ["0.9.2", "0.10.1", "0.11.0"])
def test_where_flashinfer_may_be_installed_it_is_the_low_end(version):
    line, native, kernels = (activation(run(version, sampler)) for sampler in (None, "0", "1"))
    assert (line.nbytes, line.low_bytes) == (native.nbytes, kernels.nbytes)
    assert native.nbytes - kernels.nbytes == CELLS * (38 - 14)  # logits in 2 and 4 bytes; the sort's 32, or masked logits and their softmax
    assert "use_flashinfer_sampler" in line.note


def test_a_log_of_a_server_that_has_it():
    """0.10.1.1 on an A100, gpu_memory_utilization 0.25 and 0.5: pools of 5.01 and 24.83 GiB."""
    for share, printed in ((0.25, 5.01), (0.5, 24.83)):
        unsaid, kernels = (run("0.10.1.1", sampler, gpu_memory_utilization=share).pool for sampler in (None, "1"))
        assert unsaid.low < printed * GIB < unsaid.high
        assert kernels.nbytes == pytest.approx(printed * GIB, rel=0.025)


@pytest.mark.parametrize("version", ["0.8.5", "0.11.1", "0.19.0"])
def test_elsewhere_it_has_to_be_asked_for(version):
    assert "use_flashinfer_sampler" not in activation(run(version)).note
    if version != "0.8.5":
        assert activation(run(version, "1")).nbytes - activation(run("0.10.1", "1")).nbytes == 0
        assert "VLLM_USE_FLASHINFER_SAMPLER=1" in run(version, "1").start_command


@pytest.mark.parametrize(("version", "gpu", "settings"), [("0.8.5", "A100 80GB", {}), ("0.10.1", "A100 80GB", {"use_v1": "0"}), ("0.14.0", "MI300X", {}), ("0.33.0", "A100 80GB", {})])
def test_no_choice_is_refused(version, gpu, settings):
    with pytest.raises(BadValue, match="use_flashinfer_sampler"):
        run(version, "1", gpu, **settings)
