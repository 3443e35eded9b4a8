"""A deployment whose weights and cache are known in full, and whose peak isn't: a lower bound, as of `Partial`."""

from __future__ import annotations

from calculator.engines.base import Job, KnowsLess
from calculator.engines.partial import Partial
from calculator.ledger import Formula, Line


class Bound(Partial):
    """The engine's own weights and cache, and a line that says what is missing."""

    def what(self, job: Job) -> str:
        """As the engine says it."""
        assert isinstance(self.inner, KnowsLess)
        return self.inner.without_peak(job) or job.model.model_type

    def check(self, job: Job) -> None:
        """What isn't even known of weights and cache."""
        assert isinstance(self.inner, KnowsLess)
        self.inner.check_bound(job)

    def weight_lines(self, job: Job) -> list[Line]:
        """The engine's own."""
        return self.inner.weight_lines(job)

    def cache_lines(self, job: Job, phase: str) -> list[Line]:
        """The engine's own."""
        return self.inner.cache_lines(job, phase)

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Nothing on each GPU, and why."""
        note = f"the activations of {self.what(job)}, which have no formula"
        return [Line("activations", "not modelled", 0, Formula("0"), "no record of such a build to hold a simulation against", basis="modelled",
                     device=i, note=note) for i in range(job.deployment.gpus)]  # fmt: skip

    def kv_bytes_per_token(self, job: Job) -> int:
        """The engine's own."""
        return self.inner.kv_bytes_per_token(job)
