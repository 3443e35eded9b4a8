"""What the larger commands do, apart from the command line itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from calculator.catalog import load_gpus, load_model
from calculator.errors import BadValue, CalculatorError, UnreadableFile
from calculator.report.documents import engines_document, envelope, models_document
from calculator.report.text import table
from calculator.search import Search
from calculator.units import gib, parse_count

MAX_STEPS = 100_000


def run_sweep(models: tuple[str, ...], quants: str | None, contexts: str, sequences: str, options: dict[str, Any],
              all_gpus: bool, output: str | None, as_json: bool) -> None:  # fmt: skip
    """Compute the grid and write it where asked: JSON, a file, or a short table."""
    _need("numpy", "pandas", extra="sweep")
    from calculator.sweep import sweep

    if output is not None and Path(output).suffix not in (".csv", ".parquet"):
        raise BadValue(f"-o {output[-60:]}", allowed=".csv or .parquet")
    found = [load_model(name) for name in models]
    names = [q.strip() for q in quants.split(",") if q.strip()] if quants else quants_that_run(options.get("engine"))
    result = sweep(found, names, axis(contexts, "--contexts"), axis(sequences, "--sequences"), options)
    frame = result.frame(all_gpus=all_gpus)
    if output is not None:
        _write(output, lambda path: frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False))
        if not as_json:
            click.echo(f"{len(frame):,} rows in {output}")
            return
    if as_json:
        import json

        axes = {"models": list(result.models), "quants": list(result.quants), "contexts": list(result.contexts),
                "sequences": list(result.sequences)}  # fmt: skip
        click.echo(json.dumps(envelope(axes=axes, rows=frame.to_dict("records"))))
        return
    shown = frame.head(40)
    rows = [
        (r["model"], r["quant"], f"{r['context']:,}", f"{r['sequences']:,}", gib(r["total_bytes"])) for r in shown.to_dict("records")
    ]
    click.echo(table(rows, header=("model", "quant", "context", "sequences", "total"), right=frozenset({2, 3, 4})))
    if len(frame) > len(shown):
        click.echo(f"and {len(frame) - len(shown):,} more; -o FILE.csv writes all")


def axis(text: str, name: str) -> list[int]:
    """Values of an axis: "1k:128k" doubles, "1k:128k:1k" steps, "1k,4k" lists."""
    values: set[int] = set()
    for part in text.split(","):
        ends = part.split(":")
        if len(ends) == 1:
            values.add(parse_count(part, name=name))
            continue
        if len(ends) > 3:
            raise BadValue(f"{name} {part[:40]!r} is not a range", hint="1k:128k, 1k:128k:1k or 1k,4k")
        low, high = parse_count(ends[0], name=name), parse_count(ends[1], name=name)
        if low > high:
            raise BadValue(f"{name} {part[:40]!r} runs backwards", hint=f"{ends[1]}:{ends[0]}")
        if len(ends) == 2:
            while low <= high:
                values.add(low)
                low *= 2
            continue
        step = parse_count(ends[2], name=name)
        if (high - low) // step > MAX_STEPS:
            raise BadValue(f"{name} {part[:40]!r} has too many steps", allowed=f"{MAX_STEPS:,}")
        values.update(range(low, high + 1, step))
    return sorted(values)


def quants_that_run(engine: str | None) -> list[str]:
    """The catalog's quantizations that run on the engine, or on any."""
    from calculator import engines
    from calculator.quantization import CATALOG, parse

    if engine is None:
        return list(CATALOG)
    name = engines.canonical(engine)
    return [q for q in CATALOG if name in parse(q).engines]


def run_report(models: tuple[str, ...], output: str | None, as_json: bool) -> None:
    """Write the sizing report in the format that the file's name asks for, or print it as JSON."""
    import json

    from calculator.report import sizing

    writers: dict[str, Callable[[list[sizing.Sizing]], str]] = {
        ".html": sizing.as_html, ".md": sizing.as_markdown, ".csv": sizing.as_csv,
        ".json": lambda s: json.dumps(sizing.as_document(s), indent=1),
    }  # fmt: skip
    suffix = Path(output).suffix if output else ".json"
    if suffix not in writers:
        raise BadValue(f"-o {(output or '')[-60:]}", allowed=", ".join(writers))
    sized = [sizing.size(load_model(name)) for name in models]
    if output:
        _write(output, lambda path: path.write_text(writers[suffix](sized), encoding="utf-8"))
    click.echo(json.dumps(sizing.as_document(sized)) if as_json else f"wrote {output}")


def models_text(found: Search) -> str:
    """The models as a table, and where a user's own go."""
    from calculator.architectures import ARCHITECTURES

    document = models_document(found)
    rows = [(m["id"], f"{m['parameters']:,}", f"{m['active_parameters']:,}" if m["active_parameters"] != m["parameters"] else "", m["family"], m["verdict"] or "", m["source"])
            for m in document["models"]]  # fmt: skip
    out = [table(rows, header=("id", "parameters", "active, text", "family", "verdict", "source"), right=frozenset({1, 2}))] if rows else ["no model is like that"]
    if left := document["not_sized"]:
        out.append(f"{len(left)} models have no size here: " + ", ".join(m["id"] for m in left[:6]) + (" ..." if len(left) > 6 else "") + " (--json says why)")
    out.append(f"model types with formulas: {', '.join(ARCHITECTURES)}")
    out.append(f"your own models: config.json files, named NAME.json, in {document['user_folder']} (or $VRAM_MODELS)")
    return "\n".join(out)


def gpus_text() -> str:
    """The GPUs with their three memory numbers."""
    from calculator.fit import usable_memory

    rows = []
    for gpu in load_gpus():
        usable = usable_memory(gpu)
        rows.append((
            gpu.name, gib(gpu.memory_sold_bytes.value), gib(gpu.nvml_total_bytes.value) if gpu.nvml_total_bytes else "-",
            gib(usable.value), "reported" if gpu.cuda_total_bytes else f"derived, {gib(usable.low_value)} at least",
            f"{gpu.bandwidth_bytes_per_s.value / 1e9:,.0f} GB/s", ", ".join(gpu.unverified),
        ))  # fmt: skip
    header = ("GPU", "sold", "nvidia-smi", "usable", "usable is", "bandwidth", "unverified")
    return table(rows, header=header, right=frozenset({1, 2, 3, 5}))


def quant_rows(name: str) -> list[dict[str, Any]]:
    """Each quantization: engines, rule, and the model's stored bytes in it."""
    from calculator.architectures import build_inventory
    from calculator.quantization import CATALOG, parse, quantize, stored_nbytes

    model = load_model(name)
    parameters = build_inventory(model.spec).parameters
    rows = []
    for quant in CATALOG:
        scheme = parse(quant)
        nbytes = stored_nbytes(quantize(model.spec, scheme))
        rows.append({"name": scheme.name, "engines": list(scheme.engines), "rule": scheme.rule, "source": scheme.source,
                     "model": model.spec.id, "tensor_bytes": nbytes, "bits_per_weight": round(8 * nbytes / parameters, 3)})  # fmt: skip
    return rows


def quants_text(name: str) -> str:
    """The quantizations as a table."""
    rows = [(r["name"], gib(r["tensor_bytes"]), f"{r['bits_per_weight']:.2f}", ", ".join(r["engines"]), r["rule"]) for r in quant_rows(name)]
    header = ("quantization", "tensors", "bits a weight", "engines", "rule")
    return f"tensors of {load_model(name).spec.id}\n" + table(rows, header=header, right=frozenset({1, 2}))


def engines_text() -> str:
    """The engines with their settings."""
    out = []
    for e in engines_document()["engines"]:
        if not e["modelled"]:
            out.append(f"{e['name']}: not modelled yet, {e['why']}")
            continue
        out.append(f"{e['name']} {', '.join(e['versions'])}")
        rows = [(f"  {n}", "" if s["default"] is None else str(s["default"]), s["meaning"]) for n, s in e["settings"].items()]
        out.append(table(rows, header=("  setting", "default", "meaning")))
    return "\n".join(out)


def run_app(arguments: tuple[str, ...]) -> None:
    """Start Streamlit on the dashboard."""
    _need("streamlit", "plotly", extra="app")
    from streamlit.web import cli as streamlit

    if not any(a.startswith("--server.port") for a in arguments):
        port = _free_port(8501)
        arguments = (f"--server.port={port}", *arguments)
        _open_browser(f"http://localhost:{port}")
    if not any(a.startswith("--server.address") for a in arguments):
        arguments = ("--server.address=localhost", *arguments)  # not for the whole network unless asked
    # headless: streamlit neither asks for an e-mail address nor opens a browser itself
    page = Path(__file__).parent / "ui" / "main.py"
    sys.argv = ["streamlit", "run", str(page), "--server.headless=true", "--browser.gatherUsageStats=false", *arguments]
    sys.exit(streamlit.main())


def _free_port(first: int) -> int:
    import socket

    for port in range(first, first + 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    return first


def _open_browser(url: str) -> None:
    """Open the page once the server is likely up, where there is a screen to open it on."""
    import os
    import threading
    import webbrowser

    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32"):
        timer = threading.Timer(3, webbrowser.open, [url])
        timer.daemon = True
        timer.start()


def _need(*modules: str, extra: str) -> None:
    from importlib.util import find_spec

    if missing := [m for m in modules if find_spec(m) is None]:
        raise CalculatorError(f"{', '.join(missing)} not installed", hint=f"pip install 'vram-calculator[{extra}]'")


def _write(output: str, write: Any) -> None:
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as e:
        raise UnreadableFile(f"can't write {output[-80:]} ({e.strerror})", hint="another folder") from None


def run_validate(write: bool, as_json: bool) -> None:
    """Print the error table and the coverage matrix, after renewing what is generated from them if asked."""
    import json

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
    import json

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
    import json
    from pathlib import Path

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
