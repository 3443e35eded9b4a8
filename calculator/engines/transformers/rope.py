"""Rotary embeddings: each family's way to turn queries and keys, and what it holds meanwhile.

Each gives queries and keys turned, while its caller holds them as they were; `kv` is the letter of key heads, none for one
rotary key of all heads.

Source: transformers v5.23.0, apply_rotary_pos_emb of each family's modeling file, named in families.py.
"""

from __future__ import annotations

from collections.abc import Callable

from calculator.engines.transformers.run import Run
from calculator.engines.transformers.tape import Tensor

Rope = Callable[[Run, str], tuple[Tensor, Tensor]]


def tables(run: Run, kind: str, count: int) -> list[Tensor]:
    """Cosines and sines of the new positions, and the positions; `count` tables where layers differ."""
    shape, name = {"own": ("qRe", "cos, sin"), "float32": ("qR4", "cos, sin in float32"), "half": ("qje", "cos, sin of half a head"),
                   "complex": ("qR4", "complex rotations")}[kind]  # fmt: skip
    return [run.new(name, each(run) + shape, count * (1 if kind == "complex" else 2)), run.new("positions", each(run) + "q8")]


def each(run: Run) -> str:
    """Where each sequence has its positions, "B"."""
    return "B" if run.how.own_positions else ""


def llama(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """Q cos + rotate_half(q) sin."""
    return _half(run, "H", "e", "e"), _half(run, kv, "e", "e")


def float_tables(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """OLMo: cos and sin stay float32, and so do products; both are cast at the end."""
    wide = _half(run, "H", "e", "4"), _half(run, kv, "e", "4")
    return _cast(run, wide, kv)


def float_all(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """Cohere: everything in float32."""
    copies = [run.new("float32 copy", x + "nd4") for x in ("H", kv)] if run.half else []
    wide = _half(run, "H", "4", "4"), _half(run, kv, "4", "4")
    out = _cast(run, wide, kv)
    copies.clear()
    return out


def float_parts(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """ERNIE 4.5: both terms are cast before they are multiplied, with tables repeated by pairs."""
    both = run.new("cos, sin by pairs", each(run) + "qR4", 2)

    def turned(x: str) -> Tensor:
        wide = run.new("float32 copy", x + "nR4") if run.half else None
        left = run.new("x cos", x + "nR4")
        del wide
        negative = run.new("negated half", x + "nje")
        rotated = run.new("rotated", x + "nRe")
        del negative
        if run.half:
            rotated = run.new("rotated in float32", x + "nR4")
        right = run.new("rotated sin", x + "nR4")
        del rotated
        out = run.new("turned", x + "nR4")
        del left, right
        return out

    wide = turned("H"), turned(kv)
    out = _cast(run, wide, kv)
    del both
    return out


def partial(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """GLM-4 MoE, MiniMax: a part of each head, then joined with the rest."""
    query, key = _half(run, "H", "e", "e"), _half(run, kv, "e", "e")
    query = run.new("query", "Hnde")
    key = run.new("key", kv + "nde")
    return query, key


def partial_each(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """Phi-3: queries are turned and joined before keys are."""
    query = _half(run, "H", "e", "e")
    query = run.new("query", "Hnde")
    key = _half(run, kv, "e", "e")
    key = run.new("key", kv + "nde")
    return query, key


def partial_together(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """Nemotron: both turned parts live until both are joined."""
    parts = _half(run, "H", "e", "e"), _half(run, kv, "e", "e")
    joined = run.new("query", "Hnde"), run.new("key", kv + "nde")
    del parts
    return joined


def partial_kept(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """StableLM: the same, but its attention keeps names of the parts."""
    parts = _half(run, "H", "e", "e"), _half(run, kv, "e", "e")
    query = run.new("query", "Hnde")
    key = run.new("key", kv + "nde")
    query.keeps = parts
    return query, key


def partial_pairs(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """GLM-4: the same, of pairs, with tables repeated by pairs."""
    both = run.new("cos, sin by pairs", each(run) + "qRe", 2)
    out = partial(run, kv)
    del both
    return out


def joined_halves(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """gpt-oss, DeepSeek V3: both halves by themselves, then joined."""

    def turned(x: str) -> Tensor:
        def one() -> Tensor:
            left, right = run.new("half cos", x + "nje"), run.new("half sin", x + "nje")
            out = run.new("half turned", x + "nje")
            del left, right
            return out

        first, second = one(), one()
        out = run.new("turned", x + "nRe")
        del first, second
        return out

    return turned("H"), turned(kv)


def as_complex(run: Run, kv: str) -> tuple[Tensor, Tensor]:
    """DeepSeek V2, Llama 4: pairs as complex numbers in float32."""
    wide = [run.new("float32 copy", x + "nR4") for x in ("H", kv)] if run.half else []

    def turned(x: str) -> Tensor:
        product = run.new("complex product", x + "nR4")
        out = run.new("turned", x + "nRe") if run.half else product
        del product
        return out

    out = turned("H"), turned(kv)
    wide.clear()
    return out


def _half(run: Run, heads: str, own: str, table: str) -> Tensor:
    """One tensor turned: `own` bytes an element of it, `table` of the product with cos and sin."""
    left = run.new("x cos", heads + "nR" + table)
    negative = run.new("negated half", heads + "nj" + own)
    rotated = run.new("rotated", heads + "nR" + own)
    del negative
    right = run.new("rotated sin", heads + "nR" + table)
    del rotated
    out = run.new("turned", heads + "nR" + table)
    del left, right
    return out


def _cast(run: Run, wide: tuple[Tensor, Tensor], kv: str) -> tuple[Tensor, Tensor]:
    """Both to the model's type."""
    return (run.new("query", "HnRe"), run.new("key", kv + "nRe")) if run.half else wide
