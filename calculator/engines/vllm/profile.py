"""What a deployment's profiling run at start-up reaches on a GPU, with its band."""

from __future__ import annotations

from functools import lru_cache

from calculator.engines.base import Job
from calculator.engines.ranks import PACKED, element_bytes, rank_of, ranks_of, replicas_of
from calculator.engines.records import record
from calculator.engines.vllm.deployment import HISTORY, Sampler, batch_limits, version_of
from calculator.engines.vllm.encoders import makes_no_pool
from calculator.engines.vllm.families import family_of
from calculator.engines.vllm.forward import SORT_BELOW, Profile, profile
from calculator.engines.vllm.hybrid import block_size
from calculator.engines.vllm.images import HELD, images_of
from calculator.engines.vllm.latent import latent_mode
from calculator.engines.vllm.samplers import samplers_of
from calculator.engines.vllm.towers import HIGH_SHARE, LOW_SHARE, UNHELD_HIGH_SHARE, VISION
from calculator.parallelism import Share
from calculator.spec import ModelSpec
from calculator.steps import Peak

SOURCE = "vllm v0.19.0 v1/worker/gpu_model_runner.py L5556-5597, L5782-5793; v1/sample/sampler.py forward, sample"
UNHELD_SHARE, UNHELD_COPIED_SHARE = 120, 160  # high end of a peak that no log was held against [percent]; of experts that copy their inputs into 8 bits


def latent_rows(job: Job, length: int, sequences: int) -> int:
    """Rows of the largest chunk of earlier context, whose keys and values the profiling run makes room for.

    min(max(8 x max_model_len, 4 x B x block_size), 64 Ki; 128 Ki until 0.10), at least B x block_size

    Source: vllm v0.8.5 v1/attention/backends/mla/common.py L362-377, v0.11.0 L442-467 and L1649-1657.
    """
    if latent_mode(job) != "row" or not job.model.mla:
        return 0
    size, most = block_size(job), 65536 if HISTORY.covered(job.deployment.engine_version) >= (0, 11) else 131072
    return max(min(max(8 * length, 4 * sequences * size), most), sequences * size)


def samples_on(job: Job, share: Share) -> bool:
    """Whether a GPU samples: the ranks of the last stage, in V0 the first of them alone.

    Source: vllm v0.19.0 v1/worker/gpu_model_runner.py L5782-5793; v0.6.6 worker/model_runner.py execute_model, is_driver_worker.
    vllm#13061 prints 0.19 GiB on the second rank, where the tokens of the pool leave 1.41 on the first.
    """
    if job.deployment.settings["runner"] == "pooling":
        return False
    return share.last and (version_of(job).v1 or share.device % ranks_of(job) == 0)


def peaks(job: Job, length: int, *, samples: bool = True) -> tuple[int, Peak, int]:
    """Low end, peak and high end of the profiling run on one GPU [bytes]."""
    version, gpu = version_of(job), job.gpu
    tokens, sequences = batch_limits(job, length)
    capability = gpu.compute_capability if gpu else None
    major = capability.split(".")[0] if capability else ""
    workspace = record("torch", "cublas_workspace_unknown" if not major else "cublas_workspace_sm90" if major in ("9", "10", "12") else "cublas_workspace")
    rows = record("vllm", "multiprocessors_9" if major == "9" else "multiprocessors")
    small = version.sampler == "sort" or sequences < SORT_BELOW
    fewest, sampler = samplers_of(job)
    run = Profile(tokens, sequences, job.model.vocab_size, element_bytes(job), sampler,
                  4 if version.v1 or major == "7" else 3, workspace.value, rows.value)  # fmt: skip
    ampere = capability is None or int(major) >= 8  # older GPUs don't run Marlin
    run = run._replace(reduces=not version.v1 and ranks_of(job) > 1,
                       marlin_copies=version.marlin_copies and ampere and job.scheme.name.startswith(PACKED))  # fmt: skip
    samples = samples and job.deployment.settings["runner"] != "pooling"
    run = run._replace(samples=samples, experts_share=version.experts_share, workspaces_wide=version.workspaces_wide,
                       latent_rows=latent_rows(job, length, sequences), images=images_of(job, length), release=HISTORY.covered(job.deployment.engine_version),
                       gathered=replicas_of(job) if job.model.num_experts else 1, latent=latent_mode(job), pools=job.deployment.settings["runner"] == "pooling" and not makes_no_pool(job))  # fmt: skip
    low, peak, high = _bounds(rank_of(job), run, (workspace.low, workspace.high), (rows.low, rows.high), small and sequences < 128, fewest)
    if makes_no_pool(job):  # a smaller workload makes smaller batches
        low = low * min(tokens, job.workload.context * job.workload.sequences) // tokens
    if not family_of(job.model).held and peak.step.name != "sampler" and not peak.step.name.startswith(VISION):
        copied = peak.step.name == "experts" and job.scheme.storage is not None
        high = max(high, peak.nbytes * (UNHELD_COPIED_SHARE if copied else UNHELD_SHARE) // 100)
    return low, peak, high


@lru_cache(maxsize=4096)
def _bounds(rank: ModelSpec, run: Profile, workspace: tuple[int, int], rows: tuple[int, int], full_sort: bool, fewest: Sampler) -> tuple[int, Peak, int]:
    peak = profile(rank, run)
    if peak.step.name.startswith(VISION) and run.images:
        high = HIGH_SHARE if run.images.tower.kind in HELD else UNHELD_HIGH_SHARE
        return peak.nbytes * LOW_SHARE // 100, peak, peak.nbytes * high // 100
    if peak.step.name != "sampler":
        copies = (run.hidden_copies - 1, run.hidden_copies + 1)
    else:
        copies = (run.hidden_copies, run.hidden_copies)
    low = profile(rank, run._replace(sampler=fewest, gathered=1, workspace=workspace[0], multiprocessors=rows[0], hidden_copies=copies[0])).nbytes
    high = profile(rank, run._replace(workspace=workspace[1], multiprocessors=rows[1], hidden_copies=copies[1],
                                      sort_buffers=24 if full_sort else 12)).nbytes  # fmt: skip
    return min(low, peak.nbytes), peak, max(high, peak.nbytes)
