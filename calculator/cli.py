"""The command line. Each command imports what it needs, so that starting one costs little."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from calculator import __version__
from calculator.errors import BadValue, CalculatorError, NotModelled

if TYPE_CHECKING:
    from calculator.estimate import Estimate
    from calculator.fit import Fit

Command = Callable[..., None]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")

LATER = {
    "plan": "replicas and cost for traffic come with capacity planning",
    "train": "training memory comes in a later version",
    "detect": "finding this machine's GPUs comes in a later version",
}


def workload_options(command: Command) -> Command:
    """The options that every estimate takes."""
    for option in reversed((
        click.option("--quant", metavar="Q", help="Quantization: bf16, bnb-nf4, Q4_K_M ... (vram quants)."),
        click.option("--context", metavar="N", help="Tokens per sequence, prompt and output: 8192, 8k. Default 8k."),
        click.option("--sequences", metavar="N", default="1", help="Concurrent sequences. Default 1."),
        click.option("--kv-dtype", metavar="D", help="Type of K and V: f16, q8_0, int4 ..."),
        click.option("--engine", metavar="E", help="transformers, llama.cpp, vllm or sglang. Default by quantization."),
        click.option("--engine-version", metavar="V", help="Version that the formulas describe."),
        click.option("--gpus", metavar="N", default="1", help="GPUs of one kind; layers are split."),
        click.option("--tp", metavar="N", default="1", help="Tensor-parallel size (vllm, sglang)."),
        click.option("--pp", metavar="N", default="1", help="Pipeline stages; the same split as --gpus here."),
        click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting in the engine's own name."),
    )):  # fmt: skip
        command = option(command)
    return command


def options_of(model: Any, kw: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `estimate` from the options; everything numeric is checked here or there."""
    from calculator.estimate import check_tensor_parallel
    from calculator.units import parse_count

    gpus, stages = parse_count(kw["gpus"], name="--gpus", example="2"), parse_count(kw["pp"], name="--pp", example="2")
    tp = parse_count(kw["tp"], name="--tp", example="2")
    if model is not None:
        check_tensor_parallel(model, tp, kw["engine"])
    settings = parse_set(kw["settings"])
    if tp > 1 and settings.setdefault("tensor_parallel_size", str(tp)) != str(tp):
        raise BadValue(f"--tp {tp} and --set tensor_parallel_size contradict each other", hint="one of them")
    if stages > 1:
        stages *= parse_count(settings.get("tensor_parallel_size", "1"), name="tensor_parallel_size", example="2")
    if gpus > 1 and stages > 1 and gpus != stages:
        raise BadValue(f"--gpus {gpus} and --pp {kw['pp']} contradict each other", hint="one of them")
    names = ("quant", "context", "sequences", "kv_dtype", "engine", "engine_version")
    return {**{n: kw[n] for n in names}, "gpus": max(gpus, stages), "settings": settings}


def parse_set(items: tuple[str, ...]) -> dict[str, str]:
    """Settings from repeated --set KEY=VALUE."""
    settings: dict[str, str] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise BadValue(f"--set {item[:40]!r} is not KEY=VALUE", hint="--set flash_attn=0")
        name = name.strip()
        if name in settings:
            raise BadValue(f"--set {name[:40]} is given twice", hint="one of them")
        settings[name] = value
    return settings


def show(document: Callable[[], dict[str, Any]], text: Callable[[], str], as_json: bool) -> None:
    """Print the JSON or the text."""
    if as_json:
        import json

        click.echo(json.dumps(document(), ensure_ascii=False))
    else:
        click.echo(text())


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vram")
def vram() -> None:
    """How much memory a language model needs, which GPU to take, and why: every number with its formula and source."""


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
@click.argument("models", nargs=-1, required=True, metavar="MODEL ...")
@click.option("--quants", help="Comma-separated; default: all that run.")
@click.option("--contexts", default="1k:128k", help="1k:128k doubles, 1k:128k:1k steps, 1k,4k lists.")
@click.option("--sequences", "sequences_", default="1", help="Like --contexts.")
@click.option("--engine", metavar="E")
@click.option("--kv-dtype", metavar="D")
@click.option("--all-gpus", is_flag=True, help="Name the GPUs that hold each row.")
@click.option("-o", "--output", metavar="FILE.csv|.parquet")
@json_option
def sweep(models: tuple[str, ...], quants: str | None, contexts: str, sequences_: str, engine: str | None,
          kv_dtype: str | None, all_gpus: bool, output: str | None, as_json: bool) -> None:  # fmt: skip
    """Totals over a grid of models, quantizations, contexts and sequences."""
    from calculator.commands import run_sweep

    run_sweep(models, quants, contexts, sequences_, {"engine": engine, "kv_dtype": kv_dtype}, all_gpus, output, as_json)


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
    card = load_gpu(gpu) if gpu is not None else None
    if model is not None:
        found_model = load_model(model)
        found = recommend(found_model, options_of(found_model, kw), objective=objective, gpus=[card] if card else None)
    elif card is not None:
        if parse_count(kw["tp"], name="--tp") > 1 and not splits_tensors(kw["engine"]):
            raise NotModelled("tensor parallelism without a serving engine", hint="--engine vllm, or --gpus N, which splits by layers")
        found = runs_on(card, options_of(None, kw), objective=objective)
    else:
        raise BadValue("neither a model nor a GPU is given", hint="vram recommend MODEL, or vram recommend --gpu NAME")
    rows = parse_count(limit, name="--limit", example="15")
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


@vram.command()
@click.argument("file")
@json_option
def inspect(file: str, as_json: bool) -> None:
    """What a config, a GGUF or a safetensors header holds; FILE may be a folder of them."""
    from calculator.report.inspect import inspect, inspect_document, inspect_text

    found = inspect(file)
    show(lambda: inspect_document(found), lambda: inspect_text(found), as_json)


@vram.command()
@click.argument("model")
@json_option
def audit(model: str, as_json: bool) -> None:
    """Published claims against what the dimensions imply."""
    from calculator.audit import audit
    from calculator.catalog import load_model
    from calculator.report.documents import audit_document
    from calculator.report.text import audit_text

    found = load_model(model)
    result = audit(found)
    show(lambda: audit_document(found.spec.id, result), lambda: audit_text(found.spec.id, result), as_json)


@vram.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL ...")
@click.option("-o", "--output", metavar="FILE.html|.md|.json|.csv")
@json_option
def report(models: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write the sizing report: spec, all quantizations by eight contexts, every component, GPUs."""
    from calculator.commands import run_report

    if output is None and not as_json:
        raise BadValue("no file to write the report to", hint="-o report.html, .md, .json or .csv")
    run_report(models, output, as_json)


@vram.command()
@click.option("--family", metavar="F", help="Only this family: llama, qwen3 ...")
@click.option("--max-params", metavar="N", help="Only models up to this size: 8B, 500M.")
@click.option("--fits", metavar="GPU", help="Only models that this GPU holds.")
@click.option("--quant", metavar="Q", help="With --fits: in this quantization. Default Q4_K_M.")
@click.option("--context", metavar="N", help="With --fits: tokens of one sequence. Default 8k.")
@json_option
def models(family: str | None, max_params: str | None, fits: str | None, quant: str | None, context: str | None, as_json: bool) -> None:
    """The models of the catalog, and your own: JSON files in the folder that this names."""
    from calculator.catalog import load_gpu
    from calculator.commands import models_text
    from calculator.report.documents import models_document
    from calculator.search import parse_parameters, search

    if fits is None and (quant or context):
        raise BadValue("--quant and --context go with --fits", hint="--fits GPU")
    found = search(family=family, max_parameters=parse_parameters(max_params) if max_params is not None else None,
                   gpu=load_gpu(fits) if fits is not None else None, quant=quant, context=context)  # fmt: skip
    show(lambda: models_document(found), lambda: models_text(found), as_json)


@vram.command()
@json_option
def gpus(as_json: bool) -> None:
    """The GPUs of the catalog, with their three memory numbers."""
    from calculator.catalog import load_gpus
    from calculator.commands import gpus_text
    from calculator.report.documents import gpus_document

    show(lambda: gpus_document(load_gpus()), gpus_text, as_json)


@vram.command()
@click.argument("model", default="llama-3.2-1b")
@json_option
def quants(model: str, as_json: bool) -> None:
    """The quantizations, which tensors each one touches, and MODEL's size in it."""
    from calculator.commands import quant_rows, quants_text
    from calculator.report.documents import quants_document

    show(lambda: quants_document(quant_rows(model)), lambda: quants_text(model), as_json)


@vram.command()
@json_option
def engines(as_json: bool) -> None:
    """The engines, their versions and settings."""
    from calculator.commands import engines_text
    from calculator.report.documents import engines_document

    show(engines_document, engines_text, as_json)


@vram.command()
@click.option("--write", is_flag=True, help="In a checkout: renew report.md, the README's table and data/residuals.json.")
@json_option
def validate(write: bool, as_json: bool) -> None:
    """Predictions against the recorded runs: the error table."""
    from calculator.commands import run_validate

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
    from calculator.commands import run_trace

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
    from calculator.commands import run_verify

    run_verify(model, quant=quant, context=context, sequences=sequences, output=output, as_json=as_json)


@vram.command(context_settings={"ignore_unknown_options": True})
@click.argument("suite", type=click.Choice(("weights", "cache", "activations", "cuda")))
@click.argument("probe_args", nargs=-1, type=click.UNPROCESSED)
def measure(suite: str, probe_args: tuple[str, ...]) -> None:
    """Run a suite of real runs and record them (extra `validation`, in a checkout)."""
    import sys

    from calculator.checks.verify import measure as run_suite

    sys.exit(run_suite(suite, probe_args))


@vram.command()
@click.argument("command")
@json_option
def schema(command: str, as_json: bool) -> None:  # noqa: ARG001  # it is JSON either way
    """The JSON Schema of COMMAND's --json."""
    import json

    from calculator.report.schemas import schema_of

    click.echo(json.dumps(schema_of(command), indent=2))


@vram.command(context_settings={"ignore_unknown_options": True})
@click.argument("streamlit_args", nargs=-1, type=click.UNPROCESSED)
def app(streamlit_args: tuple[str, ...]) -> None:
    """Open the dashboard (extra `app`)."""
    from calculator.commands import run_app

    run_app(streamlit_args)


def _later(name: str, why: str) -> None:
    @vram.command(name, context_settings={"ignore_unknown_options": True}, help=f"Later: {why}.", add_help_option=True)
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def later(rest: tuple[str, ...]) -> None:  # noqa: ARG001
        raise NotModelled(f"vram {name} is not there yet: {why}")


for _name, _why in LATER.items():
    _later(_name, _why)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a mistake is one line on stderr and exit 2."""
    try:
        vram.main(args=arguments, prog_name="vram", standalone_mode=False)
    except CalculatorError as e:
        fail(str(e))
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        sys.exit(2)
    except click.ClickException as e:
        fail(e.format_message())
    except click.Abort:
        fail("stopped")
    except BrokenPipeError:  # the reader of a pipe went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def fail(message: str) -> None:
    """One line on stderr, exit 2."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)
