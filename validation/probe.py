"""Measure: `python validation/probe.py SUITE [--minutes M] [--out FILE] [--list]`.

Suites: weights, cache, activations, generate, training, llama-cpp, cuda. Appends one JSON line a run to
validation/records/SUITE-HOST.jsonl and skips what is recorded there. A killed run loses the run in hand. Needs torch and
transformers; bitsandbytes, torchao and optimum-quanto where their formats are wanted, peft for LoRA, and
llama-cpp-python and gguf for llama-cpp.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plans import PLANS, Task

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parent / "calculator" / "checks"  # tracing.py, runs.py and gpu.py need torch and transformers only, not the package
sys.path.append(str(TOOLS))
PACKAGES = ("torch", "transformers", "bitsandbytes", "torchao", "optimum-quanto", "hqq", "peft", "accelerate", "llama-cpp-python")
DTYPES = {"fp32": "float32", "fp16": "float16"}
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "TRANSFORMERS_SDPA_FORCE_GQA")
FAKE = {"training": "fake cpu"}  # the pretend device of a suite, where it isn't CUDA
LIMIT_S = 180  # one run in a process of its own
APART = {"cuda": TOOLS / "gpu.py", "llama-cpp": HERE / "llama_cpp_run.py"}
LLAMA_CPP = {"0.3.36": "0c1e57098"}  # llama.cpp in a release of llama-cpp-python


def versions() -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def key(what: Task, where: dict[str, str], device: str) -> str:
    """Identity of a run: what was run, with which versions, on what."""
    named = {name: what[name] for name in ("suite", "evidence", "model", "run")}
    text = json.dumps([named, {k: where.get(k) for k in PACKAGES}, device], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_weights(what: Task) -> dict[str, int]:
    """Load from a checkpoint of random weights, as from_pretrained does, and add up the storages."""
    import torch
    import tracing

    quant, model = what["run"]["quant"], {k: v for k, v in what["model"].items() if k != "id"}
    with tracing.backend_of("cpu"):
        net = tracing.build(model, dtype=DTYPES.get(quant, "bfloat16"))
        if "-" in quant:
            from transformers import AutoModelForCausalLM

            for parameter in net.parameters():
                parameter.normal_(0, 0.02)
            with tempfile.TemporaryDirectory(prefix="probe-") as folder:
                net.save_pretrained(folder)
                del net
                net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"},
                                                           quantization_config=quantization(quant))  # fmt: skip
        return {"weights_bytes": tracing.storage_bytes([*net.parameters(), *net.buffers()], "cpu")}


def quantization(quant: str) -> Any:
    """The transformers config of a format."""
    import torch
    import transformers as tf

    family, kind = quant.split("-")[:2]
    if family == "quanto":
        return tf.QuantoConfig(weights={"int8": "int8", "int4": "int4", "fp8": "float8"}[kind])
    if family == "torchao":
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        return tf.TorchAoConfig(Int8WeightOnlyConfig() if kind == "int8wo" else Float8WeightOnlyConfig())
    if kind == "int8":
        return tf.BitsAndBytesConfig(load_in_8bit=True)
    return tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=quant.endswith("-dq"),
                                 bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip


def run_cache(what: Task) -> dict[str, int]:
    """Fill a cache of every layer, really."""
    import torch
    import tracing
    from transformers import AutoConfig

    run, model = what["run"], {k: copy.deepcopy(v) for k, v in what["model"].items() if k not in ("id", "torch_dtype")}
    config, kind = AutoConfig.for_model(**model), run["settings"]["cache_implementation"]
    if kind == "quantized":
        kind = f"{run['settings']['backend']}-{run['kv_dtype'].removeprefix('int')}"
    with tracing.backend_of("cpu") as device:
        cache = tracing.make_cache(config, kind, run["context"])
        tracing.fill_cache(config, cache, run["sequences"], run["context"], torch.bfloat16, device)
        return {"kv_bytes": tracing.storage_bytes(cache, device)}


def run_activations(what: Task) -> dict[str, int]:
    """Trace a forward pass; a real one is first sized with fake tensors, must fit, and must agree byte for byte."""
    import tracing

    run, settings = what["run"], what["run"]["settings"]
    how = {"phase": run["phase"], "batch": run["sequences"], "seq": run["context"], "attn": settings["attn_implementation"],
           "logits_to_keep": settings["logits_to_keep"], "cache": settings["cache_implementation"],
           "dtype": DTYPES.get(run["quant"], "bfloat16")}  # fmt: skip
    model = {k: v for k, v in what["model"].items() if k != "id"}
    fake = tracing.trace(model, backend="fake_cuda" if what["evidence"] == "fake" else "fake_cpu", **how)
    found = fake
    if what["evidence"] == "cpu":
        must_fit(fake["peak_bytes"])
        found = tracing.trace(model, backend="cpu", **how)
        if found["peak_bytes"] != fake["peak_bytes"]:
            print(f"  executed and fake disagree: {found['peak_bytes']:,} and {fake['peak_bytes']:,}", file=sys.stderr)
    return {name: value for name, value in found.items() if name.endswith("_bytes")}


def run_generate(what: Task) -> dict[str, int]:
    """Generate, really."""
    import runs

    run = what["run"]
    model = {k: v for k, v in what["model"].items() if k != "id"}
    found = runs.trace_generate(model, prompt=run["context"] - run["output_tokens"], tokens=run["output_tokens"], batch=run["sequences"],
                                attn=run["settings"]["attn_implementation"])  # fmt: skip
    return {"generate_peak_bytes": found["peak_bytes"]}


def run_training(what: Task) -> dict[str, int]:
    """Two training steps, the second one traced; a real one is first sized with fake tensors and must fit."""
    import runs

    run = what["run"]
    model = {k: v for k, v in what["model"].items() if k != "id"}
    how = {"method": run["settings"]["method"], "checkpointing": run["settings"]["checkpointing"], "seq": run["context"], "batch": run["sequences"]}
    if what["evidence"] == "cpu":
        must_fit(runs.trace_training(model, backend="fake_cpu", **how)["peak_bytes"])
    found = runs.trace_training(model, backend="cpu" if what["evidence"] == "cpu" else "fake_cpu", **how)
    return {name: value for name, value in found.items() if name.endswith("_bytes")}


def must_fit(nbytes: int) -> None:
    """Refuse to execute what needs more memory than this machine has free."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes * 5 // 4 > available:
        raise MemoryError(f"needs {nbytes:,} bytes, {available:,} are free")


def run_apart(script: Path, what: Task) -> tuple[dict[str, int], dict[str, Any]]:
    """One measurement in a process of its own, so that peaks don't mix and a crash costs one run."""
    sent = {"model": {k: v for k, v in what["model"].items() if k != "id"}, "run": what["run"]}
    done = subprocess.run([sys.executable, str(script), json.dumps(sent)], capture_output=True, text=True,
                          timeout=LIMIT_S, check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return answer["measured"], answer["environment"]


def engine(suite: str, where: dict[str, str]) -> dict[str, str]:
    """Which engine ran, and its version."""
    if suite == "llama-cpp":
        binding = where["llama-cpp-python"]
        return {"engine": "llama.cpp", "engine_version": LLAMA_CPP.get(binding, f"llama-cpp-python {binding}")}
    return {"engine": "transformers", "engine_version": ".".join(where["transformers"].split(".")[:2])}


def record(file: Path, entry: dict[str, Any]) -> None:
    """Append one line in one write, and wait until it is on disk."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (json.dumps(entry, separators=(",", ":")) + "\n").encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def recorded(file: Path) -> set[str]:
    """Keys in a file of records; a line that was cut off is not one."""
    keys = set()
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            keys.add(json.loads(line)["key"])
        except (ValueError, KeyError, TypeError):
            continue
    return keys


def cuda_device() -> str | None:
    """Name of the first CUDA device, or None; asked in a process of its own, which leaves no context here."""
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


RUNNERS: dict[str, Callable[[Task], dict[str, int]]] = {"weights": run_weights, "cache": run_cache, "activations": run_activations,
                                                     "generate": run_generate, "training": run_training}  # fmt: skip


def main() -> int:
    """Run a suite until it is done or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suite", choices=sorted(PLANS))
    parser.add_argument("--minutes", type=float, default=8.0, help="start no run after this (default 8)")
    parser.add_argument("--out", type=Path, help="file of records (default validation/records/SUITE-HOST.jsonl)")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--list", action="store_true", help="print the plan and leave")
    asked = parser.parse_args()
    host = re.sub(r"[^a-z0-9]+", "-", platform.node().lower()) or "host"
    plan = [t for t in PLANS[asked.suite]() if asked.only in t["model"]["id"]]
    if asked.list:
        print(*(f"{t['evidence']:4} {t['model']['id']:18} {json.dumps(t['run'])}" for t in plan), sep="\n")
        return 0
    device = cuda_device() if asked.suite == "cuda" else platform.machine()
    if device is None:
        print("no CUDA device here: the cuda suite is skipped")
        return 0
    where, file = versions(), asked.out or HERE / "records" / f"{asked.suite}-{host}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    done = recorded(file)
    left = [t for t in plan if key(t, where, device) not in done]
    print(f"{asked.suite}: {len(plan) - len(left)} of {len(plan)} recorded in {file}")
    start, ran = time.monotonic(), 0
    for number, what in enumerate(left, 1):
        spent = time.monotonic() - start
        if spent > asked.minutes * 60:
            print(f"time is up: {len(left) - number + 1} left; the same command goes on")
            break
        environment = {"python": platform.python_version(), **where, "device": FAKE.get(asked.suite, "fake cuda") if what["evidence"] == "fake" else device,
                       "host": host, **{k: os.environ[k] for k in ALLOCATOR if k in os.environ}}  # fmt: skip
        began = time.monotonic()
        try:
            if asked.suite in APART:
                measured, more = run_apart(APART[asked.suite], what)
                environment |= more
            else:
                measured = RUNNERS[asked.suite](what)
        except Exception as e:  # one run that can't be done must not end the suite
            outcome = f"not run: {type(e).__name__}: {str(e).splitlines()[0][:120] if str(e) else ''}"
        else:
            environment["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            record(file, {"suite": asked.suite, "evidence": what["evidence"], **engine(asked.suite, where), "model": what["model"],
                          "run": what["run"], "measured": measured, "environment": environment,
                          "key": key(what, where, device)})  # fmt: skip
            outcome, ran = ", ".join(f"{k} {v:,}" for k, v in list(measured.items())[:4]), ran + 1
        ahead = (time.monotonic() - start) / number * (len(left) - number)
        print(f"[{number}/{len(left)}, {time.monotonic() - began:.1f} s, about {ahead / 60:.0f} min left] {what['model']['id']} "
              f"{json.dumps(what['run'])}: {outcome}", flush=True)  # fmt: skip
    print(f"{ran} runs recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
