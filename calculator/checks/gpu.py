"""One measurement on a CUDA device in a process of its own: `python gpu.py '{"task": ...}'` prints one JSON line.

torch's own counters (asked for, allocated, reserved) beside what the driver says the process holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch
import tracing  # type: ignore[import-not-found]  # beside this file: it runs as a script

MIB = 2**20


def smi(query: str, fields: str) -> list[list[str]]:
    """Rows of an nvidia-smi query, of the first visible device; none where it can't be asked."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    try:
        out = subprocess.run(["nvidia-smi", f"--query-{query}={fields}", "--format=csv,noheader,nounits", "-i", first],
                             capture_output=True, text=True, timeout=20, check=True).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [[part.strip() for part in line.split(",")] for line in out.splitlines() if line.strip()]


def device_mib(field: str) -> int | None:
    """A memory figure of the device as nvidia-smi prints it [bytes]."""
    rows = smi("gpu", field)
    return int(rows[0][0]) * MIB if rows and rows[0][0].isdigit() else None


def driver_bytes() -> dict[str, int]:
    """What the driver says: this process, and the whole device in two ways."""
    free, total = torch.cuda.mem_get_info()
    found = {"device_used_bytes": total - free, "cuda_total_bytes": total}
    rows = [row for row in smi("compute-apps", "pid,used_memory") if len(row) == 2 and row[1].isdigit()]
    own = [row for row in rows if row[0] == str(os.getpid())] or (rows if len(rows) == 1 else [])
    if own:  # in a container the pid is another, but a lone process is this one
        found["process_bytes"] = int(own[0][1]) * MIB
    for name, field in (("nvml_used_bytes", "memory.used"), ("nvml_total_bytes", "memory.total")):
        value = device_mib(field)
        if value is not None:
            found[name] = value
    return found


def context() -> dict[str, int]:
    """Growth of the process from nothing: context, first tensor, first kernel, first product, first attention."""
    before = device_mib("memory.used")
    measured: dict[str, int] = {} if before is None else {"nvml_before_bytes": before}
    x: Any
    w: Any
    q: Any
    x = w = q = None
    for stage in ("context", "tensor", "kernel", "matmul", "attention"):
        if stage == "context":
            torch.cuda.mem_get_info()
        elif stage == "tensor":
            x = torch.zeros(512, 512, dtype=torch.bfloat16, device="cuda")
        elif stage == "kernel":
            w = (x + 1) * 2
        elif stage == "matmul":
            x = x @ w
        else:
            q = torch.zeros(1, 8, 256, 64, dtype=torch.bfloat16, device="cuda")
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.cuda.synchronize()
        measured |= {f"{stage}_{name}": value for name, value in driver_bytes().items() if "total" not in name}
        measured[f"{stage}_allocated_bytes"] = torch.cuda.memory_allocated()
        measured[f"{stage}_reserved_bytes"] = torch.cuda.memory_reserved()
    held = sum(t.untyped_storage().nbytes() for t in (x, w, q) if t is not None)
    measured["workspace_bytes"] = torch.cuda.memory_allocated() - held
    return measured | {k: v for k, v in driver_bytes().items() if "total" in k}


def quantize(model: Any, quant: str) -> None:
    """Replace the linear layers but the head by bitsandbytes ones, as transformers does."""
    import bitsandbytes as bnb

    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or name.endswith("lm_head"):
            continue
        parent, _, leaf = name.rpartition(".")
        shape, bias = (module.in_features, module.out_features), module.bias is not None
        new: Any
        if quant == "bnb-int8":
            new = bnb.nn.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, threshold=6.0)
            new.weight = bnb.nn.Int8Params(module.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        else:
            kind, double = quant.split("-")[1], quant.endswith("-dq")
            new = bnb.nn.Linear4bit(*shape, bias=bias, compute_dtype=model.dtype, compress_statistics=double, quant_type=kind)
            new.weight = bnb.nn.Params4bit(module.weight.data.cpu(), requires_grad=False, compress_statistics=double,
                                           quant_type=kind)  # fmt: skip
        if bias:
            new.bias = module.bias
        setattr(model.get_submodule(parent), leaf, new.to("cuda").eval())


def forward(model: dict[str, Any], run: dict[str, Any]) -> dict[str, int]:
    """One forward pass: the allocator's peaks and the driver's figure."""
    quant, settings = run["quant"], run["settings"]
    dtype = {"fp32": "float32", "fp16": "float16"}.get(quant, "bfloat16")
    with tracing.backend_of("cuda") as device:
        net = tracing.build(model, dtype=dtype, attn=settings["attn_implementation"], device=device)
        for parameter in net.parameters():
            parameter.normal_(0, 0.02)
        if quant.startswith("bnb"):
            quantize(net, quant)
        batch, seq, phase = run["sequences"], run["context"], run["phase"]
        new = seq if phase == "prefill" else 1
        ids = torch.randint(0, model["vocab_size"], (batch, new), device=device)
        cache = tracing.make_cache(net.config, settings["cache_implementation"], seq if phase == "prefill" else seq + 1)
        if phase == "decode":
            tracing.fill_cache(net.config, cache, batch, seq, net.dtype, device)
        weights = [*net.parameters(), *net.buffers()]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        out = net(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=settings["logits_to_keep"])
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        measured = {
            "allocated_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved(),
            "requested_peak_bytes": stats.get("requested_bytes.all.peak", 0), **driver_bytes(),
        }  # fmt: skip
        del out
        named = {"weights_bytes": weights, "kv_bytes": cache, "input_bytes": ids}
        sizes = {name: tracing.storage_bytes(thing, device) for name, thing in named.items()}
        rest = torch.cuda.memory_stats().get("requested_bytes.all.current", 0) - sum(sizes.values())
        # what stays asked for beside the tensors we hold is the workspace of cuBLAS
        measured |= sizes | {"workspace_bytes": rest}
        if measured["requested_peak_bytes"]:
            measured["act_bytes"] = measured["requested_peak_bytes"] - sum(sizes.values()) - rest
        return measured


def main() -> int:
    """Run the task of the first argument."""
    task = json.loads(sys.argv[1])
    properties = torch.cuda.get_device_properties(0)
    measured = context() if task["run"].get("task") == "context" else forward(task["model"], task["run"])
    rows = smi("gpu", "driver_version")
    where = {"device": properties.name, "capability": f"{properties.major}.{properties.minor}",
             "driver": rows[0][0] if rows else "", "cuda": torch.version.cuda}  # fmt: skip
    print(json.dumps({"measured": measured, "environment": where}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
