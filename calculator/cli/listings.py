"""What there is and what it holds: vram inspect, audit, models, gpus, quants, engines, schema."""

from __future__ import annotations

import click

from calculator.cli.group import vram
from calculator.cli.options import json_option, show
from calculator.errors import BadValue


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
@click.option("--family", metavar="F", help="Only this family: llama, qwen3 ...")
@click.option("--max-params", metavar="N", help="Only models up to this size: 8B, 500M.")
@click.option("--fits", metavar="GPU", help="Only models that this GPU holds.")
@click.option("--quant", metavar="Q", help="With --fits: in this quantization. Default Q4_K_M.")
@click.option("--context", metavar="N", help="With --fits: tokens of one sequence. Default 8k.")
@json_option
def models(family: str | None, max_params: str | None, fits: str | None, quant: str | None, context: str | None, as_json: bool) -> None:
    """The models of the catalog, and your own: JSON files in the folder that this names."""
    from calculator.catalog import load_gpu
    from calculator.report.documents import models_document
    from calculator.report.listings import models_text
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
    from calculator.report.documents import gpus_document
    from calculator.report.listings import gpus_text

    show(lambda: gpus_document(load_gpus()), gpus_text, as_json)


@vram.command()
@click.argument("model", default="llama-3.2-1b")
@json_option
def quants(model: str, as_json: bool) -> None:
    """The quantizations, which tensors each one touches, and MODEL's size in it."""
    from calculator.report.documents import quants_document
    from calculator.report.listings import quant_rows, quants_text

    show(lambda: quants_document(quant_rows(model)), lambda: quants_text(model), as_json)


@vram.command()
@json_option
def engines(as_json: bool) -> None:
    """The engines, their versions and settings."""
    from calculator.report.documents import engines_document
    from calculator.report.listings import engines_text

    show(engines_document, engines_text, as_json)


@vram.command()
@click.argument("command")
@json_option
def schema(command: str, as_json: bool) -> None:  # noqa: ARG001  # it is JSON either way
    """The JSON Schema of COMMAND's --json."""
    import json

    from calculator.report.schemas import schema_of

    click.echo(json.dumps(schema_of(command), indent=2))
