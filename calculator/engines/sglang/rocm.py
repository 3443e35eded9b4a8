"""SGLang on AMD's Instinct cards: its ROCm images' attention kernels and their buffers, weights they hold otherwise than on CUDA, and what they refuse.

The images set SGLANG_USE_AITER=1 (docker/Dockerfile.rocm), so AITER's kernels are taken to run wherever the server has them. They
rearrange weights in place; 8-bit ones become e4m3fnuz on MI300, which takes as many bytes.
"""

from __future__ import annotations

from calculator.engines.amd import architecture_of, on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import element_bytes, ranks_of
from calculator.engines.releases import Release
from calculator.engines.sglang.deployment import HISTORY, context_length
from calculator.engines.sglang.families import windowed
from calculator.engines.sglang.ranks import ALIGNED_SINCE, held, rank_spec
from calculator.errors import NotModelled, Unsupported
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.quantization import experts_in_mxfp4
from calculator.units import align_up, ceil_div

SINCE: Release = (0, 4, 7)  # AITER attends by default since a post-release of 0.4.6, and lowers the fraction since 0.4.7
CARDS_SOURCE = "sglang sgl-kernel/setup_rocm.py @01b582cb0: kernels are built for gfx942 and gfx950"
BACKEND_SOURCE = (
    "sglang v0.4.7 srt/model_executor/model_runner.py L330-351; v0.5.6 srt/server_args.py L1301-1325, v0.5.9 L1813-1825, "
    "v0.5.10 L1704, v0.5.12 L2613-2640; v0.5.23 srt/arg_groups/model_override_base.py L326-347, model_overrides/gpt_oss.py L38, gemma4.py"
)
LOWERED_SOURCE = (
    "sglang v0.4.7 srt/model_executor/model_runner.py L423-425, v0.5.4.post1 srt/server_args.py L1197-1199, v0.5.6 L1420-1422, "
    "v0.5.23 srt/arg_groups/attention_hook.py L243-270"
)
PARTIAL_SOURCE = "sglang v0.4.9 srt/layers/attention/aiter_backend.py L122-136, v0.5.6 L126-139, v0.5.10 L211-225, v0.5.23 L555-569"
INDICES_SOURCE = (
    "sglang srt/layers/attention/aiter_backend.py init_cuda_graph_state v0.4.9 L326-347, v0.5.18 L1415-1465; triton_backend.py v0.4.9 L344-371, "
    "v0.5.2 L391, v0.5.12 L497-560, v0.5.23 L1160-1250"
)
EXPERTS_SOURCE = "sglang v0.5.12 srt/layers/moe/utils.py L448-490, srt/layers/quantization/fp8.py L875-905; v0.5.10 has none"
SCALES_SOURCE = "sglang v0.4.9 and v0.5.6 srt/layers/quantization/fp8.py L672-684 w13_weight_scale1, w2_weight_scale1"
INDEX_SOURCE = "sglang v0.5.9 and v0.5.12 srt/layers/quantization/compressed_tensors/schemes/compressed_tensors_wNa16_moe.py create_weights, CompressedTensorsWNA16TritonMoE"
KEPT_SOURCE = (
    "sglang v0.5.7 srt/models/qwen3_moe.py L1026-1029 _cached_params_dict with srt/layers/quantization/unquant.py L214-225; v0.5.6 srt/layers/quantization/fp8.py L967-977, "
    "compressed_tensors_moe.py L283-290; v0.5.10 copies in place and caches nothing"
)
FORMATS_SOURCE = "sglang rocm_supported_quantization of srt/configs/model_config.py: v0.5.9 L839-852, v0.5.23 L2002-2016"
STATES_SOURCE = "sglang v0.5.14 srt/server_args.py L4364-4397, v0.5.15 L4266; v0.5.16 L4837 has ROCm"
LOWERED = 0.85  # of mem_fraction_static, set or not, where AITER attends over more than LONG tokens
LOWERED_ONCE = {"0.5.4.post1": 0.90}
LONG = 8192
PARTITION = 256  # tokens
SPLITS = 16  # triton_attention_num_kv_splits on ROCm
UNIFIED_SINCE: Release = (0, 5, 10)  # windowed pools take another kernel, without the workspace
ALIGN = 128
KEPT = ("qwen3_moe",)
KEPT_SINCE: Release = (0, 5, 0)  # srt/models/qwen3_moe.py v0.5.0rc2, not in v0.4.9
KEPT_UNTIL: Release = (0, 5, 10)
DEALT_SOURCE = (
    "sglang v0.4.8.post1 and v0.4.9 srt/layers/moe/ep_moe/layer.py EPMoE.w13_weight_fp8 (v0.4.9 L243-258) with Fp8EPMoEMethod.process_weights_after_loading L1060-1068; "
    "v0.4.8 rearranges nothing, v0.4.10 nothing beside"
)
ROTARY_WIDE_SINCE: Release = (0, 5, 22)  # before, the rotary table is in the model's type
MXFP4_SINCE: Release = (0, 5, 9)
WNA16_SINCE: Release = (0, 5, 9)  # experts alone in 4 bits: CompressedTensorsWNA16TritonMoE holds as many bytes
_AITER_MLA_HEADS = (16, 128)
_PLAIN = ("fp8", "fp8-block", "fp8-per-channel")


def default_backend(job: Job) -> str:
    """The attention backend where nobody sets one. Source: BACKEND_SOURCE."""
    release, model = HISTORY.covered(job.deployment.engine_version), job.model
    if model.mla:
        heads = max(model.num_key_value_heads // ranks_of(job), 1)
        return "aiter" if heads in _AITER_MLA_HEADS else "triton"
    if model.model_type == "gemma4_text" or (model.model_type == "gpt_oss" and release < (0, 5, 10)):
        return "triton"
    return "aiter"


def lowered(job: Job, backend: str) -> float:
    """What the server lowers mem_fraction_static by for AITER's buffers, also one that somebody set; 1: nothing. Source: LOWERED_SOURCE."""
    if not on_rocm(job) or backend != "aiter" or context_length(job) <= LONG:
        return 1
    return LOWERED_ONCE.get(job.deployment.engine_version.removeprefix("v"), LOWERED)


def partial_results(job: Job, backend: str, requests: int) -> tuple[int, Formula]:
    """Partial results of AITER's paged attention, for all requests at once over the whole context, allocated after the pool [bytes].

    R H ceil(C / 256) (4 d + 8)        R requests at once, H heads of the rank, C context_length; none with latent attention        derived

    Equals the 16.25 GiB that sglang#20888 shows failing (Llama 3.1 8B, 2,048 requests) and the 51.75 of #18263 (Qwen3 30B-A3B, 3,261).
    Source: PARTIAL_SOURCE.
    """
    rank, release = rank_spec(job), HISTORY.covered(job.deployment.engine_version)
    if not on_rocm(job) or backend != "aiter" or rank.mla or (windowed(job.model, release) and release >= UNIFIED_SINCE):
        return 0, Formula("0")
    symbols = {"R": requests, "H": rank.num_attention_heads, "p": ceil_div(context_length(job), PARTITION), "d": rank.head_dim}
    return symbols["R"] * symbols["H"] * symbols["p"] * (4 * symbols["d"] + 8), Formula("{R} (requests) × {H} (heads) × {p} (partitions of 256 tokens) × (4 × {d} + 8)", symbols)


def indices_line(job: Job, backend: str, sequences: int, device: int) -> Line:
    """What the captured batches' attention reads: places of all tokens, and a mask of them, allocated with the graphs.

    AITER: 5 B C;  Triton: (i + 1) B C + 4 B H 16 (d + 1), i 8 bytes since 0.5.2, before 4        B the largest batch, C context_length, d width of values        derived
    """
    rank, release = rank_spec(job), HISTORY.covered(job.deployment.engine_version)
    if job.deployment.settings["disable_cuda_graph"]:
        return Line("overhead", "graph index buffers", 0, Formula("0"), "setting disable_cuda_graph", device=device, note="none: disable_cuda_graph")
    each = 5 if backend == "aiter" else 9 if release >= (0, 5, 2) else 5
    symbols = {"b": each, "B": sequences, "C": context_length(job)}
    nbytes, template = each * sequences * symbols["C"], "{b} × {B} (sequences) × {C} (context_length)"
    if backend != "aiter":
        own = {"H": rank.num_attention_heads, "v": (rank.mla.kv_lora_rank if rank.mla else rank.head_dim) + 1, "s": SPLITS}
        nbytes, template, symbols = nbytes + 4 * sequences * own["H"] * own["s"] * own["v"], template + " + 4 × {B} × {H} (heads) × {s} (splits) × {v}", symbols | own
    return Line("overhead", "graph index buffers", nbytes, Formula(template, symbols), INDICES_SOURCE, device=device)


def absorbed_bytes(job: Job, element_bytes: int) -> int:
    """Bytes of an element of the absorbed matrices: 8-bit ones stay so on ROCm, with one scale.

    Source: sglang v0.4.9 srt/models/deepseek_v2.py L2163-2187, v0.5.6 L3580-3604; v0.5.23 srt/models/deepseek_common/deepseek_weight_loader.py L690-715.
    """
    return 1 if on_rocm(job) and job.scheme.name in _PLAIN else element_bytes


def rotary_bytes(job: Job, element_bytes: int) -> int:
    """Bytes of an element of the rotary table. Source: sglang v0.5.6 srt/layers/rotary_embedding.py L113, v0.5.21 rotary_embedding/base.py L114, v0.5.22 L116."""
    return element_bytes if on_rocm(job) and HISTORY.covered(job.deployment.engine_version) < ROTARY_WIDE_SINCE else 4


def pads_experts(job: Job) -> bool:
    """Whether experts in 8 bits are made as wide as AITER's blocks, which others must be."""
    return on_rocm(job) and job.scheme.name in _PLAIN and HISTORY.covered(job.deployment.engine_version) >= ALIGNED_SINCE


def kept_bytes(job: Job, share: Share) -> tuple[int, str]:
    """Experts that are kept as they were loaded, beside AITER's rearranged ones, because something still names them; and the source.

    The table of Qwen3 MoE's parameters: equals what sglang#18262 prints of five layers in 16 bits on MI355X within 0.1 GiB (12.79 GiB; 6.9
    without). Block-scaled ones are rearranged in place; those scaled by row keep their linear layers too. And block-scaled experts that
    are dealt out over the ranks: sglang#7691 prints 166.59 GiB of DeepSeek R1 on eight (166.55; 90.43 without).     derived
    """
    deployment, release, plain = job.deployment, HISTORY.covered(job.deployment.engine_version), job.scheme.storage is None
    dealt = release == (0, 4, 9) or deployment.engine_version.removeprefix("v") == "0.4.8.post1"
    if on_rocm(job) and dealt and job.scheme.name == "fp8-block" and int(deployment.settings["ep_size"]) > 1:
        return sum(g.group.elements * g.count for g in held(job, share) if len(g.group.shape) == 3), DEALT_SOURCE
    if not on_rocm(job) or job.model.model_type not in KEPT or not KEPT_SINCE <= release < KEPT_UNTIL or not (plain or job.scheme.name in ("fp8", "fp8-per-channel")):
        return 0, ""
    size = element_bytes(job) if plain else 1
    experts = [g for g in held(job, share) if len(g.group.shape) == 3 or (job.scheme.name == "fp8-per-channel" and len(g.parts) > 1)]
    return sum(g.group.elements * g.count * size for g in experts), KEPT_SOURCE


def expert_lines(job: Job, share: Share) -> list[Line]:
    """What is kept of the experts; their group indices in 4 bits; in 8 padding to AITER's blocks, and a scale a row where the format has one a matrix."""
    down = [g for g in held(job, share) if len(g.group.shape) == 3 and g.group.role == "ffn_down"]
    rank, lines = rank_spec(job), []
    kept, source = kept_bytes(job, share)
    if kept:
        lines.append(Line("weights", "experts as loaded", kept, Formula("{n}", {"n": kept}), source, device=share.device, note="beside the rearranged ones"))
    if not on_rocm(job) or not down:
        return lines
    symbols = {"L": sum(g.count for g in down), "E": rank.num_experts, "h": rank.hidden_size, "f": rank.expert_intermediate_size}
    if job.scheme.name.startswith("w4a16"):
        lines.append(Line("weights", "group indices", 8 * symbols["L"] * symbols["E"] * (symbols["h"] + symbols["f"]),
                          Formula("2 × 4 × {L} (layers) × {E} (experts) × ({h} + {f})", symbols), INDEX_SOURCE, device=share.device, note="and their order, which the Triton kernel leaves in place"))  # fmt: skip
    wide = align_up(symbols["f"], ALIGN) if pads_experts(job) else symbols["f"]
    if wide > symbols["f"]:
        lines.append(Line("weights", "padded experts", symbols["L"] * symbols["E"] * 3 * symbols["h"] * (wide - symbols["f"]),
                          Formula("{L} (layers) × {E} (experts) × 3 × {h} × ({w} - {f})", symbols | {"w": wide}), EXPERTS_SOURCE, device=share.device))  # fmt: skip
    if job.scheme.name == "fp8":
        lines.append(Line("weights", "scales of expert rows", 4 * symbols["L"] * symbols["E"] * (2 * wide + symbols["h"]),
                          Formula("4 × {L} (layers) × {E} (experts) × (2 × {w} + {h})", symbols | {"w": wide}), SCALES_SOURCE, device=share.device))  # fmt: skip
    return lines


def check_rocm(job: Job) -> None:
    """Refuse cards and formats that the images have no kernels for, in the server's words where it has some, and what no source of it was read for.

    Source: CARDS_SOURCE, FORMATS_SOURCE, STATES_SOURCE.
    """
    if not on_rocm(job):
        return
    assert job.gpu is not None
    target, quant, release, settings, model = architecture_of(job.gpu), job.scheme.name, HISTORY.covered(job.deployment.engine_version), job.deployment.settings, job.model
    version = job.deployment.engine_version
    if target not in ("gfx942", "gfx950"):
        raise Unsupported("SGLang's kernels on AMD are built for gfx942 and gfx950 alone", allowed="MI300X, MI325X, MI350X, MI355X", hint="--engine vllm or llama.cpp")
    if job.gpu.segment == "unified" or job.gpu.name == "MI300A":
        raise NotModelled(f"sglang on {job.gpu.name}, whose memory is the CPU's too: no public start-up log to hold it against", hint="MI300X")
    if release < SINCE:
        raise NotModelled(f"sglang {version} on AMD", allowed="0.4.7 or later", hint="a later --engine-version")
    if quant.startswith(("bnb", "nvfp4", "int8")):
        method = "bitsandbytes" if quant.startswith("bnb") else "modelopt_fp4" if quant == "nvfp4" else "w8a8_int8"
        raise Unsupported(f"{method} quantization is currently not supported in ROCm.", hint="--quant fp8 or fp8-block")
    if quant.startswith("gptq"):
        if release >= (0, 5, 20):
            raise Unsupported("gptq quantization is currently not supported in ROCm.", hint="--quant awq-int4-g128 or fp8")
        raise NotModelled("gptq in sglang on AMD: its kernels are CUDA's (srt/layers/quantization/gptq.py)", hint="--quant awq-int4-g128 or fp8")
    if experts_in_mxfp4(model, job.scheme):
        if target != "gfx950":
            raise Unsupported(f"Current platform {target} not support mxfp4 computation", hint="MI355X, --quant bf16, or --engine vllm")
        if release < MXFP4_SINCE:
            raise NotModelled(f"gpt_oss in mxfp4 in sglang {version} on AMD: its layout there hasn't been read", allowed="0.5.9 or later", hint="a later --engine-version")
    apart = quant.startswith("w4a16") and release >= WNA16_SINCE and not any(len(g.parts) > 1 and len(g.group.shape) < 3 for g in job.stored)
    if (quant.startswith(("w4a16", "w8a16")) and not apart) or (quant.startswith("awq") and model.num_experts):
        raise NotModelled(f"{quant} of {model.model_type} in sglang on AMD: its layout there hasn't been read", hint="--quant fp8 or bf16")
    if model.indexer:
        raise NotModelled(f"sglang with sparse attention ({model.id}) on AMD: pages and rows depend on kernels that no log names", hint="H100, H200 or B200")
    if model.recurrent and (0, 5, 14) <= release < (0, 5, 16) and not settings["disable_radix_cache"]:
        raise Unsupported("extra_buffer needs CUDA/MUSA/NPU (FLA).", hint="--set disable_radix_cache=1, or another --engine-version")
    for name in ("speculative_algorithm", "enable_lora"):
        if settings.get(name):
            raise NotModelled(f"{name} in sglang on AMD: no source of its buffers there was read", hint="leaving it out")
