"""Which fitted numbers hold for a card: several ranks, memory shared with the CPU, experts that are repacked."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.records import Record, record
from calculator.engines.sglang.deployment import unified
from calculator.quantization import experts_alone


def context_held(job: Job) -> Record:
    """What is held on a GPU before the weights are loaded."""
    return record("sglang", "context_tp" if job.deployment.gpus > 1 else "context_unified" if unified(job) else "context")


def load_slack(job: Job) -> Record:
    """What loading takes beyond the weights."""
    if job.deployment.gpus > 1:
        return record("sglang", "load_slack_tp")
    if unified(job):
        return record("sglang", "load_slack_unified")
    return record("sglang", "load_slack_repacked" if experts_alone(job.model, job.scheme) else "load_slack")
