"""The options that commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from calculator.errors import BadValue

Command = Callable[..., None]
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def workload_options(command: Command) -> Command:
    """The options that every estimate takes."""
    command = deployment_options(command)
    for option in reversed((
        click.option("--quant", metavar="Q", help="Quantization: bf16, bnb-nf4, Q4_K_M ... (vram quants)."),
        click.option("--context", metavar="N", help="Tokens per sequence, prompt and output: 8192, 8k. Default 8k."),
        click.option("--sequences", metavar="N", default="1", help="Concurrent sequences. Default 1."),
    )):  # fmt: skip
        command = option(command)
    return command


def deployment_options(command: Command) -> Command:
    """The options that say what it runs in, for one estimate or a whole grid."""
    for option in reversed((
        click.option("--kv-dtype", metavar="D", help="Type of K and V: f16, q8_0, int4 ..."),
        click.option("--engine", metavar="E", help="transformers, llama.cpp, vllm or sglang. Default by quantization."),
        click.option("--engine-version", metavar="V", help="Version that the formulas describe."),
        click.option("--gpus", metavar="N", default="1", help="GPUs of one kind: a server splits each layer where it can, others split by layers."),
        click.option("--tp", metavar="N", help="Tensor-parallel size (vllm, sglang)."),
        click.option("--pp", metavar="N", help="Pipeline stages: layers are split."),
        click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting in the engine's own name."),
    )):  # fmt: skip
        command = option(command)
    return command


def options_of(model: Any, kw: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `estimate` from the options; everything numeric is checked here or there."""
    return {**{name: kw[name] for name in ("quant", "context", "sequences")}, **deployment_of(model, kw)}


def deployment_of(model: Any, kw: dict[str, Any]) -> dict[str, Any]:
    """The same of the options that say what it runs in."""
    from calculator.estimate import check_tensor_parallel, splits_tensors
    from calculator.units import parse_count

    gpus, stages, tp = (parse_count("1" if kw[name] is None else kw[name], name=f"--{name}", example="2") for name in ("gpus", "pp", "tp"))
    if model is not None:
        check_tensor_parallel(model, tp, kw["engine"])
    settings = parse_set(kw["settings"])
    asked = (kw["tp"] or kw["pp"]) is not None and splits_tensors(kw["engine"])  # else the GPUs decide
    if asked and settings.setdefault("tensor_parallel_size", str(tp)) != str(tp) and kw["tp"] is not None:
        raise BadValue(f"--tp {tp} and --set tensor_parallel_size contradict each other", hint="one of them")
    if stages > 1:
        for name in ("tensor_parallel_size", "data_parallel_size"):
            stages *= parse_count(settings.get(name, "1"), name=name, example="2")
    if 1 < gpus < tp:
        raise BadValue(f"--gpus {gpus} and --tp {tp} contradict each other", hint=f"--gpus {tp}, or --tp {gpus}")
    if gpus > 1 and stages > 1 and gpus != stages:
        raise BadValue(f"--gpus {gpus} and --pp {kw['pp']} contradict each other", hint="one of them")
    names = ("kv_dtype", "engine", "engine_version")
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
