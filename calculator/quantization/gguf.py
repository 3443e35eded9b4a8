"""GGUF recipes: which tensor llama-quantize gives which type, predicted from the inventory alone.

Source: llama.cpp src/llama-quant.cpp @0c1e57098: llama_ftype_get_default_type L881, llama_tensor_get_type_impl L446,
tensor_type_fallback L390. Byte-exact on every measured file of that version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from calculator.architectures import Inventory, TensorGroup
from calculator.formats import FORMATS, Format
from calculator.quantization.converted import WITH_MTP, Order, behind, converted, heads_a_kv_head, order
from calculator.quantization.stored import Part, Stored, StoredGroup
from calculator.spec import ModelSpec
from calculator.units import align_up

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
_NOT_QUANTIZED = frozenset({"F32", "F16", "BF16"})
QUANTIZERS = ("2024", "2025", "2026")  # llama-quantize @4227c9be and before, and @0c1e57098; 2024 (to April 2025): as 2025, and attn_kv_b is whole
OLD_SOURCE = "llama.cpp src/llama-quant.cpp L173 llama_tensor_get_type @4227c9be: attn_qkv has rules of its own, and of tied embeddings token_embd alone is the output's"
# model types whose files were published before the rules changed (early in 2026) and that these rules give other types
_PUBLISHED_IN_2025 = frozenset({"phi3", "gemma3n_text", "gpt2", "gpt_bigcode", "gpt_neox", "falcon", "bloom", "mpt", "nomic_bert", "modernbert"})
_WIDE = frozenset({"norm", "bias", "router", "position", "small", "ssm"})  # always 32 bits
_LARGE = frozenset({"qwen2", "olmo"})  # 80 layers are LLM_TYPE_70B, whatever their heads: src/models/{qwen2,olmo}.cpp


class _File(NamedTuple):
    """What a tensor's type depends on beside the tensor."""

    model: ModelSpec
    tied: bool
    recipe: str
    imatrix: bool
    old: bool  # by the rules of 2025 and before
    places: Order


def quantizer_of(model: ModelSpec) -> str:
    """Whose rules the files have that are published of a model.

    Phi-3 mini as Microsoft's q4 is 2,393,231,072 bytes and Phi 4 as ollama's Q4_K_M 9,053,114,464, which the rules of 2025
    give; Gemma 4 E2B as Q4_K_M and Q3_K_S 3.412 and 3.094 GB, which those of 2026 give.
    """
    return "2025" if model.model_type in _PUBLISHED_IN_2025 else "2026"


def quantize(model: ModelSpec, inventory: Inventory, recipe: str, *, imatrix: bool, quantizer: str = "2026") -> Stored:
    """The tensors of the GGUF file of this recipe, each with its type.

    `imatrix`: an importance matrix was given; it changes the types of some recipes. `quantizer`: whose rules.
    """
    groups = converted(model, inventory, whole=quantizer == "2024")
    file = _File(model, inventory.tied, recipe, imatrix, quantizer != "2026", order(model, (*groups, *behind(model, inventory))))
    stored = _typed(file, groups)
    if model.rope_type == "llama3":  # convert_hf_to_gguf.py writes the scaled frequencies as a tensor
        stored.append(_store(TensorGroup("rope_freqs.weight", (model.head_dim // 2,), "norm"), "F32", ()))
    if model.by_layer and model.by_layer.full_head_dim:  # Gemma 4 turns a part of wide heads: the rest has frequencies of its own
        stored.append(_store(TensorGroup("rope_freqs.weight", (model.by_layer.full_head_dim // 2,), "norm"), "F32", ()))
    if model.rope_type in ("longrope", "su"):
        stored += [_store(TensorGroup(f"rope_factors_{kind}.weight", (model.head_dim // 2,), "norm"), "F32", ()) for kind in ("long", "short")]
    return tuple(stored)


def predicting(model: ModelSpec, inventory: Inventory, recipe: str, *, imatrix: bool, quantizer: str = "2026") -> Stored:
    """The MTP layers of the file, which aren't loaded: GLM 4.5 Air's as Q4_K_M are 2.25 of its 67.96 GiB."""
    groups = behind(model, inventory)
    if not groups:
        return ()
    return tuple(_typed(_File(model, inventory.tied, recipe, imatrix, quantizer != "2026", order(model, (*converted(model, inventory), *groups))), groups))


def _typed(file: _File, groups: Sequence[TensorGroup]) -> list[StoredGroup]:
    stored: list[StoredGroup] = []
    recipe = file.recipe
    for group in groups:
        if group.role in _WIDE:
            stored.append(_store(group, "F32", group.indices))
            continue
        if recipe in _NOT_QUANTIZED and "indexer.weights_proj" in group.name:  # llama-quantize takes it for any other matrix
            stored.append(_store(group, "F32", group.indices))
            continue
        if group.role == "side":  # as the file that is quantized has them
            stored.append(_store(group, RECIPES[recipe] if recipe in _NOT_QUANTIZED else "F16", group.indices))
            continue
        by_type: dict[str, list[int]] = {}
        for layer in group.indices:
            by_type.setdefault(_type(file, group, layer), []).append(layer)
        if not group.layers:
            by_type[_type(file, group, 0)] = []
        stored += [_store(group, name, tuple(layers)) for name, layers in by_type.items()]
    return stored


def file_nbytes(stored: Stored, *, metadata_bytes: int) -> int:
    """Bytes of the GGUF file: header, then tensors padded to 32 bytes.

    header = metadata + a record a tensor: name, dimensions, type, offset (8 + name + 4 + 8 dims + 4 + 8)

    Source: ggml/src/gguf.cpp gguf_write_to_buf @0c1e57098; GGUF_DEFAULT_ALIGNMENT 32.
    """
    header = metadata_bytes
    for group in stored:
        record = 8 + len(_gguf_name(group.group)) + 4 + 8 * len(group.group.shape) + 4 + 8
        header += group.count * record
    body = sum(align_up(group.tensor_nbytes, 32) * group.count for group in stored)
    return align_up(header, 32) + body


def row_elements(group: StoredGroup) -> int:
    """Elements of one row as ggml sees it (ne[0])."""
    return group.group.row_length


def _store(group: TensorGroup, type_name: str, layers: tuple[int, ...]) -> StoredGroup:
    fmt = FORMATS[type_name]
    nbytes = group.rows * fmt.nbytes(group.row_length)
    return StoredGroup(group, type_name, (Part(type_name, nbytes, _expression(fmt)),), layers)


def _expression(fmt: Format) -> str:
    return f"{fmt.block_bytes} / {fmt.block_elements}" if fmt.block_elements > 1 else f"{fmt.block_bytes}"


def _type(file: _File, group: TensorGroup, layer: int) -> str:
    recipe = file.recipe
    if recipe in WIDE_OUTER:
        if group.role in ("output", "embedding"):
            return _fallback(group, "Q8_0")
        recipe = WIDE_OUTER[recipe]
    start = RECIPES[recipe]
    if start in _NOT_QUANTIZED:
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


def _wanted(file: _File, group: TensorGroup, recipe: str, layer: int) -> str:
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


_GGUF_NAMES = {
    "embedding": "token_embd.weight", "output": "output.weight", "attn_q": "blk.{}.attn_q.weight",
    "attn_k": "blk.{}.attn_k.weight", "attn_v": "blk.{}.attn_v.weight", "attn_output": "blk.{}.attn_output.weight",
    "ffn_gate": "blk.{}.ffn_gate.weight", "ffn_up": "blk.{}.ffn_up.weight", "ffn_down": "blk.{}.ffn_down.weight",
}  # fmt: skip


def _gguf_name(group: TensorGroup) -> str:
    return _GGUF_NAMES.get(group.role, "blk.{}.attn_norm.weight")
