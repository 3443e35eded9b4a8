"""GGUF files: the tensors that the converter writes, each in the type that llama-quantize gives it; and the file's size.

Byte-exact on every measured file of llama.cpp @0c1e57098.
"""

from __future__ import annotations

from collections.abc import Sequence

from calculator.architectures import Inventory, TensorGroup
from calculator.formats import FORMATS, Format
from calculator.quantization.converted import behind, converted, order
from calculator.quantization.gguf_types import NOT_QUANTIZED, RECIPES, File, type_of
from calculator.quantization.stored import Part, Stored, StoredGroup
from calculator.spec import ModelSpec
from calculator.units import align_up

QUANTIZERS = ("2024", "2025", "2026")  # llama-quantize @4227c9be and before, and @0c1e57098; 2024 (to April 2025): as 2025, and attn_kv_b is whole
OLD_SOURCE = "llama.cpp src/llama-quant.cpp L173 llama_tensor_get_type @4227c9be: attn_qkv has rules of its own, and of tied embeddings token_embd alone is the output's"
# model types whose files were published before the rules changed (early in 2026) and that these rules give other types
_PUBLISHED_IN_2025 = frozenset({"phi3", "gemma3n_text", "gpt2", "gpt_bigcode", "gpt_neox", "falcon", "bloom", "mpt", "nomic_bert", "modernbert"})
_WIDE = frozenset({"norm", "bias", "router", "position", "small", "ssm"})  # always 32 bits


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
    file = File(model, inventory.tied, recipe, imatrix, quantizer != "2026", order(model, (*groups, *behind(model, inventory))))
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
    return tuple(_typed(File(model, inventory.tied, recipe, imatrix, quantizer != "2026", order(model, (*converted(model, inventory), *groups))), groups))


def _typed(file: File, groups: Sequence[TensorGroup]) -> list[StoredGroup]:
    stored: list[StoredGroup] = []
    recipe = file.recipe
    for group in groups:
        if group.role in _WIDE:
            stored.append(_store(group, "F32", group.indices))
            continue
        if recipe in NOT_QUANTIZED and "indexer.weights_proj" in group.name:  # llama-quantize takes it for any other matrix
            stored.append(_store(group, "F32", group.indices))
            continue
        if group.role == "side":  # as the file that is quantized has them
            stored.append(_store(group, RECIPES[recipe] if recipe in NOT_QUANTIZED else "F16", group.indices))
            continue
        by_type: dict[str, list[int]] = {}
        for layer in group.indices:
            by_type.setdefault(type_of(file, group, layer), []).append(layer)
        if not group.layers:
            by_type[type_of(file, group, 0)] = []
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


_GGUF_NAMES = {
    "embedding": "token_embd.weight", "output": "output.weight", "attn_q": "blk.{}.attn_q.weight",
    "attn_k": "blk.{}.attn_k.weight", "attn_v": "blk.{}.attn_v.weight", "attn_output": "blk.{}.attn_output.weight",
    "ffn_gate": "blk.{}.ffn_gate.weight", "ffn_up": "blk.{}.ffn_up.weight", "ffn_down": "blk.{}.ffn_down.weight",
}  # fmt: skip


def _gguf_name(group: TensorGroup) -> str:
    return _GGUF_NAMES.get(group.role, "blk.{}.attn_norm.weight")
