"""Which rules a build of llama.cpp follows, by its commit, its number (b5255) or its date (2025-05-02).

What decides is the change, not the release: a build has every change made before it. Where a number lies between the
last build known to be without a change and the first known to have it, what depends on that change is refused.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from calculator.engines.llama_cpp.buffers import AUGUST_2025, FEBRUARY_2025, NEWEST, Release

RELEASES = {"794fe23f": FEBRUARY_2025, "4227c9be": AUGUST_2025, "0c1e57098": NEWEST}  # oldest first
FORMS = "b2200 to b7445 as the log's first line has it, or a day from 2024-02-20 to 2025-12-17"


class Change(NamedTuple):
    """A change of the rules: the last build without it, the first with it, the day it was merged."""

    subject: str
    without: int
    since: int
    day: date
    rules: dict[str, Any]
    source: str


CHANGES = (
    Change("latent attention", 5121, 5160, date(2025, 4, 15), {"latent": "row and values"}, "ggml-org/llama.cpp#12801"),
    Change("sliding windows", 5335, 5489, date(2025, 5, 20), {"windows": True, "window_of_batch": True}, "ggml-org/llama.cpp#13194"),
    Change("sliding windows", 5552, 5554, date(2025, 5, 31), {"window_of_batch": False}, "ggml-org/llama.cpp#13833; issue 14071 names b5554"),
    Change("several sequences", 5912, 5913, date(2025, 7, 16), {"streams": True}, "ggml-org/llama.cpp#14363; issue 14847 names b5913"),
)
_FLASH = Change("flash attention", 6250, 6332, date(2025, 8, 30), {}, "ggml-org/llama.cpp#15434: -fa is auto where it was off")

# Spans of builds whose compute buffers, in public logs of one device, are those of a commit held against the engine itself.
_GRAPHS = ((2800, date(2024, 5, 3), 5121, date(2025, 4, 14), FEBRUARY_2025), (6184, date(2025, 8, 17), 7445, date(2025, 12, 17), AUGUST_2025))
_BETWEEN = (5160, date(2025, 4, 20), 5768, date(2025, 6, 28))  # the same nodes as before April, but for what CHANGES has
_FIRST, _LAST = (2200, date(2024, 2, 20)), (7445, date(2025, 12, 17))

# Builds and about when they were made, from the days of public logs and issues: for what needs no more than a week.
_MADE = ((2200, date(2024, 2, 20)), (2800, date(2024, 5, 5)), (3300, date(2024, 7, 5)), (3800, date(2024, 9, 22)), (4277, date(2024, 12, 7)),
         (4524, date(2025, 1, 21)), (4857, date(2025, 3, 8)), (5121, date(2025, 4, 14)), (5255, date(2025, 5, 2)), (5489, date(2025, 5, 26)),
         (5636, date(2025, 6, 11)), (5787, date(2025, 6, 30)), (5912, date(2025, 7, 16)), (6184, date(2025, 8, 17)), (7217, date(2025, 12, 1)),
         (7445, date(2025, 12, 17)))  # fmt: skip
_LEEWAY_DAYS = 7

_COMMITTED = {"794fe23f": date(2025, 2, 28), "4227c9be": date(2025, 8, 31)}  # the months' last days

# About when llama.cpp learned an architecture, by its name in GGUF, or the model type where it has no graph here. Recalled, not
# read in a source: no number comes of it, it only refuses builds that are older than the architecture.
ARCHITECTURES = {
    "llama": date(2023, 8, 1), "starcoder2": date(2024, 3, 1), "stablelm": date(2023, 11, 14), "olmoe": date(2024, 9, 3), "nemotron": date(2024, 8, 16), "qwen2": date(2024, 1, 19), "gemma": date(2024, 2, 21), "command-r": date(2024, 3, 15), "qwen2moe": date(2024, 4, 16),
    "phi3": date(2024, 4, 24), "deepseek2": date(2024, 5, 28), "gemma2": date(2024, 6, 28), "granite": date(2024, 9, 17), "granitemoe": date(2024, 9, 25),
    "olmo2": date(2024, 11, 19), "cohere2": date(2025, 1, 4), "gemma3": date(2025, 3, 12), "llama4": date(2025, 4, 7), "qwen3": date(2025, 4, 9),
    "qwen3moe": date(2025, 4, 9), "glm4": date(2025, 4, 11), "gemma3n": date(2025, 6, 26), "ernie4_5": date(2025, 6, 28), "smollm3": date(2025, 7, 8),
    "lfm2": date(2025, 7, 11), "exaone4": date(2025, 7, 18), "ernie4_5-moe": date(2025, 7, 17), "glm4moe": date(2025, 8, 4), "gpt-oss": date(2025, 8, 5),
    "falcon": date(2023, 8, 23), "gpt_bigcode": date(2023, 9, 15), "mpt": date(2023, 10, 10), "bloom": date(2023, 10, 10), "phi": date(2023, 12, 18),
    "gpt2": date(2023, 12, 28), "mamba": date(2024, 3, 8), "olmo": date(2024, 4, 19),
    "gpt_neox": date(2024, 5, 23), "gemma3n_text": date(2025, 6, 26), "mamba2": date(2025, 7, 2), "jamba": date(2025, 7, 9), "falcon_h1": date(2025, 7, 9),
}  # fmt: skip


class Build(NamedTuple):
    """A build as asked for: its number, or the days that it may be of."""

    number: int
    first: date
    last: date

    def has(self, change: Change) -> bool | None:
        """Whether it has a change; None where that isn't known."""
        if self.number:
            return True if self.number >= change.since else False if self.number <= change.without else None
        return True if self.first > change.day else False if self.last < change.day else None


@lru_cache(maxsize=256)
def build_of(version: str) -> Build | None:
    """A build number or a day as a build; None for anything else, and out of what is covered."""
    text = version.strip().lower()
    if match := re.fullmatch(r"b?(\d{4})(?: \([0-9a-f]{7,9}\))?", text):
        number = int(match[1])
        return Build(number, _made(number), _made(number)) if _FIRST[0] <= number <= _LAST[0] else None
    if match := re.fullmatch(r"(20\d\d)-(\d\d)-(\d\d)", text):
        try:
            day = date(int(match[1]), int(match[2]), int(match[3]))
        except ValueError:
            return None
        return Build(0, day, day) if _FIRST[1] <= day <= _LAST[1] else None
    return None


def _made(number: int) -> date:
    at = min(bisect_right([n for n, _ in _MADE], number), len(_MADE) - 1)
    (low, first), (high, last) = _MADE[at - 1], _MADE[at]
    return date.fromordinal(first.toordinal() + (last - first).days * (number - low) // (high - low))


@lru_cache(maxsize=256)
def release_of(version: str) -> Release | None:
    """The rules of a version; None where they aren't known."""
    if version in RELEASES:
        return RELEASES[version]
    build = build_of(version)
    if build is None:
        return None
    for low, first, high, last, release in _GRAPHS:
        if (low <= build.number <= high) if build.number else (first <= build.first <= last):
            return release
    low, first, high, last = _BETWEEN
    rules: dict[str, Any] = {"graph": (low <= build.number <= high) if build.number else (first <= build.first <= last)}
    unsure: list[str] = []
    for change in CHANGES:
        has = build.has(change)
        if has:
            rules |= change.rules
        elif has is None:
            unsure.append(change.subject)
    return FEBRUARY_2025._replace(**rules, unsure=tuple(unsure))


def rules_of(version: str) -> Release:
    """The same of a version that is covered."""
    found = release_of(version)
    assert found is not None
    return found


def described(version: str) -> str:
    """Whose rules a build number or a day stands for; empty for the modelled commits themselves."""
    release = release_of(version)
    if version in RELEASES or release is None:
        return ""
    for commit, known in RELEASES.items():
        if release == known:
            return f"llama.cpp {version} is sized by the rules of {commit}, which public logs of builds around it meet"
    merged = [change.source.partition(";")[0] for change in CHANGES if (build := build_of(version)) and build.has(change)]
    return f"llama.cpp {version} is sized by the rules of 794fe23f" + (f" with {', '.join(merged)}" if merged else "")


def flash_by_default(version: str) -> bool | None:
    """Whether flash attention is on where nobody says; None where that isn't known."""
    build = build_of(version)
    return RELEASES[version] is NEWEST if build is None else build.has(_FLASH)


def runs(version: str, gguf: str) -> bool:
    """Whether a build knows an architecture. Named commits have lists of their own."""
    build = build_of(version)
    known = ARCHITECTURES.get(gguf)
    if build is None:
        return version not in _COMMITTED or (known is not None and _COMMITTED[version] >= known)
    return known is not None and build.last.toordinal() + _LEEWAY_DAYS >= known.toordinal()
