"""An upper bound of decode speed: the bytes that one step must read over memory bandwidth. Never a prediction."""

from __future__ import annotations

from calculator.engines.base import ReadsHost
from calculator.engines.records import Record, record
from calculator.estimate import Estimate
from calculator.spec import GpuSpec

SOURCE = "roofline: every weight and the whole cache are read once a step; real engines reach 0.2 to 0.9 of it"


def host_bandwidth() -> Record:
    """Bandwidth of host memory, which is nobody's setting here: a desktop's two channels [bytes/s]."""
    return record("host_memory", "bandwidth")


def decode_tokens_per_s_bound(estimated: Estimate, gpu: GpuSpec, *, host_bytes_per_s: int | None = None) -> float:
    """Upper bound of generated tokens a second over all sequences [1/s].

    tokens/s <= B / (read on GPUs / GPU bandwidth + read on the host / host bandwidth)

    Layers on several GPUs, and on the host, run one after another.
    """
    ledger = estimated.ledger
    weights = ledger.component_bytes("weights")
    if not estimated.job.model.tie_word_embeddings:  # an untied embedding is only looked up
        weights -= sum(line.nbytes for line in ledger.on_devices if line.name == "embedding")
    seconds = (weights + ledger.component_bytes("kv_cache")) / gpu.bandwidth_bytes_per_s.value
    if isinstance(estimated.engine, ReadsHost) and (read := estimated.engine.host_read_bytes(estimated.job)):
        seconds += read / (host_bytes_per_s or host_bandwidth().value)
    return estimated.job.workload.sequences / seconds
