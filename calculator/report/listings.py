"""The catalog's models, GPUs, quantizations and engines as tables."""

from __future__ import annotations

from typing import Any

from calculator.catalog import load_gpus, load_model
from calculator.report.documents import engines_document, models_document
from calculator.report.text import table
from calculator.search import Search
from calculator.units import gib


def models_text(found: Search) -> str:
    """The models as a table, and where a user's own go."""
    from calculator.architectures import ARCHITECTURES

    document = models_document(found)
    rows = [(m["id"], f"{m['parameters']:,}", f"{m['active_parameters']:,}" if m["active_parameters"] != m["parameters"] else "", m["family"], m["verdict"] or "")
            for m in document["models"]]  # fmt: skip
    out = [table(rows, header=("id", "parameters", "active, text", "family", "verdict"), right=frozenset({1, 2}))] if rows else ["no model is like that"]
    if left := document["not_sized"]:
        out.append(f"{len(left)} models have no size here: " + ", ".join(m["id"] for m in left[:6]) + (" ..." if len(left) > 6 else "") + " (--json says why)")
    out.append(f"{len(rows)} models; --json has their sources. {len(ARCHITECTURES)} model types have inventories: {', '.join(ARCHITECTURES)}")
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
    from calculator.quantization import CATALOG, parse, quantize, rule_of, stored_nbytes

    model = load_model(name)
    parameters = build_inventory(model.spec).parameters
    rows = []
    for quant in CATALOG:
        scheme = parse(quant)
        nbytes = stored_nbytes(quantize(model.spec, scheme))
        rows.append({"name": scheme.name, "engines": list(scheme.engines), "rule": rule_of(model.spec, scheme), "source": scheme.source,
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
