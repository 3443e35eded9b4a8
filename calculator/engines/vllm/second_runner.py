"""vLLM's second model runner: whom a release gives it, what its sampler keeps for every sequence, and what profiling it takes.

Source: vllm v0.22.0 config/vllm.py L69, L493-532; v0.23.0 L69-75, L519-558; v0.24.0 L68-77; v0.27.0 L69-79, L637-658; v0.29.0 L645-677; v0.33.0 L725-762.
"""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.vllm.deployment import HISTORY, Sampler, batch_limits, length_of, version_of
from calculator.ledger import Formula, Line
from calculator.units import ceil_div

STATES_SOURCE = "vllm v0.22.0 v1/worker/gpu/sample/penalties.py L36-42, v0.33.0 L43-50: prompt_bin_mask, output_bin_counts"
PASS_SOURCE = "vllm v0.27.0 v1/worker/gpu/sample/sampler.py L159, v0.29.0 L218-222, v0.33.0 v1/worker/gpu/model_runner.py L993-1014"
EVERY_SINCE, MOST_SINCE, SOME_SINCE, THREE_SINCE, SINCE = (0, 29, 0), (0, 27, 0), (0, 24, 0), (0, 23, 0), (0, 22, 0)
_SOME = frozenset({"qwen3", "llama", "mistral", "deepseek_v2", "qwen2_moe", "granitemoe"})
_THREE = ("qwen3", "llama", "mistral")
_EXPERTS = frozenset({"deepseek_v2", "qwen2_moe", "granitemoe"})
COPIES_BELOW, WARMED_SINCE = (0, 29, 0), (0, 33, 0)  # a second pass with all of sampling: not in v0.32.0


def second_runner(job: Job) -> bool:
    """Whether this deployment runs on it where nobody sets VLLM_USE_V2_MODEL_RUNNER."""
    release, model = HISTORY.covered(job.deployment.engine_version), job.model
    if release >= EVERY_SINCE:
        return True
    if release < SINCE or job.deployment.settings["runner"] == "pooling":
        return False
    if release >= MOST_SINCE:
        return model.model_type in _EXPERTS or not (model.recurrent or model.num_experts)
    if model.vision_parameters:
        return False
    if release >= SOME_SINCE:
        return model.model_type in _SOME
    return model.model_type in (_THREE if release >= THREE_SINCE else ("qwen3",)) and job.scheme.storage is None


def sampler_of(job: Job) -> Sampler:
    """What the profiling run holds of the logits: the release's, or with the second runner as they are, copied, or masked too."""
    if not second_runner(job):
        return version_of(job).sampler
    release = HISTORY.covered(job.deployment.engine_version)
    return "masked" if release >= WARMED_SINCE else "copied" if release < COPIES_BELOW else "logits"


def states_line(job: Job, device: int) -> Line:
    """Counts of each sequence's tokens, for penalties: made with the runner, before the weights.

    bytes = 4 B (V + ceil(V / 32))            B max_num_seqs, V vocabulary                                          derived
    """
    b, v = batch_limits(job, length_of(job))[1], job.model.vocab_size
    return Line("overhead", "sampler states", 4 * b * (v + ceil_div(v, 32)), Formula("4 × {B} (max_num_seqs) × ({V} + {m} (a bit a token))", {"B": b, "V": v, "m": ceil_div(v, 32)}),
                STATES_SOURCE, device=device, note="counts of output tokens and a mask of the prompt's, for penalties")  # fmt: skip
