"""SGLang: weights as its ranks hold them, the pool of tokens in the static fraction, and what lies beside that fraction."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from calculator.engines.base import Dynamic, Job, Pool
from calculator.engines.ranks import element_bytes, shares_of
from calculator.engines.records import record, record_line
from calculator.engines.remembered import once_a_job
from calculator.engines.server import Server
from calculator.engines.settings import Setting
from calculator.engines.sglang import draft, speculative
from calculator.engines.sglang.attention import WORKSPACE_SOURCE, backend_of, page_of, workspace
from calculator.engines.sglang.cache import cache_lines
from calculator.engines.sglang.checks import check
from calculator.engines.sglang.command import start_command
from calculator.engines.sglang.defaults import prefill_tokens, static_fraction, whole_chunk
from calculator.engines.sglang.deployment import DECLARED_CACHES, HISTORY, VERSIONS, context_length, version_of
from calculator.engines.sglang.families import FAMILIES, family_of, rotary_elements
from calculator.engines.sglang.layouts import extra_lines
from calculator.engines.sglang.overheads import context_held, graph_lines, kernel_buffers, load_slack
from calculator.engines.sglang.pool import (
    IMAGES_SOURCE,
    TABLE_SOURCE,
    cell_bytes,
    image_bytes,
    pool_cell,
    pool_of,
    running_requests,
    table_bytes,
    table_margin,
    window_bytes,
)
from calculator.engines.sglang.ranks import attention_groups, held, rank_spec
from calculator.engines.sglang.rocm import PARTIAL_SOURCE, partial_results, rotary_bytes
from calculator.engines.sglang.settings import SETTINGS
from calculator.engines.sglang.states import PADDING, drafted, slot_bytes, slots_a_request
from calculator.engines.sglang.steps import COPIES, STEPS_SOURCE, prefill
from calculator.engines.weights import banded, weight_lines
from calculator.ledger import Formula, Ledger, Line
from calculator.spec import ModelSpec
from calculator.steps import Peak
from calculator.units import MIB, align_up, ceil_div

ROPE_SOURCE = "sglang v0.4.3 srt/layers/rotary_embedding.py L82: the table stays float32 on CUDA"


class Sglang(Server):
    """SGLang's server on NVIDIA's and AMD's GPUs: tensor parallel by `tensor_parallel_size`, pipeline stages over the rest."""

    name = "sglang"
    families = frozenset(FAMILIES)
    versions = VERSIONS
    history = HISTORY
    declared_caches = DECLARED_CACHES
    vendors = ("NVIDIA", "AMD")
    oldest_card = (7, 5)
    too_old = "SGLang only supports sm75 and above."
    beside = ("CUDA context", "peak activation", "request table", "attention workspace", "kernel buffers", "CUDA graphs", "graph index buffers", "prefill graphs", draft.GRAPHS, *draft.OUTSIDE)
    image_source = "sglang srt/managers/mm_utils.py: images are encoded in the pass, outside the static fraction"
    settings: ClassVar[dict[str, Setting]] = SETTINGS

    def lacking(self, model: ModelSpec) -> str:
        """What the pass has that isn't modelled, beside a tower's images; empty for nothing."""
        return family_of(model).bound if model.model_type in FAMILIES else ""

    def check(self, job: Job) -> None:
        """Refuse what the engine refuses, and what the formulas don't cover."""
        check(job, self)

    def weight_lines(self, job: Job) -> list[Line]:
        """Those of the model, and of a draft."""
        return self._own_weights(job) + draft.lines_of(job)

    @once_a_job
    def _own_weights(self, job: Job) -> list[Line]:
        """Stored tensors, the rotary table in float32, and what loading takes beyond them."""
        model, slack = job.model, load_slack(job)
        positions, width = rotary_elements(model)
        symbols = {"e": rotary_bytes(job, element_bytes(job)), "P": positions, "d": width}
        lines = []
        for share in shares_of(job):
            mine = weight_lines(job.scheme, held(job, share), device=share.device, tied=model.tie_word_embeddings)
            lines += banded(job, mine, partial(held, share=share))
            lines.append(Line("weights", "rotary cos and sin", symbols["e"] * symbols["P"] * symbols["d"],
                              Formula("{e} × {P} (positions) × {d} (rotary width)", symbols), ROPE_SOURCE, device=share.device,
                              note="one table, shared by the layers" if positions else "none: made in each pass"))  # fmt: skip
            lines += extra_lines(job, share)
            lines.append(record_line(slack, "load slack", share.device, component="weights"))
        return lines

    def cache_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Slots of the sequences, in whole pages."""
        return cache_lines(job)

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """One prefill pass of the largest chunk; the engine doesn't measure it."""
        low, peak, high = (prefill(rank_spec(job), prefill_tokens(job), element_bytes(job), copies) for copies in COPIES)
        return [
            Line("activations", "peak activation", peak.nbytes, peak.formula, STEPS_SOURCE, basis="modelled", low=low.nbytes, high=high.nbytes,
                 device=share.device, note=f"prefill of {prefill_tokens(job):,} tokens; outside the static fraction")
            for share in shares_of(job)
        ] + draft.state_lines(job)  # fmt: skip

    @once_a_job
    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """What is held before the weights, and what comes after the pool."""
        lines, pool, length, images = [], self.pool(job), context_length(job), image_bytes(job)
        requests = running_requests(job, pool) + version_of(job).spare_slot
        for i in range(job.deployment.gpus):
            lines.append(record_line(context_held(job), "CUDA context", i))
            lines.append(Line("overhead", "request table", table_bytes(job, pool),
                              Formula("4 × {R} (requests) × ({C} (context_length) + {m})", {"R": requests, "C": length, "m": table_margin(job)}), TABLE_SOURCE, device=i))
            lines += [self._workspace(job, i, requests - version_of(job).spare_slot), record_line(kernel_buffers(job), "kernel buffers", i)]
            if images:
                lines.append(Line("overhead", "image caches", images, Formula("{n} × {M} (bytes)", {"n": images // MIB, "M": MIB}), IMAGES_SOURCE, low=0, device=i,
                                  note="kept free of the pool for embeddings and features of images"))  # fmt: skip
            lines += graph_lines(job, i) + draft.graph_lines(job, i)
        return lines  # fmt: skip

    def _workspace(self, job: Job, device: int, requests: int) -> Line:
        """The attention backend's buffers; where none is known by card, any backend's."""
        nbytes, backend = workspace(job)
        if job.vendor == "AMD":
            nbytes, formula = partial_results(job, backend, requests)
            return Line("overhead", "attention workspace", nbytes, formula, PARTIAL_SOURCE, device=device, note=f"{backend}'s")
        if backend == "unknown":
            return record_line(record("sglang", "attention_workspace"), "attention workspace", device)
        return Line("overhead", "attention workspace", nbytes, Formula("{n}", {"n": nbytes}), WORKSPACE_SOURCE, device=device, note=f"{backend}'s")

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The largest step of a prefill pass."""
        return prefill(rank_spec(job), prefill_tokens(job), element_bytes(job), COPIES[1])

    def kv_bytes_per_token(self, job: Job) -> int:
        """Over all layers and ranks, the draft's too."""
        return sum(cell_bytes(job, share) + speculative.draft_cell(job) for share in shares_of(job))

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What the cache depends on."""
        d = job.deployment
        return (self.name, d.engine_version, tuple(d.settings.items()), d.gpus, d.kv_dtype, element_bytes(job), job.gpu)

    def dynamic(self, job: Job, phase: str) -> Dynamic:  # noqa: ARG002
        """The cache: chunk, table and graphs don't follow the requests."""
        cell, page, groups = self.kv_bytes_per_token(job), page_of(job), attention_groups(job)
        slot = sum(slot_bytes(job, share) for share in shares_of(job))
        each, windows = slots_a_request(job) + drafted(job), sum(window_bytes(job, share) for share in shares_of(job))

        def taken(context: int, sequences: int) -> tuple[int, int]:
            count = ceil_div(sequences, groups)
            cache = count * align_up(context, page) * cell + (count * each + PADDING) * slot + windows
            return cache, cache

        return taken

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """With the server's choices filled in."""
        given = speculative.requests_set(job)
        derived: dict[str, str | int | bool | float] = {
            "mem_fraction_static": static_fraction(job), "chunked_prefill_size": whole_chunk(job) or -1, "context_length": context_length(job), "page_size": page_of(job),
            "max_running_requests": int(given) if given is not None else running_requests(job, self.pool(job)) * attention_groups(job),
        }  # fmt: skip
        if method := speculative.method_of(job):
            plan = speculative.plan_of(job)
            derived |= {"speculative_num_draft_tokens": plan.tokens} | ({} if method == "ngram" else {"speculative_num_steps": plan.steps, "speculative_eagle_topk": plan.topk})
        if backend := backend_of(job):
            derived["attention_backend"] = backend
        return dict(job.deployment.settings) | derived

    def for_one(self, job: Job) -> int:
        """Cache of one sequence on the fullest GPU."""
        slots = align_up(job.workload.context, page_of(job))
        return max(slots * pool_cell(job, share) + window_bytes(job, share) for share in shares_of(job))

    @once_a_job
    def pool(self, job: Job) -> Pool | None:
        """What the static fraction leaves beside the weights on the tightest GPU."""
        context = context_held(job)
        return pool_of(job, lambda j: Ledger.of(self.weight_lines(j) if speculative.counted(j) else self._own_weights(j)), (context.low, context.value, context.high),
                       lambda j: draft.outside_bytes(j, 0))  # fmt: skip

    def images_missing(self, model: ModelSpec) -> str:
        """What a tower whose dimensions aren't known reserves."""
        return "the room that it leaves for images" if model.vision_parameters and model.tower is None else ""

    def images_encoded(self, job: Job) -> str:  # noqa: ARG002
        """Nothing at start-up."""
        return ""

    def images_without_formula(self, job: Job) -> str:
        """The same in every release: images are encoded in what the static fraction leaves."""
        return self.images_missing(job.model)

    def start_command(self, job: Job) -> str | None:
        """`sglang.launch_server` with the flags of this deployment."""
        return start_command(job, self.resolved_settings(job))
