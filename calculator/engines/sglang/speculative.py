"""Speculative decoding in SGLang: which algorithms have formulas, what they draft with, and what the server's defaults and its pool do for it.

NEXTN and EAGLE without a draft are the checkpoint's MTP layers; EAGLE and EAGLE3 with one a head; STANDALONE a whole model; NGRAM holds
nothing. Until 0.5.13 the pool is sized before the draft is loaded, so the draft's weights and its own pool of as many tokens take what the
static fraction leaves. Since 0.5.14 weights of both come first, and the bytes of a token count the draft's layers as more of the target's.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.base import Job
from calculator.engines.drafts import as_draft, draft_checkpoint_of, draft_model
from calculator.engines.eagle import Head, load_head, name_of
from calculator.engines.ranks import VOCAB_MULTIPLE, kv_element_bytes, rank_of, ranks_of, row_elements
from calculator.engines.releases import Release
from calculator.engines.settings import Setting, Text
from calculator.engines.sglang.deployment import HISTORY
from calculator.engines.sglang.families import windowed
from calculator.engines.sglang.ranks import attention_groups, rank_spec
from calculator.parallelism import tensor_rank
from calculator.quantization import compute_dtype
from calculator.quantization.hf import DTYPE_BYTES
from calculator.spec import ModelSpec
from calculator.units import align_up

SPECULATIVE_SOURCE = (
    "sglang v0.4.6.post5 srt/server_args.py L378-430, L1588; v0.4.9 L313, L461-515; v0.5.2 L484-492; v0.5.6 L847-853, L1661-1800; v0.5.10 L1316-1322, "
    "L2983-3100; v0.5.23 srt/arg_groups/speculative_hook.py L1072-1460"
)
SLOTS_SOURCE = (
    "sglang v0.4.9 srt/model_executor/model_runner.py L1038-1059, v0.5.6 L1697-1718; v0.5.7 srt/model_executor/model_runner_kv_cache_mixin.py L311; "
    "v0.5.14 srt/model_executor/pool_configurator.py L130-145, srt/managers/scheduler.py L834-868; v0.5.23 pool_configurator.py L259-314"
)
SETTINGS: dict[str, Setting] = {
    "speculative_algorithm": Setting(None, ("nextn", "eagle", "eagle3", "standalone", "ngram"), "drafts by the checkpoint's MTP layers (nextn, or eagle without a draft), a head, a whole model, or the prompt"),
    "speculative_draft_model_path": Setting(None, Text(400, "qwen3-0.6b"), "draft: of a head (eagle, eagle3) its config.json, or its id where it is known; a model in 16 bits (standalone)"),
    "speculative_num_steps": Setting(None, range(1, 65), "drafts in a row; default by model and release, 3 or 5"),
    "speculative_eagle_topk": Setting(None, range(1, 65), "branches of a draft; default 1 or 4"),
    "speculative_num_draft_tokens": Setting(None, range(1, 257), "tokens verified at once; default 4 or 8, and 12 of ngram"),
}  # fmt: skip
SINCE: dict[str, Release] = {"mtp": (0, 4, 6), "eagle": (0, 4, 6), "eagle3": (0, 4, 6), "standalone": (0, 5, 2), "ngram": (0, 5, 3)}  # first source read that has it as here: before 0.4.6 drafting turns chunks and prefixes off
PATHED: dict[str, Release] = {"deepseek_v3": (0, 4, 6), "glm4_moe": (0, 5, 2), "glm4_moe_lite": (0, 5, 10)}  # whose draft path is set to their own: srt/models/*_nextn.py
MTP_FAMILIES: dict[str, Release] = {**PATHED, "qwen3_next": (0, 5, 6), "qwen3_5_text": (0, 5, 9), "qwen3_5_moe_text": (0, 5, 9)}  # and those without: qwen3_next_mtp.py, qwen3_5_mtp.py
MTP_SCHEMES = ("fp8-block",)  # beside plain ones, and nvfp4, whose MTP layers stay in 16 bits: srt/models/deepseek_nextn.py v0.4.9 L48-52
SPARE_UNTIL: Release = (0, 5, 7)  # before, drafts have slots beyond the profiled ones
COUNTED_SINCE: Release = (0, 5, 14)  # weights and cache of the draft are within the static fraction
WINDOWS_COUNTED_SINCE: Release = (0, 5, 15)  # v0.5.15 srt/model_executor/pool_configurator.py L321-341; 0.5.14 has none
OVERWRITES_UNTIL: Release = (0, 5, 2)  # a draft's shorter context is lengthened by default: v0.5.0rc2 srt/configs/model_config.py L170, v0.5.2 L186
REQUESTS = 48  # max_running_requests where nobody sets it
NGRAM_TOKENS = 12
_SHORT: dict[str, Release] = {**dict.fromkeys(("deepseek_v2", "deepseek_v3", "kimi_k2"), (0, 4, 7)), "gpt_oss": (0, 5, 2)}  # three steps by default, since


class Plan(NamedTuple):
    """How it drafts."""

    steps: int
    topk: int
    tokens: int
    """Verified at once."""


def method_of(job: Job) -> str:
    """mtp, eagle, eagle3, standalone, ngram; "" for none."""
    settings = job.deployment.settings
    algorithm = str(settings.get("speculative_algorithm") or "")
    if algorithm in ("nextn", "eagle"):
        return "eagle" if settings.get("speculative_draft_model_path") else "mtp"
    return algorithm


def release_of(job: Job) -> Release:
    """The release that it behaves as."""
    return HISTORY.covered(job.deployment.engine_version)


def plan_of(job: Job) -> Plan:
    """As set, or the server's choice; with one branch a token more than steps is verified. Source: SPECULATIVE_SOURCE."""
    settings, method, release, kind = job.deployment.settings, method_of(job), release_of(job), job.model.model_type
    given = settings.get("speculative_num_draft_tokens")
    if method == "ngram":
        return Plan(0, 10, int(given or NGRAM_TOKENS))
    if settings.get("speculative_num_steps") is None:
        short = method == "standalone" or (kind in _SHORT and release >= _SHORT[kind]) or (kind != "llama" and release >= (0, 5, 8))
        return Plan(3, 1, 4) if short else Plan(5, 4, 8)
    steps, topk = int(settings["speculative_num_steps"]), int(settings["speculative_eagle_topk"])
    if topk > 1 and release < (0, 4, 8) and int(settings["page_size"]) > 1:
        topk = 1
    return Plan(steps, topk, steps + 1 if topk == 1 else int(given or 0))


def requests_set(job: Job) -> int | None:
    """max_running_requests as set, or what drafting sets it to; None for neither."""
    given = job.deployment.settings.get("max_running_requests")
    return int(given) if given is not None else REQUESTS if method_of(job) else None


def counted(job: Job) -> bool:
    """Whether the draft is within the static fraction. Source: SLOTS_SOURCE."""
    return release_of(job) >= COUNTED_SINCE


def pooled(job: Job) -> bool:
    """Whether the pool's bytes of a token have the draft's: not those of MTP layers without a path of their own, nor at first beside windowed layers: their pool lies beside. Source: SLOTS_SOURCE; v0.5.14 srt/model_executor/model_runner.py L431-452."""
    if windowed(job.model, release_of(job)) and release_of(job) < WINDOWS_COUNTED_SINCE:
        return False
    return counted(job) and not (method_of(job) == "mtp" and job.model.model_type not in PATHED)


def spare_tokens(job: Job) -> int:
    """Slots beyond those that the pool was profiled for: R (steps x topk + tokens) + 100, R requests of a group; none since 0.5.7. Source: SLOTS_SOURCE."""
    if release_of(job) >= SPARE_UNTIL or method_of(job) in ("", "ngram"):
        return 0
    plan = plan_of(job)
    return max((requests_set(job) or 0) // attention_groups(job), 1) * (plan.steps * plan.topk + plan.tokens) + 100


def head_of(job: Job) -> Head | None:
    """The head; None without one."""
    return load_head(str(job.deployment.settings["speculative_draft_model_path"])) if method_of(job) in ("eagle", "eagle3") else None


def draft_job(job: Job) -> Job | None:
    """A whole draft model as a job on the target's ranks; None without one."""
    if method_of(job) != "standalone":
        return None
    return as_draft(job, draft_model(str(job.deployment.settings["speculative_draft_model_path"])).spec, ep_size=1, enable_lora=False)


def draft_name(job: Job) -> str:
    """What the server is told to draft with; "" where it drafts with itself or with nothing."""
    given = job.deployment.settings.get("speculative_draft_model_path")
    if given is None:
        return ""
    if method_of(job) != "standalone":
        return name_of(str(given))
    return draft_checkpoint_of(str(given))


def draft_rank(job: Job) -> ModelSpec | None:
    """One rank's dimensions of what has the draft's attention; None for no draft."""
    if not (method := method_of(job)) or method == "ngram":
        return None
    if method == "mtp":
        return rank_spec(job)
    if (head := head_of(job)) is not None:
        return tensor_rank(head.spec, ranks_of(job), vocab_multiple=VOCAB_MULTIPLE)
    draft = draft_job(job)
    return rank_of(draft) if draft else None


def draft_layers(job: Job) -> int:
    """Layers of the draft."""
    if method_of(job) == "mtp":
        return job.model.mtp_layers
    rank = draft_rank(job)
    return rank.num_hidden_layers if rank else 0


def draft_cell(job: Job) -> int:
    """What a token takes in the draft's own pool on one rank: 2 K d e, or the compressed row, a layer [bytes]."""
    rank = draft_rank(job)
    if rank is None:
        return 0
    return row_elements(rank) * kv_element_bytes(job) * draft_layers(job)


def passing_bytes(job: Job) -> int:
    """Embedding and head that the draft is loaded with and gives up for the target's, after the pool is sized; only since 0.5.14 are they there by then.

    e h (V + V / ranks) at most; the embedding is whole on each rank under DP attention. Source: SLOTS_SOURCE; v0.5.14 srt/speculative/eagle_worker_v2.py L216-231, L318-344.
    """
    method = method_of(job)
    if method not in ("mtp", "eagle", "eagle3") or not counted(job):
        return 0
    h, e = job.model.hidden_size, DTYPE_BYTES[compute_dtype(job.model, job.scheme)]
    divided = align_up(job.model.vocab_size, VOCAB_MULTIPLE) // ranks_of(job)
    whole = job.model.vocab_size if attention_groups(job) > 1 else divided
    head = head_of(job)
    if head is None:
        return e * h * (whole + divided)
    return e * head.spec.hidden_size * ((whole if head.shares_embedding else 0) + (0 if head.draft_vocab_size and method == "eagle3" else divided))
