"""The type that llama-quantize gives a tensor, by recipe, role and layer.

Source: llama.cpp src/llama-quant.cpp @0c1e57098: llama_ftype_get_default_type L881, llama_tensor_get_type_impl L446,
tensor_type_fallback L390; src/llama-quant.cpp L173 @4227c9be for the rules of 2025.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.architectures import TensorGroup
from calculator.formats import FORMATS
from calculator.quantization.converted import WITH_MTP, Order, heads_a_kv_head
from calculator.spec import ModelSpec

SOURCE = "llama.cpp src/llama-quant.cpp L446 llama_tensor_get_type_impl @0c1e57098"

# recipe -> the type it starts from (llama_ftype_get_default_type)
RECIPES: dict[str, str] = {
    "F32": "F32", "F16": "F16", "BF16": "BF16",
    "Q8_0": "Q8_0", "Q6_K": "Q6_K",
    "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q5_1": "Q5_1", "Q5_0": "Q5_0",
    "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
    "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K",
    "IQ3_M": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_XS": "IQ3_S", "IQ3_XXS": "IQ3_XXS",
    "Q2_K": "Q2_K", "Q2_K_S": "Q2_K",
    "IQ2_M": "IQ2_S", "IQ2_S": "IQ2_XS", "IQ2_XS": "IQ2_XS", "IQ2_XXS": "IQ2_XXS",
    "IQ1_M": "IQ1_M", "IQ1_S": "IQ1_S",
    "TQ2_0": "TQ2_0", "TQ1_0": "TQ1_0", "Q2_0": "Q2_0", "Q1_0": "Q1_0",
    "MXFP4_MOE": "MXFP4",
}  # fmt: skip

# publishers' names for a recipe with output and token embedding at Q8_0: llama-quantize --output-tensor-type q8_0
# --token-embedding-type q8_0. Source: model cards of bartowski, "Q8_0 for embed and output weights"
WIDE_OUTER: dict[str, str] = {"Q6_K_L": "Q6_K", "Q5_K_L": "Q5_K_M", "Q4_K_L": "Q4_K_M", "Q3_K_XL": "Q3_K_L", "Q2_K_L": "Q2_K"}

NEEDS_IMATRIX = frozenset({"IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
_LOW_BIT = frozenset({"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M"})
# of eight experts, attn_output is kept wider
_WIDE_OUTPUT = frozenset({"Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"})
NOT_QUANTIZED = frozenset({"F32", "F16", "BF16"})
_LARGE = frozenset({"qwen2", "olmo"})  # 80 layers are LLM_TYPE_70B, whatever their heads: src/models/{qwen2,olmo}.cpp


class File(NamedTuple):
    """What a tensor's type depends on beside the tensor."""

    model: ModelSpec
    tied: bool
    recipe: str
    imatrix: bool
    old: bool  # by the rules of 2025 and before
    places: Order


def type_of(file: File, group: TensorGroup, layer: int) -> str:
    """The type of a group's tensor in one layer, after the fallback for rows that its block doesn't divide."""
    recipe = file.recipe
    if recipe in WIDE_OUTER:
        if group.role in ("output", "embedding"):
            return _fallback(group, "Q8_0")
        recipe = WIDE_OUTER[recipe]
    start = RECIPES[recipe]
    if start in NOT_QUANTIZED:
        return start
    return _fallback(group, _wanted(file, group, recipe, layer))


def _fallback(group: TensorGroup, wanted: str) -> str:
    """A type whose block doesn't divide the row is replaced (tensor_type_fallback)."""
    if group.row_length % FORMATS[wanted].block_elements == 0:
        return wanted
    if wanted.startswith("IQ"):
        other = "IQ4_NL"
    else:
        other = {"Q2_0": "Q4_0", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
                 "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}.get(wanted, wanted)  # fmt: skip
    return other if group.row_length % FORMATS[other].block_elements == 0 else "F16"


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _wanted(file: File, group: TensorGroup, recipe: str, layer: int) -> str:
    model, places, imatrix, old, role = file.model, file.places, file.imatrix, file.old, group.role
    start, layers, values, falcon = RECIPES[recipe], model.num_hidden_layers, len(places.values), model.model_type == "falcon"
    if model.model_type in WITH_MTP:
        layers += model.mtp_layers
    gqa, number = heads_a_kv_head(model), places.of(role, layer, stacked=len(group.shape) == 3) if group.layers else layer
    if role in ("ffn_gate", "ffn_up", "ffn_down") and not model.num_experts:
        layer = number  # with experts their layer counts
    if role == "output" or (file.tied and (role == "embedding" or (role == "layer_embedding" and not old))):
        if recipe == "MXFP4_MOE" or falcon or group.row_length % FORMATS[start].block_elements:
            return "Q8_0"
        if recipe in _LOW_BIT or recipe == "IQ3_XXS":
            return "Q5_K"
        return start if start == "Q8_0" else "Q6_K"
    if recipe == "MXFP4_MOE":
        return "MXFP4" if len(group.shape) == 3 else "Q8_0"
    if role in ("embedding", "layer_embedding"):
        return {"IQ2_XXS": "Q2_K", "IQ2_XS": "Q2_K", "IQ1_S": "Q2_K", "IQ1_M": "Q2_K", "IQ2_S": "IQ3_S",
                "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S", "TQ1_0": "Q4_K", "TQ2_0": "Q4_K", "Q2_0": "Q4_K"}.get(recipe, start)  # fmt: skip
    if role == "attn_qkv" and old:
        return start if recipe in _LOW_BIT else {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "IQ3_M": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(recipe, start)
    if recipe in _LOW_BIT:
        return _low_bit(recipe, role, start, number, layers, gqa, model.num_experts)
    if role in ("attn_v", "attn_k") and model.num_experts == 8:
        return "Q8_0"
    if role in ("attn_v", "attn_qkv"):
        wanted = _attn_v(recipe, start, number, values, gqa, imatrix)
        # LLM_TYPE_70B: 80 layers with grouped-query attention (src/models/llama.cpp L28)
        large = layers == 80 and (model.model_type in _LARGE or (gqa > 1 and model.model_type in ("llama", "mistral")))
        return "Q5_K" if large and wanted in ("Q3_K", "Q4_K") else wanted
    if role in ("attn_q_a", "attn_q_b", "attn_kv_a", "attn_kv_b", "projection", "ssm_in", "ssm_out"):
        return start
    if role in ("attn_k", "attn_q"):
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(recipe, start)
    if role == "ffn_down":
        if recipe == "IQ3_M" and model.num_experts == 8 and _more_bits(layer, layers):
            return "Q4_K"
        return _falcon_down(recipe, start, layer, layers, imatrix) if falcon else _ffn_down(recipe, start, layer, layers, imatrix)
    if role == "attn_output" and falcon:
        return "Q4_K" if recipe == "Q3_K_L" else start
    if role == "attn_output" and model.num_experts == 8:
        return "Q5_K" if recipe in _WIDE_OUTPUT else start
    if role == "attn_output":
        return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(recipe, start)
    if recipe == "IQ3_XS" and layers // 8 <= layer < 7 * layers // 8:  # ffn_gate, ffn_up
        return "IQ3_XXS"
    return start


def _falcon_down(recipe: str, start: str, layer: int, layers: int, imatrix: bool) -> str:
    """ffn_down of Falcon, which has rules of its own (arch LLM_ARCH_FALCON)."""
    more = _more_bits(layer, layers)
    match recipe:
        case "Q3_K_M" if layer >= layers // 16:
            return "Q4_K" if more else "Q3_K"
        case "Q3_K_L":
            return "Q4_K"
        case "Q4_K_M":
            return "Q6_K" if layer < layers // 16 else "Q5_K" if more else "Q4_K"
        case "Q4_K_S":
            return start
    return _ffn_down(recipe, start, layer, layers, imatrix)


def _low_bit(recipe: str, role: str, start: str, layer: int, layers: int, gqa: int, experts: int) -> str:
    wider = "IQ3_S" if recipe in ("IQ2_S", "IQ2_M") else "Q2_K"
    if role in ("attn_v", "attn_qkv"):
        return "Q4_K" if gqa >= 4 or experts >= 4 else wider
    if role == "attn_k" and experts == 8:
        return "Q4_K"
    if role == "attn_output" and experts == 8:
        return "Q5_K"
    if role == "ffn_down":
        return wider if layer < layers // 8 else start
    if role == "attn_output":
        return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(recipe, start)
    return start


def _attn_v(recipe: str, start: str, layer: int, layers: int, gqa: int, imatrix: bool) -> str:
    grouped = gqa >= 4
    match recipe:
        case "Q2_K":
            return "Q4_K" if grouped else "Q3_K"
        case "Q2_K_S" | "IQ3_XS" | "IQ3_S" if grouped:
            return "Q4_K"
        case "IQ3_XXS":
            return "Q4_K" if grouped else "IQ3_XXS" if imatrix else "IQ3_S"
        case "IQ3_M":
            return "Q4_K"
        case "Q3_K_M":
            return "Q5_K" if layer < 2 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "IQ4_NL" | "IQ4_XS" if grouped:
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, layers):
            return "Q6_K"
        case "Q4_K_S" if layer < 4:
            return "Q5_K"
    return start


def _ffn_down(recipe: str, start: str, layer: int, layers: int, imatrix: bool) -> str:
    early = layer < layers // 8
    match recipe:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S" if early:
            return "Q4_K"
        case "IQ3_XXS" if not imatrix:
            return "Q4_K" if early else "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        case "IQ3_M" if early:
            return "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _more_bits(layer, layers):
            return "Q6_K"
        case "IQ4_NL" | "IQ4_XS" if early and not imatrix:
            return "Q5_K"
        case "Q4_K_S" if early:
            return "Q5_K"
        case "Q4_0" if early and imatrix:
            return "Q4_1"
        case "Q5_0" if early and imatrix:
            return "Q5_1"
    return start
