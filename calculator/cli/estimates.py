"""vram estimate, compare, recommend, solve."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from calculator.cli.group import vram
from calculator.cli.options import json_option, options_of, show, workload_options
from calculator.errors import BadValue, NotModelled

if TYPE_CHECKING:
    from calculator.estimate import Estimate
    from calculator.fit import Fit


@vram.command()
@click.argument("model")
@workload_options
@click.option("--gpu", metavar="NAME", help="Hold it against this GPU.")
@click.option("--explain", is_flag=True, help="Print each formula with its numbers and its source.")
@click.option("--check", is_flag=True, help="Exit 1 when it does not fit.")
@json_option
def estimate(model: str, gpu: str | None, explain: bool, check: bool, as_json: bool, **kw: Any) -> None:
    """Memory that MODEL needs, line by line."""
    from calculator.fit import fit
    from calculator.report.documents import estimate_document

    estimated = run_estimate(model, gpu, kw)
    if check and estimated.job.gpu is None:
        raise BadValue("--check needs a GPU", hint="--gpu NAME")
    if check and not estimated.decides(fit(estimated, estimated.job.gpu).verdict):
        raise NotModelled(f"--check of {estimated.job.model.model_type} in {estimated.engine.name}: its activations have no formula", hint="leaving --check out")

    def text() -> str:
        from calculator.report.text import estimate_text

        return estimate_text(estimated, explain=explain)

    show(lambda: estimate_document(estimated), text, as_json)
    if check and fit(estimated, estimated.job.gpu).verdict == "does_not_fit":
        sys.exit(1)


def run_estimate(model: str, gpu: str | None, kw: dict[str, Any]) -> Any:
    """Estimate from command-line options; a short GPU name that could mean several says which it took."""
    from calculator.catalog import load_gpu, load_model, siblings
    from calculator.estimate import estimate
    from calculator.fit import usable_memory

    found = load_model(model)
    estimated = estimate(found, **options_of(found, kw), gpu=gpu, partial=True)
    if gpu is None:
        return estimated
    from dataclasses import replace

    card, notes = load_gpu(gpu), []
    if others := siblings(card, gpu):
        notes.append(f"{gpu} is taken for {card.name}; others: {', '.join(others)}")
    if card.cuda_total_bytes is None:
        notes.append(f"no public figure for the memory that a program sees on {card.name}; {usable_memory(card).source}")
    return replace(estimated, warnings=(*estimated.warnings, *notes))


@vram.command()
@click.argument("estimates", nargs=-1, required=True, metavar="'MODEL [OPTIONS]' 'MODEL [OPTIONS]' ...")
@click.option("--sum", "together", is_flag=True, help="What they hold together, on the one --gpu that they share.")
@json_option
def compare(estimates: tuple[str, ...], together: bool, as_json: bool) -> None:
    """Estimates side by side, each a quoted `vram estimate` call."""
    import shlex

    from calculator.report.documents import compare_document
    from calculator.report.text import compare_text

    if len(estimates) < 2:
        raise BadValue("one estimate is nothing to compare", hint="vram compare 'llama-3.2-1b' 'llama-3.2-1b --quant Q8_0'")
    found = []
    for quoted in estimates:
        try:
            words = shlex.split(quoted)
        except ValueError as e:
            raise BadValue(f"{quoted[:60]!r} is not a command line ({e})", hint="closing the quote") from None
        words = words[1:] if words[:1] == ["vram"] else words
        words = words[1:] if words[:1] == ["estimate"] else words
        with estimate.make_context("estimate", words, parent=click.get_current_context().parent) as context:
            given = dict(context.params)
        model, gpu = given.pop("model"), given.pop("gpu")
        found.append(run_estimate(model, gpu, given))
    held = add_up(found) if together else None
    show(lambda: compare_document(found, held), lambda: compare_text(found, held), as_json)


def add_up(estimates: list[Estimate]) -> Fit:
    """What estimates hold together on the GPU that they share. Raises BadValue where they share none."""
    from calculator.fit import fit_together

    cards = {e.job.gpu.name: e.job.gpu for e in estimates if e.job.gpu}
    if len(cards) != 1 or not all(e.job.gpu for e in estimates):
        named = " and ".join(cards) or "no GPU"
        raise BadValue(f"--sum adds up what shares one GPU; here it is {named}", hint="the same --gpu NAME in every estimate")
    return fit_together(estimates, next(iter(cards.values())))


@vram.command()
@click.argument("model", required=False)
@workload_options
@click.option("--gpu", metavar="NAME", help="Only this GPU; without MODEL: what it can run.")
@click.option("--here", is_flag=True, help="The GPU of this machine (later).")
@click.option("--objective", metavar="smallest|speed|headroom", default="smallest")
@click.option("--limit", default="15", help="Rows to print.")
@json_option
def recommend(model: str | None, gpu: str | None, here: bool, objective: str, limit: str, as_json: bool, **kw: Any) -> None:
    """Which GPU to take for MODEL; or what a GPU can run."""
    from calculator.catalog import load_gpu, load_model
    from calculator.estimate import splits_tensors
    from calculator.recommend import recommend, runs_on
    from calculator.report.documents import recommend_document
    from calculator.report.text import recommend_text
    from calculator.units import parse_count

    if here:
        raise NotModelled("--here comes with vram detect", hint="--gpu NAME (vram gpus)")
    rows = parse_count(limit, name="--limit", example="15")  # before the search, which takes seconds
    card = load_gpu(gpu) if gpu is not None else None
    if model is not None:
        found_model = load_model(model)
        found = recommend(found_model, options_of(found_model, kw), objective=objective, gpus=[card] if card else None)
    elif card is not None:
        if parse_count(kw["tp"] or "1", name="--tp") > 1 and not splits_tensors(kw["engine"]):
            raise NotModelled("tensor parallelism without a serving engine", hint="--engine vllm, or --gpus N, which splits by layers")
        found = runs_on(card, options_of(None, kw), objective=objective)
    else:
        raise BadValue("neither a model nor a GPU is given", hint="vram recommend MODEL, or vram recommend --gpu NAME")
    show(lambda: recommend_document(found), lambda: recommend_text(found, limit=rows), as_json)


@vram.command()
@click.argument("model")
@workload_options
@click.option("--gpu", metavar="NAME", required=True)
@click.option("--for", "wanted", metavar="context|sequences|quant|n_gpu_layers", required=True)
@json_option
def solve(model: str, gpu: str, wanted: str, as_json: bool, **kw: Any) -> None:
    """The largest context, concurrency, layers on the GPU (llama.cpp), or best quantization that a GPU holds."""
    from calculator.catalog import load_gpu, load_model
    from calculator.report.documents import solve_document
    from calculator.report.text import solve_text
    from calculator.solve import solve

    found = load_model(model)
    solved = solve(found, load_gpu(gpu), wanted, options_of(found, kw))
    show(lambda: solve_document(solved), lambda: solve_text(solved), as_json)
