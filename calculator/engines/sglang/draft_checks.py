"""What SGLang refuses of a draft, in its words where it has some, and what has no formula."""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.eagle import check_head
from calculator.engines.ranks import one_stage, rank_of, ranks_of
from calculator.engines.releases import Release, dotted
from calculator.engines.sglang.deployment import context_length
from calculator.engines.sglang.families import FAMILIES, check_family, windowed
from calculator.engines.sglang.speculative import (
    COUNTED_SINCE,
    MTP_FAMILIES,
    MTP_SCHEMES,
    OVERWRITES_UNTIL,
    SETTINGS,
    SINCE,
    draft_job,
    draft_rank,
    head_of,
    method_of,
    plan_of,
    release_of,
)
from calculator.errors import BadValue, NotModelled, Unsupported


def check(job: Job) -> None:
    """Refuse what the server refuses of a draft, and what has no formula."""
    settings, method, version, model = job.deployment.settings, method_of(job), job.deployment.engine_version, job.model
    given = [name for name in SETTINGS if settings.get(name) is not None]
    if not given:
        return
    if not method:
        raise BadValue(f"{given[0]} without speculative_algorithm", hint="--set speculative_algorithm=nextn, eagle, eagle3, standalone or ngram")
    release = release_of(job)
    if release < SINCE[method]:
        raise NotModelled(f"speculative_algorithm={settings['speculative_algorithm']} in sglang {version}", allowed=f"{dotted(SINCE[method])} or later", hint="a later --engine-version")
    _check_words(job, method)
    if job.deployment.gpus > ranks_of(job):
        if release < (0, 5, 18):
            raise Unsupported("Pipeline parallelism is not compatible with overlap schedule, speculative decoding, mixed chunked prefill.", hint=one_stage(job))
        raise NotModelled("speculative decoding over pipeline stages: which hold the draft hasn't been read", hint=one_stage(job))
    if method in ("standalone", "ngram") and settings["enable_dp_attention"]:
        raise Unsupported(f"Currently {method} speculative decoding does not support dp attention.", hint="leaving enable_dp_attention out")
    if (model.recurrent and method not in ("mtp", "ngram")) or model.by_layer or model.indexer:
        raise NotModelled(f"speculative_algorithm={settings['speculative_algorithm']} with recurrent or sparse layers, or of two widths ({model.id}): pools of such a draft have no formula", hint="leaving it out, or ngram")
    if windowed(model, release) and settings["disable_radix_cache"] and release >= COUNTED_SINCE:
        raise NotModelled(f"drafts with disable_radix_cache and windowed layers ({model.id}): the windows' pool grows with the tokens verified at once", hint="leaving disable_radix_cache out")
    if settings["enable_lora"] and method != "ngram":
        raise NotModelled("enable_lora with speculative decoding", hint="leaving one of them out")
    if method == "mtp":
        _check_mtp(job, release)
    elif method == "standalone":
        _check_draft(job, release)
    elif (head := head_of(job)) is not None:
        check_head(head, name=str(settings["speculative_draft_model_path"]), eagle3=method == "eagle3", target=model)
        if settings["enable_dp_attention"]:
            raise NotModelled("a head with enable_dp_attention", hint="leaving enable_dp_attention out")
        if model.mtp_layers and model.model_type in MTP_FAMILIES:
            raise NotModelled(f"a head for {model.id}, which drafts with its own layers", hint="speculative_algorithm=nextn without a draft")
        draft_rank(job)
    if method in ("eagle", "eagle3", "standalone"):
        _check_length(job, release)


def _check_length(job: Job, release: Release) -> None:
    """A draft is given the target's context, and refuses one beyond its own."""
    head, draft = head_of(job), draft_job(job)
    spec = head.spec if head else draft.model if draft else job.model
    length = context_length(job)
    if length > spec.max_position_embeddings and release >= OVERWRITES_UNTIL and not job.deployment.settings["allow_overwrite_longer_context_len"]:
        raise Unsupported(f"Target model's context_length ({length}) is greater than the derived context_length ({spec.max_position_embeddings}).",
                          hint=f"--set allow_overwrite_longer_context_len=1 (SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1), or context_length={spec.max_position_embeddings}")  # fmt: skip


def _check_words(job: Job, method: str) -> None:
    """Settings that belong together."""
    settings = job.deployment.settings
    path = settings.get("speculative_draft_model_path")
    if method in ("eagle3", "standalone") and path is None:
        raise BadValue(f"speculative_algorithm={method} without speculative_draft_model_path", hint="--set speculative_draft_model_path=" + ("PATH/config.json of the head" if method == "eagle3" else "MODEL"))
    if method == "ngram":
        for name in ("speculative_draft_model_path", "speculative_num_steps", "speculative_eagle_topk"):
            if settings.get(name) is not None:
                raise BadValue(f"{name} with speculative_algorithm=ngram, which has no model", hint=f"leaving {name} out")
        return
    names = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    found = [name for name in names if settings.get(name) is not None]
    if found and len(found) < len(names):
        raise BadValue(f"{found[0]} without {next(name for name in names if name not in found)}: the server wants all three, or none", hint=", ".join(names))
    plan = plan_of(job)
    if found and plan.topk == 1 and int(settings["speculative_num_draft_tokens"]) != plan.tokens:
        raise BadValue(f"speculative_num_draft_tokens {settings['speculative_num_draft_tokens']}: the server makes it speculative_num_steps + 1 where speculative_eagle_topk is 1",
                       hint=f"speculative_num_draft_tokens={plan.tokens}")  # fmt: skip
    if plan.topk > 1 and settings.get("attention_backend") == "trtllm_mha":
        raise Unsupported("trtllm_mha backend only supports topk = 1 for speculative decoding.", hint="speculative_eagle_topk=1")


def _check_mtp(job: Job, release: Release) -> None:
    model, scheme = job.model, job.scheme
    if model.model_type not in MTP_FAMILIES or not model.mtp_layers:
        raise NotModelled(f"speculative_algorithm={job.deployment.settings['speculative_algorithm']} without a draft for {model.id}",
                          allowed=f"models with num_nextn_predict_layers of {', '.join(MTP_FAMILIES)}", hint="speculative_draft_model_path of a head, standalone or ngram")  # fmt: skip
    if release < MTP_FAMILIES[model.model_type]:
        raise NotModelled(f"MTP layers of {model.model_type} in sglang {job.deployment.engine_version}", allowed=f"{dotted(MTP_FAMILIES[model.model_type])} or later", hint="a later --engine-version")
    if scheme.family != "plain" and scheme.name not in (*MTP_SCHEMES, "nvfp4"):
        raise NotModelled(f"MTP layers in {scheme.name}: whether a checkpoint quantizes them differs", allowed=f"16 bits, {', '.join(MTP_SCHEMES)}, nvfp4", hint="--quant bf16")


def _check_draft(job: Job, release: Release) -> None:
    draft = draft_job(job)
    assert draft is not None
    spec = draft.model
    if spec.model_type not in FAMILIES or spec.mla or spec.num_experts or spec.recurrent or spec.vision_parameters or spec.by_layer or spec.sliding_window:
        raise NotModelled(f"a draft of {spec.model_type}", hint="a dense model of the target's family without windows or a tower")
    check_family(spec, release, job.deployment.engine_version)
    if job.model.mla:
        raise NotModelled("a draft model beside latent attention: two kinds of cache", hint="speculative_algorithm=nextn or ngram")
    if spec.vocab_size != job.model.vocab_size:
        raise NotModelled(f"a draft with a vocabulary of {spec.vocab_size:,} beside {job.model.vocab_size:,}: their tokens are not the same", hint="a small model of the same family")
    rank_of(draft)
