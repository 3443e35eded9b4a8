"""An upper bound of decode speed: memory bandwidth over the bytes that one step must read. Never a prediction."""

from __future__ import annotations

from calculator.estimate import Estimate
from calculator.spec import GpuSpec

SOURCE = "roofline: every weight and the whole cache are read once a step; real engines reach 0.2 to 0.9 of it"


def decode_tokens_per_s_bound(estimated: Estimate, gpu: GpuSpec) -> float:
    """Upper bound of generated tokens a second over all sequences [1/s].

    tokens/s <= B bandwidth / (weights read + cache)     layers on several GPUs run one after another
    """
    ledger = estimated.ledger
    weights = ledger.component_bytes("weights")
    if not estimated.job.model.tie_word_embeddings:  # an untied embedding is only looked up
        weights -= sum(line.nbytes for line in ledger.on_devices if line.name == "embedding")
    read = weights + ledger.component_bytes("kv_cache")
    return estimated.job.workload.sequences * gpu.bandwidth_bytes_per_s.value / read
