"""Names that a quantization_config gives to modules -> the groups of tensors that they mean, and the layers of each.

Source: vllm v0.19.0 layers/quantization/compressed_tensors/utils.py should_ignore_layer, find_matched_target; utils/quant_utils.py
is_layer_skipped; modelopt.py is_layer_excluded; utils/gptq_utils.py get_dynamic_override.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from calculator.architectures import TensorGroup
from calculator.errors import NotModelled
from calculator.readers.untrusted import quoted

HEADERS = "the folder with its .safetensors files, whose headers say what is stored, or --quant naming a format"
_WRAPPERS = ("model.language_model.", "language_model.model.")  # before the layers of a model with a tower
_FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
          "in_proj_qkv": "in_proj_qkvz", "in_proj_z": "in_proj_qkvz", "in_proj_a": "in_proj_ba", "in_proj_b": "in_proj_ba"}  # fmt: skip
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_EXPERT = re.compile(r"\.experts\.\d{1,5}(?=\.)")


class Selector(NamedTuple):
    """Modules by name and by pattern. `inside`: a name stands for all below it, and a part of a name for all that hold it."""

    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    experts: Counter[str]  # names of single experts, without their number
    inside: bool

    @property
    def empty(self) -> bool:
        """Whether it covers nothing."""
        return not (self.names or self.patterns or self.experts)


def selector(names: Iterable[str], *, inside: bool, id: str) -> Selector:
    """A selector of names, of `re:` patterns and of names with `*`. Raises NotModelled for a pattern that could take long to try."""
    exact, patterns, experts = set(), [], Counter[str]()
    for name in names:
        if name.startswith("re:") or "*" in name:
            patterns.append(_compiled(name, id))
        elif (whole := _EXPERT.sub(".experts", canonical(name))) != canonical(name):
            experts[whole] += 1
        else:
            exact.add(canonical(name))
    return Selector(frozenset(exact), tuple(patterns), experts, inside)


def covered(chosen: Selector, group: TensorGroup, *, id: str) -> tuple[int, ...] | None:
    """Layers whose module it covers; () for a module outside the layers, None where it covers none.

    Raises NotModelled where it covers some experts of a layer alone.
    """
    if not group.layers:
        return () if _covers(chosen, group, "", id) else None
    if not chosen.names and not chosen.experts and not any(re.search(r"[\d\[]", p.pattern) for p in chosen.patterns):
        return group.indices if _covers(chosen, group, "0", id) else None  # the same for every layer
    return tuple(i for i in group.indices if _covers(chosen, group, str(i), id)) or None


def canonical(name: str) -> str:
    """A module's name without what wraps a model with a tower."""
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper):
            return "model." + name.removeprefix(wrapper)
    return name.removeprefix("language_model.").rstrip(".")


def _covers(chosen: Selector, group: TensorGroup, layer: str, id: str) -> bool:
    module = group.name.removesuffix(".weight").replace("{layer}", layer)
    spelled = tuple(_spellings(module))
    if chosen.names and any(run in chosen.names for name in spelled for run in (_runs(name) if chosen.inside else (name,))):
        return True
    if chosen.experts and len(group.shape) == 3 and (found := max(chosen.experts[name] for name in spelled)):
        if found < group.shape[0]:
            raise NotModelled(f"{id}: its quantization_config treats some experts of {module} apart", hint=HEADERS)
        return True
    if not chosen.patterns:
        return False
    tried = [*spelled, *(s.replace(".experts.", ".experts.0.") for s in spelled if ".experts." in s)]
    tried += [wrapper + s.removeprefix("model.") for s in tried if s.startswith("model.") for wrapper in _WRAPPERS]
    return any(p.match(name) for p in chosen.patterns for name in tried)


def _spellings(module: str) -> Iterator[str]:
    """The name, and what others call it: fused by an engine, as Mixtral's and Kimi Linear's checkpoints do."""
    stem, _, last = module.rpartition(".")
    stems = [stem, *([stem.replace(".mlp", ".block_sparse_moe")] if ".mlp" in stem else []), *([stem.replace(".forget_gate", "")] if stem.endswith(".forget_gate") else [])]
    for each in stems:
        yield f"{each}.{last}" if each else last
        if last in _FUSED:
            yield f"{each}.{_FUSED[last]}"
        if last in _MIXTRAL and each.endswith(".experts"):
            yield f"{each}.{_MIXTRAL[last]}"


def _runs(name: str) -> Iterator[str]:
    """Every run of a name's parts."""
    parts = name.split(".")
    for start in range(len(parts)):
        for stop in range(start + 1, len(parts) + 1):
            yield ".".join(parts[start:stop])


def _compiled(name: str, id: str) -> re.Pattern[str]:
    expression = name.removeprefix("re:") if name.startswith("re:") else re.escape(name).replace(r"\*", ".*") + "$"
    slow = len(expression) > 300 or len(re.findall(r"[*+{?]", expression)) > 4 or re.search(r"\)[*+{?]", expression)
    if not slow:
        try:
            return re.compile(expression)
        except (re.error, RecursionError, OverflowError):
            pass
    raise NotModelled(f"{id}: the pattern {quoted(name)} of its quantization_config isn't tried", hint=HEADERS)
