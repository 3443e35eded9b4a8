"""Whether the numbers of one config go together: sizes and heads, context and RoPE scaling, tied or not, and the total."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.spec import ModelSpec


class Claim(NamedTuple):
    """One claim, what the dimensions imply, and what the released checkpoint says."""

    field: str
    claimed: str | float | int
    implied: float | int | None
    released: str | float | int | None
    ratio: float | None
    verdict: str  # agrees, contradicts, not checkable
    source: str


def published_total(record: Mapping[str, Any]) -> int | None:
    """The published parameters less what the entry explains; None where none are published."""
    published = record.get("published_parameters", {}).get("value")
    return None if published is None else int(published - record.get("difference", {}).get("value", 0))


def own_claims(spec: ModelSpec, record: Mapping[str, Any]) -> list[Claim]:
    """What a config says of itself, and what its other fields imply."""
    config, source = record.get("config", {}), record["sources"]["config"]
    config = config.get("text_config", config)
    return [*_heads(spec, source), *_context(spec, config, source), *_tied(spec, published_total(record), source)]


def own_notes(spec: ModelSpec) -> list[str]:
    """What the fields can't tell, or what readers take for something else."""
    if spec.mla:
        return []
    if not spec.num_attention_heads:
        return []  # no layer attends
    notes, width = [], spec.num_attention_heads * spec.head_dim
    if width != spec.hidden_size:
        divided = spec.hidden_size / spec.num_attention_heads
        notes.append(f"head_dim is {spec.head_dim}, not hidden_size / heads = {divided:g}: a KV cache from hidden_size is {divided / spec.head_dim:.2f} x its size")
    notes.append(f"a total can't tell {spec.num_attention_heads} heads of {spec.head_dim} from others with the same product: they make the same tensors")
    return notes


def reconcile_total(spec: ModelSpec, published: int) -> list[tuple[dict[str, int | str], int]]:
    """Minimal sets of one or two changes after which the total is the published one; none where it is already.

    Tried: tying, KV heads among the divisors of the heads, up to four layers more or fewer, and the feed-forward or the
    vocabulary that makes up the rest.
    """
    inventory = build_inventory(spec)
    if published in (inventory.parameters, inventory.parameters + inventory.mtp_parameters):
        return []
    singles: list[dict[str, Any]] = [{"tie_word_embeddings": not spec.tie_word_embeddings}]
    if not spec.mla:
        singles += [{"num_key_value_heads": k} for k in _divisors(spec.num_attention_heads) if k != spec.num_key_value_heads]
    layers = range(max(1, spec.num_hidden_layers - 4), spec.num_hidden_layers + 5)
    singles += [{"num_hidden_layers": n} for n in layers if n != spec.num_hidden_layers and n > spec.first_dense_layers]
    found: list[tuple[dict[str, int | str], int]] = []
    for changes in _sets(spec, published, singles):
        if any(set(known.items()) <= set(changes.items()) for known, _ in found):
            continue
        if build_inventory(replace(spec, **changes)).parameters == published:
            found.append((changes, published))
    return found


def _sets(spec: ModelSpec, published: int, singles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Single changes, those that are solved for, then pairs."""
    yield from singles
    yield from _solved(spec, published, {})
    for one, other in combinations(singles, 2):
        if not one.keys() & other.keys():
            yield {**one, **other}
    for one in singles:
        yield from _solved(spec, published, one)


def _solved(spec: ModelSpec, published: int, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The feed-forward or vocabulary that makes up the rest: the total is affine in both."""
    base = replace(spec, **changes)
    here = build_inventory(base).parameters
    for name in ("intermediate_size", "expert_intermediate_size", "vocab_size"):
        value = getattr(base, name)
        step = build_inventory(replace(base, **{name: value + 1})).parameters - here if value else 0
        if step and (published - here) % step == 0 and value + (published - here) // step > 0:
            yield {**changes, name: value + (published - here) // step}


def _heads(spec: ModelSpec, source: str) -> list[Claim]:
    if spec.mla:
        return []
    if not spec.num_attention_heads:
        return []  # no layer attends
    width = spec.num_attention_heads * spec.head_dim
    verdict = "agrees" if width == spec.hidden_size else "not checkable"  # head_dim may be chosen freely
    group, rest = divmod(spec.num_attention_heads, spec.num_key_value_heads)
    return [Claim("hidden_size, as heads x head_dim", spec.hidden_size, width, None, width / spec.hidden_size, verdict, source),
            Claim("num_attention_heads, a multiple of KV heads", spec.num_attention_heads, group * spec.num_key_value_heads, None, None,
             "contradicts" if rest else "agrees", source)]  # fmt: skip


def _context(spec: ModelSpec, config: Mapping[str, Any], source: str) -> list[Claim]:
    """The context that RoPE scaling stretches to; llama3's rule bends frequencies and states no length."""
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, dict):
        return []
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if not isinstance(factor, (int, float)) or not isinstance(original, int):
        return []
    implied = round(original * factor)
    ratio = implied / spec.max_position_embeddings
    stretches = spec.rope_type in ("yarn", "linear", "dynamic", "longrope", "su")
    verdict = "not checkable" if not stretches else "agrees" if ratio == 1 else "contradicts"
    return [Claim("max_position_embeddings, as rope_scaling's original x factor", spec.max_position_embeddings, implied, None, ratio, verdict, source)]


def _tied(spec: ModelSpec, published: int | None, source: str) -> list[Claim]:
    """Whether the total is that of a tied or of an untied head."""
    claimed = "tied" if spec.tie_word_embeddings else "untied"
    if published is None:
        return [Claim("tie_word_embeddings, by the total", claimed, None, None, None, "not checkable", source)]
    extra = build_inventory(spec).mtp_parameters
    totals = {tie: build_inventory(replace(spec, tie_word_embeddings=tie)).parameters for tie in (True, False)}
    fitting = [tie for tie, total in totals.items() if published in (total, total + extra)]
    verdict = "not checkable" if not fitting else "agrees" if spec.tie_word_embeddings in fitting else "contradicts"
    return [Claim("tie_word_embeddings, by the total", claimed, totals[spec.tie_word_embeddings], None, None, verdict, source)]


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, min(n, 1024) + 1) if n % k == 0]
