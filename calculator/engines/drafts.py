"""Drafts as jobs of their own beside a target, the same for every server: whole models by name, and heads' layers."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from calculator.catalog import Model, load_model
from calculator.engines.base import Job
from calculator.quantization import Scheme, Stored, compute_dtype, parse, quantize
from calculator.spec import ModelSpec

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@lru_cache(maxsize=32)
def draft_model(name: str) -> Model:
    """The draft."""
    return load_model(name)


def draft_checkpoint_of(name: str) -> str:
    """What a server is told to load: its Hugging Face id, or the name here."""
    model = draft_model(name)
    return str(model.record.get("hf_id") or model.spec.id)


def as_draft(job: Job, spec: ModelSpec, **settings: str | int | bool | float) -> Job:
    """A draft as a job on the target's ranks, in the target's type, with the target's settings but these."""
    scheme, stored = _stored(spec, compute_dtype(job.model, job.scheme), job.deployment.engine)
    own = {name: value for name, value in job.deployment.settings.items() if not name.startswith("speculative_") and name not in ("num_speculative_tokens", "draft_tensor_parallel_size")}
    return replace(job, model=spec, scheme=scheme, stored=stored, hf_id=None, published=False, from_headers=False,
                   deployment=replace(job.deployment, settings=own | settings))  # fmt: skip


@lru_cache(maxsize=32)
def _stored(spec: ModelSpec, dtype: str, engine: str) -> tuple[Scheme, Stored]:
    scheme = parse(_DTYPES[dtype], engine=engine)
    return scheme, quantize(spec, scheme)
