"""What changed in an engine from which release on; the releases between behave like the one before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Generic, TypeVar

Release = tuple[int, int, int]
V = TypeVar("V")


def dotted(release: tuple[int, ...]) -> str:
    """A release as its maker writes it."""
    return ".".join(map(str, release))


def numbers(version: str) -> Release | None:
    """A version as numbers, its fourth number and post, dev, rc or local part left out; None for no version."""
    match = re.fullmatch(r"v?(\d{1,2})\.(\d{1,2})(?:\.(\d{1,3})(?:\.\d{1,2})?)?(?:[.]?(?:post|dev|rc)\d{0,4}.{0,40}|[+].{0,40})?", version.strip(), re.ASCII)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


class History(Generic[V]):
    """Behaviours by the release since which each holds, up to the newest release that they are known to cover."""

    def __init__(self, since: Mapping[Release, V], newest: Release) -> None:
        """`since` in any order; nothing before its first release is covered."""
        self._since, self._newest = dict(since), newest
        self._known: dict[str, V] = {}
        self._releases: dict[str, Release] = {}

    def release(self, version: str) -> Release | None:
        """A version as numbers; None where it isn't covered."""
        found = numbers(version)
        return found if found and min(self._since) <= found <= self._newest else None

    def covered(self, version: str) -> Release:
        """The same of a version that `Server.covers`."""
        if version not in self._releases:
            found = self.release(version)
            assert found is not None
            self._releases[version] = found
        return self._releases[version]

    def at(self, version: str) -> V:
        """What holds in a covered version."""
        if version not in self._known:
            release = self.covered(version)
            self._known[version] = self._since[max(since for since in self._since if since <= release)]
        return self._known[version]
