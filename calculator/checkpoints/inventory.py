"""Header tensors against the inventory that the config implies: which are which, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import cast

from calculator.architectures import Inventory
from calculator.architectures.inventory import Role
from calculator.quantization import Stored
from calculator.quantization.stored import StoredGroup

OTHER = cast(Role, "other")  # held by the file, unknown to the architecture
Kinds = Counter[tuple[str, tuple[int, ...]]]


def kinds_of_inventory(inventory: Inventory) -> Kinds:
    """How many tensors of each role and shape a model's decoder has."""
    found: Kinds = Counter()
    for group in inventory.groups:
        if group.role != "vision":
            found[group.role, _significant(group.shape)] += group.count
    return found


def kinds_of_stored(stored: Iterable[StoredGroup], *, without: frozenset[str] = frozenset()) -> Kinds:
    """The same of what a file holds; `without`: names that only a file has."""
    found: Kinds = Counter()
    for group in stored:
        if group.group.name not in without and group.group.role != "vision":
            found[group.group.role, _significant(group.group.shape)] += group.count
    return found


def _significant(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading dimensions of one, which some writers keep."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def differences(implied: Kinds, held: Kinds) -> list[str]:
    """One warning if the file holds other tensors than its dimensions imply; nothing where they agree."""
    extra, missing = held - implied, implied - held
    if not extra and not missing:
        return []
    said = [f"{_words(kinds)} {what}" for kinds, what in ((extra, "more"), (missing, "fewer")) if kinds]
    return [f"the file holds other tensors than its dimensions imply ({'; '.join(said)}): what it holds is counted"]


def _words(kinds: Kinds) -> str:
    (role, shape), count = kinds.most_common(1)[0]
    rest = sum(kinds.values()) - count
    return f"{count:,} of {role} [{' x '.join(f'{n:,}' for n in shape)}]" + (f" and {rest:,} others" if rest else "")


def elements(stored: Stored) -> int:
    """Elements of all tensors."""
    return sum(group.group.elements * group.count for group in stored)
