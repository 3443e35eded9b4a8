"""vLLM: weights as its ranks hold them, the profiling run, and the pool of cache blocks that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from calculator.engines.base import Dynamic, Job, Pool
from calculator.engines.ranks import (
    element_bytes,
    held_by,
    kv_element_bytes,
    rank_of,
    ranks_of,
    replicas_of,
    sequences_on,
    shares_of,
)
from calculator.engines.records import Record, record, record_line
from calculator.engines.server import Server
from calculator.engines.settings import Setting
from calculator.engines.vllm import draft, encoders, graphs, speculative, weights
from calculator.engines.vllm.blocks import (
    BLOCK_SOURCE,
    GROUPS_SOURCE,
    LATENT_SOURCE,
    block_bytes,
    block_of,
    blocks_for,
    groups_of,
    layers_of_block,
    rows_of,
)
from calculator.engines.vllm.by_layer import caching_layers, check_by_layer
from calculator.engines.vllm.command import start_command
from calculator.engines.vllm.deployment import (
    HISTORY,
    VERSIONS,
    batch_limits,
    before_ampere,
    latent_block_size,
    length_of,
    version_of,
)
from calculator.engines.vllm.draft import peaks
from calculator.engines.vllm.drafted import method_of
from calculator.engines.vllm.encoders import cache_line, check_encoder, encodes, makes_no_pool
from calculator.engines.vllm.families import FAMILIES, check_family
from calculator.engines.vllm.formats import check_format
from calculator.engines.vllm.hybrid import (
    PREFIX_SOURCE,
    STATE_SOURCE,
    block_size,
    check_hybrid,
    keeps_all,
    keeps_prefixes,
    states,
)
from calculator.engines.vllm.images import (
    BUDGET_SOURCE,
    NO_PASS,
    check_images,
    images_of,
    passes,
    without_formula,
)
from calculator.engines.vllm.latent import ROWS_SINCE, check_latent, early_row
from calculator.engines.vllm.layouts import check_blocks
from calculator.engines.vllm.offload import budget_of, check_offload, offloaded
from calculator.engines.vllm.pool import BESIDE, for_one, pool_of
from calculator.engines.vllm.profile import SORT_SOURCE, SOURCE, TRITON_SOURCE, samples_on
from calculator.engines.vllm.rocm import check_rocm, on_rocm
from calculator.engines.vllm.second_runner import PASS_SOURCE, second_runner, states_line
from calculator.engines.vllm.settings import SETTINGS
from calculator.engines.vllm.sparse import BLOCK, LACKING, check_sparse, sparse_lines, token_bytes
from calculator.engines.vllm.towers import TOWER_SOURCE
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Formula, Ledger, Line
from calculator.quantization import Scheme, Stored, compute_dtype
from calculator.spec import GpuSpec, ModelSpec, Workload
from calculator.steps import Peak

REPLICAS_SINCE = (0, 9, 0)  # --data-parallel-size: v0.9.2 engine/arg_utils.py L655


class Vllm(Server):
    """vLLM's server on NVIDIA and AMD GPUs: tensor parallel by `tensor_parallel_size`, pipeline stages over the rest."""

    name = "vllm"
    versions = VERSIONS
    history = HISTORY
    beside = BESIDE
    oldest_card = (7, 0)
    vendors = ("NVIDIA", "AMD")
    too_old = "vLLM needs compute capability 7.0 or higher;"  # v0.19.0 docs/getting_started/installation/gpu.cuda.inc.md L9
    families = frozenset(FAMILIES)
    image_source = "vllm v0.11.0 v1/worker/gpu_model_runner.py L3325-3403: profile_run"
    settings: ClassVar[dict[str, Setting]] = SETTINGS

    def lacking(self, model: ModelSpec) -> str:
        """What the profiling run has that isn't modelled, beside a tower's images; empty for nothing."""
        return LACKING if model.indexer else ""

    def images_missing(self, model: ModelSpec) -> str:
        """The profiling run of images of towers without a pass here."""
        return NO_PASS if model.vision_parameters and not passes(model) else ""

    def images_without_formula(self, job: Job) -> str:
        """What of the images isn't modelled in this deployment; empty for nothing."""
        return without_formula(job)

    def images_encoded(self, job: Job) -> str:
        """Budget, number and kind of what the profiling run encodes, as the log prints them; empty for nothing."""
        images = images_of(job, length_of(job))
        return f"encoder budget {images.budget:,} tokens, profiled with {images.items} {images.modality} items" if images else ""

    def check(self, job: Job) -> None:
        """Refuse what the engine refuses, and what the formulas don't cover."""
        model, settings, length = job.model, job.deployment.settings, length_of(job)
        self.check_card(job)
        release = HISTORY.covered(job.deployment.engine_version)
        check_format(job)
        check_rocm(job, release)
        check_family(model, release, job.deployment.engine_version)
        if before_ampere(job) and compute_dtype(model, job.scheme) == "bfloat16" and release < (0, 9):
            raise Unsupported(  # later releases fall back to float16, which takes as much
                f"Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your {job.gpu.name if job.gpu else ''} GPU has "
                f"compute capability {job.gpu.compute_capability if job.gpu else ''}. You can use float16 instead by explicitly setting the `dtype` flag in CLI, for example: "
                "--dtype=half.", hint="--quant fp16",
            )  # fmt: skip
        if length > model.max_position_embeddings and not settings["allow_long_max_model_len"]:
            raise Unsupported(
                f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
                f"(max_position_embeddings={model.max_position_embeddings} or model_max_length=None in model's config.json)",
                hint="--set allow_long_max_model_len=1 (VLLM_ALLOW_LONG_MAX_MODEL_LEN=1)",
            )
        if settings.get("use_v1") is not None and not (0, 8) <= release < (0, 11):
            raise BadValue(f"use_v1 has no choice in vllm {job.deployment.engine_version}", hint="leaving it out: 0.8 to 0.10 have both engines")
        if job.workload.context > length:
            raise BadValue(f"max_model_len {length:,} is below the context of {job.workload.context:,}", hint="leaving max_model_len out")
        if encodes(model):
            check_encoder(job)
            graphs.check_graphs(job)
            return
        if makes_no_pool(job) and settings.get("kv_pool_bytes"):
            raise BadValue("kv_pool_bytes of the V0 engine's pooling runner, which makes no cache", hint="leaving kv_pool_bytes out")
        if job.scheme.name == "fp8-block" and weights.by_marlin(job) and release < (0, 9):
            raise NotModelled("vllm before 0.9 with fp8 in blocks on a GPU without FP8 units: no record to hold that against", hint="a newer GPU, or a later --engine-version")
        if not version_of(job).hybrid:
            self.check_window(job)
        if settings["language_model_only"] and (release < (0, 15) or not model.vision_parameters):
            raise BadValue(f"language_model_only of {model.id} in vllm {job.deployment.engine_version}", allowed="0.15 or later, a model with a tower", hint="leaving it out")
        if settings["enable_lora"] and (model.num_experts or model.mla or model.vision_parameters):
            raise NotModelled("vllm with LoRA on experts, latent attention or a vision tower has no formula yet", hint="leaving enable_lora out")
        check_by_layer(job)
        check_sparse(job)
        check_latent(job)
        self.check_split(job)
        if replicas_of(job) > 1 and release < REPLICAS_SINCE:
            raise NotModelled(f"data_parallel_size in vllm {job.deployment.engine_version}", allowed="0.9 or later", hint="a later --engine-version")
        check_images(job)
        check_hybrid(job)
        check_offload(job)
        speculative.check(job)
        graphs.check_graphs(job)
        check_blocks(job, rank_of(job))

    def preset_context(self, chosen: Mapping[str, Any], model: ModelSpec, gpu: GpuSpec | None, gpus: int) -> int | None:  # noqa: ARG002
        """None: no preset."""
        return None

    def preset(self, chosen: Mapping[str, Any], version: str, model: ModelSpec, scheme: Scheme, workload: Workload,  # noqa: ARG002
               gpu: GpuSpec | None, gpus: int) -> Mapping[str, Any]:  # noqa: ARG002  # fmt: skip
        """The release's share of memory, and the block size that a backend of latent attention forces."""
        found: dict[str, Any] = {"gpu_memory_utilization": HISTORY.at(version).utilization}
        if encodes(model):
            return found | {"runner": "pooling"}
        return found | ({"block_size": BLOCK if model.indexer else latent_block_size(HISTORY.covered(version), gpu)} if model.mla and HISTORY.covered(version) >= ROWS_SINCE else {})

    def weight_lines(self, job: Job) -> list[Line]:
        """Stored tensors, the rotary table, scales, and what the allocator doesn't split off."""
        return encoders.lines_of(job) if encodes(job.model) else weights.lines_of(job) + draft.lines_of(job)

    def cache_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Blocks of the sequences."""
        if makes_no_pool(job):
            return [cache_line(job, share.device) for share in shares_of(job)]
        work, size, rank, groups = job.workload, block_size(job), rank_of(job), groups_of(job)
        blocks = blocks_for(job, work.context)
        if job.model.indexer:
            return [line for share in shares_of(job) for line in sparse_lines(job, share, sequences_on(job, share) * blocks * size)]
        symbols = {"n": blocks, "s": size, "K": rank.num_key_value_heads, "d": rank.head_dim, "e": kv_element_bytes(job)}
        row, source, notes = "2 × {K} × {d}", GROUPS_SOURCE if groups.windowed else BLOCK_SOURCE, []
        if early := early_row(job, rank):
            row, source = early.expression, early.source
            symbols |= early.symbols
        elif rank.mla:
            row, source = "({K} (compressed row) + {d} (rotary key))", LATENT_SOURCE
            symbols |= {"K": rank.mla.kv_lora_rank, "d": rank.mla.qk_rope_head_dim}
            if ranks_of(job) > 1:
                notes.append("every rank keeps the whole compressed row")
        elif ranks_of(job) > job.model.num_key_value_heads:
            notes.append("KV heads are held by several ranks each")
        if groups.windowed and groups.full:
            notes.append(f"{groups.full} group of layers keeps everything, {groups.windowed} keep {job.model.sliding_window:,} tokens and those of a step")
        if groups.recurrent:
            source = f"{source}; {STATE_SOURCE}; {PREFIX_SOURCE}" if keeps_prefixes(job) else f"{source}; {STATE_SOURCE}"
            kept = states(job, work.context)
            notes.append(f"{groups.full} of {groups.tables} groups of layers attend; in the others a sequence's state is a block" + (f", and with prefixes {kept}" if kept > 1 else ""))
        drafted = speculative.draft_block_bytes(job)
        return [
            Line("kv_cache", "KV blocks", sequences_on(job, share) * blocks * (block_of(job, share) - drafted),
                 Formula("{B} × {n} (blocks) × {s} (tokens) × " + row + " × {e} × {L} (layers)", symbols | {"B": sequences_on(job, share), "L": layers_of_block(job, share)}),
                 source, device=share.device, note="; ".join(notes if sequences_on(job, share) else [*notes, "no sequence is left for this copy"]))
            for share in shares_of(job)
        ] + draft.cache_lines(job, blocks)  # fmt: skip

    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """The peak of the profiling run on each device: the sampler runs on the last stage alone."""
        sampled = PASS_SOURCE if second_runner(job) else TRITON_SOURCE if version_of(job).sampler == "triton" else SORT_SOURCE
        sources, notes = [SOURCE, sampled], ["profiling run, peak at {step}"]
        if makes_no_pool(job):
            sources, notes = [encoders.SOURCE, encoders.NO_RUN], ["the largest batch that is served, peak at {step}; start-up doesn't run it; low: the tokens of the workload"]
        if said := self.images_encoded(job):
            sources += [TOWER_SOURCE, BUDGET_SOURCE]
            notes.append(said)
        elif job.model.vision_parameters and job.deployment.settings["skip_mm_profiling"]:
            notes.append("no images: skip_mm_profiling")
        if method_of(job):
            sources += [draft.REJECTION_SOURCE, draft.PASS_SOURCE]
            notes.append(draft.PASS_NOTE)
        lines = []
        for share in shares_of(job):
            low, peak, high = peaks(job, length_of(job), samples=samples_on(job, share))
            basis: Literal["derived", "modelled"] = "derived" if low == peak.nbytes == high else "modelled"
            lines.append(Line("activations", "peak activation", peak.nbytes, peak.formula, "; ".join(sources), basis=basis, low=low, high=high,
                              device=share.device, note="; ".join(notes).format(step=peak.step.name)))  # fmt: skip
        return lines

    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Memory outside torch, and CUDA graphs."""
        outside = self._outside(job)
        lines = [line for share in shares_of(job) for line in (record_line(outside, "non-torch memory", share.device), graphs.line_of(job, share))]
        if second_runner(job):
            lines += [states_line(job, share.device) for share in shares_of(job) if samples_on(job, share)]
        return lines + draft.buffer_lines(job, length_of(job))

    def host_read(self, job: Job) -> tuple[Stored, int]:
        """Offloaded weights; no cache."""
        budget, rank = budget_of(job), rank_of(job)
        held = (offloaded(held_by(job, share, rank), share.layers, budget) for share in shares_of(job)) if budget else ()
        return tuple(group for stored in held for group in stored if group.on_host), 0

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The largest step of the profiling run."""
        return peaks(job, length_of(job))[1]

    def kv_bytes_per_token(self, job: Job) -> int:
        """Over all layers and ranks; beyond their window, windowed layers don't grow where they have groups of their own."""
        rank, model = rank_of(job), job.model
        if makes_no_pool(job):
            return 0
        if model.indexer:
            return sum(token_bytes(job, share) for share in shares_of(job))
        if early := early_row(job, rank):
            return early.elements * model.num_hidden_layers * kv_element_bytes(job) * ranks_of(job)
        full_row, row = rows_of(rank)
        if full_row != row:
            caching, full = caching_layers(model), caching_layers(model) // model.full_every
            windowed = caching - full if job.workload.context <= (model.sliding_window or 0) else 0
            return (full * full_row + windowed * row) * kv_element_bytes(job) * ranks_of(job)
        grows = len(model.attention_layers)
        if groups_of(job).windowed and job.workload.context > (model.sliding_window or 0):
            grows = model.full_layers if groups_of(job).full else 0
        drafted = speculative.draft_block_bytes(job) // block_size(job)
        if model.recurrent and keeps_all(job):
            drafted += groups_of(job).recurrent * block_of(job, shares_of(job)[0]) // block_size(job)
        return (block_bytes(rank, grows, block_size=1, element_bytes=kv_element_bytes(job)) + drafted) * ranks_of(job)

    def dynamic_key(self, job: Job) -> tuple[Any, ...]:
        """What cache and profiling run depend on."""
        d = job.deployment
        return (self.name, d.engine_version, tuple(d.settings.items()), d.gpus, d.kv_dtype, element_bytes(job), job.gpu)

    def dynamic(self, job: Job, phase: str) -> Dynamic:  # noqa: ARG002
        """Cache, and the profiling run where its batch follows the context."""
        blocks = [] if makes_no_pool(job) else [(block_of(job, share), share) for share in shares_of(job)]
        given, shares = job.deployment.settings.get("max_model_len"), shares_of(job)
        sampling = sum(samples_on(job, share) for share in shares)
        others = len(shares) - sampling

        def held(context: int, sequences: int) -> tuple[int, int]:
            length = int(given or context)
            cache = (blocks_for(job, context, length) if blocks else 0) * sum(block * sequences_on(job, share, sequences) for block, share in blocks)
            _, peak, high = peaks(job, length)
            point, high = cache + peak.nbytes * sampling, cache + high * sampling
            if others:
                _, before, before_high = peaks(job, length, samples=False)
                point, high = point + before.nbytes * others, high + before_high * others
            return point, high

        return held

    def resolved_settings(self, job: Job) -> dict[str, str | int | bool | float]:
        """With max_model_len and the batch limits filled in."""
        tokens, sequences = batch_limits(job, length_of(job))
        derived = {"max_model_len": length_of(job), "max_num_batched_tokens": tokens, "max_num_seqs": sequences, "block_size": block_size(job)}
        return dict(job.deployment.settings) | derived

    def for_one(self, job: Job) -> int:
        """Cache of one sequence on the fullest GPU."""
        return for_one(job)

    def pool(self, job: Job) -> Pool | None:
        """What is left for blocks on the tightest GPU, or kv_pool_bytes; None where none is made."""
        return None if makes_no_pool(job) else pool_of(job, lambda j: Ledger.of(self.weight_lines(j), self.activation_lines(j, "prefill"), self.overhead_lines(j, "prefill")))

    def start_command(self, job: Job) -> str | None:
        """`vllm serve` with the flags of this deployment."""
        return start_command(job)

    def _outside(self, job: Job) -> Record:
        """Memory outside torch, by release and kind of card."""
        if on_rocm(job):
            return record("vllm", "non_torch_rocm")
        version = version_of(job)
        capability = (job.gpu.compute_capability or "") if job.gpu else ""
        apart = replicas_of(job) == job.deployment.gpus and not job.model.num_experts  # copies that have nothing to tell each other
        several = "_tp" if job.deployment.gpus > 1 and not apart else ""
        measured_apart = version.non_torch == "v0" or (several and version.non_torch != "v0_early")
        hopper = "_sm90" if measured_apart and capability.split(".")[0] in ("9", "10") else ""
        several += hopper
        if second_runner(job) and not several:
            return record("vllm", "non_torch_second")
        return record("vllm", f"non_torch_{version.non_torch}{several}")

