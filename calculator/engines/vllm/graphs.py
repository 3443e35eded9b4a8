"""CUDA graphs: which batch sizes a release captures, how many graphs that makes, and what they take.

A size is captured in pieces between the attention operations (PIECEWISE), whole (FULL, batches of decoding alone), or both.
What a graph takes is the driver's: it follows neither from the model nor from vLLM, so it is a record by release and card.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Literal, NamedTuple

from calculator.engines.amd import on_rocm
from calculator.engines.base import Job
from calculator.engines.ranks import stages_of
from calculator.engines.records import Record, record
from calculator.engines.releases import Release
from calculator.engines.settings import COUNT, Setting, Text
from calculator.engines.vllm.deployment import HISTORY, batch_limits, length_of, version_of
from calculator.engines.vllm.drafted import drafted, method_of
from calculator.engines.vllm.encoders import makes_no_pool
from calculator.engines.vllm.second_runner import second_runner
from calculator.engines.vllm.speculative import draft_layers
from calculator.errors import BadValue, NotModelled
from calculator.ledger import Formula, Line
from calculator.parallelism import Share
from calculator.units import MIB

Mode = Literal["none", "piecewise", "full", "full_decode_only", "full_and_piecewise"]
EXAMPLE = "1,2,4,8"
SETTINGS: dict[str, Setting] = {
    "cudagraph_mode": Setting(None, ("none", "piecewise", "full", "full_decode_only", "full_and_piecewise"), "what CUDA graphs are captured of (compilation_config); default by version"),
    "cudagraph_capture_sizes": Setting(None, Text(4000, EXAMPLE), "batch sizes of CUDA graphs (compilation_config), separated by commas; default by version and max_num_seqs"),
    "max_cudagraph_capture_size": Setting(None, COUNT, "largest batch size of CUDA graphs; in 0.9 to 0.11.0 cuda_graph_sizes"),
}  # fmt: skip

SIZES_SOURCE = "vllm v0.19.0 config/vllm.py L1343-1450, v0.11.2 L805-890, v0.11.0 config/scheduler.py L222-227, v0.8.5 config.py L4000-4046: _set_cudagraph_sizes; v1/cudagraph_dispatcher.py"
PIECES_SOURCE = "vllm v0.19.0 config/compilation.py splitting_ops: a graph is split at each attention operation"
FLASHINFER_SOURCE = "vllm v0.14.0 platforms/cuda.py L45-82; v1/attention/backends/flashinfer.py _get_workspace_buffer, v0.11.0 L44"
BY_REQUESTS: Release = (0, 10, 2)  # whole graphs beside pieces, sizes to twice max_num_seqs: a log of 0.10.2 shows 31 of 224 sequences; v0.9.2 has neither
WIDER_STEPS: Release = (0, 11, 1)  # multiples of 16 from 256 on, max_cudagraph_capture_size: read in v0.11.2
DATA_CENTRE_BLACKWELL: Release = (0, 28, 0)  # to 1,024 on compute capability 10: v0.28.0 config/vllm.py L1938, not in v0.27.0
RESERVED_BY_SECOND: Release = (0, 29, 0)  # the second model runner's estimate of its graphs was 0: v0.22.0 v1/worker/gpu/model_runner.py L620-622, v0.27.0 L749-751; vllm#49224
ONE_NUMBER: Release = (0, 9, 0)  # --cuda-graph-sizes
FLASHINFER_BYTES = {(0, 11, 0): 256 * MIB, (0, 11, 1): 394 * MIB}  # VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE
ONE_STATE_EACH: Release = (0, 20, 0)  # v0.20.0 config/compilation.py L1436; v0.19.0 captures fewer graphs instead
INSIDE, OUTSIDE = "CUDA graphs, profiled", "CUDA graphs"  # within what the pool is reckoned from, or captured after it


class Graphs(NamedTuple):
    """How many sizes are captured."""

    pieces: int
    whole: int
    largest: int


def profiled(job: Job) -> bool:
    """Whether what the graphs take is estimated before the pool is made, and taken off it."""
    late = second_runner(job) and HISTORY.covered(job.deployment.engine_version) < RESERVED_BY_SECOND
    return version_of(job).graphs_profiled and not late and not makes_no_pool(job)


def given_sizes(job: Job) -> tuple[int, ...]:
    """cudagraph_capture_sizes as set; empty where they aren't. Raises BadValue."""
    text = job.deployment.settings.get("cudagraph_capture_sizes")
    if text is None:
        return ()
    parts = [part.strip() for part in str(text).strip("[]").split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < len(part) < 8 and int(part) for part in parts):
        raise BadValue(f"cudagraph_capture_sizes={str(text)[:30]!r}", allowed=f"whole numbers from 1, separated by commas: {EXAMPLE}")
    return tuple(sorted({int(part) for part in parts}))


def mode_of(job: Job) -> Mode:
    """cudagraph_mode as set, or the release's: whole graphs in V0, pieces until 0.10, both since; pieces alone for pooling models.

    Source: vllm v0.11.0 config/__init__.py L359-376; v0.9.2 compiles in pieces alone.
    """
    settings = job.deployment.settings
    if settings["enforce_eager"]:
        return "none"
    given: Mode | None = settings.get("cudagraph_mode")  # type: ignore[assignment]
    if given is not None:
        return given
    if not version_of(job).v1:
        return "none" if settings["runner"] == "pooling" else "full"
    pools = settings["runner"] == "pooling"
    return "piecewise" if pools or HISTORY.covered(job.deployment.engine_version) < BY_REQUESTS else "full_and_piecewise"


def graphs_of(job: Job) -> Graphs:
    """Sizes captured in pieces and whole; decode batches have up to max_num_seqs sequences."""
    tokens, sequences = batch_limits(job, length_of(job))
    each = 1 + drafted(job) if method_of(job) else 1
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    return _graphs(HISTORY.covered(job.deployment.engine_version), version_of(job).v1, mode_of(job), tokens, sequences, each, given_sizes(job),
                   int(job.deployment.settings.get("max_cudagraph_capture_size", 0)), capability.startswith("10."))  # fmt: skip


@lru_cache(maxsize=1024)
def _graphs(release: Release, v1: bool, mode: Mode, tokens: int, sequences: int, each: int, given: tuple[int, ...], most: int, large: bool) -> Graphs:
    if mode == "none":
        return Graphs(0, 0, 0)
    if not v1:  # up to the first size that holds max_num_seqs
        sizes = [1, 2, 4, *range(8, 8193, 8)]
        top = next((size for size in sizes if size >= sequences), sizes[-1])
        return Graphs(0, sum(size <= top for size in sizes), top)
    decode = sequences * each
    if not given:
        default = min(2 * decode, 1024 if large and release >= DATA_CENTRE_BLACKWELL else 512) if release >= BY_REQUESTS else 512
        top = min(most or default, tokens)
        fine = 256 if release >= WIDER_STEPS else top + 1
        given = tuple(size for size in (1, 2, 4, *range(8, min(top + 1, fine), 8), *range(fine, top + 1, 16)) if size <= top)
    sizes = [size for size in given if size <= tokens]
    decoding = sum(each <= size <= decode for size in sizes)
    whole = {"full": len(sizes), "piecewise": 0}.get(mode, decoding)
    return Graphs(len(sizes) if mode in ("piecewise", "full_and_piecewise") else 0, whole, max(sizes, default=0))


def flashinfer_bytes(job: Job) -> int:
    """The workspace that FlashInfer's first captured batch makes, where the release takes it: on B200, and for 8-bit caches but on Hopper.

    A GB10 on 0.20 prints 0.43 GiB for one size in pieces and one whole, of a model in 40 layers.              modelled
    Source: FLASHINFER_SOURCE.
    """
    major = ((job.gpu.compute_capability or "") if job.gpu else "").partition(".")[0]
    release = HISTORY.covered(job.deployment.engine_version)
    if job.model.mla or not version_of(job).v1 or not (major == "10" or (job.deployment.kv_dtype == "fp8" and major in ("8", "12"))):
        return 0
    return next((n for since, n in sorted(FLASHINFER_BYTES.items(), reverse=True) if release >= since), 0)


def line_of(job: Job, share: Share) -> Line:
    """What the graphs of one GPU take.

    bytes = a (p + f) (L + 1) [+ w]      p sizes in pieces, f whole, L layers of the stage, a bytes a layer and graph, w FlashInfer's workspace

    In V0 each pipeline stage captures once for every stage.                                             modelled
    """
    name = INSIDE if profiled(job) else OUTSIDE
    graphs, mode = graphs_of(job), mode_of(job)
    if mode == "none":
        settings = job.deployment.settings
        why = "enforce_eager" if settings["enforce_eager"] else "cudagraph_mode" if settings.get("cudagraph_mode") else "runner: V0 captures nothing for pooling models"
        return Line("overhead", name, 0, Formula("0"), f"setting {why}", device=share.device, level="process", note=f"none: {why}")
    uneven = bool(job.model.num_experts or job.model.recurrent)  # first captures of dense models bring next to nothing
    each, once = _rate(job), record("vllm", "graphs_once" if version_of(job).v1 and uneven else "graphs_once_dense")
    times = 1 if version_of(job).v1 else stages_of(job)
    symbols = {"a": each.value, "p": graphs.pieces, "f": graphs.whole * times, "L": len(share.layers) + draft_layers(job), "w": flashinfer_bytes(job)}
    units = (symbols["p"] + symbols["f"]) * (symbols["L"] + 1)
    formula = "{a} (bytes a layer and graph) × ({p} (sizes in pieces) + {f} (whole)) × ({L} (layers) + 1)" + (" + {w} (FlashInfer's workspace)" if symbols["w"] else "")
    source = f"{each.source}; {SIZES_SOURCE}; {PIECES_SOURCE}" + (f"; {FLASHINFER_SOURCE}" if symbols["w"] else "")
    return Line("overhead", name, each.value * units + symbols["w"], Formula(formula, symbols), source, basis="modelled", device=share.device, level="process",
                low=each.low * units, high=each.high * units + symbols["w"] + once.high, note=f"sizes to {graphs.largest:,}; {each.note}")  # fmt: skip


def too_many(job: Job, blocks: int) -> str:
    """What the engine says where whole graphs of decoding want a state for each of max_num_seqs; empty where they have one.

    Source: vllm v0.29.0 config/compilation.py L1499-1521; a log of 0.29.0 prints it of 1,024 and 635 blocks.
    """
    most = batch_limits(job, length_of(job))[1]
    whole = mode_of(job) in ("full", "full_decode_only", "full_and_piecewise")
    if job.model.recurrent is None or most <= blocks or not whole or HISTORY.covered(job.deployment.engine_version) < ONE_STATE_EACH:
        return ""
    return (f"vllm refuses: max_num_seqs ({most}) exceeds available Mamba cache blocks ({blocks}). Each decode sequence requires one Mamba cache block, so CUDA graph "
            f"capture cannot proceed. Please lower max_num_seqs to at most {blocks} or increase gpu_memory_utilization.")  # fmt: skip


def _rate(job: Job) -> Record:
    """Bytes a layer and graph, by release and card."""
    version, release = version_of(job), HISTORY.covered(job.deployment.engine_version)
    if on_rocm(job):
        return record("vllm", "graph_rocm")
    if not version.v1:
        return record("vllm", "graph_v0")
    if release < BY_REQUESTS:
        return record("vllm", "graph_v1")
    if release >= (0, 20, 0):
        recurrent = job.model.recurrent is not None
        kind = "_recurrent" if recurrent and not job.model.num_experts and not second_runner(job) else "_experts" if recurrent or job.model.num_experts else ""
        return record("vllm", f"graph_0.20{kind}")
    capability = (job.gpu.compute_capability or "") if job.gpu else ""
    return record("vllm", "graph_0.11_sm80" if capability == "8.0" else "graph_0.11")


def check_graphs(job: Job) -> None:
    """Refuse settings of graphs that contradict each other, or that the release doesn't have."""
    settings, release, version = job.deployment.settings, HISTORY.covered(job.deployment.engine_version), job.deployment.engine_version
    asked = [name for name in SETTINGS if settings.get(name) is not None]
    if not asked:
        return
    if not version_of(job).v1:
        raise NotModelled(f"{asked[0]} on the V0 engine: its sizes follow from max_num_seqs here", hint="--set max_num_seqs=N, or leaving it out")
    sizes, most, mode = given_sizes(job), settings.get("max_cudagraph_capture_size"), settings.get("cudagraph_mode")
    if mode is not None and release < BY_REQUESTS:
        raise NotModelled(f"cudagraph_mode in vllm {version}", allowed="0.10.2 or later", hint="a later --engine-version")
    if most is not None and release < ONE_NUMBER:
        raise NotModelled(f"max_cudagraph_capture_size in vllm {version}", allowed="0.9 or later", hint="--set cudagraph_capture_sizes=1,2,4,8")
    if mode_of(job) == "none":  # the engine takes the sizes, and captures nothing
        return
    tokens = batch_limits(job, length_of(job))[0]
    if sizes and sizes[0] > tokens:
        raise BadValue(f"cudagraph_capture_sizes from {sizes[0]:,}, beyond max_num_batched_tokens {tokens:,}", hint="smaller sizes, or --set cudagraph_mode=none")
    if sizes and most is not None:
        valid = max(size for size in sizes if size <= tokens)
        if int(most) != valid:
            raise BadValue(f"customized max_cudagraph_capture_size(={most}) should be consistent with the max value of cudagraph_capture_sizes(={valid})",
                           hint="leaving max_cudagraph_capture_size out")  # fmt: skip


def flags_of(job: Job) -> list[str]:
    """The flags of what was set: the compilation config, and for one number in 0.9 to 0.11.0 a flag of its own."""
    settings, config, words = job.deployment.settings, {}, []
    if (mode := settings.get("cudagraph_mode")) is not None:
        config["cudagraph_mode"] = str(mode).upper()
    if sizes := given_sizes(job):
        config["cudagraph_capture_sizes"] = list(sizes)  # type: ignore[assignment]
    if (most := settings.get("max_cudagraph_capture_size")) is not None:
        if HISTORY.covered(job.deployment.engine_version) < WIDER_STEPS:
            words = ["--cuda-graph-sizes", str(most)]
        else:
            config["max_cudagraph_capture_size"] = most  # type: ignore[assignment]
    return [*words, *(["--compilation-config", json.dumps(config)] if config else [])]
