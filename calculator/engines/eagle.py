"""Heads that draft from a target's hidden states: EAGLE's and EAGLE3's one decoder layer as a model of its own, and what surrounds it; Medusa's blocks.

EAGLE: fc of 2 h to h over token and hidden state, a layer without its first norm; embedding and head are the target's.
EAGLE3: fc of 3 hidden states of the target to h, a layer whose q, k and v read 2 h, a norm more; a head over
draft_vocab_size of its own, with the target's number of each of its tokens (d2t).
Medusa: for each token ahead residual blocks of h to h and a head; no cache.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.catalog import load_model
from calculator.datafiles import read_json
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.names import key
from calculator.quantization import Stored
from calculator.quantization.hf import quantize
from calculator.readers.hf_config import model_from_config, read_config
from calculator.readers.untrusted import local_path
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
    """A head by its Hugging Face id where data/heads.json has it, or the path of its config.json or of its folder. Raises NotModelled for one of an unread kind.

    The config may wrap the layer's: as speculators do (transformer_layer_config), or vLLM's eagle type (model).
    """
    config = head_config(name)
    inner = next((config[k] for k in ("transformer_layer_config", "model") if isinstance(config.get(k), dict)), config)
    spec = model_from_config(inner, id=name[-80:])
    config = {**inner, **{k: config[k] for k in ("draft_vocab_size", "target_hidden_size") if config.get(k) is not None}}
    if spec.model_type not in TYPES or spec.mla or spec.num_experts or spec.vision_parameters or spec.recurrent or spec.by_layer:
        raise NotModelled(f"a head of {spec.model_type}", allowed=f"config.json of a head of type {', '.join(TYPES)}", hint="a dense head")
    return Head(spec, _whole(config, "draft_vocab_size", name) or 0, _whole(config, "target_hidden_size", name) or spec.hidden_size, bool(config.get("bias")))


def _whole(config: dict[str, Any], field: str, name: str) -> int | None:
    value = config.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**24:
        raise BadValue(f"{name[-80:]}: {field} {str(value)[:30]!r} is not a whole number from 1", hint="the head's config.json as published")
    return value


def head_config(name: str) -> dict[str, Any]:
    """The config of a head by name or path; of a whole model where its name is the catalog's."""
    found: dict[str, Any] | None = published_heads().get(key(name))
    if found is not None:
        return dict(found["config"])
    if name.endswith(".json") or name.startswith((".", "/", "~")):
        return read_config(local_path(name))
    return dict(load_model(name).record["config"])


@lru_cache(maxsize=1)
def published_heads() -> dict[str, dict[str, Any]]:
    """Records of data/heads.json by name."""
    return {key(record["id"]): record for record in read_json("heads.json")["heads"]}


def name_of(name: str) -> str:
    """What a server is told to load: the Hugging Face id, or the folder."""
    found = published_heads().get(key(name))
    return str(found["id"]) if found else name.removesuffix("/config.json")


class Medusa(NamedTuple):
    """Medusa's heads: blocks and vocabulary."""

    hidden_size: int
    layers: int
    vocab_size: int
    one_head: bool
    bias: bool


@lru_cache(maxsize=32)
def load_medusa(name: str) -> Medusa:
    """Medusa's heads by the path of their config.json. Raises BadValue for another kind of config."""
    config = head_config(name)
    layers = next((v for k, v in config.items() if "num" in k and "layers" in k), 1)
    vocabulary = config.get("truncated_vocab_size") or config.get("vocab_size")
    width = config.get("hidden_size")
    if config.get("model_type") != "medusa" or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < most for n, most in ((width, 2**20), (layers, 33), (vocabulary, 2**24))):
        raise BadValue(f"{name[-80:]} is no config of Medusa's heads", hint='config.json with "model_type": "medusa", hidden_size and vocab_size')
    return Medusa(int(width), int(layers), int(vocabulary), bool(config.get("original_lm_head")), bool(config.get("medusa_fc_bias")))  # type: ignore[arg-type]


def medusa_groups(medusa: Medusa, *, heads: int, ranks: int) -> Inventory:
    """Tensors of Medusa's heads on one rank: blocks whole, heads divided.

    n (L (h, h) + (V / ranks, h)) for n tokens ahead; one head for all where it is the target's kept apart.       derived

    Source: vllm v0.11.0 and v0.19.0 model_executor/models/medusa.py; v0.19.0 config/speculative.py: as many heads as num_speculative_tokens.
    """
    h, count = medusa.hidden_size, heads * medusa.layers
    groups = [TensorGroup("blocks.{layer}.weight", (h, h), "projection", count), TensorGroup("lm_heads.{layer}.weight", (-(-medusa.vocab_size // ranks), h), "output", 1 if medusa.one_head else heads)]
    return Inventory((*groups, TensorGroup("blocks.{layer}.bias", (h,), "bias", count)) if medusa.bias else tuple(groups), tied=False)


def check_head(head: Head, *, name: str, eagle3: bool, target: ModelSpec) -> None:
    """Refuse a file that is no head of this target."""
    spec = head.spec
    if spec.num_hidden_layers > 4 or (eagle3 and spec.num_hidden_layers != 1):
        if spec.num_hidden_layers > 4:
            raise BadValue(f"{name[-80:]} has {spec.num_hidden_layers} layers: a model, no head", hint="the head's own config.json, or a whole model as the draft")
        raise Unsupported("EAGLE3 currently only supports 1 layer", hint="a head of one layer")
    if head.target_hidden_size != target.hidden_size:
        raise BadValue(f"a head for states of {head.target_hidden_size} beside a target of {target.hidden_size}", hint="the target's own head")
    if head.draft_vocab_size > spec.vocab_size:
        raise BadValue(f"{name[-80:]}: draft_vocab_size {head.draft_vocab_size:,} of {spec.vocab_size:,} tokens", hint="the head's config.json as published")
    if spec.vocab_size != target.vocab_size:
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
