"""The spec table of a model: each field with its value, its source and what contradicts it."""

from __future__ import annotations

from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.catalog import Model


class SpecRow(NamedTuple):
    """One field; `contradicted_by` says who disagrees and with what."""

    field: str
    value: str
    source: str
    contradicted_by: str


def spec_rows(model: Model) -> tuple[SpecRow, ...]:
    """What the model is: parameters, then what is known about it, then its config field by field."""
    record = model.record
    rows = [("parameters", f"{build_inventory(model.spec).parameters:,}", "computed from the dimensions")]
    if published := record.get("published_parameters"):
        rows.append(("published parameters", f"{published['value']:,}", published["source"]))
    about = [name for name in ("hf_id", "family", "licence", "release") if record.get(name)]
    rows += [(name, str(record[name]), model.source(name)) for name in about]
    config = record.get("config") or {name: getattr(model.spec, name) for name in model.spec.__slots__}
    rows += [(name, readable(value), model.source(name)) for name, value in config.items()]
    contradicted = record.get("contradicted", {})
    return tuple(SpecRow(*row, contradicted.get(row[0], "")) for row in rows)


def readable(value: Any) -> str:
    """A value of a config for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {readable(v)}" for k, v in value.items())
    return str(value)
