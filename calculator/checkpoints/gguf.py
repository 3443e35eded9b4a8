"""A GGUF header -> a model, and its tensors in the types that the file stores them in."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from calculator.architectures import TensorGroup, build_inventory
from calculator.architectures.inventory import Role
from calculator.checkpoints import Checkpoint
from calculator.checkpoints.inventory import OTHER, differences, elements, kinds_of_inventory, kinds_of_stored
from calculator.errors import UnreadableFile
from calculator.formats import FORMATS
from calculator.quantization import Scheme, Stored, parse, quantize, stored_nbytes
from calculator.quantization.converted import converted
from calculator.quantization.gguf import QUANTIZERS
from calculator.quantization.gguf_types import RECIPES
from calculator.quantization.stored import Part, StoredGroup
from calculator.readers.gguf_model import config_of
from calculator.readers.header import Header
from calculator.readers.hf_config import model_from_config
from calculator.readers.untrusted import quoted
from calculator.spec import AttentionBias, ModelSpec
from calculator.units import gib

RULE = "each tensor in the type that the file stores it in"

# general.file_type, llama.cpp include/llama.h enum llama_ftype @0c1e57098
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

_MATRICES: dict[str, Role] = {
    "attn_q": "attn_q", "attn_k": "attn_k", "attn_v": "attn_v", "attn_qkv": "attn_qkv", "attn_output": "attn_output",
    "ffn_gate": "ffn_gate", "ffn_up": "ffn_up", "ffn_down": "ffn_down", "ffn_gate_exps": "ffn_gate", "ffn_up_exps": "ffn_up",
    "ffn_down_exps": "ffn_down", "ffn_gate_shexp": "ffn_gate", "ffn_up_shexp": "ffn_up", "ffn_down_shexp": "ffn_down", "ffn_gate_inp": "router",
    "ffn_gate_inp_shexp": "router", "attn_sinks": "norm", "attn_q_a": "attn_q_a", "attn_q_b": "attn_q_b", "attn_kv_a_mqa": "attn_kv_a",
    "indexer.attn_k": "attn_k", "indexer.attn_q_b": "projection", "indexer.proj": "projection", "inp_gate": "projection", "proj": "projection",
    "ffn_gate_up_exps": "ffn_gate", "altup_correct_coef": "small", "altup_predict_coef": "small", "altup_correct_scale": "small",
    "altup_router": "side", "laurel_l": "side", "laurel_r": "side", "layer_output_scale": "small", "attn_k_b": "attn_kv_b", "attn_v_b": "attn_kv_b", "attn_kv_b": "attn_kv_b",
    "attn_gate": "ssm_in", "ssm_in": "ssm_in", "ssm_ba": "ssm_in", "ssm_alpha": "ssm_in", "ssm_beta": "ssm_in", "ssm_x": "ssm_in", "ssm_dt": "ssm_in",
    "ssm_out": "ssm_out", "ssm_conv1d": "ssm", "shortconv.conv": "ssm", "shortconv.in_proj": "ssm_in", "shortconv.out_proj": "ssm_out",
    "ffn_latent_down": "ssm_in", "ffn_latent_up": "ssm_in",
}  # fmt: skip
_ROPE = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
_OUTER: dict[str, Role] = {"token_embd.weight": "embedding", "output.weight": "output", "output_norm.weight": "norm",
                          "position_embd.weight": "position", "token_types.weight": "position", "per_layer_token_embd.weight": "layer_embedding",
                          "per_layer_model_proj.weight": "side", "altup_proj.weight": "side", "altup_unembd_proj.weight": "side"}  # fmt: skip
_BARE: dict[str, Role] = {"ssm_a": "ssm", "ssm_d": "ssm", "ffn_norm": "norm"}  # without a suffix; Falcon-H1 leaves it out of ffn_norm
_NORM = re.compile(r"_norm(_\d)?$")
_LAYER = re.compile(r"blk\.(\d{1,5})\.(.+)")


def load(header: Header, *, id: str) -> tuple[dict[str, Any], ModelSpec, Checkpoint]:
    """Config, model and stored tensors of a GGUF header. Raises UnknownArchitecture, NotModelled, UnreadableFile."""
    config = config_of(header)
    spec = model_from_config(config, id=id)
    if not spec.mla:
        spec = replace(spec, attention_bias=_attention_bias({t.name for t in header.tensors}))
    stored = stored_of(header)
    stored, predicting = _without_mtp(stored, spec)
    beyond = [g for g in stored if any(layer >= spec.num_hidden_layers for layer in g.layers)]
    if beyond:
        raise UnreadableFile(f"{header.files[0]} holds {quoted(beyond[0].group.name)} beyond its {spec.num_hidden_layers} layers", hint="vram inspect")
    scheme = _scheme(header)
    implied = replace(build_inventory(spec), groups=converted(spec, build_inventory(spec), whole=any(t.name.endswith(".attn_kv_b.weight") for t in header.tensors)))
    warnings = differences(kinds_of_inventory(implied), kinds_of_stored(stored, without=_ROPE))
    if not warnings:
        warnings = _other_types(spec, stored, scheme)
    if predicting:
        warnings.append(f"{gib(stored_nbytes(predicting))} of layers that predict further tokens (MTP) are in the file and not loaded")
    if header.truncated:
        warnings.append(f"{header.files[0]} ends before its tensors do: the header alone, or an unfinished download")
    parameters = elements(tuple(g for g in stored if g.group.name not in _ROPE))
    return config, spec, Checkpoint(scheme, stored, parameters, header.file_bytes, tuple(warnings))


def _attention_bias(names: set[str]) -> AttentionBias:
    """The biases of attention that the first layer holds."""
    if not names & {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}:
        return "none"
    return "qkvo" if "blk.0.attn_output.bias" in names else "qkv"


def _without_mtp(stored: Stored, spec: ModelSpec) -> tuple[Stored, Stored]:
    """What is loaded, and what isn't: layers behind the last, unless a draft is asked for.

    Source: llama.cpp src/llama-model.cpp llama_model_default_params, load_mtp @0c1e57098.
    """
    if not spec.mtp_layers:
        return stored, ()
    n = spec.num_hidden_layers
    loaded = tuple(replace(g, layers=held) if g.layers else g for g in stored if (held := tuple(i for i in g.layers if i < n)) or not g.layers)
    behind = tuple(replace(g, layers=held) for g in stored if (held := tuple(i for i in g.layers if n <= i < n + spec.mtp_layers)))
    return loaded, behind


def stored_of(header: Header) -> Stored:
    """The header's tensors, equal ones of several layers as a group."""
    layers: dict[tuple[str, tuple[int, ...], str, int], list[int]] = {}
    for t in header.tensors:
        match = _LAYER.fullmatch(t.name)
        name = f"blk.{{layer}}.{match[2]}" if match else t.name
        layers.setdefault((name, t.shape, t.type, t.nbytes), []).extend([int(match[1])] if match else [])
    return tuple(_group(*key, tuple(found)) for key, found in layers.items())


def _group(name: str, shape: tuple[int, ...], kind: str, nbytes: int, layers: tuple[int, ...]) -> StoredGroup:
    fmt = FORMATS[kind]
    expression = f"{fmt.block_bytes} / {fmt.block_elements}" if fmt.block_elements > 1 else f"{fmt.block_bytes}"
    return StoredGroup(TensorGroup(name, shape, _role(name), len(layers)), kind, (Part(kind, nbytes, expression),), layers)


def _role(name: str) -> Role:
    if name in _ROPE:
        return "norm"
    stem, _, kind = name.removeprefix("blk.{layer}.").rpartition(".")
    if not stem and kind in _BARE:
        return _BARE[kind]
    if (stem, kind) == ("ssm_dt", "bias"):
        return "ssm"
    if _NORM.search(stem):
        return "norm"
    if kind in ("bias", "scale"):
        return "bias" if kind == "bias" else "small"
    return _OUTER.get(name, OTHER) if not name.startswith("blk.") else _MATRICES.get(stem, OTHER)


def _scheme(header: Header) -> Scheme:
    """Named by the file's own type; by the type of most bytes where it doesn't say, or says what we don't know."""
    sizes: Counter[str] = Counter()
    for t in header.tensors:
        sizes[t.type] += t.nbytes
    kind = header.metadata.get("general.file_type")
    name = FILE_TYPES.get(kind if isinstance(kind, int) else -1) or sizes.most_common(1)[0][0]
    return Scheme(name, "gguf", ("llama.cpp",), RULE, f"header of {header.files[0]}", recipe=name)


def _other_types(spec: ModelSpec, stored: Stored, scheme: Scheme) -> list[str]:
    """A warning where llama-quantize's own rules give other bytes: an older version, or types chosen by hand."""
    if scheme.name not in RECIPES:
        return []
    held = stored_nbytes(stored)
    ruled = [stored_nbytes(quantize(spec, parse(scheme.name), imatrix=imatrix, quantizer=rules)) for rules in QUANTIZERS[::-1] for imatrix in (False, True)]
    if held in ruled:
        return []
    return [f"the file's tensors take {gib(held)}, llama-quantize's rules for {scheme.name} give {gib(ruled[0])}: "
            "made by another version, or with types of its own; the file's are counted"]  # fmt: skip
