"""Which method drafts tokens in vLLM, and how many a step."""

from __future__ import annotations

from calculator.engines.base import Job


def method_of(job: Job) -> str:
    """The method of speculative_config, "" for none."""
    s = job.deployment.settings
    return str(s.get("speculative_method") or ("draft_model" if s.get("speculative_model") else ""))


def drafted(job: Job) -> int:
    """Tokens drafted a step: as set; of MTP its layers; 0 without a method."""
    given = job.deployment.settings.get("num_speculative_tokens")
    return int(given or (job.model.mtp_layers if method_of(job) == "mtp" else 0))
