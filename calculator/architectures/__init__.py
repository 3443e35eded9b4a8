"""ModelSpec -> Inventory: which tensors a model has. One file per structural kind; a model type is a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from calculator.architectures.dense import dense
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


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(dense, "none", "transformers models/llama/modeling_llama.py v5.23.0"),
    "mistral": Architecture(dense, "none", "transformers models/mistral/modeling_mistral.py v5.23.0"),
    "qwen2": Architecture(dense, "qkv", "transformers models/qwen2/modeling_qwen2.py v5.23.0"),
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
