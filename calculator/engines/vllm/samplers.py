"""How vLLM samples, which decides what the profiling run holds of the logits: by sorting, by Triton's kernel, or by FlashInfer's.

FlashInfer's kernels are used in 0.9 to 0.11.0 wherever the package is installed, which no setting says: the sort is the
point, as in most logs, FlashInfer the low end. Later releases use them where they are asked for.
"""

from __future__ import annotations

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.vllm.deployment import HISTORY, Sampler, version_of
from calculator.engines.vllm.second_runner import PASS_SOURCE, sampler_of, second_runner
from calculator.errors import BadValue

SORT_SOURCE = "vllm v0.11.0 v1/sample/ops/topk_topp_sampler.py apply_top_k_top_p; pytorch aten/src/ATen/native/cuda/Sort.cu"
TRITON_SOURCE = "vllm v0.19.0 v1/sample/ops/topk_topp_sampler.py L245-255, topk_topp_triton.py L1010-1021"
FLASHINFER_SOURCE = "vllm v0.10.1.1 v1/sample/ops/topk_topp_sampler.py L28-75, L262-298; flashinfer top_k_top_p_sampling_from_logits: masked logits and their softmax"
INSTALLED_SINCE, ASKED_SINCE = (0, 9, 0), (0, 11, 1)  # v0.9.2 L41, not in v0.8.5, which turns newer FlashInfers down; v0.11.1 L34
NOTE = "low: with FlashInfer's sampler, where it is installed (use_flashinfer_sampler)"


def samplers_of(job: Job) -> tuple[Sampler, Sampler]:
    """The sampler that takes least, and the one that is counted. Logs of 0.10.1.1 on A100s hold 10 to 12 bytes a logit beside 38 elsewhere."""
    if second_runner(job):
        found = sampler_of(job)
        return ("copied" if found == "masked" else found), found  # without FlashInfer's kernels
    if job.deployment.settings.get("use_flashinfer_sampler"):
        return "masked", "masked"
    return ("masked" if undecided(job) else version_of(job).sampler), version_of(job).sampler


def undecided(job: Job) -> bool:
    """Whether the release decides by what is installed."""
    release, asked = HISTORY.covered(job.deployment.engine_version), job.deployment.settings.get("use_flashinfer_sampler")
    return asked is None and version_of(job).v1 and INSTALLED_SINCE <= release < ASKED_SINCE and not on_rocm(job)


def source_of(job: Job) -> str:
    """Where that is read."""
    if second_runner(job):
        return PASS_SOURCE
    if job.deployment.settings.get("use_flashinfer_sampler"):
        return FLASHINFER_SOURCE
    return TRITON_SOURCE if version_of(job).sampler == "triton" else SORT_SOURCE


def check_sampler(job: Job) -> None:
    """Refuse a choice that the release doesn't have."""
    if job.deployment.settings.get("use_flashinfer_sampler") is None:
        return
    if on_rocm(job) or not version_of(job).v1 or HISTORY.covered(job.deployment.engine_version) < INSTALLED_SINCE:
        raise BadValue(f"use_flashinfer_sampler has no choice in vllm {job.deployment.engine_version} on {job.vendor}", allowed="the V1 engine since 0.9, NVIDIA", hint="leaving it out")
    if second_runner(job):
        raise BadValue("use_flashinfer_sampler with the second model runner, which chooses by itself", hint="leaving it out")
