"""Published claims against what the dimensions imply, and the smallest changes that would reconcile them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.catalog import Model, load_model
from calculator.consistency import Claim, own_claims, own_notes, published_total, reconcile_total
from calculator.estimate import estimate
from calculator.spec import ModelSpec

# dimensions that a reconciling set may change
DIMENSIONS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
AMBIGUITY = (
    "a parameter count can't tell 16 heads of 128 from 32 heads of 64 (with 4 KV heads of 128 or 8 of 64): both give the "
    "same tensors; the released checkpoint decides"
)


class ReconcilingSet(NamedTuple):
    """A minimal set of changes after which the claims agree."""

    changes: dict[str, int | str]
    parameters: int
    agrees_with_released: bool


class Audit(NamedTuple):
    """All claims of an entry, and all minimal reconciling sets."""

    claims: tuple[Claim, ...]
    reconciling_sets: tuple[ReconcilingSet, ...]
    notes: tuple[str, ...]


def audit(model: Model) -> Audit:
    """Go through every claim of a catalog entry; an entry without a card is held to its published parameter count."""
    records = model.record.get("claims")
    released = load_model(model.record["released"]) if "released" in model.record else None
    if not records:
        return _own(model)
    claims = tuple(_claim(model, released, record) for record in records)
    sets = tuple(_reconcile(model.spec, released.spec if released else model.spec, records))
    decides = [f"the released checkpoint ({released.spec.id}) decides: {released.source('config')}"] if released else []
    return Audit(claims, sets, (AMBIGUITY, *decides))


def _own(model: Model) -> Audit:
    """An entry or a config without a card: its total, what its fields imply of each other, and published files."""
    published, explained = published_total(model.record), model.record.get("difference")
    claims = (_published_parameters(model), *own_claims(model.spec, model.record), *_files(model))
    sets = reconcile_total(model.spec, published) if published else []
    notes = [f"published and implied differ by {explained['value']:+,}: {explained['why']}"] if explained else []
    return Audit(claims, tuple(ReconcilingSet(changes, total, False) for changes, total in sets), (*notes, *own_notes(model.spec)))


def parameters(spec: ModelSpec) -> int:
    """Parameters that the dimensions imply."""
    return build_inventory(spec).parameters


def _published_parameters(model: Model) -> Claim:
    published, inventory = model.record.get("published_parameters"), build_inventory(model.spec)
    implied, expected = inventory.parameters, published_total(model.record)
    if published is None or expected is None:
        return Claim("parameters", "not published", implied, None, None, "not checkable", "the config alone")
    if expected == implied + inventory.mtp_parameters:  # checkpoints hold MTP layers too
        implied = expected
    ratio = implied / published["value"]
    verdict = "agrees" if implied == expected else "contradicts"
    return Claim("parameters", published["value"], implied, published["value"], ratio, verdict, published["source"])


def _files(model: Model) -> list[Claim]:
    """Published files against what their recipe makes of the inventory."""
    found = []
    for file in model.record.get("published_files", ()):
        size = estimate(model, quant=file["quant"], settings={"imatrix": 1} if file.get("imatrix") else None).file_bytes
        verdict = "not checkable" if size is None else "agrees" if size == file["value"] else "contradicts"
        found.append(Claim(f"file, {file['quant']}", file["value"], size, None, size / file["value"] if size else None, verdict, file["source"]))
    return found


def _claim(model: Model, released: Model | None, record: dict[str, Any]) -> Claim:
    kind, claimed, source = record["kind"], record.get("value"), record["source"]
    if kind == "text":
        return Claim(record["field"], record["text"], None, None, None, "not checkable", source)
    implied = _value(model, record)
    truth = _value(released, record) if released else None
    reference = truth if truth is not None else implied
    assert claimed is not None
    agrees = _agree(kind, claimed, implied) and _agree(kind, claimed, reference)
    ratio = implied / (sum(claimed) / 2 if isinstance(claimed, list) else claimed)
    return Claim(record["field"], record["text"] if isinstance(claimed, list) else claimed, implied, truth, ratio, "agrees" if agrees else "contradicts", source)


def _value(model: Model, record: dict[str, Any]) -> float | int:
    spec, kind = model.spec, record["kind"]
    if kind == "parameters":
        return parameters(spec)
    if kind == "expansion":
        return spec.intermediate_size / spec.hidden_size
    if kind == "context":
        return spec.max_position_embeddings
    if kind == "kv_bytes_per_token":
        return 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * 2
    if kind.startswith("vram"):
        return estimate(model, quant=record["quant"]).total_bytes
    return int(getattr(spec, record.get("of", record["field"])))


def _agree(kind: str, claimed: float | list[float], value: float | None) -> bool:
    if value is None:
        return True
    if isinstance(claimed, list):
        return bool(claimed[0] <= value <= claimed[1])
    if kind == "parameters":  # printed as 1.23 billion, rounded or cut off
        return abs(value - claimed) < 0.01e9
    if kind == "vram":
        return abs(value / claimed - 1) < 0.1
    return bool(value == claimed)


def _reconcile(card: ModelSpec, released: ModelSpec, records: list[dict[str, Any]]) -> list[ReconcilingSet]:
    """All minimal sets of changes, to values that some authority states, that satisfy the claims that tie dimensions.

    Constraints: the parameter count rounds to the one claimed; heads x head_dim is the hidden size; the feed-forward
    is the claimed expansion of it. Dropping a claim counts as a change too.
    """
    claimed = {r["kind"]: r["value"] for r in records if r["kind"] in ("parameters", "expansion")}
    options: dict[str, list[int]] = {}
    for name in DIMENSIONS:
        stated = {r["value"] for r in records if r["kind"] == "dimension" and r.get("of", r["field"]) == name}
        stated.add(getattr(released, name))
        if name == "head_dim":
            stated.add(released.hidden_size // card.num_attention_heads)
        options[name] = sorted(v for v in stated if v != getattr(card, name))

    found: list[ReconcilingSet] = []
    for size in range(len(DIMENSIONS) + 1):
        for names in combinations(DIMENSIONS, size):
            for values in product(*(options[name] for name in names)):
                changes: dict[str, Any] = dict(zip(names, values, strict=True))
                spec = replace(card, **changes)
                if spec.num_attention_heads % spec.num_key_value_heads or not _consistent(spec, claimed):
                    continue
                if any(set(s.changes.items()) <= set(changes.items()) for s in found):
                    continue
                same = all(getattr(spec, n) == getattr(released, n) for n in DIMENSIONS)
                found.append(ReconcilingSet(dict(changes), parameters(spec), same))
    dropped = f"{parameters(card) / 1e9:.2f} billion in place of {claimed['parameters'] / 1e9:.2f}"
    found.append(ReconcilingSet({"parameters": dropped}, parameters(card), False))
    return found


def _consistent(spec: ModelSpec, claimed: dict[str, float]) -> bool:
    return (
        _agree("parameters", claimed["parameters"], parameters(spec))
        and spec.num_attention_heads * spec.head_dim == spec.hidden_size
        and spec.intermediate_size == claimed["expansion"] * spec.hidden_size
    )
