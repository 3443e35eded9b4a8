"""What publishers leave in 16 bits of models with recurrent layers, for a format that is only named: a point between two ends.

Qwen's own GPTQ: experts or feed-forward alone (config.json of Qwen3.5-27B-GPTQ-Int4, 35B-A3B-GPTQ-Int4: dynamic "-:.*attn.*",
"-:.*shared_expert.*"). llm-compressor's NVFP4 and FP8 examples of Qwen3.5: all but linear_attn. NVIDIA's and Unsloth's NVFP4 of the
27B: attention in FP8, and NVIDIA's head in NVFP4 (vllm-project/recipes#606, sgl-project/sglang#27906). NVIDIA's of Nemotron 3: shared
experts and Mamba's matrices in FP8, attention and latent projections in 16 bits (NVIDIA-NeMo/Nemotron#257). INT4 of experts: these alone
(4-bit Qwen3-Next on two L40S prints 22.53 GiB a rank). INT4 of dense models: all but the gates in_proj_a and in_proj_b, too narrow
for the kernels (RedHatAI/Qwen3.8-27B-INT4: 18.12 GiB of checkpoint with its MTP layer).
"""

from __future__ import annotations

from calculator.architectures import TensorGroup, build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.quantization import Apart, Scheme
from calculator.spec import ModelSpec

SOURCE = "vllm-project/llm-compressor examples/quantization_w4a4_fp4, quantization_w8a8_fp8/qwen3_5_moe.py; config.json of Qwen/Qwen3.5-27B-GPTQ-Int4, nvidia/Qwen3.6-27B-NVFP4"
NOTE = "what is left in 16 bits differs by publisher, and the checkpoint's own config.json decides: give its path for an exact size"
_MADE_BY_OTHERS = ("nvfp4", "gptq-", "awq-", "w4a16-", "w8a16-", "int8-w8a8", "fp8-per-channel")
_GATES = (".in_proj_a.weight", ".in_proj_b.weight", ".b_proj.weight")


def published(model: ModelSpec, scheme: Scheme) -> Scheme:
    """The scheme as publishers commonly apply it to this model; as it is where they all do alike, or a config says."""
    if model.recurrent is None or scheme.apart is not None or not scheme.name.startswith(_MADE_BY_OTHERS):
        return scheme
    groups = [g for g in build_inventory(model).groups if g.role in LINEAR_ROLES]
    recurrent = [g for g in groups if _recurrent(g, model)]
    attention = [g for g in groups if _attends(g) and not _recurrent(g, model)]
    gates = [g for g in recurrent if g.name.endswith(_GATES)]
    shared = [g for g in groups if "shared" in g.name]
    integers = scheme.name.startswith(("awq-", "w4a16-", "w8a16-"))
    if scheme.name.startswith("gptq-") or (integers and model.num_experts):
        apart = _in("", recurrent + attention + shared)
    elif scheme.name == "nvfp4" and model.model_type == "nemotron_h" and model.num_experts:
        narrow = [g for g in groups if g.name.endswith((".in_proj.weight", ".out_proj.weight")) or "shared" in g.name]
        apart = (*_in("fp8", narrow), *_in("", [g for g in recurrent + attention if g not in narrow]))
    elif scheme.name == "nvfp4" and model.recurrent.kind == "delta" and not model.num_experts:
        apart = (*_in("", gates), *_in("fp8", [g for g in recurrent + attention if g not in gates]), *_head(model))
    elif model.recurrent.kind == "delta" and integers:
        apart = _in("", gates)
    else:
        apart = _in("", recurrent)
    return scheme._replace(apart=apart, assumed=True)


def ends(model: ModelSpec, scheme: Scheme) -> tuple[Scheme, Scheme]:
    """The least that any publisher leaves: nothing, of NVFP4 not even the head; and the most: all but the feed-forward layers, or the experts."""
    groups = [g for g in build_inventory(model).groups if g.role in LINEAR_ROLES and (_attends(g) or _recurrent(g, model) or "shared" in g.name)]
    return scheme._replace(apart=_head(model) if scheme.name == "nvfp4" else ()), scheme._replace(apart=_in("", groups))


def _attends(group: TensorGroup) -> bool:
    return group.role.startswith("attn_")


def _recurrent(group: TensorGroup, model: ModelSpec) -> bool:
    return group.role in ("ssm_in", "ssm_out") or (_attends(group) and set(group.indices) <= set(model.recurrent_layers))


def _in(quant: str, groups: list[TensorGroup]) -> tuple[Apart, ...]:
    return tuple(Apart(g.name, g.indices, quant) for g in groups)


def _head(model: ModelSpec) -> tuple[Apart, ...]:
    return () if model.tie_word_embeddings else tuple(Apart(g.name, (), "nvfp4") for g in build_inventory(model).groups if g.role == "output")
