"""The shape of every --json document; `vram schema COMMAND` prints it as JSON Schema, and a test holds documents to it."""

from __future__ import annotations

from typing import Any

from calculator.errors import BadValue
from calculator.report.schemas import estimates, listings, runs
from calculator.report.schemas.envelope import Envelope

DOCUMENTS: dict[str, type[Envelope]] = {
    "estimate": estimates.Estimate, "compare": estimates.Compare, "sweep": estimates.Sweep, "recommend": estimates.Recommend, "solve": estimates.Solve,
    "audit": listings.Audit, "report": listings.Report, "inspect": listings.Inspect, "models": listings.Models, "gpus": listings.Gpus,
    "quants": listings.Quants, "engines": listings.Engines,
    "validate": runs.Validate, "trace": runs.Trace, "verify": runs.Verify,
}  # fmt: skip


def schema_of(command: str) -> dict[str, Any]:
    """JSON Schema of a command's document. Raises BadValue for a command without one."""
    if command not in DOCUMENTS:
        raise BadValue(f"no schema for {command[:40]!r}", allowed=", ".join(DOCUMENTS))
    return DOCUMENTS[command].model_json_schema(by_alias=True)
