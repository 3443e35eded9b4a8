"""Models with recurrent layers: one sequence's state is one block of its layer, and blocks of attention are as large.

Source: vllm v0.19.0 platforms/interface.py update_block_size_for_backend; v0.14.0 and v0.11.0 model_executor/models/config.py
HybridAttentionMambaModelConfig; v1/kv_cache_interface.py MambaSpec; model_executor/layers/mamba/mamba_utils.py.
"""

from __future__ import annotations

from math import lcm

from calculator.engines.base import Job
from calculator.engines.ranks import (
    element_bytes,
    kv_element_bytes,
    one_stage,
    rank_of,
    ranks_of,
    row_elements,
    stages_of,
)
from calculator.engines.releases import Release, dotted
from calculator.engines.vllm.deployment import HISTORY, version_of
from calculator.engines.vllm.drafted import drafted
from calculator.errors import NotModelled, Unsupported
from calculator.spec import ModelSpec, Recurrent
from calculator.units import align_up, ceil_div

STATE_SOURCE = "vllm v0.19.0 v1/kv_cache_interface.py MambaSpec, page_size_bytes; model_executor/layers/mamba/mamba_utils.py"
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
_KINDS = frozenset({"delta", "mamba2", "kda", "conv", "mamba", "lightning"})
TYPES_SINCE: dict[str, Release] = {"float16": (0, 13, 0), "bfloat16": (0, 22, 0)}  # of either setting: config/cache.py MambaDType, read in these and not in the release before
PREFIXES_SINCE: Release = (0, 28, 0)  # kept by default: v0.28.0 and v0.29.0 engine/arg_utils.py L2766; only where asked for in v0.27.0 L2602-2606
WIDE_STATES: Release = (0, 20, 0)  # Nemotron-H's default is float32: v0.20.0 model_executor/models/config.py L410; float16 in v0.19.0
MODES_SINCE: Release = (0, 19, 0)  # mamba_cache_mode
ALIGNED_ALONE: Release = (0, 28, 0)  # v0.28.0 model_executor/models/config.py L603-610; Mamba 2 is kept whole in v0.27.0 L614-616
CHECKPOINTS_SINCE: dict[str, Release] = {"mamba2": (0, 32, 0), "delta": (0, 33, 0)}  # read in these, and not in the release before
CHUNKS = {"nemotron_h": 128, "granitemoehybrid": 256, "falcon_h1": 0, "bamba": 0}  # chunk_size, mamba_chunk_size of the published configs; 0: as the config says
READ_SINCE: Release = (0, 10, 2)  # its V1 engine with recurrent layers is as 0.11.0's; before, they ran in V0 or as an experiment: v0.9.2, v0.10.1.1
GROUPS_FOR_QUANTIZED: Release = (0, 15, 0)  # ranks that share a quantized group's matrix: refused in v0.11.0 to v0.14.1 mamba_mixer2.py, not in v0.16.0
PREFIX_SOURCE = "vllm v0.27.0 platforms/interface.py L890-918, v1/kv_cache_interface.py MambaSpec.max_memory_usage_bytes"


def check_hybrid(job: Job) -> None:
    """Refuse what isn't known of recurrent layers in this engine."""
    model, settings = job.model, job.deployment.settings
    if model.recurrent is None:
        for name in ("mamba_ssm_cache_dtype", "mamba_cache_dtype"):
            if name in settings:
                raise Unsupported(f"{name} without recurrent layers ({model.id})", hint="leaving it out")
        return
    what = f"vllm with recurrent layers ({model.id})"
    if not version_of(job).v1:
        raise NotModelled(f"{what} on the V0 engine: its states are outside the pool", hint="leaving use_v1 out")
    release = HISTORY.covered(job.deployment.engine_version)
    if model.model_type in ("falcon_h1", "bamba") and release < READ_SINCE:
        raise NotModelled(f"{what} in vllm {job.deployment.engine_version}: states of that release haven't been read", hint="--engine-version 0.10.2 or later")
    for name in ("mamba_ssm_cache_dtype", "mamba_cache_dtype"):
        if (since := TYPES_SINCE.get(str(settings.get(name)))) and release < since:
            raise Unsupported(f"{name}={settings[name]} in vllm {job.deployment.engine_version}", allowed="float32", hint=f"--engine-version {dotted(since)} or later")
    if model.recurrent.kind not in _KINDS:
        raise NotModelled(f"{what}: no log to hold layers of this kind against", hint="--engine transformers or llama.cpp")
    if job.scheme.family != "plain" and job.scheme.apart is None and job.scheme.name not in ("fp8", "fp8-dynamic", "fp8-block"):
        raise NotModelled(f"{job.scheme.name} of {what.removeprefix('vllm with ')}: what its makers leave in 16 bits isn't known", hint="--quant bf16 or fp8-block, or the path of the checkpoint's config.json")
    _check_groups(job, model.recurrent, release)
    if stages_of(job) > 1:
        raise NotModelled(f"{what} in pipeline stages: how a stage's layers are grouped has no formula yet", hint=one_stage(job))
    if settings.get("enable_prefix_caching") and HISTORY.covered(job.deployment.engine_version) < MODES_SINCE and model.recurrent.kind != "delta":
        raise NotModelled(f"{what} with prefix caching in vllm {job.deployment.engine_version}", hint="leaving enable_prefix_caching out, or --engine-version 0.19 or later")
    if model.recurrent.kind == "mamba" and keeps_prefixes(job) and HISTORY.covered(job.deployment.engine_version) < ALIGNED_ALONE:
        raise NotModelled(f"{what} with prefix caching before 0.28, which keeps a state a block of unknown size", hint="--set enable_prefix_caching=0, or a later --engine-version")
    if model.recurrent.kind == "conv" and "mamba_ssm_cache_dtype" in settings:
        raise Unsupported(f"mamba_ssm_cache_dtype of short convolutions ({model.id}), which keep no such state", hint="leaving it out")
    if keeps_all(job) and not chunk_of(model):
        raise NotModelled(f"{what} with prefixes: its mamba_chunk_size isn't known", hint="leaving enable_prefix_caching out, or the path of the checkpoint's config.json")
    if model.recurrent.kind == "lightning" and "mamba_ssm_cache_dtype" in settings:  # v0.23.0 layers/mamba/mamba_utils.py L53-59
        raise Unsupported(f"mamba_ssm_cache_dtype of lightning attention ({model.id}), whose state follows mamba_cache_dtype", hint="leaving it out")
    if settings["enable_lora"]:
        raise NotModelled(f"{what} with LoRA has no formula yet", hint="leaving enable_lora out")


def _check_groups(job: Job, state: Recurrent, release: Release) -> None:
    """Refuse ranks that Mamba 2's groups of B and C can't be divided over, in the engine's words.

    Source: vllm v0.11.0 model_executor/layers/mamba/mamba_mixer2.py MambaMixer2.__init__, v0.33.0.
    """
    ranks = ranks_of(job)
    if state.kind != "mamba2" or state.groups % ranks == 0:
        return
    if state.groups != 1:
        raise Unsupported("If tensor parallel world size does not divide num_groups, then num_groups must equal 1.", hint=f"--tp {state.groups} or a divisor of it")
    if job.scheme.family != "plain" and release < GROUPS_FOR_QUANTIZED:
        raise Unsupported("Tensor parallel currently supported for quantized models only if tensor parallel world size divides num groups.", hint="--quant bf16, or --engine-version 0.16 or later")


def chunk_of(model: ModelSpec) -> int:
    """Tokens of a chunk of Mamba 2's scan; 0 where they aren't known."""
    return model.recurrent.chunk_size or CHUNKS.get(model.model_type, 0) if model.recurrent else 0


def state_bytes(job: Job) -> int:
    """State of one sequence in one recurrent layer on a rank [bytes].

    bytes = (k - 1 + n) c e + s a      k inputs of the convolution, the last one not kept, n drafted tokens; c channels, s elements of state

    e is mamba_cache_dtype's, or the model's. a is 4 in Kimi Delta Attention, else mamba_ssm_cache_dtype's: as set, as the config says,
    or e; 4 in Nemotron-H whose config says nothing, since WIDE_STATES. 286 blocks of Nemotron Nano 9B v2 (0.11.0, RTX 4090) are of 2.           derived
    """
    state = rank_of(job).recurrent
    assert state is not None
    asked = DTYPES.get(str(job.deployment.settings.get("mamba_ssm_cache_dtype")), 0)
    inputs = DTYPES.get(str(job.deployment.settings.get("mamba_cache_dtype")), 0) or element_bytes(job)
    own = 4 if job.model.model_type == "nemotron_h" and HISTORY.covered(job.deployment.engine_version) >= WIDE_STATES else inputs
    each = 4 if state.kind == "kda" else asked or state.state_bytes or own
    return max(state.conv_kernel - 1 + drafted(job), 0) * state.conv_channels * inputs + state.state_elements * each


def row_bytes(job: Job) -> int:
    """What a token adds to one layer that attends on a rank [bytes]."""
    return row_elements(rank_of(job)) * kv_element_bytes(job)


def keeps_prefixes(job: Job) -> bool:
    """Whether states of shared prefixes are kept: enable_prefix_caching as set, or the release's default for recurrent layers."""
    given = job.deployment.settings.get("enable_prefix_caching")
    return HISTORY.covered(job.deployment.engine_version) >= PREFIXES_SINCE if given is None else bool(given)


def keeps_all(job: Job) -> bool:
    """Whether a state is kept for every block of tokens (mamba_cache_mode all), as Mamba 2 has it until 0.27, where prefixes are asked for."""
    return keeps_prefixes(job) and job.model.model_type in CHUNKS and HISTORY.covered(job.deployment.engine_version) < ALIGNED_ALONE


def _checkpoints(job: Job) -> int:
    """Tokens that a state saved within a prefill pass is a multiple of: 1 in Mamba 2, 64 in FlashInfer's gated delta rule; 0 where none is saved.

    Source: vllm v0.33.0 model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py L148-165, L687-750; mamba_mixer2.py L1109-1118.
    """
    state = job.model.recurrent
    since = CHECKPOINTS_SINCE.get(state.kind) if state else None
    if state is None or since is None or not keeps_prefixes(job) or HISTORY.covered(job.deployment.engine_version) < since:
        return 0
    major = ((job.gpu.compute_capability or "") if job.gpu else "").partition(".")[0]
    flashinfer = state.kind == "delta" and (major == "9" or (major in ("10", "12") and state.state_size == 128))
    return 64 if flashinfer else 1 if state.kind == "mamba2" else 0


def alignment(job: Job) -> int:
    """What a block of attention is a multiple of [tokens]: 16; 64 with latent attention; 32 for heads of 256 on B200; whole chunks and checkpoints.

    Source: vllm v0.14.0 model_executor/models/config.py; flashinfer#1993. CUTLASS's 128 on Blackwell is latent attention's.
    """
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    blackwell = capability.startswith("10.")
    if job.model.mla:
        return 128 if blackwell else 64
    kernel = 32 if blackwell and job.model.head_dim == 256 and HISTORY.covered(job.deployment.engine_version) >= (0, 12) else 16
    return lcm(kernel, chunk_of(job.model) if keeps_all(job) else 1, _checkpoints(job) or 1)


def block_size(job: Job) -> int:
    """Tokens of a block: block_size as set; with recurrent layers at least so many that a state fits in.

    a ceil(state / (a row))      a: alignment

    Qwen3.6 35B: 2,146,304 bytes of state, 2,048 a token -> 1,056 tokens. Equals the sizes that logs print.      derived
    """
    given = int(job.deployment.settings["block_size"])
    if job.model.recurrent is None:
        return given
    unit = alignment(job)
    least = unit * ceil_div(state_bytes(job), unit * row_bytes(job))
    return max(align_up(given, unit), least)


def group_size(model: ModelSpec, drafting: int = 0) -> tuple[int, int, int]:
    """Groups of layers that attend, groups of recurrent ones, layers of a group: the smaller kind, or the larger where it is hardly more.

    `drafting` layers of a draft attend too.

    Source: vllm v0.19.0 v1/core/kv_cache_utils.py _get_kv_cache_groups_uniform_page_size: one group each below a quarter more.
    """
    attends, others = len(model.attention_layers) + drafting, len(model.recurrent_layers)
    small, large = sorted((attends, others))
    size = large if large < 1.25 * small else small
    if not size:
        return (1, 0, attends) if attends else (0, 1, others)
    return ceil_div(attends, size), ceil_div(others, size), size


def states(job: Job, context: int) -> int:
    """Blocks that a sequence keeps in a group of recurrent layers.

    1;  with prefixes the state at the last whole block beside its own, and one saved within a pass;  or one for every block;
    and one for each drafted token

    Qwen3.8 27B on 0.29 keeps 17 blocks of 784 tokens for 8,192: 11, and 2 in each of 3 groups (its log: 652 blocks, 38.35 x).

    Source: PREFIX_SOURCE; v0.33.0 L1135-1139.
    """
    if keeps_all(job):
        return ceil_div(context, block_size(job))
    return drafted(job) + (2 + bool(_checkpoints(job)) if keeps_prefixes(job) else 1)
