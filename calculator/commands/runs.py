"""vram validate, trace and verify: predictions beside what was recorded, traced or measured."""

from __future__ import annotations

import json
from pathlib import Path

import click

from calculator.report.documents import envelope
from calculator.report.text import table
from calculator.units import gib


def run_validate(write: bool, as_json: bool) -> None:
    """Print the error table and the coverage matrix, after renewing what is generated from them if asked."""
    from calculator.checks.validate import ENTRIES, HEADER, MATRIX_HEADER, document, matrix_rows, table_rows, validate

    if write:
        from calculator.checks.write import write_all

        for path in write_all():
            click.echo(f"wrote {path}", err=True)
    found = validate()
    if as_json:
        click.echo(json.dumps(envelope(**document(found))))
        return
    click.echo(table(table_rows(found), header=HEADER, right=frozenset(range(3, len(HEADER)))))
    for model in ENTRIES:
        click.echo(f"\n{model}: worst error by quantization and context\n")
        click.echo(table(matrix_rows(found, model), header=MATRIX_HEADER))


def run_trace(config: str, *, quant: str, context: str, sequences: str, settings: dict[str, str], as_json: bool) -> None:
    """Print the traced passes beside what the formulas say of them."""
    from calculator.checks.trace import trace

    found = trace(config, quant=quant, context=context, sequences=sequences, settings=settings)
    if as_json:
        click.echo(json.dumps(envelope(passes=[t._asdict() for t in found])))
        return
    for t in found:
        click.echo(f"{t.phase}   peak {gib(t.peak_bytes)}, in {t.peak_module or 'the model'} ({t.peak_operator})\n")
        rows = [("weights", gib(t.weights_bytes), f"{t.weights_bytes:,}"), ("KV cache", gib(t.kv_bytes), f"{t.kv_bytes:,}"),
                ("activations", gib(t.act_bytes), f"{t.act_bytes:,}")]  # fmt: skip
        if t.predicted_act_bytes is not None:
            rows.append(("  by formula", gib(t.predicted_act_bytes), f"{t.predicted_act_bytes:,}  ({t.predicted_act_bytes - t.act_bytes:+,})"))
        click.echo(table(rows, header=("", "size", "bytes"), right=frozenset({1})))
        click.echo(f"  no formula: {t.reason}\n" if t.reason else "")


def run_verify(model: str, *, quant: str, context: str, sequences: str, output: str | None, as_json: bool) -> None:
    """Print prediction beside measurement, and write the records where asked."""
    from calculator.checks.verify import verify, write_records

    found = verify(model, quant=quant, context=context, sequences=sequences)
    if output:
        count = write_records(found, Path(output).expanduser())
        click.echo(f"appended {count} records to {output}; a pull request that adds them to validation/records is welcome", err=True)
    if as_json:
        runs = [{"record": v.record._asdict() if v.record else None, "reason": v.reason,
                 "figures": [{"component": c.component, "predicted": c.predicted.point, "low": c.predicted.low, "high": c.predicted.high,
                              "measured": c.recorded, "error_percent": 100 * c.error} for c in v.comparisons]} for v in found]  # fmt: skip
        click.echo(json.dumps(envelope(runs=runs)))
        return
    for v in found:
        if v.record is None:
            click.echo(f"not run: {v.reason}")
            continue
        click.echo(f"\n{v.record.run['phase']} on {v.record.environment['device']}\n")
        rows = [(c.component, gib(c.predicted.point), gib(c.recorded), f"{100 * c.error:+.2f} %", "yes" if c.covered else "no")
                for c in v.comparisons]  # fmt: skip
        click.echo(table(rows, header=("component", "predicted", "measured", "error", "in band"), right=frozenset({1, 2, 3})))
