"""What a quantization_config stores otherwise than the rest: modules left in 16 bits, and groups of other formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from calculator.architectures import build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.checkpoints.modules import HEADERS, Selector, covered, selector
from calculator.errors import CalculatorError, NotModelled, UnreadableFile
from calculator.quantization import Apart, Scheme, parse
from calculator.readers.untrusted import quoted
from calculator.spec import ModelSpec

Config = Mapping[str, Any]
_LEFT_OUT = ("modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules", "exclude", "exclude_modules")
EVERY = "Linear"  # a target that is a class: every linear layer


class Rule(NamedTuple):
    """Modules in a format of their own: a name of --quant, or "" for 16 bits."""

    chosen: Selector
    quant: str


def apart_of(config: Config, scheme: Scheme, targets: Mapping[str, list[str]], model: ModelSpec, *, id: str) -> tuple[Apart, ...]:
    """The groups of tensors that this config doesn't store by `scheme`. `targets` are modules of each format, where the config names them.

    What is left out comes first, then a module's own format, then the one of every linear layer. An output head is quantized
    where it is named alone. Raises NotModelled with the reason, UnreadableFile for nonsense.
    """
    method = str(config.get("quant_method", "")).lower()
    left = Rule(selector(_left_out(config, id), inside=method not in ("compressed-tensors", "auto-round"), id=id), "")
    rules = [left, *_by_rule(config, id)]
    rules += [Rule(selector([n for n in names if n != EVERY], inside=method != "compressed-tensors", id=id), quant) for quant, names in targets.items()]
    rest = scheme.name if not targets else next((quant for quant, names in targets.items() if EVERY in names), "")
    made: list[Apart] = []
    for group in build_inventory(model).groups:
        if group.role not in LINEAR_ROLES and group.role != "output":
            continue
        default = rest if group.role in LINEAR_ROLES else scheme.name if config.get("lm_head") is True else ""
        open_to = group.indices
        for rule in rules:
            found = None if rule.chosen.empty else covered(rule.chosen, group, id=id)
            if found is None:
                continue
            if not group.layers:
                default = rule.quant
                break
            mine = tuple(i for i in open_to if i in set(found))
            open_to = tuple(i for i in open_to if i not in set(mine))
            if mine and rule.quant != scheme.name:
                made.append(Apart(group.name, mine, rule.quant))
        plain = scheme.name if group.role in LINEAR_ROLES else ""
        if default != plain and (open_to or not group.layers):
            made.append(Apart(group.name, open_to, default))
    return tuple(made)


def _left_out(config: Config, id: str) -> list[str]:
    inner = config.get("quantization")
    return [name for part in (config, inner if isinstance(inner, dict) else {}) for key in _LEFT_OUT for name in _names(part.get(key), id)]


def _by_rule(config: Config, id: str) -> list[Rule]:
    """GPTQModel's `dynamic` and AutoRound's `extra_config`: names or patterns with bits of their own."""
    found = []
    for key in ("dynamic", "extra_config"):
        given = config.get(key) or {}
        if not isinstance(given, dict) or len(given) > 10_000:
            raise UnreadableFile(f"{id}: quantization_config's {key} isn't an object of names", hint="the config.json as published")
        for name, value in given.items():
            quant = _own_bits(name, value, config, id)
            if quant is None:
                continue
            pattern = name.removeprefix("-:").removeprefix("+:")
            as_pattern = key == "dynamic" or any(c in pattern for c in "*^$\\[(")
            found.append(Rule(selector([f"re:{pattern}" if as_pattern else pattern], inside=False, id=id), quant))
    return found


def _own_bits(name: str, value: Any, config: Config, id: str) -> str | None:
    """The format of a rule: "" for 16 bits, None where it changes nothing."""
    if name.startswith("-:"):
        return ""
    if not isinstance(value, dict) or not value.keys() & {"bits", "group_size"}:
        return None
    bits, size = value.get("bits", config.get("bits")), value.get("group_size", config.get("group_size"))
    if bits in (16, 32):
        return ""
    if (bits, size) == (config.get("bits"), config.get("group_size")):
        return None
    try:
        return parse(f"gptq-int{bits}-g{size}").name
    except CalculatorError:
        raise NotModelled(f"{id}: {quoted(name)} in {str(bits)[:9]} bits in groups of {str(size)[:9]}", hint=HEADERS) from None


def _names(value: Any, id: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(value) > 10_000:
        raise UnreadableFile(f"{id}: modules left out of quantization aren't a list of names", hint="the config.json as published")
    return value
