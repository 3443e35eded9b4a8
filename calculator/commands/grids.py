"""vram sweep and report: grids, written as text, JSON or a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from calculator.catalog import load_model
from calculator.commands.output import need, write_file
from calculator.errors import BadValue
from calculator.report.documents import envelope
from calculator.report.text import table
from calculator.units import gib, parse_count

MAX_STEPS = 100_000


def run_sweep(models: tuple[str, ...], quants: str | None, contexts: str, sequences: str, options: dict[str, Any],
              all_gpus: bool, output: str | None, as_json: bool) -> None:  # fmt: skip
    """Compute the grid and write it where asked: JSON, a file, or a short table."""
    need("numpy", "pandas", extra="sweep")
    from calculator.sweep import formats_that_run, sweep

    if output is not None and Path(output).suffix not in (".csv", ".parquet"):
        raise BadValue(f"-o {output[-60:]}", allowed=".csv or .parquet")
    found = [load_model(name) for name in models]
    names = quants_that_run(options.get("engine")) if quants is None else [q.strip() for q in quants.split(",") if q.strip()]
    if not names:
        raise BadValue("--quants names none", hint="--quants bf16,Q4_K_M, or leaving it out for all")
    lengths, counts = axis(contexts, "--contexts"), axis(sequences, "--sequences")
    left_out: dict[str, str] = {}
    if quants is None:
        names, left_out = formats_that_run(found, names, lengths, counts, options)
    result = sweep(found, names, lengths, counts, options)
    frame = result.frame(all_gpus=all_gpus)
    if output is not None:
        write_file(output, lambda path: frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False))
        if not as_json:
            click.echo(f"{len(frame):,} rows in {output}")
            _say(left_out)
            return
    if as_json:
        axes = {"models": list(result.models), "quants": list(result.quants), "contexts": list(result.contexts),
                "sequences": list(result.sequences)}  # fmt: skip
        click.echo(json.dumps(envelope(axes=axes, rows=frame.to_dict("records"))))
        return
    shown = frame.head(40)
    rows = [
        (r["model"], r["quant"], f"{r['context']:,}", f"{r['sequences']:,}", gib(r["total_bytes"])) for r in shown.to_dict("records")
    ]
    click.echo(table(rows, header=("model", "quant", "context", "sequences", "total"), right=frozenset({2, 3, 4})))
    if len(frame) > len(shown):
        click.echo(f"and {len(frame) - len(shown):,} more; -o FILE.csv writes all")
    _say(left_out)


def _say(left_out: dict[str, str]) -> None:
    """The formats that aren't in the grid, by reason."""
    why: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        why.setdefault(reason.replace(name, "FORMAT"), []).append(name)
    for reason, names in why.items():
        click.echo(f"left out: {', '.join(names)} ({reason})")


def axis(text: str, name: str) -> list[int]:
    """Values of an axis: "1k:128k" doubles, "1k:128k:1k" steps, "1k,4k" lists."""
    values: set[int] = set()
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) == 1:
            values.add(parse_count(part, name=name))
            continue
        if len(ends) > 3:
            raise BadValue(f"{name} {part[:40]!r} is not a range", hint="1k:128k, 1k:128k:1k or 1k,4k")
        low, high = parse_count(ends[0], name=name), parse_count(ends[1], name=name)
        if low > high:
            raise BadValue(f"{name} {part[:40]!r} runs backwards", hint=f"{ends[1]}:{ends[0]}")
        if len(ends) == 2:
            while low <= high:
                values.add(low)
                low *= 2
            continue
        step = parse_count(ends[2], name=name)
        if (high - low) // step > MAX_STEPS:
            raise BadValue(f"{name} {part[:40]!r} has too many steps", allowed=f"{MAX_STEPS:,}")
        values.update(range(low, high + 1, step))
    return sorted(values)


def quants_that_run(engine: str | None) -> list[str]:
    """The catalog's quantizations that run on the engine, or on any."""
    from calculator import engines
    from calculator.quantization import CATALOG, parse

    if engine is None:
        return list(CATALOG)
    name = engines.canonical(engine)
    return [q for q in CATALOG if name in parse(q).engines]


def run_report(models: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write the sizing report in the format that the file's name asks for, or print it as JSON."""
    from calculator.report import sizing

    writers: dict[str, Callable[[list[sizing.Sizing]], str]] = {
        ".html": sizing.as_html, ".md": sizing.as_markdown, ".csv": sizing.as_csv,
        ".json": lambda s: json.dumps(sizing.as_document(s), indent=1),
    }  # fmt: skip
    suffix = Path(output).suffix if output else ".json"
    if suffix not in writers:
        raise BadValue(f"-o {(output or '')[-60:]}", allowed=", ".join(writers))
    sized = [sizing.size(load_model(name)) for name in models]
    if output:
        write_file(output, lambda path: path.write_text(writers[suffix](sized), encoding="utf-8"))
    click.echo(json.dumps(sizing.as_document(sized)) if as_json else f"wrote {output}")
