"""Units: the only place that knows prefixes. Inside the package sizes are bytes and contexts are tokens."""

from __future__ import annotations

import re

from calculator.errors import BadValue

KIB = 2**10
MIB = 2**20
GIB = 2**30
GB = 10**9

MAX_COUNT = 2**40  # far beyond any context or batch; keeps every product printable and every bisection short

_COUNT = re.compile(r"([0-9]+)\s*([km]?)", re.IGNORECASE)
_FACTOR = {"": 1, "k": 1024, "m": 1024**2}


def ceil_div(a: int, b: int) -> int:
    """Smallest integer that is not below a / b."""
    return -(-a // b)


def align_up(a: int, b: int) -> int:
    """Smallest multiple of b that is not below a."""
    return -(-a // b) * b


def parse_count(text: str | int, *, name: str, example: str = "8192, 8k or 1m") -> int:
    """Read a count such as a context: "8k" is 8 * 1024. Raises BadValue unless 1 <= count <= 2**40."""
    if isinstance(text, bool) or not isinstance(text, (int, str)):
        raise BadValue(f"{name} {text!r} is not a whole number", allowed=f"1 to {MAX_COUNT}", hint=example)
    if isinstance(text, str):
        shown = text if len(text) <= 24 else text[:24] + "..."
        match = _COUNT.fullmatch(text.strip())
        if not match or len(text) > 60:
            raise BadValue(f"{name} {shown!r} is not a whole number", allowed="digits, with k for 1024", hint=example)
        count = int(match[1]) * _FACTOR[match[2].lower()]
    else:
        count, shown = text, str(text) if abs(text) < 10**24 else f"{str(text)[:24]}..."
    if not 1 <= count <= MAX_COUNT:
        raise BadValue(f"{name} {shown} is out of range", allowed=f"1 to {MAX_COUNT:,}", hint=example)
    return count


def gib(nbytes: int) -> str:
    """Bytes for people: "2.30 GiB", or MiB and bytes where GiB would hide the figure."""
    if abs(nbytes) >= GIB / 10:
        return f"{nbytes / GIB:,.2f} GiB"
    if abs(nbytes) >= MIB / 10:
        return f"{nbytes / MIB:,.2f} MiB"
    return f"{nbytes:,} B"


def tokens(count: int) -> str:
    """Tokens for people: 131072 is "128k", 1000 is "1,000"."""
    return f"{count // 1024:,}k" if count % 1024 == 0 else f"{count:,}"
