"""--override-tensor: tensors that a pattern over their names puts elsewhere than their layer.

Source: llama.cpp @0c1e57098 common/arg.cpp parse_tensor_buffer_overrides L252; src/llama-model-loader.cpp create_tensor
L1235: the first pattern that is found in a tensor's name decides, whatever layers are offloaded.
"""

from __future__ import annotations

import re
from functools import lru_cache

from calculator.architectures import TensorGroup
from calculator.engines.base import Job
from calculator.engines.llama_cpp.buffers import Override
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.quantization import Stored

# the model types whose names in a file stand below, held against the engine
HELD = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3")
_ROW_TYPES = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"})  # ggml-cuda.cu supports_op, GET_ROWS
STEMS = {
    "embed_tokens": "token_embd", "lm_head": "output", "norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "qkv_proj": "attn_qkv", "o_proj": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "gate": "ffn_gate_inp", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "gate_up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
_NODES = {  # where the graph calls a weight by what is computed with it
    "attn_q_norm": "Qcur_normed", "attn_k_norm": "Kcur_normed", "post_attention_norm": "attn_post_norm", "post_ffw_norm": "ffn_post_norm",
    "output_norm": "result_norm", "rope_factors_long": "rope_freqs", "rope_factors_short": "rope_freqs",
}  # fmt: skip
# what std::regex lacks or reads otherwise than re; and repetitions that could take forever
_NOT_SHARED = re.compile(r"\(\?[^:=!]|\\[AZzGKpPQE]|\[\[|[*+?}][+]|\)[*+{]|\$.")
_MOST_REPETITIONS = 4


def parse(text: str, gpus: int) -> tuple[Override, ...]:
    """PATTERN=BUFFER,... as llama.cpp reads it: split at commas, then at the first equals sign."""
    found = []
    for item in text.split(","):
        pattern, sign, buffer = item.partition("=")
        if not sign or not pattern:
            raise BadValue(f"override_tensor {item[:40]!r}", allowed="PATTERN=BUFFER, separated by commas", hint=r"override_tensor=ffn_.*_exps=CPU")
        if _NOT_SHARED.search(pattern) or len(re.findall(r"[*+{]", pattern)) > _MOST_REPETITIONS:
            raise NotModelled(f"override_tensor pattern {pattern[:40]!r}: what other regular expressions have, or repeats groups",
                              hint=r"a simpler one: blk\.(1|2)\.ffn_.*=CPU")  # fmt: skip
        try:
            _compiled(pattern)
        except (re.error, OverflowError, RecursionError) as e:
            raise BadValue(f"override_tensor pattern {pattern[:40]!r} is no regular expression ({e})", hint="ffn_.*_exps=CPU") from None
        index = re.fullmatch(r"(?:CUDA|ROCm)(\d{1,2})", buffer)
        if buffer != "CPU" and (index is None or int(index[1]) >= gpus):
            raise BadValue(f"override_tensor buffer {buffer[:20]!r}", allowed=f"CPU, CUDA0{f' to CUDA{gpus - 1}' if gpus > 1 else ''}")
        found.append(Override(pattern, int(index[1]) if index else gpus))
    return tuple(found)


def text(overrides: tuple[Override, ...], gpus: int) -> str:
    """As --override-tensor takes it."""
    return ",".join(f"{o.pattern}={'CPU' if o.place == gpus else f'CUDA{o.place}'}" for o in overrides)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


def place_of(name: str, overrides: tuple[Override, ...], otherwise: int) -> int:
    """Place of a tensor of this name."""
    return next((o.place for o in overrides if _compiled(o.pattern).search(name)), otherwise)


def file_name(group: TensorGroup, layer: int = 0, *, post_norms: bool = False) -> str:
    """A tensor's name in the GGUF file; `post_norms`: the family has norms after attention too (Gemma).

    Source: gguf-py/gguf/tensor_mapping.py @0c1e57098.
    """
    if group.name.startswith(("blk.", "token_embd", "output", "rope_")):  # from a file's own header
        return group.name.format(layer=layer)
    stem, _, suffix = group.name.rpartition(".")
    word = stem.rpartition(".")[2]
    base = "post_attention_norm" if post_norms and word == "post_attention_layernorm" else STEMS[word]
    if len(group.shape) == 3:
        base += "_exps"
    return f"blk.{layer}.{base}.{suffix}" if group.layers else f"{base}.{suffix}"


def has_post_norms(stored: Stored) -> bool:
    """Whether there are norms after attention beside those before the feed-forward."""
    return any("pre_feedforward_layernorm" in g.group.name for g in stored)


def node_name(file_name: str) -> str:
    """The weight's name in our graph: without layer and `.weight`."""
    base = re.sub(r"^blk\.\d+\.", "", file_name).removesuffix(".weight")
    return _NODES.get(base, base)


def check(job: Job) -> None:
    """Refuse what isn't known here, what CUDA doesn't compute, and patterns that match nothing."""
    text = job.deployment.settings.get("override_tensor")
    if text is None:
        return
    gpus = job.deployment.gpus
    overrides = parse(str(text), gpus)
    if job.model.model_type not in HELD:
        raise NotModelled(f"override_tensor with {job.model.model_type}", allowed=", ".join(HELD), hint="n_gpu_layers")
    post_norms, unused = has_post_norms(job.stored), set(overrides)
    for group in job.stored:
        for layer in group.layers or (0,):
            name = file_name(group.group, layer, post_norms=post_norms)
            for override in overrides:
                if not _compiled(override.pattern).search(name):
                    continue
                unused.discard(override)
                if override.place < gpus:
                    _check_kernel(name, group.format)
                break
    behind = rf"blk\.{job.model.num_hidden_layers}\."  # --fit itself names the layer behind the last
    for override in overrides:
        if override in unused and not override.pattern.startswith(behind):
            raise BadValue(f"override_tensor pattern {override.pattern[:40]!r} matches no tensor of {job.model.id}, or none that an earlier one leaves",
                           hint="names as in the file: token_embd.weight, blk.0.ffn_up.weight, blk.0.ffn_up_exps.weight")  # fmt: skip


def _check_kernel(name: str, fmt: str) -> None:
    if name == "token_embd.weight" and fmt not in _ROW_TYPES:
        raise Unsupported(f"override_tensor of token_embd.weight ({fmt}) to a GPU: CUDA takes rows of {', '.join(sorted(_ROW_TYPES))} alone",
                          hint="leaving it on the host")  # fmt: skip
    if fmt in ("TQ1_0", "TQ2_0"):
        raise Unsupported(f"override_tensor of {name} to a GPU: CUDA doesn't multiply {fmt}", hint="CPU")
