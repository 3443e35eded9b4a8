"""Predictions and real runs: vram validate, trace, verify, measure."""

from __future__ import annotations

import click

from calculator.cli.group import vram
from calculator.cli.options import json_option, parse_set


@vram.command()
@click.option("--write", is_flag=True, help="In a checkout: renew report.md, the README's table and data/residuals.json.")
@json_option
def validate(write: bool, as_json: bool) -> None:
    """Predictions against the recorded runs: the error table."""
    from calculator.commands.runs import run_validate

    run_validate(write, as_json)


@vram.command()
@click.argument("config")
@click.option("--quant", metavar="Q", default="bf16", help="Type of the weights: bf16, fp16, fp32. Default bf16.")
@click.option("--context", metavar="N", default="8k", help="Tokens per sequence: 8192, 8k. Default 8k.")
@click.option("--sequences", metavar="N", default="1", help="Sequences in the pass. Default 1.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="attn_implementation, logits_to_keep, cache_implementation, phase.")
@json_option
def trace(config: str, quant: str, context: str, sequences: str, settings: tuple[str, ...], as_json: bool) -> None:
    """The exact peak of the real model code, without weights, GPU or formula (extra `validation`).

    CONFIG is a config.json of any architecture that transformers knows, or a model of the catalog.
    """
    from calculator.commands.runs import run_trace

    run_trace(config, quant=quant, context=context, sequences=sequences, settings=parse_set(settings), as_json=as_json)


@vram.command()
@click.argument("model")
@click.option("--quant", metavar="Q", default="bf16", help="bf16, fp16, fp32, or a bitsandbytes format. Default bf16.")
@click.option("--context", metavar="N", default="8k", help="Tokens per sequence: 8192, 8k. Default 8k.")
@click.option("--sequences", metavar="N", default="1", help="Sequences in the pass. Default 1.")
@click.option("-o", "--output", metavar="FILE", help="Append the records there, to contribute them.")
@json_option
def verify(model: str, quant: str, context: str, sequences: str, output: str | None, as_json: bool) -> None:
    """Run MODEL on this machine's GPU and hold the prediction against it (extra `validation`)."""
    from calculator.commands.runs import run_verify

    run_verify(model, quant=quant, context=context, sequences=sequences, output=output, as_json=as_json)


@vram.command(context_settings={"ignore_unknown_options": True})
@click.argument("suite", type=click.Choice(("weights", "cache", "activations", "cuda")))
@click.argument("probe_args", nargs=-1, type=click.UNPROCESSED)
def measure(suite: str, probe_args: tuple[str, ...]) -> None:
    """Run a suite of real runs and record them (extra `validation`, in a checkout)."""
    import sys

    from calculator.checks.verify import measure as run_suite

    sys.exit(run_suite(suite, probe_args))
