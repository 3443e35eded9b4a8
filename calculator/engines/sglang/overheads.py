"""Which fitted numbers hold for a card: several ranks, memory shared with the CPU, experts that are repacked."""

from __future__ import annotations

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import shares_of
from calculator.engines.records import Record, record, record_line
from calculator.engines.sglang.attention import backend_of
from calculator.engines.sglang.defaults import decode_graphs, graph_sequences, prefill_graphs, prefill_in_graphs
from calculator.engines.sglang.deployment import unified
from calculator.engines.sglang.rocm import indices_line
from calculator.ledger import Formula, Line
from calculator.quantization import experts_in_mxfp4
from calculator.units import GIB

LARGE_UNIFIED = 100 * GIB  # a DGX Spark, whose logs say what its system holds; a small board's holds less, and no log says how much


def context_held(job: Job) -> Record:
    """What is held on a GPU before the weights are loaded."""
    if on_rocm(job):
        return record("sglang", "context_rocm_tp" if job.deployment.gpus > 1 else "context_rocm")
    large = unified(job) and job.gpu is not None and job.gpu.memory_sold_bytes.value >= LARGE_UNIFIED
    return record("sglang", "context_tp" if job.deployment.gpus > 1 else "context_unified" if large else "context")


def load_slack(job: Job) -> Record:
    """What loading takes beyond the weights."""
    if on_rocm(job):
        return record("sglang", "load_slack_rocm")
    if job.deployment.gpus > 1:
        return record("sglang", "load_slack_tp")
    if unified(job):
        return record("sglang", "load_slack_unified")
    return record("sglang", "load_slack_repacked" if experts_in_mxfp4(job.model, job.scheme) else "load_slack")


def kernel_buffers(job: Job) -> Record:
    """What comes with the first passes beside the attention backend's workspace."""
    return record("sglang", "attention_beside_rocm" if on_rocm(job) else "attention_beside")


def graph_lines(job: Job, device: int) -> list[Line]:
    """CUDA graphs of decode by their largest batch, and of prefill by their number; on AMD what they read, too."""
    layers = next(share.layers for share in shares_of(job) if share.device == device)
    lines = [indices_line(job, backend_of(job), graph_sequences(job), device)] if on_rocm(job) else []
    if job.deployment.settings["disable_cuda_graph"]:
        lines.append(Line("overhead", "CUDA graphs", 0, Formula("0"), "setting disable_cuda_graph", device=device, note="none: disable_cuda_graph"))
    elif on_rocm(job):
        each, count = record("sglang", "graph_rocm"), decode_graphs(graph_sequences(job)) * (len(layers) + 1)
        lines.append(Line("overhead", "CUDA graphs", count * each.value, Formula("{n} (graphs) × ({L} (layers) + 1) × {g} (bytes)", {"n": decode_graphs(graph_sequences(job)), "L": len(layers), "g": each.value}),
                          each.source, basis=each.basis, low=count * each.low, high=count * each.high, device=device, note=each.note))  # fmt: skip
    else:
        lines.append(record_line(record("sglang", "cuda_graphs_small" if graph_sequences(job) <= 32 else "cuda_graphs"), "CUDA graphs", device))
    if prefill_in_graphs(job) and job.model.mla:
        lines.append(record_line(record("sglang", "prefill_graphs_mla"), "prefill graphs", device))
    elif prefill_in_graphs(job):
        each, count = record("sglang", "prefill_graph"), prefill_graphs(job)
        lines.append(Line("overhead", "prefill graphs", count * each.value, Formula("{n} (graphs) × {g} (bytes)", {"n": count, "g": each.value}), each.source, basis=each.basis,
                          low=count * each.low, high=count * each.high, device=device, note=each.note))  # fmt: skip
    return lines
