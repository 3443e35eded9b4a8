"""SGLang: weights as its ranks hold them, the pool of tokens in the static fraction, and what lies beside that fraction."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from calculator.engines.base import Dynamic, Job, Pool
from calculator.engines.ranks import (
    element_bytes,
    ranks_of,
    shares_of,
)
from calculator.engines.records import record, record_line
from calculator.engines.remembered import once_a_job
from calculator.engines.server import Server
from calculator.engines.settings import COUNT, Real, Setting
from calculator.engines.sglang import draft, draft_checks, sparse, speculative
from calculator.engines.sglang.adapters import check_lora
from calculator.engines.sglang.attention import (
    BACKENDS,
    WORKSPACE_SOURCE,
    backend_of,
    check_backend,
    page_of,
    workspace,
)
from calculator.engines.sglang.command import start_command
from calculator.engines.sglang.defaults import chunk_of, prefill_tokens, static_fraction, whole_chunk
from calculator.engines.sglang.deployment import DECLARED_CACHES, HISTORY, VERSIONS, context_length, version_of
from calculator.engines.sglang.families import FAMILIES, check_family, family_of, rotary_elements
from calculator.engines.sglang.formats import check_format
from calculator.engines.sglang.layouts import extra_lines
from calculator.engines.sglang.overheads import context_held, graph_lines, kernel_buffers, load_slack
from calculator.engines.sglang.pool import (
    CAP_SOURCE,
    IMAGES_SOURCE,
    MLA_SOURCE,
    POOL_SOURCE,
    TABLE_SOURCE,
    cell_bytes,
    image_bytes,
    layers_of,
    pool_cell,
    pool_of,
    row_bytes,
    running_requests,
    table_bytes,
    table_margin,
    window_bytes,
    window_tokens,
)
from calculator.engines.sglang.ranks import attention_groups, check_ranks, held, rank_spec
from calculator.engines.sglang.rocm import PARTIAL_SOURCE, check_rocm, partial_results, rotary_bytes
from calculator.engines.sglang.states import (
    PADDING,
    check_states,
    draft_state_line,
    drafted,
    slot_bytes,
    slots_a_request,
    state_line,
)
from calculator.engines.sglang.steps import COPIES, STEPS_SOURCE, prefill
from calculator.engines.weights import banded, weight_lines
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Formula, Ledger, Line
from calculator.quantization import experts_in_mxfp4
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
    settings: ClassVar[dict[str, Setting]] = {
        "mem_fraction_static": Setting(None, Real(0, 1), "share of the free memory for weights and cache; default by card, ranks and version"),
        "max_running_requests": Setting(None, COUNT, "most requests at once; default by pool and context_length, 2,048 to 4,096"),
        "max_total_tokens": Setting(None, COUNT, "most tokens of the pool"),
        "chunked_prefill_size": Setting(None, range(-1, COUNT.stop), "tokens of a prefill pass, -1 for whole prompts; default by card"),
        "context_length": Setting(None, COUNT, "longest sequence [tokens]; default the model's limit"),
        "page_size": Setting(1, range(1, 1025), "tokens of a page of the pool; TensorRT-LLM's kernels make 64 of 1"),
        "attention_backend": Setting(None, BACKENDS, "attention kernels, which set buffers and pages; default by card, model and version"),
        "tensor_parallel_size": Setting(1, range(1, 1025), "ranks that each layer is split over"),
        "ep_size": Setting(1, range(1, 1025), "ranks that the experts are dealt out over"),
        "dp_size": Setting(1, range(1, 1025), "groups of ranks with attention and a cache of their own, with enable_dp_attention"),
        "enable_dp_attention": Setting(False, bool, "attention in dp_size groups of ranks"),
        "swa_full_tokens_ratio": Setting(0.8, Real(0, 1), "tokens of windowed layers for each of the others, where they have a pool of their own"),
        "mamba_full_memory_ratio": Setting(0.9, Real(0, 1000), "memory of recurrent states for that of the tokens"),
        "max_mamba_cache_size": Setting(None, COUNT, "slots of recurrent states"),
        "disable_radix_cache": Setting(False, bool, "finished prompts are forgotten"),
        "enable_lora": Setting(False, bool, "slots for LoRA adapters"),
        "max_loras_per_batch": Setting(8, range(1, 1025), "adapters at once, with enable_lora"),
        "max_lora_rank": Setting(None, range(1, 4097), "largest rank of the adapters, with enable_lora"),
        "lora_target_modules": Setting("all", ("all", "attention"), "layers with adapters: all linear ones, or q, k, v and o"),
        "cuda_graph_max_bs": Setting(None, COUNT, "largest batch that CUDA graphs are captured for; default by card, ranks and version"),
        "disable_cuda_graph": Setting(False, bool, "no CUDA graphs"),
        **speculative.SETTINGS,
        "total_memory_bytes": Setting(None, COUNT, "memory of a GPU as a program sees it, in place of a named GPU [bytes]"),
        "allow_overwrite_longer_context_len": Setting(False, bool, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
    }  # fmt: skip

    def lacking(self, model: ModelSpec) -> str:
        """What the pass has that isn't modelled, beside a tower's images; empty for nothing."""
        return family_of(model).bound if model.model_type in FAMILIES else ""

    def check(self, job: Job) -> None:
        """Refuse what the engine refuses, and what the formulas don't cover."""
        model, settings, length, context = job.model, job.deployment.settings, context_length(job), job.workload.context
        self.check_card(job)
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
        self.check_window(job)
        if chunk_of(job) % page_of(job):
            raise BadValue(f"chunked_prefill_size {chunk_of(job):,} is no multiple of page_size {page_of(job)}", hint="page_size=1")
        check_format(job)
        check_backend(job)
        sparse.check_sparse(job)
        check_ranks(job)
        check_states(job)
        check_lora(job)
        draft_checks.check(job)

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
        slots = align_up(job.workload.context, page_of(job))
        count, mla = ceil_div(job.workload.sequences, attention_groups(job)), job.model.mla
        note = "the compressed row is on every rank" if mla and ranks_of(job) > 1 else ""
        if not mla and ranks_of(job) // attention_groups(job) > job.model.num_key_value_heads:
            note = "KV heads are held by several ranks each"
        lines = []
        for share in shares_of(job):
            full, near = layers_of(job, share)
            if fixed := window_bytes(job, share):
                capped = {"T": window_tokens(job) or 0, "R": row_bytes(job, near=True), "W": near}
                lines.append(Line("kv_cache", "window slots", fixed, Formula("{T} (tokens) × {R} (bytes a layer) × {W} (layers)", capped), CAP_SOURCE, device=share.device,
                                  note="sized by max_running_requests, without a radix tree"))  # fmt: skip
                near = 0
            ratio = float(job.deployment.settings["swa_full_tokens_ratio"])
            if (states := state_line(job, share, count)) is not None:
                lines.append(states)
            if (states := draft_state_line(job, share, count)) is not None:
                lines.append(states)
            symbols = {"B": count, "S": slots, "R": row_bytes(job), "L": full, "W": near, "r": f"{ratio:g}", "C": cell_bytes(job, share)}
            template = "{B} × {S} (tokens) × {C} (bytes of {L} layers and {r} of {W} with a window)" if near else "{B} × {S} (tokens) × {R} (bytes a layer) × {L} (layers)"
            if keys := sparse.key_layers(job, share):
                symbols["C"] = row_bytes(job) * full
                own = {"B": count, "S": slots, "k": sparse.key_bytes(job), "L": keys}
                lines.append(Line("kv_cache", "indexer keys", count * slots * own["k"] * keys, Formula("{B} × {S} (tokens) × {k} (bytes) × {L} (layers)", own), sparse.KEYS_SOURCE,
                                  device=share.device, note=note if keys == full else "the other layers take the choice of the one before"))  # fmt: skip
            lines.append(Line("kv_cache", "KV slots", count * slots * symbols["C"], Formula(template, symbols), sparse.SPARSE_SOURCE if job.model.indexer else MLA_SOURCE if mla else POOL_SOURCE, device=share.device, note=note))  # type: ignore[operator, arg-type]
        return lines + draft.cache_lines(job)

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
