"""Lookup of names as people type them: case, spaces, hyphens and underscores don't matter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from calculator.errors import UnknownName

T = TypeVar("T")
_IGNORED = str.maketrans("", "", " -_")


def key(name: str) -> str:
    """The form in which names are compared."""
    return name.lower().translate(_IGNORED)


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The known names that look most like this one, best first."""
    import difflib  # only when something went wrong

    by_key = {key(k): k for k in known}
    wanted = key(name)[:80]
    hits = [by_key[k] for k in difflib.get_close_matches(wanted, by_key, n=n, cutoff=0.5)]
    hits += [by_key[k] for k in by_key if wanted and wanted in k and by_key[k] not in hits]
    return hits[:n]


def lookup(name: str, table: Mapping[str, T], *, kind: str, known: Iterable[str], listing: str) -> T:
    """Find `name` in a table of normalized names.

    Raises UnknownName with the nearest of `known`; `listing` is the command that lists all.
    """
    hit = table.get(key(name))
    if hit is not None:
        return hit
    shown = name if len(name) <= 60 else name[:60] + "..."
    near = nearest(name, known)
    raise UnknownName(
        f"{kind} {shown!r} is not known", hint=f"{', '.join(near)}, or {listing}" if near else f"{listing} lists all"
    )
