"""`vram verify`: what the probe does, on the user's own GPU, beside the prediction. `vram measure`: a suite of the probe."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from calculator.catalog import load_model
from calculator.checks.compare import Comparison, compare
from calculator.checks.records import RECORDS, Record
from calculator.errors import BadValue, UnreadableFile, Unsupported
from calculator.units import parse_count

QUANTS = ("bf16", "fp16", "fp32", "bnb-int8", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4", "bnb-fp4-dq")
WORKER = Path(__file__).with_name("gpu.py")
PROBE = RECORDS.parent / "probe.py"
LIMIT_S = 600


class Verified(NamedTuple):
    """One run and its figures beside their predictions; none where it failed, with the reason."""

    record: Record | None
    comparisons: tuple[Comparison, ...]
    reason: str


def verify(name: str, *, quant: str = "bf16", context: str | int = 8192, sequences: str | int = 1) -> list[Verified]:
    """Run prefill and decode on the first CUDA device, each in a process of its own. Raises Unsupported without one."""
    model, quant = load_model(name), quant.lower()
    if quant not in QUANTS:
        raise BadValue(f"vram verify can't load {quant[:40]!r} with random weights", allowed=", ".join(QUANTS))
    tokens, batch = parse_count(context, name="--context", example="8k"), parse_count(sequences, name="--sequences", example="4")
    if not _has_cuda():
        raise Unsupported("vram verify found no CUDA device that torch can use", hint="vram trace, which needs none")
    config = {"id": model.spec.id, **_config(name)}
    return [_run(config, _pass(quant, tokens, batch, phase)) for phase in ("prefill", "decode")]


def write_records(found: list[Verified], path: Path) -> int:
    """Append the records, one JSON line each, in the form of `validation/records`. Raises UnreadableFile."""
    lines = [json.dumps(v.record._asdict(), separators=(",", ":")) + "\n" for v in found if v.record]
    try:
        with path.open("a", encoding="utf-8") as f:
            f.writelines(lines)
    except OSError as e:
        raise UnreadableFile(f"can't write {str(path)[-80:]} ({e.strerror})", hint="another file") from None
    return len(lines)


def measure(suite: str, arguments: tuple[str, ...]) -> int:
    """Run a suite of `validation/probe.py`; its exit code. Raises Unsupported outside a checkout or without torch."""
    if not PROBE.is_file():
        raise Unsupported("vram measure runs in a checkout of the repository, which this isn't", hint="git clone, then vram measure")
    _need_torch()
    return subprocess.run([sys.executable, str(PROBE), suite, *arguments], check=False).returncode


def _need_torch() -> None:
    for needed in ("torch", "transformers"):
        if importlib.util.find_spec(needed) is None:
            raise Unsupported(f"real runs need {needed}, which isn't installed", hint='pip install "vram-calculator[validation]"')


def _has_cuda() -> bool:
    _need_torch()
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def _config(name: str) -> dict[str, Any]:
    from calculator.checks.trace import config_of

    return config_of(name)


def _pass(quant: str, tokens: int, batch: int, phase: str) -> dict[str, Any]:
    settings = {"attn_implementation": "sdpa", "logits_to_keep": 1, "cache_implementation": "dynamic"}
    return {"quant": quant, "context": tokens, "sequences": batch, "phase": phase, "settings": settings}


def _run(config: dict[str, Any], run: dict[str, Any]) -> Verified:
    sent = {"model": {k: v for k, v in config.items() if k != "id"}, "run": run}
    try:
        done = subprocess.run([sys.executable, str(WORKER), json.dumps(sent)], capture_output=True, text=True, timeout=LIMIT_S,
                              check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return Verified(None, (), f"{run['phase']}: no answer in {LIMIT_S} seconds")
    if done.returncode:
        return Verified(None, (), f"{run['phase']}: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    environment = {**versions, **answer["environment"], "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    version = ".".join(versions["transformers"].split(".")[:2])
    record = Record("verify", "gpu", "transformers", version, config, run, answer["measured"], environment)
    return Verified(record, tuple(compare([record])[0]), "")
