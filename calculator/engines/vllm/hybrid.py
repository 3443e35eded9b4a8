"""Models with recurrent layers: one sequence's state is one block of its layer, and blocks of attention are as large.

Source: vllm v0.19.0 platforms/interface.py update_block_size_for_backend; v0.14.0 and v0.11.0 model_executor/models/config.py
HybridAttentionMambaModelConfig; v1/kv_cache_interface.py MambaSpec; model_executor/layers/mamba/mamba_utils.py.
"""

from __future__ import annotations

from calculator.engines.base import Job
from calculator.engines.ranks import element_bytes, kv_element_bytes, rank_of, stages_of
from calculator.engines.vllm.deployment import HISTORY, version_of
from calculator.errors import NotModelled, Unsupported
from calculator.spec import ModelSpec
from calculator.units import align_up, ceil_div

STATE_SOURCE = "vllm v0.19.0 v1/kv_cache_interface.py MambaSpec, page_size_bytes; model_executor/layers/mamba/mamba_utils.py"
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
_KINDS = frozenset({"delta", "mamba2", "kda"})


def check_hybrid(job: Job) -> None:
    """Refuse what isn't known of recurrent layers in this engine."""
    model, settings = job.model, job.deployment.settings
    if model.recurrent is None:
        if "mamba_ssm_cache_dtype" in settings:
            raise Unsupported(f"mamba_ssm_cache_dtype without recurrent layers ({model.id})", hint="leaving it out")
        return
    what = f"vllm with recurrent layers ({model.id})"
    if not version_of(job).v1:
        raise NotModelled(f"{what} on the V0 engine: its states are outside the pool", hint="leaving use_v1 out")
    if model.recurrent.kind not in _KINDS or any(kind == "both" for kind in model.layer_types):
        raise NotModelled(f"{what}: no log to hold layers of this kind against", hint="--engine transformers or llama.cpp")
    if job.scheme.family != "plain" and job.scheme.name not in ("fp8", "fp8-block"):
        raise NotModelled(f"{job.scheme.name} of {what.removeprefix('vllm with ')}: what its makers leave in 16 bits differs", hint="--quant bf16 or fp8-block")
    if model.model_type == "nemotron_h" and not model.recurrent.state_bytes and "mamba_ssm_cache_dtype" not in settings:
        raise NotModelled(f"{what}, whose config as known here names no type of the state", hint="--set mamba_ssm_cache_dtype=float32 (or what its config.json says)")
    if stages_of(job) > 1:
        raise NotModelled(f"{what} in pipeline stages: how a stage's layers are grouped has no formula yet", hint="--set tensor_parallel_size=N over all GPUs")
    if settings.get("enable_prefix_caching") and model.recurrent.kind != "delta":
        raise NotModelled(f"{what} with prefix caching: where its states are kept has no formula yet", hint="leaving enable_prefix_caching out")
    if settings["enable_lora"]:
        raise NotModelled(f"{what} with LoRA has no formula yet", hint="leaving enable_lora out")


def state_bytes(job: Job) -> int:
    """State of one sequence in one recurrent layer on a rank [bytes].

    bytes = (k - 1) c e + s a      k inputs of the convolution, the last one not kept; c channels, s elements of state

    a is 4 in Kimi Delta Attention, else mamba_ssm_cache_dtype: as set, as the config says, or the model's own type.  derived
    """
    state = rank_of(job).recurrent
    assert state is not None
    asked = DTYPES.get(str(job.deployment.settings.get("mamba_ssm_cache_dtype")), 0)
    each = 4 if state.kind == "kda" else asked or state.state_bytes or element_bytes(job)
    return max(state.conv_kernel - 1, 0) * state.conv_channels * element_bytes(job) + state.state_elements * each


def row_bytes(job: Job) -> int:
    """What a token adds to one layer that attends on a rank [bytes]."""
    rank = rank_of(job)
    elements = rank.mla.kv_lora_rank + rank.mla.qk_rope_head_dim if rank.mla else 2 * rank.num_key_value_heads * rank.head_dim
    return elements * kv_element_bytes(job)


def alignment(job: Job) -> int:
    """What a block of attention is a multiple of [tokens]: 16; 64 with latent attention; 32 for heads of 256 on B200.

    Source: vllm v0.14.0 model_executor/models/config.py; flashinfer#1993. CUTLASS's 128 on Blackwell is latent attention's.
    """
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    blackwell = capability.startswith("10.")
    if job.model.mla:
        return 128 if blackwell else 64
    return 32 if blackwell and job.model.head_dim == 256 and HISTORY.covered(job.deployment.engine_version) >= (0, 12) else 16


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


def group_size(model: ModelSpec) -> tuple[int, int, int]:
    """Groups of layers that attend, groups of recurrent ones, layers of a group: the smaller kind, or the larger where it is hardly more.

    Source: vllm v0.19.0 v1/core/kv_cache_utils.py _get_kv_cache_groups_uniform_page_size: one group each below a quarter more.
    """
    attends, others = len(model.attention_layers), len(model.recurrent_layers)
    small, large = sorted((attends, others))
    size = large if large < 1.25 * small else small
    if not size:
        return (1, 0, attends) if attends else (0, 1, others)
    return ceil_div(attends, size), ceil_div(others, size), size


def states(job: Job) -> int:
    """Blocks that a sequence keeps in a group of recurrent layers: with prefix caching the state at the last whole block beside its own.

    Source: vllm v0.19.0 v1/kv_cache_interface.py MambaSpec.max_memory_usage_bytes, mamba_cache_mode align.
    """
    return 2 if job.deployment.settings.get("enable_prefix_caching") else 1
