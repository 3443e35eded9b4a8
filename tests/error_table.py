"""The README's error table, from the golden records: predictions against every recorded figure, by kind of evidence.

written_docs.py puts it into the README, and a test holds the README to it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from golden_data import architecture, rows

from calculator.architectures import build_inventory
from calculator.engines.llama_cpp import buffers
from calculator.engines.transformers import cache, steps
from calculator.formats import FORMATS
from calculator.quantization import gguf, parse, quantize, stored_nbytes

NAMES = {"ao_int8wo": "torchao-int8wo", "ao_fp8wo": "torchao-fp8wo", "quanto_float8": "quanto-fp8"}
Group = tuple[str, str, str]


def comparisons() -> Iterator[tuple[Group, int, int]]:
    """(engine, quantity, evidence), predicted and recorded bytes."""
    for row in rows("torch_weights.csv"):
        model = architecture(row["arch"])
        stored = quantize(model, parse(NAMES.get(row["scheme"], row["scheme"].replace("_", "-"))))
        yield ("transformers", "weights", "cpu"), stored_nbytes(stored) + 8 * (model.head_dim // 2), int(row["total_bytes"])
    for row in rows("torch_kv.csv"):
        model, size = architecture(row["arch"], int(row["layers"])), {"float32": 4}.get(row["dtype"], 2)
        shape = {"layers": int(row["layers"]), "sequences": int(row["batch"])}
        if row["cache"].startswith("QuantizedCache"):
            kind = "fp8" if "fp8" in row["cache"] else f"int{row['dtype'].removesuffix('bit')}"
            held = cache.quantized(model, **shape, cached=int(row["seq"]), new=0, kind=kind, element_bytes=2)
        else:
            held = cache.plain(model, **shape, tokens=int(row["seq"]), element_bytes=size, static=row["cache"] == "StaticCache")
        yield ("transformers", "KV cache", "cpu"), held.nbytes, int(row["storage_bytes"])
    for row in rows("torch_activation.csv"):
        size = {"float32": 4}.get(row["dtype"], 2)
        how = steps.Pass(row["attn"], size, steps.softmax_bytes(row["dtype"]), int(row["logits_to_keep"]), row["cache"] == "static")
        run = steps.prefill if row["phase"] == "prefill" else steps.decode
        peak = run(architecture(row["arch"], int(row["layers"])), how, tokens=int(row["seq"]), sequences=int(row["batch"]))
        yield ("transformers", "activation peak", "fake"), peak.nbytes, int(row["act_bytes"])
    for row in rows("gguf_weights.csv"):
        model = architecture(row["arch"])
        stored = gguf.quantize(model, build_inventory(model), row["ftype"], imatrix=row["imatrix"] == "1")
        yield ("llama.cpp", "tensors of a GGUF recipe", row["evidence"]), stored_nbytes(stored), int(row["tensor_bytes"])
    for row in rows("llama_cpp_context.csv.gz"):
        model, n_ubatch = architecture(row["arch"]), int(row["n_ubatch"])
        context = buffers.Context(
            int(row["n_ctx"]), int(row["n_batch"]), n_ubatch, int(row["n_seq"]), int(row["n_outputs_max"]) or n_ubatch,
            row["kv_unified"] == "1", row["flash"] == "1", row["kv_k"].upper(), row["kv_v"].upper(), row["backend"] == "mockCUDA",
        )  # fmt: skip
        where = buffers.layout(context)
        kv = sum(buffers.kv_tensor_bytes(model, FORMATS[t], where, cuda=context.cuda) for t in (context.type_k, context.type_v))
        device = "CUDA" if context.cuda else "CPU"
        yield ("llama.cpp", f"KV buffer, {device}", row["evidence"]), kv * model.num_hidden_layers, int(row["kv_bytes"])
        peak, _ = buffers.compute(model, context)
        yield ("llama.cpp", f"compute buffer, {device}", row["evidence"]), peak.nbytes, int(row["compute_bytes"])


def table() -> str:
    """Markdown, one row a group."""
    groups: dict[Group, list[tuple[int, int]]] = {}
    for group, predicted, recorded in comparisons():
        groups.setdefault(group, []).append((predicted, recorded))
    out = ["| engine | quantity | evidence | n | exact | median error | worst error |", "|---|---|---|--:|--:|--:|--:|"]
    for (engine, quantity, evidence), pairs in groups.items():
        errors = [abs(p / r - 1) for p, r in pairs]
        exact = sum(p == r for p, r in pairs) / len(pairs)
        out.append(
            f"| {engine} | {quantity} | {evidence} | {len(pairs):,} | {exact:.1%} | {statistics.median(errors):.2%} | {max(errors):.2%} |"
        )
    return "\n".join(out)
