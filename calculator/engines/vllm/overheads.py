"""What a GPU holds beside weights, cache and the profiling run: memory outside torch, CUDA graphs, the sampler's states."""

from __future__ import annotations

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import replicas_of, shares_of
from calculator.engines.records import Record, record, record_line
from calculator.engines.vllm import draft, graphs
from calculator.engines.vllm.deployment import HISTORY, length_of, version_of
from calculator.engines.vllm.profile import samples_on
from calculator.engines.vllm.second_runner import second_runner, states_line
from calculator.ledger import Line

UNIFIED_SINCE = (0, 11, 1)  # what the system calls available is free: vllm v0.11.1 utils/mem_utils.py L102, not in v0.11.0


def overhead_lines(job: Job) -> list[Line]:
    """Memory outside torch, and CUDA graphs."""
    outside = _outside(job)
    lines = [line for share in shares_of(job) for line in (record_line(outside, "non-torch memory", share.device), graphs.line_of(job, share))]
    if second_runner(job):
        lines += [states_line(job, share.device) for share in shares_of(job) if samples_on(job, share)]
    return lines + draft.buffer_lines(job, length_of(job))


def _outside(job: Job) -> Record:
    """Memory outside torch, by release and kind of card."""
    if on_rocm(job):
        return record("vllm", "non_torch_rocm")
    if job.gpu and job.gpu.segment == "unified" and HISTORY.covered(job.deployment.engine_version) >= UNIFIED_SINCE:
        return record("vllm", "non_torch_unified")
    version = version_of(job)
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    apart = replicas_of(job) == job.deployment.gpus and not job.model.num_experts  # copies that have nothing to tell each other
    several = "_tp" if job.deployment.gpus > 1 and not apart else ""
    measured_apart = version.non_torch == "v0" or (several and version.non_torch != "v0_early")
    hopper = "_sm90" if measured_apart and capability.split(".")[0] in ("9", "10") else ""
    several += hopper
    if second_runner(job) and not several:
        return record("vllm", "non_torch_second")
    return record("vllm", f"non_torch_{version.non_torch}{several}")
