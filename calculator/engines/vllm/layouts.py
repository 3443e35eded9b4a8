"""Weights that vLLM holds beside or wider than the checkpoint's: float32 routers, absorbed latent attention, padded MXFP4 experts."""

from __future__ import annotations

from calculator.engines.amd import architecture_of, on_rocm
from calculator.engines.base import Job
from calculator.engines.mxfp4 import mxfp4_extra, rocm_extra
from calculator.engines.ranks import element_bytes
from calculator.engines.vllm.deployment import HISTORY
from calculator.engines.vllm.families import family_of
from calculator.engines.vllm.latent import latent_mode
from calculator.errors import Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import Stored, experts_in_mxfp4
from calculator.spec import ModelSpec

DECAY_SOURCE = "vllm v0.19.0 model_executor/layers/mamba/mamba_mixer.py: A of float32, -exp(A_log)"
MULTIPLIERS_SOURCE = "vllm v0.11.0 model_executor/models/falcon_h1.py L116-170, v0.33.0 L141-194: mup_vector"
SCALES_SOURCE = "vllm v0.19.0 model_executor/layers/attention/attention.py: q, k, v and probability scales and ranges"
ROUTER_SOURCE = "vllm v0.19.0 model_executor/models/glm4_moe.py L147, ernie45_moe.py L167, minimax_m2.py L117: params_dtype float32; v0.16.0 step3p5.py L324-330, v0.20.1 hy_v3.py L154-159, v0.11.2 minimax_text_01.py MiniMaxText01MoE"
ABSORBED_SOURCE = "vllm v0.11.0 v1/attention/backends/mla/common.py L985-1074, v0.8.5 L735-761: W_UK_T and W_UV are views of kv_b dequantized to 16 bits"
MXFP4_SOURCE = (
    "vllm v0.11.0 model_executor/layers/quantization/mxfp4.py L55-107, L187-226; v0.19.0 layers/fused_moe/oracle/mxfp4.py L376-400"
)

WIDE_SINCE = (0, 15, 0)  # ROCm pads MXFP4 to 256 on every card: read in v0.19.0, not in v0.14.0
TRITON_SINCE = (0, 11, 0)  # wheels before have no triton_kernels: vllm#23278, an H100 on 0.10.1, runs Marlin


def check_blocks(job: Job, rank: ModelSpec) -> None:
    """Refuse ranks whose experts aren't whole blocks of 128, in the engine's words.

    Source: vllm v0.11.0 model_executor/layers/quantization/fp8.py Fp8MoEMethod.create_weights.
    """
    width = rank.expert_intermediate_size
    if job.scheme.name == "fp8-block" and width % 128:
        raise Unsupported(f"The output_size of gate's and up's weight = {width} is not divisible by weight quantization block_n = 128.",
                          hint="a smaller --tp, or --set enable_expert_parallel=1" if rank.expert_intermediate_size < job.model.expert_intermediate_size else "--quant fp8 or bf16")  # fmt: skip


def decay_line(job: Job, rank: ModelSpec, share: Share) -> Line | None:
    """What float32 adds to Mamba 1's decay, which the checkpoint stores in the model's type.

    bytes = (4 - e) x I x s x layers        I inner width, s state size

    Source: DECAY_SOURCE.
    """
    state, size = rank.recurrent, element_bytes(job)
    if state is None or state.kind != "mamba" or size == 4:
        return None
    symbols = {"x": 4 - size, "I": state.inner, "s": state.state_size, "L": len(set(rank.recurrent_layers) & set(share.layers))}
    return Line("weights", "decay in float32", symbols["x"] * symbols["I"] * symbols["s"] * symbols["L"],
                Formula("{x} (bytes more) × {I} (inner width) × {s} (state) × {L} (layers)", symbols), DECAY_SOURCE, device=share.device)  # fmt: skip


def multipliers_line(job: Job, rank: ModelSpec, share: Share) -> Line | None:
    """Falcon-H1's vector of multipliers of each Mamba projection, which no checkpoint holds.

    bytes = e x (2 I + 2 g s + H) x layers      I inner width, g groups of s, H heads of the rank

    Source: MULTIPLIERS_SOURCE.                                                          derived
    """
    state, size = rank.recurrent, element_bytes(job)
    if state is None or job.model.model_type != "falcon_h1":
        return None
    symbols = {"e": size, "I": state.inner, "C": state.conv_channels, "H": state.heads, "L": len(share.layers)}
    return Line("weights", "projection multipliers", size * (state.inner + state.conv_channels + state.heads) * len(share.layers),
                Formula("{e} × ({I} (inner width) + {C} (channels) + {H} (heads)) × {L} (layers)", symbols), MULTIPLIERS_SOURCE, device=share.device)  # fmt: skip


def scales_line(layers: int, device: int) -> Line:
    """q, k, v and probability scales and ranges of each layer that attends: seven scalars, as the allocator rounds them."""
    return Line("weights", "attention scales", 7 * 512 * layers, Formula("7 × 512 (allocated bytes of a scalar) × {L} (layers)", {"L": layers}), SCALES_SOURCE, device=device)


def router_line(job: Job, share: Share, held: Stored) -> Line | None:
    """What float32 adds to routers that the checkpoint stores in 16 bits."""
    since = family_of(job.model).wide_router
    if since is None or HISTORY.covered(job.deployment.engine_version) < since:
        return None
    extra, size = 4 - element_bytes(job), element_bytes(job)
    elements = sum(g.nbytes for g in held if g.group.role == "router") // size
    symbols = {"n": elements, "x": extra}
    return Line("weights", "routers in float32", extra * elements, Formula("{x} (bytes more) × {n} (elements)", symbols), ROUTER_SOURCE,
                device=share.device, note="beside the 16 bits that the checkpoint stores")  # fmt: skip


def absorbed_line(job: Job, rank: ModelSpec, share: Share) -> Line | None:
    """A 16-bit copy of the matrix that makes keys and values of the compressed row; of an unquantized one they are views.

    bytes = L x c x H x (n + v) x e          c compressed row, H the rank's heads, n and v widths of a head      derived
    """
    mla = rank.mla
    if mla is None or job.scheme.storage is None or latent_mode(job) == "heads":
        return None
    symbols = {"L": len(share.layers), "c": mla.kv_lora_rank, "H": rank.num_attention_heads, "n": mla.qk_nope_head_dim,
               "v": mla.v_head_dim, "e": element_bytes(job)}  # fmt: skip
    nbytes = symbols["L"] * symbols["c"] * symbols["H"] * (symbols["n"] + symbols["v"]) * symbols["e"]
    return Line("weights", "absorbed key and value matrices", nbytes,
                Formula("{L} (layers) × {c} (compressed row) × {H} (heads) × ({n} + {v}) × {e}", symbols), ABSORBED_SOURCE,
                device=share.device, note="a copy of kv_b_proj in 16 bits")  # fmt: skip


def _rocm_align(job: Job) -> int:
    wide = HISTORY.covered(job.deployment.engine_version) >= WIDE_SINCE or architecture_of(job.gpu) == "gfx950"
    return 256 if wide else 128


def padded_line(job: Job, rank: ModelSpec, share: Share) -> Line | None:
    """What the kernel's layout adds to experts in MXFP4, biases and block scales included."""
    if not experts_in_mxfp4(job.model, job.scheme):
        return None
    stated = job.gpu.compute_capability if job.gpu else None
    major, _, minor = (stated or "").partition(".")
    h, f = rank.hidden_size, rank.expert_intermediate_size
    major = major or ("AMD" if on_rocm(job) else "")
    each, formula, kernel = rocm_extra(align=_rocm_align(job), hidden=h, width=f) if on_rocm(job) else mxfp4_extra(capability=(int(major), int(minor)) if major else None, hidden=h, width=f,
                                      triton=HISTORY.covered(job.deployment.engine_version) >= TRITON_SINCE)  # fmt: skip
    symbols = {"L": len(share.layers), "E": rank.num_experts, "h": h, "f": f}
    nbytes = symbols["L"] * symbols["E"] * each
    return Line("weights", "MXFP4 layout", nbytes, Formula("{L} (layers) × {E} (experts) × " + formula, symbols), MXFP4_SOURCE, device=share.device,
                basis="derived" if major else "modelled", low=nbytes if major else 0, high=nbytes,
                note=f"{kernel}'s{'' if major else ', as no GPU is named'}")  # fmt: skip
