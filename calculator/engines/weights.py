"""Weights as ledger lines: the same grouping for every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from calculator.engines.base import Job
from calculator.ledger import Basis, Formula, Line
from calculator.quantization import Scheme, Stored, StoredGroup
from calculator.quantization.conventions import NOTE, ends
from calculator.quantization.conventions import SOURCE as CONVENTIONS

_PLACES = {"embedding": "embedding", "output": "output head", "norm": "norms and biases", "bias": "norms and biases",
           "ssm": "recurrent layers' small tensors", "router": "routers", "position": "embedding", "layer_embedding": "embedding by layer", "small": "norms and biases",
           "vision": "vision tower", "pooler": "pooler", "other": "other tensors"}


def weight_lines(scheme: Scheme, stored: Stored, *, device: int | Literal["host"], tied: bool, basis: Basis = "derived") -> list[Line]:
    """Lines for embedding, linear layers, norms, head: what they are stored as and why."""
    by_place: dict[tuple[str, bool], list[StoredGroup]] = {}
    for group in stored:
        place = _PLACES.get(group.group.role, "linear layers")
        by_place.setdefault((place, group.on_host), []).append(group)
    lines = []
    for (place, on_host), groups in by_place.items():
        where: int | Literal["host"] = "host" if on_host else device
        total = sum(g.nbytes for g in groups)
        note = scheme.rule if place == "linear layers" and scheme.storage else ""
        lines.append(Line("weights", place, total, stored_formula(groups), scheme.source, basis=basis, device=where, note=note))
    if tied and not any(g.group.role == "output" for g in stored) and "embedding" in {p for p, _ in by_place}:
        lines.append(Line("weights", "output head", 0, Formula("0"), "config tie_word_embeddings", device=device,
                          note="tied to the embedding"))  # fmt: skip
    return lines


def banded(job: Job, lines: list[Line], held: Callable[[Job], Stored]) -> list[Line]:
    """Lines of a format that is only named, from the least to the most that publishers leave in 16 bits; `held` is what a device has of a job."""
    if not job.scheme.assumed:
        return lines
    names = ("linear layers", "output head")
    least, most = ({line.name: line.nbytes for line in weight_lines(scheme, held(replace(job, scheme=scheme)), device=0, tied=True)}
                   for scheme in ends(job.model, job.scheme))  # fmt: skip
    made = []
    for line in lines:
        low, high = (min(line.nbytes, least.get(line.name, 0)), max(line.nbytes, most.get(line.name, 0))) if line.name in names else (line.nbytes, line.nbytes)
        made.append(replace(line, basis="modelled", low=low, high=high, source=CONVENTIONS, note=NOTE) if low < high else line)
    return made


def stored_formula(groups: list[StoredGroup], nbytes: Callable[[StoredGroup], int] | None = None) -> Formula:
    """Sum over formats and parts, rendered when read. `nbytes` replaces a group's size, as an engine places it."""

    def render() -> str:
        sizes: dict[str, int] = {}
        for group in groups:
            if nbytes is not None:
                label = group.format
                sizes[label] = sizes.get(label, 0) + nbytes(group)
                continue
            for part in group.parts:
                simple = len(group.parts) == 1
                label = group.format if simple else f"{part.name}: {part.expression} a matrix"
                sizes[label] = sizes.get(label, 0) + part.nbytes * group.count
        elements: dict[str, int] = {}
        rate: dict[str, str] = {}
        for group in groups:
            if len(group.parts) == 1 and nbytes is None:
                elements[group.format] = elements.get(group.format, 0) + group.group.elements * group.count
                rate[group.format] = group.parts[0].expression
        terms = []
        for label, size in sizes.items():
            if label in elements and _exact(elements[label], rate[label], size):
                terms.append(f"{elements[label]:,} × {rate[label].removeprefix('N × ')} ({label} elements)")
            else:
                terms.append(f"{size:,} ({label})")
        return " + ".join(terms) or "0"

    return Formula(render)


def _exact(elements: int, rate: str, size: int) -> bool:
    top, _, bottom = rate.replace("N × ", "").partition(" / ")
    return top.isdigit() and elements * int(top) == size * int(bottom or 1)
