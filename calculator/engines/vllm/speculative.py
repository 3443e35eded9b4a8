"""Speculative decoding in vLLM: which methods have formulas, the draft as a job of its own, and what it adds to a block of the cache.

ngram proposes tokens from the prompt and holds nothing. A draft model is a whole model on the target's ranks, in the type of
its checkpoint; it shares neither embedding nor head. A head (EAGLE, EAGLE3) is a layer and what feeds it. MTP layers are the checkpoint's own (num_nextn_predict_layers).
The layers of either are more layers of the target's one group of cache blocks.
"""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.drafts import as_draft, draft_checkpoint_of, draft_model
from calculator.engines.eagle import Head, check_head, load_head, load_medusa, name_of
from calculator.engines.ranks import kv_element_bytes, one_stage, rank_of, ranks_of, replicas_of, row_elements
from calculator.engines.releases import Release, dotted
from calculator.engines.settings import Setting, Text
from calculator.engines.vllm.deployment import HISTORY, version_of
from calculator.engines.vllm.drafted import drafted, method_of
from calculator.engines.vllm.families import FAMILIES, check_family
from calculator.engines.vllm.hybrid import block_size
from calculator.errors import BadValue, NotModelled, Unsupported

SPECULATIVE_SOURCE = "vllm v0.19.0 config/speculative.py L200-640; v1/spec_decode/eagle.py L1246-1460, draft_model.py L17-90"
SCHEDULER_SOURCE = "vllm v0.19.0 v1/core/sched/scheduler.py L213-222: num_lookahead_tokens"
SETTINGS: dict[str, Setting] = {
    "speculative_method": Setting(None, ("ngram", "draft_model", "mtp", "eagle", "eagle3", "medusa", "mlp_speculator", "suffix"), "method of speculative_config; draft_model where a model is named; mlp_speculator and suffix have no formula"),
    "speculative_model": Setting(None, Text(400, "qwen3-0.6b"), "draft model of speculative_config, in its own 16-bit checkpoint; of a head (eagle, eagle3, medusa) its config.json, or its id where it is known"),
    "num_speculative_tokens": Setting(None, range(1, 129), "tokens drafted a step; MTP's default is its layers"),
    "draft_tensor_parallel_size": Setting(None, range(1, 1025), "ranks of the draft model: those of the target"),
}  # fmt: skip
SINCE: dict[str, Release] = {**dict.fromkeys(("ngram", "mtp", "eagle", "eagle3", "medusa"), (0, 14, 0)), "draft_model": (0, 16, 0)}  # first source read that has it, and the rejection sampler below
HEADS = ("eagle", "eagle3")
MTP_HYBRIDS = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")  # a layer that attends; v0.14.0 models/qwen3_next_mtp.py, v0.19.0 qwen3_5_mtp.py
MTP_FAMILIES: dict[str, Release] = {  # an MTP layer is a layer like the last; v0.14.0 models/deepseek_mtp.py, glm4_moe_mtp.py, v0.16.0 glm4_moe_lite_mtp.py
    **dict.fromkeys(("deepseek_v3", "glm4_moe", *MTP_HYBRIDS), (0, 14, 0)), "glm4_moe_lite": (0, 16, 0),
}  # fmt: skip
MTP_HEAD_SHARED: Release = (0, 16, 0)  # before, shared_head.head stays a matrix of the layer: v0.16.0 v1/spec_decode/eagle.py L1506-1519
MTP_SCHEMES = ("fp8-block",)  # beside plain ones: as DeepSeek publishes it, its MTP layer too


def lookahead(job: Job) -> int:
    """Slots that a sequence takes ahead for the draft's own tokens; ngram's are those of the step. Source: SCHEDULER_SOURCE."""
    return drafted(job) if method_of(job) in ("mtp", "draft_model", *HEADS) else 0


def head_of(job: Job) -> Head | None:
    """The head; None without one."""
    return load_head(str(job.deployment.settings["speculative_model"])) if method_of(job) in HEADS else None


def draft_job(job: Job) -> Job | None:
    """The draft model, or a head's layers, as a job on the target's ranks; None without one."""
    if method_of(job) not in ("draft_model", *HEADS):
        return None
    name = str(job.deployment.settings["speculative_model"])
    spec = load_head(name).spec if method_of(job) in HEADS else draft_model(name).spec
    return as_draft(job, spec, enable_expert_parallel=False, language_model_only=False)


def draft_checkpoint(job: Job) -> str:
    """What the server is told to draft with: the Hugging Face id; "" for no model of its own."""
    if method_of(job) in (*HEADS, "medusa"):
        return name_of(str(job.deployment.settings["speculative_model"]))
    if method_of(job) != "draft_model":
        return ""
    return draft_checkpoint_of(str(job.deployment.settings["speculative_model"]))


def draft_layers(job: Job) -> int:
    """Layers that the draft adds to each block."""
    method = method_of(job)
    if method == "mtp":
        return job.model.mtp_layers
    draft = draft_job(job)
    return draft.model.num_hidden_layers if draft else 0


def draft_row(job: Job) -> int:
    """Elements that a token adds to a layer of the draft on one rank."""
    draft = draft_job(job)
    return row_elements(rank_of(draft or job))


def draft_block_bytes(job: Job) -> int:
    """What the draft's layers add to a block of a rank [bytes]: block_size x row x e x layers. Layers of unlike rows are one group still.

    Source: vllm v0.14.0 v1/kv_cache_interface.py L369 UniformTypeKVCacheSpecs; v1/core/kv_cache_utils.py.
    """
    layers = draft_layers(job)
    return block_size(job) * draft_row(job) * kv_element_bytes(job) * layers if layers else 0


def check(job: Job) -> None:
    """Refuse what the engine refuses of a draft, and what has no formula."""
    s, method, version = job.deployment.settings, method_of(job), job.deployment.engine_version
    given = [name for name in SETTINGS if s.get(name) is not None]
    if not given:
        return
    if not method:
        raise BadValue(f"{given[0]} without a method", hint="--set speculative_method=ngram, draft_model, eagle, eagle3 or mtp")
    if method == "mlp_speculator":
        raise Unsupported("mlp_speculator: vllm's V1 engine has no proposer for it, and V0's hasn't been read", hint="speculative_method=eagle3 or draft_model")
    if method not in SINCE:
        raise NotModelled(f"vllm with speculative_method={method}: its head's weights, cache and pass have no formula yet", allowed=", ".join(SINCE), hint="speculative_method=draft_model")
    release = HISTORY.covered(version)
    if release < SINCE[method] or not version_of(job).v1:
        raise NotModelled(f"speculative_method={method} in vllm {version}", allowed=f"{dotted(SINCE[method])} or later", hint="a later --engine-version")
    _check_words(job, method)
    if replicas_of(job) > 1:
        raise NotModelled("speculative decoding with data_parallel_size: no log to hold it against", hint="leaving one of them out")
    if job.deployment.gpus > ranks_of(job):
        raise NotModelled("speculative decoding over pipeline stages: the last one holds the draft", hint=one_stage(job))
    model = job.model
    hybrid = method == "mtp" and model.model_type in MTP_HYBRIDS
    if ((model.recurrent or model.vision_parameters) and not hybrid) or model.indexer or model.by_layer or (model.sliding_window and model.full_every):
        raise NotModelled(f"speculative decoding with recurrent, windowed or sparse layers or a vision tower ({model.id}): no log to hold it against", hint="leaving it out")
    if s["runner"] == "pooling":
        raise BadValue("speculative decoding of a pooling model, which generates nothing", hint="leaving one of them out")
    for name in ("enable_lora", "cpu_offload_gb"):
        if s.get(name):
            raise NotModelled(f"{name} with speculative decoding", hint=f"leaving {name} out")
    if method == "mtp":
        _check_mtp(job)
    elif method == "draft_model":
        _check_draft(job, release)
    elif method == "medusa":
        if (found := load_medusa(str(s["speculative_model"]))).hidden_size != model.hidden_size or found.vocab_size > model.vocab_size:
            raise BadValue(f"Medusa's heads of {found.hidden_size} and {found.vocab_size:,} tokens beside a target of {model.hidden_size} and {model.vocab_size:,}", hint="the target's own heads")
    elif (head := head_of(job)) is not None:
        if model.mla:
            raise NotModelled("a head beside latent attention: two kinds of cache", hint="speculative_method=mtp or ngram")
        check_head(head, name=str(s["speculative_model"]), eagle3=method == "eagle3", target=model)


def _check_words(job: Job, method: str) -> None:
    """Fields of speculative_config that belong together."""
    s = job.deployment.settings
    if method in ("draft_model", "medusa", *HEADS) and not s.get("speculative_model"):
        raise Unsupported("num_speculative_tokens was provided but without speculative model.", hint="--set speculative_model=MODEL" if method == "draft_model" else "--set speculative_model=PATH/config.json of the head")
    if method not in ("draft_model", "medusa", *HEADS):
        for name in ("speculative_model", "draft_tensor_parallel_size"):
            if s.get(name) is not None:
                raise BadValue(f"{name} with speculative_method={method}, which has no model of its own", hint=f"leaving {name} out")
    if not drafted(job) and method != "mtp":  # whose own check says that there are no layers
        raise Unsupported("num_speculative_tokens must be provided with speculative model unless the draft model config contains an n_predict parameter.",
                          hint="--set num_speculative_tokens=3")  # fmt: skip
    draft_tp = int(s.get("draft_tensor_parallel_size") or ranks_of(job))
    if draft_tp != ranks_of(job):
        raise Unsupported(f"Currently, 'draft_tensor_parallel_size' and 'tensor_parallel_size' must be the same. Got {draft_tp} and {ranks_of(job)}.",
                          hint=f"draft_tensor_parallel_size={ranks_of(job)}")  # fmt: skip


def _check_mtp(job: Job) -> None:
    model, scheme = job.model, job.scheme
    if model.model_type not in MTP_FAMILIES or not model.mtp_layers:
        raise NotModelled(f"MTP layers of {model.id}", allowed=f"models with num_nextn_predict_layers of {', '.join(MTP_FAMILIES)}", hint="speculative_method=draft_model or ngram")
    if HISTORY.covered(job.deployment.engine_version) < MTP_FAMILIES[model.model_type]:
        raise NotModelled(f"MTP layers of {model.model_type} in vllm {job.deployment.engine_version}", allowed=f"{dotted(MTP_FAMILIES[model.model_type])} or later", hint="a later --engine-version")
    if drafted(job) > model.mtp_layers and drafted(job) % model.mtp_layers:
        raise Unsupported(f"num_speculative_tokens:{drafted(job)} must be divisible by n_predict={model.mtp_layers}", hint=f"num_speculative_tokens={model.mtp_layers}")
    if scheme.family != "plain" and scheme.name not in MTP_SCHEMES and not (model.recurrent and scheme.apart is not None):
        raise NotModelled(f"MTP layers in {scheme.name}: whether a checkpoint quantizes them differs", allowed=f"16 bits, {', '.join(MTP_SCHEMES)}", hint="--quant bf16")


def _check_draft(job: Job, release: Release) -> None:
    draft = draft_job(job)
    assert draft is not None
    spec = draft.model
    if spec.model_type not in FAMILIES or spec.mla or spec.recurrent or spec.vision_parameters or spec.by_layer or (spec.sliding_window and spec.full_every):
        raise NotModelled(f"a draft of {spec.model_type}", hint="a dense model of the target's family without windows or a tower")
    check_family(spec, release, job.deployment.engine_version)
    if job.model.mla:
        raise NotModelled("a draft model beside latent attention: two kinds of cache", hint="speculative_method=mtp or ngram")
    if spec.vocab_size != job.model.vocab_size:
        raise Unsupported(f"Target and draft model should have the same vocabulary size. Target model vocab_size={job.model.vocab_size}. "
                          f"Draft model vocab_size={spec.vocab_size}.", hint="a small model of the same family")  # fmt: skip
    rank_of(draft)
