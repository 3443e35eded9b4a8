"""An upper bound of decode speed: the bytes that one step must read over memory bandwidth. Never a prediction."""

from __future__ import annotations

from calculator.engines.base import ReadsHost
from calculator.engines.records import Record, record
from calculator.estimate import Estimate
from calculator.quantization.stored import idle_nbytes, stored_nbytes
from calculator.spec import GpuSpec

SOURCE = "roofline: every weight that a token uses and the whole cache are read once a step; real engines reach 0.2 to 0.9 of it"


def host_bandwidth() -> Record:
    """Bandwidth of host memory, which is nobody's setting here: a desktop's two channels [bytes/s]."""
    return record("host_memory", "bandwidth")


def decode_tokens_per_s_bound(estimated: Estimate, gpu: GpuSpec, *, host_bytes_per_s: int | None = None) -> float:
    """Upper bound of generated tokens a second over all sequences [1/s].

    tokens/s <= B / (read on GPUs / GPU bandwidth + read on the host / host bandwidth)

    Of experts only those that a token uses are read, as if all sequences chose the same. Layers on several GPUs, and on
    the host, run one after another; tensor-parallel ranks read at once.
    """
    ledger, model, engine = estimated.ledger, estimated.job.model, estimated.engine
    beside, cache = engine.host_read(estimated.job) if isinstance(engine, ReadsHost) else ((), 0)
    idle, idle_beside = (idle_nbytes(part, experts=model.num_experts, used=model.num_experts_per_tok) for part in (estimated.job.stored, beside))
    weights = ledger.component_bytes("weights") - (idle - idle_beside)
    if not model.tie_word_embeddings:  # an untied embedding is only looked up
        weights -= sum(line.nbytes for line in ledger.on_devices if line.name == "embedding")
    settings = estimated.job.deployment.settings
    ranks = int(settings.get("tensor_parallel_size", 1)) * int(settings.get("data_parallel_size", 1))
    seconds = (weights + ledger.component_bytes("kv_cache")) / (gpu.bandwidth_bytes_per_s.value * ranks)
    if read := stored_nbytes(beside) - idle_beside + cache:
        seconds += read / (host_bytes_per_s or host_bandwidth().value)
    return estimated.job.workload.sequences / seconds
