"""ModelSpec -> Inventory: which tensors a model has. One file per structural kind; a model type is a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal, NamedTuple

from calculator.architectures.dense import dense, experts
from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.errors import UnknownArchitecture
from calculator.names import nearest
from calculator.spec import ModelSpec

__all__ = ["ARCHITECTURES", "Architecture", "Inventory", "TensorGroup", "architecture", "build_inventory"]


class Architecture(NamedTuple):
    """A model type: its structural kind and what its config leaves unsaid."""

    kind: Callable[[ModelSpec], Inventory]
    attention_bias: Literal["none", "qkv"]
    source: str
    gguf: str  # the name of its graph in llama.cpp
    tied: bool = False  # where the config doesn't say
    full_every: int = 0  # each n-th layer sees everything and the others a window; 0: no layer has a window of its own


def _source(name: str) -> str:
    return f"transformers models/{name}/modeling_{name}.py v5.23.0"


_GEMMA2 = partial(dense, post_norms=True)
_GEMMA3 = partial(dense, qk_norm=True, post_norms=True)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(dense, "none", _source("llama"), "llama"),
    "mistral": Architecture(dense, "none", _source("mistral"), "llama"),
    "qwen2": Architecture(dense, "qkv", _source("qwen2"), "qwen2"),
    "qwen3": Architecture(partial(dense, qk_norm=True), "none", _source("qwen3"), "qwen3"),
    "phi3": Architecture(partial(dense, fused=True), "none", _source("phi3"), "phi3"),
    "gemma2": Architecture(_GEMMA2, "none", _source("gemma2"), "gemma2", tied=True, full_every=2),
    "gemma3_text": Architecture(_GEMMA3, "none", _source("gemma3"), "gemma3", tied=True, full_every=6),
    "mixtral": Architecture(partial(experts, block="block_sparse_moe"), "none", _source("mixtral"), "llama"),
    "qwen3_moe": Architecture(partial(experts, qk_norm=True), "none", _source("qwen3_moe"), "qwen3moe"),
}


def architecture(model_type: str) -> Architecture:
    """The row of a model type. Raises UnknownArchitecture: an unknown type is never taken for another."""
    if model_type not in ARCHITECTURES:
        near = nearest(model_type, ARCHITECTURES) if len(model_type) < 80 else []
        raise UnknownArchitecture(
            f"model_type {model_type[:60]!r} has no formulas here and is not guessed",
            allowed=", ".join(ARCHITECTURES),
            hint=f"{near[0]}, if that is what it is" if near else "vram models lists what is known",
        )
    return ARCHITECTURES[model_type]


@lru_cache(maxsize=512)
def build_inventory(model: ModelSpec) -> Inventory:
    """All tensors of the model as its checkpoint stores them, before quantization."""
    return architecture(model.model_type).kind(model)
