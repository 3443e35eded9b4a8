"""Heads that draft from a target's hidden states: EAGLE's and EAGLE3's one decoder layer as a model of its own, and what surrounds it.

EAGLE: fc of 2 h to h over token and hidden state, a layer without its first norm; embedding and head are the target's.
EAGLE3: fc of 3 hidden states of the target to h, a layer whose q, k and v read 2 h, a norm more; a head over
draft_vocab_size of its own, with the target's number of each of its tokens (d2t).
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from calculator.architectures import build_inventory
from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.catalog import load_model
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.quantization import Stored
from calculator.quantization.hf import quantize
from calculator.spec import ModelSpec

HEAD_SOURCE = (
    "EAGLE-3, arXiv 2503.01840, section 3; sglang v0.5.6 srt/models/llama_eagle.py L30-95, llama_eagle3.py L38-215; "
    "vllm v0.11.0 model_executor/models/llama_eagle.py, llama_eagle3.py"
)
TYPES = ("llama", "mistral", "qwen2", "qwen3")  # of published heads' one layer: a dense one with plain attention
ATTENTION = ("attn_q", "attn_k", "attn_v")
STATES = 3  # of the target's hidden states that EAGLE3 reads: a low, a middle and a high layer


class Head(NamedTuple):
    """A head's layer and what its config says beside it."""

    spec: ModelSpec
    draft_vocab_size: int
    """Tokens that it has a head of its own for; 0: those of the target, by the target's head."""
    target_hidden_size: int
    """Width of the states that it reads."""
    bias: bool
    """Whether its config says that fc has a bias."""

    @property
    def shares_embedding(self) -> bool:
        """A head of another width keeps an embedding of its own."""
        return self.target_hidden_size == self.spec.hidden_size


@lru_cache(maxsize=32)
def load_head(name: str) -> Head:
    """A head by the path of its config.json, or the folder that holds it. Raises NotModelled for one of an unread kind."""
    model = load_model(name)
    config, spec = model.record.get("config", {}), model.spec
    if spec.model_type not in TYPES or spec.mla or spec.num_experts or spec.vision_parameters or spec.recurrent or spec.by_layer:
        raise NotModelled(f"a head of {spec.model_type}", allowed=f"config.json of a head of type {', '.join(TYPES)}", hint="a dense head")
    own = config.get("draft_vocab_size")
    return Head(spec, int(own or 0), int(config.get("target_hidden_size") or spec.hidden_size), bool(config.get("bias")))


def check_head(head: Head, *, name: str, eagle3: bool, target: ModelSpec) -> None:
    """Refuse a file that is no head of this target."""
    spec = head.spec
    if spec.num_hidden_layers > 4 or (eagle3 and spec.num_hidden_layers != 1):
        if spec.num_hidden_layers > 4:
            raise BadValue(f"{name[-80:]} has {spec.num_hidden_layers} layers: a model, no head", hint="the head's own config.json, or a whole model as the draft")
        raise Unsupported("EAGLE3 currently only supports 1 layer", hint="a head of one layer")
    if head.target_hidden_size != target.hidden_size:
        raise BadValue(f"a head for states of {head.target_hidden_size} beside a target of {target.hidden_size}", hint="the target's own head")
    if spec.vocab_size != target.vocab_size and not head.draft_vocab_size:
        raise BadValue(f"a head for {spec.vocab_size:,} tokens beside a target of {target.vocab_size:,}", hint="the target's own head")


def head_groups(head: Head, rank: ModelSpec, *, eagle3: bool, bias: bool, ranks: int = 1, embedding: bool = False) -> Inventory:
    """Tensors of a head on one rank, whose own dimensions are `rank`; `embedding`: with one of its own; `bias`: of fc.

    EAGLE:  fc (h, 2 h); the layers, the first without its first norm
    EAGLE3: fc (h, 3 t); q, k and v over 2 h; a norm more; a head of draft_vocab_size / ranks; d2t in 8 bytes is no weight

    fc is whole on every rank. Source: HEAD_SOURCE.                                                                     derived
    """
    h, groups = head.spec.hidden_size, []
    for group in build_inventory(rank).groups:
        if group.role == "output" or (group.role == "embedding" and not embedding):
            continue
        if not eagle3 and group.name.endswith("input_layernorm.weight"):
            if group.count == 1:
                continue
            group = replace(group, layers=group.count - 1)
        if not eagle3 and not group.layers and group.role == "norm":
            continue  # the last norm is the target's head's
        if eagle3 and group.role in ATTENTION and len(group.shape) == 2:
            group = replace(group, shape=(group.shape[0], 2 * group.shape[1]))
        groups.append(group)
    read = STATES * head.target_hidden_size if eagle3 else 2 * h
    groups.append(TensorGroup("fc.weight", (h, read), "projection"))
    if bias:
        groups.append(TensorGroup("fc.bias", (h,), "bias"))
    if eagle3:
        groups.append(TensorGroup("hidden_norm.weight", (h,), "norm"))
        if head.draft_vocab_size:
            groups.append(TensorGroup("lm_head.weight", (-(-head.draft_vocab_size // ranks), h), "output"))
    return Inventory(tuple(groups), tied=False)


def head_stored(inventory: Inventory, dtype: str) -> Stored:
    """A head as servers hold it: in the target's type, whatever its checkpoint has."""
    return quantize(inventory, None, dtype=dtype, label=dtype)
