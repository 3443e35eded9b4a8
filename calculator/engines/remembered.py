"""Results that an estimate, its pool and its verdict ask for one after another, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from calculator.engines.base import Job

F = TypeVar("F", bound=Callable[..., Any])


def once_a_job(method: F) -> F:
    """A method that gives the same result again for the job object that was asked about last, which nobody may change.

    Jobs are frozen, so the object is enough; comparing its tensors would take as long as the work saved.
    """
    last: list[tuple[object, Job, tuple[object, ...], Any]] = []

    @wraps(method)
    def remembered(self: object, job: Job, *args: object) -> Any:
        for engine, asked, given, found in last:
            if engine is self and asked is job and given == args:
                return found
        found = method(self, job, *args)
        last[:] = [(self, job, args, found)]
        return found

    return cast(F, remembered)
