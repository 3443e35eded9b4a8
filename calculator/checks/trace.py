"""`vram trace`: the exact peak of any architecture that transformers knows, without weights, GPU or formula."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from typing import Any, NamedTuple

from calculator import engines
from calculator.catalog import load_model
from calculator.engines.settings import parse_settings
from calculator.errors import BadValue, CalculatorError, NotModelled, Unsupported
from calculator.estimate import estimate
from calculator.readers.hf_config import read_config
from calculator.readers.untrusted import local_path
from calculator.units import parse_count

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Traced(NamedTuple):
    """One traced pass [bytes], and what the formulas say of it: None where there are none, with the reason."""

    model: str
    phase: str
    weights_bytes: int
    kv_bytes: int
    input_bytes: int
    act_bytes: int
    peak_bytes: int
    peak_module: str
    peak_operator: str
    predicted_act_bytes: int | None
    predicted_step: str | None
    reason: str


def trace(source: str, *, quant: str = "bf16", context: str | int = 8192, sequences: str | int = 1,
          settings: dict[str, str] | None = None) -> list[Traced]:  # fmt: skip
    """Run the real model code of a config.json, or of a catalog model, under FakeTensor: prefill, decode, or both.

    Raises Unsupported without torch and transformers, BadValue for a config that transformers can't build.
    """
    quant = quant.lower()
    if quant not in DTYPES:
        raise BadValue(f"vram trace runs unquantized weights, not {quant[:40]!r}", allowed=", ".join(DTYPES))
    tokens, batch = parse_count(context, name="--context", example="8k"), parse_count(sequences, name="--sequences", example="4")
    given = parse_settings("transformers", engines.load("transformers")[0].settings, settings or {})
    if given.get("cache_implementation") == "quantized":
        raise BadValue("vram trace runs no quantized cache", allowed="dynamic, static")
    tracer = _tracer()
    config, phases = config_of(source), [str(given["phase"])] if "phase" in given else ["prefill", "decode"]
    found = []
    for phase in phases:
        how = {"attn": given.get("attn_implementation", "sdpa"), "logits_to_keep": given.get("logits_to_keep", 1),
               "cache": given.get("cache_implementation", "dynamic")}  # fmt: skip
        try:
            ran = tracer.trace(config, phase=phase, batch=batch, seq=tokens, dtype=DTYPES[quant], **how)
        except Exception as e:  # whatever the code of any of 400 architectures raises
            why = (str(e).strip().splitlines() or [""])[0][:160]
            raise BadValue(f"transformers can't run {source[-60:]}: {type(e).__name__}: {why}",
                           hint="a config.json of a causal language model, as published") from None  # fmt: skip
        predicted, step, reason = _predicted(source, quant, tokens, batch, {**given, "phase": phase})
        sizes = {name: ran[name] for name in ("weights_bytes", "kv_bytes", "input_bytes", "act_bytes", "peak_bytes")}
        found.append(Traced(source, phase, **sizes, peak_module=ran["peak_module"], peak_operator=ran["peak_op"],
                            predicted_act_bytes=predicted, predicted_step=step, reason=reason))  # fmt: skip
    return found


def _predicted(source: str, quant: str, tokens: int, batch: int, settings: dict[str, Any]) -> tuple[int | None, str | None, str]:
    try:
        said = estimate(source, quant=quant, context=tokens, sequences=batch, engine="transformers", settings=settings)
    except CalculatorError as e:
        return None, None, str(e).splitlines()[0]
    lines = [line for line in said.ledger.lines if line.component == "activations" and line.device != "host"]
    return sum(line.nbytes for line in lines), said.peak.step.name, ""


def config_of(source: str) -> dict[str, Any]:
    """The config.json of a path, or of a catalog model."""
    path = local_path(source)
    if path.exists():
        return read_config(path)
    return dict(load_model(source).record["config"])


def _tracer() -> Any:
    for needed in ("torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise Unsupported(f"vram trace needs {needed}, which isn't installed", hint='pip install "vram-calculator[validation]"')
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    try:
        from calculator.checks import tracing
    except ImportError as e:
        raise NotModelled(f"this torch or transformers can't be traced ({e})", hint="torch 2.4 and transformers 5, or newer") from None
    return tracing
