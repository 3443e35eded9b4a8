"""Models by family, size and what a GPU holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from calculator.architectures import build_inventory
from calculator.catalog import Model, load_model, model_ids, user_models
from calculator.errors import BadValue, CalculatorError, NotModelled, UnknownArchitecture
from calculator.estimate import estimate
from calculator.fit import Verdict, fit
from calculator.names import key, nearest
from calculator.spec import GpuSpec

DEFAULT_QUANT = "Q4_K_M"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


class Found(NamedTuple):
    """A model that was looked for; `verdict` where a GPU was named."""

    model: Model
    verdict: Verdict | None = None


class Search(NamedTuple):
    """What was found, and why models of a GPU's search were not sized, by reason."""

    found: tuple[Found, ...]
    not_sized: tuple[tuple[str, str], ...] = ()


def search(*, family: str | None = None, max_parameters: int | None = None, gpu: GpuSpec | None = None, quant: str | None = None,
           context: str | int | None = None) -> Search:  # fmt: skip
    """Models of a family, up to a size, that a GPU holds in this quantization (Q4_K_M unless told otherwise).

    A user's file that can't be read is left out and named in `not_sized`. Raises BadValue for a family that nobody has.
    """
    models: list[Model] = []
    skipped: list[tuple[str, str]] = []
    for id in sorted({*model_ids(), *user_models()}):
        try:
            models.append(load_model(id))
        except CalculatorError as e:
            skipped.append((id, str(e)))
    if family is not None:
        models = _of_family(models, family)
    if max_parameters is not None:
        models = [m for m in models if build_inventory(m.spec).parameters <= max_parameters]
    if gpu is None:
        return Search(tuple(Found(m) for m in models), tuple(skipped))
    found: list[Found] = []
    for model in models:
        try:
            held = fit(estimate(model, quant=quant or DEFAULT_QUANT, context=context, gpu=gpu), gpu).verdict
        except (NotModelled, UnknownArchitecture) as e:
            skipped.append((model.spec.id, str(e)))
            continue
        if held != "does_not_fit":
            found.append(Found(model, held))
    return Search(tuple(found), tuple(skipped))


def parse_parameters(text: str) -> int:
    """A number of parameters: 8B, 1.5b, 500M, 8000000000. Raises BadValue."""
    match = re.fullmatch(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?\s*([kmbt]?)", text.strip().lower())
    if match is None:
        raise BadValue(f"--max-params {text[:30]!r} is not a number of parameters", hint="8B, 1.5B or 500M")
    whole, part, unit = match[1], match[2] or "", _UNITS[match[3]]
    return int(whole) * unit + int(part or 0) * unit // int(10 ** len(part))


def families(models: Iterable[Model]) -> list[str]:
    """The families of these models, sorted."""
    return sorted({m.record["family"] for m in models})


def _of_family(models: list[Model], family: str) -> list[Model]:
    wanted = key(family)
    found = [m for m in models if wanted in (key(m.record["family"]), key(m.spec.model_type))]
    if not found:
        known = families(models)
        near = nearest(family, known)
        raise BadValue(f"family {family[:40]!r} has no model", allowed=", ".join(known), hint=near[0] if near else "vram models lists all")
    return found
