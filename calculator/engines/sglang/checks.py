"""What SGLang refuses at start-up, in its words, and what the formulas don't cover."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.server import Server
from calculator.engines.sglang import draft_checks, sparse
from calculator.engines.sglang.adapters import check_lora
from calculator.engines.sglang.attention import check_backend, page_of
from calculator.engines.sglang.defaults import chunk_of, static_fraction
from calculator.engines.sglang.deployment import HISTORY, context_length
from calculator.engines.sglang.families import check_family
from calculator.engines.sglang.formats import check_format
from calculator.engines.sglang.ranks import check_ranks
from calculator.engines.sglang.rocm import check_rocm
from calculator.engines.sglang.states import check_states
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.quantization import experts_in_mxfp4


def check(job: Job, server: Server) -> None:
    """Refuse what the engine refuses, and what the formulas don't cover."""
    model, settings, length, context = job.model, job.deployment.settings, context_length(job), job.workload.context
    server.check_card(job)
    check_rocm(job)
    static_fraction(job)
    allowed = settings["allow_overwrite_longer_context_len"]
    if max(length, context) > model.max_position_embeddings and not allowed:
        raise Unsupported(
            f"User-specified context_length ({max(length, context)}) is greater than the derived context_length ({model.max_position_embeddings})",
            hint="--set allow_overwrite_longer_context_len=1 (SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1)",
        )
    if context > length and settings.get("context_length"):
        raise BadValue(f"context_length {length:,} is below the context of {context:,}", hint="leaving context_length out")
    check_family(model, HISTORY.covered(job.deployment.engine_version), job.deployment.engine_version)
    if experts_in_mxfp4(model, job.scheme) and job.vendor == "NVIDIA" and not (job.gpu and (job.gpu.compute_capability or "").startswith(("9.", "10."))):
        raise NotModelled("gpt_oss in mxfp4 on cards other than Hopper and Blackwell: its layout there hasn't been read", hint="--gpu, --quant bf16, or --engine vllm")
    server.check_window(job)
    if chunk_of(job) % page_of(job):
        raise BadValue(f"chunked_prefill_size {chunk_of(job):,} is no multiple of page_size {page_of(job)}", hint="page_size=1")
    check_format(job)
    check_backend(job)
    sparse.check_sparse(job)
    check_ranks(job)
    check_states(job)
    check_lora(job)
    draft_checks.check(job)
