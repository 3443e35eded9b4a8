"""vram sweep, report."""

from __future__ import annotations

from typing import Any

import click

from calculator.cli.group import vram
from calculator.cli.options import deployment_of, deployment_options, json_option
from calculator.errors import BadValue


@vram.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL ...")
@click.option("--quants", help="Comma-separated; default: all that run.")
@click.option("--contexts", default="1k:128k", help="1k:128k doubles, 1k:128k:1k steps, 1k,4k lists.")
@click.option("--sequences", "sequences_", default="1", help="Like --contexts.")
@deployment_options
@click.option("--gpu", metavar="NAME", help="A catalog GPU, which a server's defaults follow from.")
@click.option("--all-gpus", is_flag=True, help="Name the GPUs that hold each row.")
@click.option("-o", "--output", metavar="FILE.csv|.parquet")
@json_option
def sweep(models: tuple[str, ...], quants: str | None, contexts: str, sequences_: str, gpu: str | None,
          all_gpus: bool, output: str | None, as_json: bool, **options: Any) -> None:  # fmt: skip
    """Totals over a grid of models, quantizations, contexts and sequences."""
    from calculator.catalog import load_model
    from calculator.commands.grids import run_sweep

    deployment, *_ = (deployment_of(load_model(name), options) for name in models)  # each may refuse the ranks
    run_sweep(models, quants, contexts, sequences_, {"gpu": gpu, **deployment}, all_gpus, output, as_json)


@vram.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL ...")
@click.option("-o", "--output", metavar="FILE.html|.md|.json|.csv")
@json_option
def report(models: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write the sizing report: spec, all quantizations by eight contexts, every component, GPUs."""
    from calculator.commands.grids import run_report

    if output is None and not as_json:
        raise BadValue("no file to write the report to", hint="-o report.html, .md, .json or .csv")
    run_report(models, output, as_json)
