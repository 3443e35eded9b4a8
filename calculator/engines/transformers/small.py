"""What a model holds beside the tensors of its checkpoint: rotary tables, a scale, weights that stay in float32."""

from __future__ import annotations

from typing import Literal

from calculator.engines.base import Job
from calculator.engines.transformers.families import FAMILIES, Family
from calculator.ledger import Formula, Line
from calculator.quantization import compute_dtype
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec

ROTARY_SOURCE = "transformers v5.23.0 modeling_rope_utils.py, buffers inv_freq and original_inv_freq"
SCALE_SOURCE = "transformers v5.23.0 models/gemma/modeling_gemma.py GemmaTextScaledWordEmbedding"
FLOAT_SOURCE = "transformers v5.23.0 _keep_in_fp32_modules_strict of the model type, or a weight that is made in float32"
Place = int | Literal["host"]
NAMES = ("rotary inverse frequencies", "embedding scale", "kept in float32")


def rotary_bytes(model: ModelSpec) -> int:
    """Inverse frequencies of each table, current and original, in float32."""
    return _tables(model) * 2 * 4 * _half(model)


def _half(model: ModelSpec) -> int:
    return (model.rotary_dim or (model.mla.qk_rope_head_dim if model.mla else model.head_dim)) // 2


def _tables(model: ModelSpec) -> int:
    """Two where layers with a window have their own."""
    return min(FAMILIES.get(model.model_type, Family()).table_sets, 2 if model.full_layers and model.full_every else 1)


def lines(job: Job, *, rotary: Place = 0, embedding: Place = 0) -> list[Line]:
    """Lines of weights, and where the rotary tables and the embedding are; those of nothing are left out."""
    model, family, size = job.model, FAMILIES[job.model.model_type], DTYPE_BYTES[compute_dtype(job.model, job.scheme)]
    half, tables = _half(model), _tables(model)
    found = [Line("weights", NAMES[0], rotary_bytes(model),
                  Formula("{n} (tables) × 2 (current and original) × 4 (bytes) × {half}", {"half": half, "n": tables}), ROTARY_SOURCE, device=rotary)]  # fmt: skip
    if family.scaled_embedding:
        found.append(Line("weights", NAMES[1], size, Formula("{e}", {"e": size}), SCALE_SOURCE, device=embedding))
    wide = sum(g.group.elements * g.count for g in job.stored if g.group.name.endswith(family.in_float32)) if family.in_float32 else 0
    if wide and size < 4:
        found.append(Line("weights", NAMES[2], wide * (4 - size), Formula("{n} (elements) × (4 - {e})", {"n": wide, "e": size}), FLOAT_SOURCE, device=embedding))
    return found
