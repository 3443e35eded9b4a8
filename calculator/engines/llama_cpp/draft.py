"""A draft model beside the model, for speculative decoding in llama-server: its own weights, cache and buffers on the same GPUs.

Its context has the cells and slots of the target's; its cache has types of its own; layers and overrides are its own too.
The target then reserves outputs for the drafted tokens: slots x (1 + draft_max).

Source: llama.cpp @0c1e57098 common/speculative.cpp common_base_params_to_speculative L2446, common_speculative_init_result
L2512, common_speculative_get_output_limits L2586; draft_max common/common.h L328.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from calculator.architectures import architecture
from calculator.catalog import Model, load_model
from calculator.engines.base import Job
from calculator.engines.llama_cpp.buffers import Context, layout
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.formats import FORMATS
from calculator.ledger import Line
from calculator.quantization import Scheme, Stored, parse, quantize

SOURCE = "llama.cpp common/speculative.cpp common_base_params_to_speculative @0c1e57098"
VOCABULARY_DIFFERENCE = 128  # SPEC_VOCAB_MAX_SIZE_DIFFERENCE, common/speculative.cpp L30; the tokens must be the same too
_OWN = ("draft", "draft_quant", "draft_max", "n_gpu_layers", "n_cpu_moe", "override_tensor", "type_k", "type_v", "n_outputs_max", "draft_n_gpu_layers")


def outputs(job: Job, slots: int) -> int:
    """Outputs that llama-server reserves in a micro-batch of the target: a token a slot, and with a draft all that it proposes."""
    s = job.deployment.settings
    return min(int(s["n_batch"]), slots * (1 + int(s["draft_max"]))) if "draft" in s else slots


def job_of(job: Job, context: Context) -> Job:
    """The draft's own job, at the target's cells and slots."""
    s = job.deployment.settings
    scheme, stored = _stored(str(s["draft"]), str(s.get("draft_quant", job.scheme.name)))
    where = layout(context)
    own = {name: value for name, value in s.items() if name not in _OWN}
    own |= {"n_ctx": where.cells * where.streams, "n_seq_max": context.n_seq_max, "n_outputs_max": context.n_seq_max, "fit": False,
            "type_k": s["draft_type"], "type_v": s["draft_type"], "lora_rank": 0, "n_cpu_moe": 0}  # fmt: skip
    if "draft_n_gpu_layers" in s:
        own["n_gpu_layers"] = s["draft_n_gpu_layers"]
    model = _model(str(s["draft"]))
    return replace(job, model=model.spec, scheme=scheme, stored=stored, deployment=replace(job.deployment, settings=own), from_headers=False)


def renamed(lines: Iterable[Line]) -> list[Line]:
    """Lines of the draft, told apart from the target's."""
    return [replace(line, name=f"{line.name}, draft", source=f"{line.source}; {SOURCE}") for line in lines]


def sampled(lines: Iterable[Line], vocabulary: int, slots: int) -> list[Line]:
    """With room for its sampler, whose nodes llama-server adds to the draft's graph: up to eight vectors of the vocabulary a slot.

    Source: --spec-draft-backend-sampling, on by default; the nodes themselves aren't modelled.
    """
    more = sampler_bytes(vocabulary, slots)
    return [replace(line, high=line.high_bytes + more, note=f"{line.note}; its sampler's nodes are in the high end only")
            if line.name == "compute buffer, draft" else line for line in lines]  # fmt: skip


def sampler_bytes(vocabulary: int, slots: int) -> int:
    """What a sampler's nodes may take at most, float32 or int32 [bytes]."""
    return 8 * 4 * vocabulary * slots


def check(job: Job) -> None:
    """Refuse what a draft can't be."""
    s = job.deployment.settings
    if "draft" not in s:
        if other := [name for name in ("draft_quant", "draft_n_gpu_layers") if name in s]:
            raise BadValue(f"{other[0]} without a draft", hint="--set draft=MODEL")
        return
    if job.deployment.engine_version != "0c1e57098":
        raise NotModelled(f"a draft with llama.cpp {job.deployment.engine_version}", hint="leaving --engine-version out")
    if s["fit"]:
        raise NotModelled("fit together with a draft", hint="n_gpu_layers, or leaving the draft out")
    spec = _model(str(s["draft"])).spec
    if "llama.cpp" not in architecture(spec.model_type).engines:
        raise NotModelled(f"a draft of {spec.model_type}: its buffers have no formula yet", hint="a small model of another family")
    if abs(spec.vocab_size - job.model.vocab_size) > VOCABULARY_DIFFERENCE:
        raise Unsupported(f"draft {spec.id} has {spec.vocab_size:,} tokens in its vocabulary, {job.model.id} {job.model.vocab_size:,}; "
                          f"llama.cpp takes at most {VOCABULARY_DIFFERENCE} apart", hint="a small model of the same family")  # fmt: skip
    if spec.head_dim % FORMATS[str(s["draft_type"]).upper()].block_elements:
        raise BadValue(f"draft_type={s['draft_type']}: head_dim {spec.head_dim} of {spec.id} is no multiple of its block", hint="f16")


@lru_cache(maxsize=32)
def _model(name: str) -> Model:
    return load_model(name)


@lru_cache(maxsize=32)
def _stored(name: str, quant: str) -> tuple[Scheme, Stored]:
    scheme = parse(quant, engine="llama.cpp")
    if not scheme.recipe:
        raise Unsupported(f"draft_quant={quant[:30]}: llama.cpp reads GGUF files", hint="Q8_0")
    return scheme, quantize(_model(name).spec, scheme)
