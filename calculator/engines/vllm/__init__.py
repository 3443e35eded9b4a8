"""vLLM: weights as its ranks hold them, the profiling run, and the pool of cache blocks that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from calculator.engines.base import Dynamic, Job, Pool
from calculator.engines.ranks import element_bytes, held_by, rank_of, sequences_on, shares_of
from calculator.engines.remembered import once_a_job
from calculator.engines.server import Server
from calculator.engines.settings import Setting
from calculator.engines.vllm import draft, encoders, samplers, weights
from calculator.engines.vllm.blocks import block_of, blocks_for
from calculator.engines.vllm.cache import cache_lines, kv_bytes_per_token
from calculator.engines.vllm.checks import check
from calculator.engines.vllm.command import start_command
from calculator.engines.vllm.deployment import (
    DECLARED_CACHES,
    HISTORY,
    VERSIONS,
    batch_limits,
    latent_block_size,
    length_of,
)
from calculator.engines.vllm.draft import peaks
from calculator.engines.vllm.drafted import method_of
from calculator.engines.vllm.encoders import encodes, makes_no_pool
from calculator.engines.vllm.families import FAMILIES
from calculator.engines.vllm.hybrid import block_size
from calculator.engines.vllm.images import BUDGET_SOURCE, NO_PASS, images_of, passes, without_formula
from calculator.engines.vllm.latent import ROWS_SINCE
from calculator.engines.vllm.offload import budget_of, offloaded
from calculator.engines.vllm.overheads import overhead_lines
from calculator.engines.vllm.pool import BESIDE, for_one, pool_of
from calculator.engines.vllm.profile import SOURCE, samples_on
from calculator.engines.vllm.settings import SETTINGS
from calculator.engines.vllm.sparse import BLOCK, LACKING
from calculator.engines.vllm.towers import TOWER_SOURCE
from calculator.ledger import Ledger, Line
from calculator.quantization import Scheme, Stored
from calculator.spec import GpuSpec, ModelSpec, Workload
from calculator.steps import Peak


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
    declared_caches = DECLARED_CACHES
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
        check(job, self)

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

    @once_a_job
    def weight_lines(self, job: Job) -> list[Line]:
        """Stored tensors, the rotary table, scales, and what the allocator doesn't split off."""
        return encoders.lines_of(job) if encodes(job.model) else weights.lines_of(job) + draft.lines_of(job)

    def cache_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Blocks of the sequences."""
        return cache_lines(job)

    @once_a_job
    def activation_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """The peak of the profiling run on each device: the sampler runs on the last stage alone."""
        sources, notes = [SOURCE, samplers.source_of(job)], ["profiling run, peak at {step}"]
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
            told = [*notes, samplers.NOTE] if peak.step.name == "sampler" and samplers.undecided(job) else notes
            basis: Literal["derived", "modelled"] = "derived" if low == peak.nbytes == high else "modelled"
            lines.append(Line("activations", "peak activation", peak.nbytes, peak.formula, "; ".join(sources), basis=basis, low=low, high=high,
                              device=share.device, note="; ".join(told).format(step=peak.step.name)))  # fmt: skip
        return lines

    @once_a_job
    def overhead_lines(self, job: Job, phase: str) -> list[Line]:  # noqa: ARG002
        """Memory outside torch, CUDA graphs, and the sampler's states."""
        return overhead_lines(job)

    def host_read(self, job: Job) -> tuple[Stored, int]:
        """Offloaded weights; no cache."""
        budget, rank = budget_of(job), rank_of(job)
        held = (offloaded(held_by(job, share, rank), share.layers, budget) for share in shares_of(job)) if budget else ()
        return tuple(group for stored in held for group in stored if group.on_host), 0

    def peak(self, job: Job, phase: str) -> Peak:  # noqa: ARG002
        """The largest step of the profiling run."""
        return peaks(job, length_of(job))[1]

    def kv_bytes_per_token(self, job: Job) -> int:
        """Over all layers and ranks."""
        return kv_bytes_per_token(job)

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

    @once_a_job
    def pool(self, job: Job) -> Pool | None:
        """What is left for blocks on the tightest GPU, or kv_pool_bytes; None where none is made."""
        return None if makes_no_pool(job) else pool_of(job, lambda j: Ledger.of(self.weight_lines(j), self.activation_lines(j, "prefill"), self.overhead_lines(j, "prefill")))

    def start_command(self, job: Job) -> str | None:
        """`vllm serve` with the flags of this deployment."""
        return start_command(job)
