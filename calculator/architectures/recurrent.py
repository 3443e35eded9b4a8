"""Layers with a state of one size: gated delta rules, Mamba 1 and 2, short convolutions, lightning attention.

Sources: transformers v5.23.0 models/{qwen3_next,qwen3_5,olmo_hybrid,kimi_linear,mamba,mamba2,jamba,lfm2,minimax}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.architectures.inventory import Role, TensorGroup
from calculator.architectures.parts import LAYER, Groups
from calculator.spec import ModelSpec, Recurrent

Matrix = tuple[str, int, int]  # name, outputs, inputs


def delta(model: ModelSpec, *, layers: Sequence[int], projections: str = "four") -> Groups:
    """Gated DeltaNet: h (2 g s + 2 v) + 2 h H of projections in, v h out, a convolution of 2 g s + v channels.

    v = heads x head_dim, g s = groups x state_size, H heads. `projections`: "two" (Qwen3-Next), "four" (Qwen3.5) or "each" (OLMo Hybrid).

    Source: Gated Delta Networks, arXiv 2412.06464; Qwen3NextGatedDeltaNet, Qwen3_5GatedDeltaNet, OlmoHybridGatedDeltaNet.
    """
    r, h, at = _of(model), model.hidden_size, LAYER + "linear_attn."
    keys, matrices = r.groups * r.state_size, _DELTA[projections]
    sizes = {"qkvz": 2 * keys + 2 * r.inner, "ba": 2 * r.heads, "qkv": 2 * keys + r.inner, "v": r.inner, "k": keys, "heads": r.heads}
    out, norm = ("o_proj", "o_norm") if projections == "each" else ("out_proj", "norm")
    groups = [_matrix(at, name, sizes[size], h, "attn_qkv" if size == "qkv" else "ssm_in", layers) for name, size in matrices.items()]
    groups += [_matrix(at, out, h, r.inner, "ssm_out", layers), _vector(at + f"{norm}.weight", r.head_dim, layers)]
    return [*groups, *_convolution(r, at, layers), *_decay(at, ("dt_bias", "A_log"), r.heads, layers)]


_DELTA = {
    "two": {"in_proj_qkvz": "qkvz", "in_proj_ba": "ba"},
    "four": {"in_proj_qkv": "qkv", "in_proj_z": "v", "in_proj_b": "heads", "in_proj_a": "heads"},
    "each": {"q_proj": "k", "k_proj": "k", "v_proj": "v", "a_proj": "heads", "b_proj": "heads", "g_proj": "v"},
}


def kda(model: ModelSpec, *, layers: Sequence[int]) -> Groups:
    """Kimi Delta Attention: a decay for each channel, through a low rank of one head's width.

    Source: Kimi Linear, arXiv 2510.26692; KimiLinearDeltaAttention, KimiLinearForgetGate.
    """
    r, h, at = _of(model), model.hidden_size, LAYER + "self_attn."
    d, v = r.head_dim, r.inner
    roles: tuple[tuple[str, int, int, Role], ...] = (
        ("q_proj", v, h, "attn_q"), ("k_proj", v, h, "attn_k"), ("v_proj", v, h, "attn_v"), ("b_proj", r.heads, h, "ssm_in"),
        ("forget_gate.f_a_proj", d, h, "ssm_in"), ("forget_gate.f_b_proj", v, d, "ssm_in"), ("g_a_proj", d, h, "ssm_in"),
        ("g_b_proj", v, d, "ssm_in"), ("o_proj", h, v, "attn_output"),
    )  # fmt: skip
    groups = [_matrix(at, name, rows, columns, role, layers) for name, rows, columns, role in roles]
    groups += [_vector(at + "o_norm.weight", d, layers), *_convolution(r, at, layers), _vector(at + "forget_gate.dt_bias", v, layers, "ssm")]
    return [*groups, _group(at + "forget_gate.A_log", (1, 1, r.heads, 1), "ssm", layers)]


def mamba2(model: ModelSpec, *, layers: Sequence[int], at: str = LAYER + "mamba.") -> Groups:
    """Mamba 2: h (2 v + 2 g s + H) in, v h out, a convolution of v + 2 g s channels, a norm of v, decay, skip and step of H heads.

    Source: Transformers are SSMs, arXiv 2405.21060; Mamba2Mixer, NemotronHMamba2Mixer, FalconH1Mixer, BambaMixer.
    """
    r, h = _of(model), model.hidden_size
    width = 2 * r.inner + 2 * r.groups * r.state_size + r.heads
    groups = [_matrix(at, "in_proj", width, h, "ssm_in", layers), _matrix(at, "out_proj", h, r.inner, "ssm_out", layers)]
    groups += [_vector(at + f"{name}.bias", size, layers, "bias") for name, size, has in (("in_proj", width, r.in_bias), ("out_proj", h, r.out_bias)) if has]
    if r.norm:
        groups.append(_vector(at + "norm.weight", r.inner, layers))
    return [*groups, *_convolution(r, at, layers), *_decay(at, ("dt_bias", "A_log", "D"), r.heads, layers)]


def mamba(model: ModelSpec, *, layers: Sequence[int], at: str = LAYER + "mamba.", norms: bool = False) -> Groups:
    """Mamba 1: 2 v h in, v h out, (t + 2 s) v and t v for step, B and C, v s of decay. `norms`: of step, B and C (Jamba).

    Source: Mamba, arXiv 2312.00752; MambaMixer, JambaMambaMixer.
    """
    r, h = _of(model), model.hidden_size
    v, s, t = r.inner, r.state_size, r.dt_rank
    groups = [_matrix(at, "in_proj", 2 * v, h, "ssm_in", layers), _matrix(at, "x_proj", t + 2 * s, v, "ssm_in", layers),
              _matrix(at, "dt_proj", v, t, "ssm_in", layers), _vector(at + "dt_proj.bias", v, layers, "ssm"),
              _matrix(at, "out_proj", h, v, "ssm_out", layers)]  # fmt: skip
    groups += [_vector(at + f"{name}.bias", size, layers, "bias") for name, size, has in (("in_proj", 2 * v, r.in_bias), ("out_proj", h, r.out_bias)) if has]
    if norms:
        groups += [_vector(at + f"{name}_layernorm.weight", size, layers) for name, size in (("dt", t), ("b", s), ("c", s))]
    return [*groups, *_convolution(r, at, layers), _group(at + "A_log", (v, s), "ssm", layers), _vector(at + "D", v, layers, "ssm")]


def short_convolution(model: ModelSpec, *, layers: Sequence[int]) -> Groups:
    """LFM2's gated convolution: 3 h h in, h h out, h channels.

    Source: Lfm2ShortConv.
    """
    r, h, at = _of(model), model.hidden_size, LAYER + "conv."
    groups = [_matrix(at, "in_proj", 3 * h, h, "ssm_in", layers), _matrix(at, "out_proj", h, h, "ssm_out", layers)]
    if r.in_bias:
        groups += [_vector(at + "in_proj.bias", 3 * h, layers, "bias"), _vector(at + "out_proj.bias", h, layers, "bias")]
    return [*groups, *_convolution(r, at, layers, name="conv")]


def lightning(model: ModelSpec, *, layers: Sequence[int]) -> Groups:
    """MiniMax's lightning attention: 3 v h of queries, keys and values, a gate and an output of v h, a norm of v.

    Source: MiniMax-01, arXiv 2501.08313; MiniMaxLightningAttention.
    """
    r, h, at = _of(model), model.hidden_size, LAYER + "self_attn."
    return [_matrix(at, "qkv_proj", 3 * r.inner, h, "attn_qkv", layers), _matrix(at, "output_gate", r.inner, h, "ssm_in", layers),
            _matrix(at, "out_proj", h, r.inner, "attn_output", layers), _vector(at + "norm.weight", r.inner, layers)]  # fmt: skip


def _of(model: ModelSpec) -> Recurrent:
    assert model.recurrent is not None
    return model.recurrent


def _group(name: str, shape: tuple[int, ...], role: Role, layers: Sequence[int]) -> TensorGroup:
    return TensorGroup(name, shape, role, len(layers), tuple(layers))


def _matrix(at: str, name: str, rows: int, columns: int, role: Role, layers: Sequence[int]) -> TensorGroup:
    return _group(f"{at}{name}.weight", (rows, columns), role, layers)


def _vector(name: str, size: int, layers: Sequence[int], role: Role = "norm") -> TensorGroup:
    return _group(name, (size,), role, layers)


def _decay(at: str, names: Sequence[str], heads: int, layers: Sequence[int]) -> Groups:
    return [_vector(at + name, heads, layers, "ssm") for name in names]


def _convolution(r: Recurrent, at: str, layers: Sequence[int], *, name: str = "conv1d") -> Groups:
    weight = _group(f"{at}{name}.weight", (r.conv_channels, 1, r.conv_kernel), "ssm", layers)
    return [weight, _vector(f"{at}{name}.bias", r.conv_channels, layers, "bias")] if r.conv_bias else [weight]
