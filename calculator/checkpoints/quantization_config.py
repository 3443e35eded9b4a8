"""`quantization_config` of a config.json -> the scheme that its checkpoint is stored in, or a refusal that says why.

A config says how linear layers were quantized and which were left out. What the storage functions of quantization/hf.py
lay out is sized from the config alone; anything else needs the files' own headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from calculator.architectures import build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.errors import CalculatorError, NotModelled, UnreadableFile
from calculator.quantization import Scheme, experts_alone, parse
from calculator.readers.untrusted import quoted
from calculator.spec import ModelSpec

Config = Mapping[str, Any]
_INDEX = re.compile(r"\.\d+(?=\.|$)")
_IN_ORDER = (None, False, "weight", "static")  # activation orders that store no index of columns
_HEADERS = "the folder with its .safetensors files, whose headers say what is stored, or --quant naming a format"


def scheme_of(config: Config, *, id: str) -> Scheme:
    """The scheme of a quantization_config. Raises NotModelled with the reason, UnreadableFile for nonsense."""
    method = config.get("quant_method")
    if method is None and ("load_in_4bit" in config or "load_in_8bit" in config):
        method = "bitsandbytes"
    if not isinstance(method, str):
        raise UnreadableFile(f"{id}: quantization_config has no quant_method", hint="the config.json as published")
    read = _METHODS.get(method.lower().replace("_", "-"))
    if read is None:
        raise NotModelled(f"{id}: quant_method {quoted(method)} has no layout here", allowed=", ".join(_METHODS), hint=_HEADERS)
    name = read(config, id)
    try:
        return parse(name)
    except CalculatorError as e:
        raise NotModelled(f"{id}: {method} as {name}: {e.given}", allowed=e.allowed, hint=_HEADERS) from None


def check_left_out(config: Config, model: ModelSpec, scheme: Scheme, *, id: str) -> None:
    """Refuse a config that leaves some of the decoder's linear layers unquantized: which ones, its headers say.

    But for a format that its makers give to the routed experts alone (Kimi K2): all the others have to be left out there.

    Names may be module names, their ends, or `re:` patterns, as compressed-tensors and transformers read them.
    """
    inner = config.get("quantization")
    left = [name for part in (config, inner if isinstance(inner, dict) else {}) for key in ("modules_to_not_convert", "ignore", "ignored_layers", "llm_int8_skip_modules", "exclude", "exclude_modules")
            for name in _names(part.get(key), id)]  # fmt: skip
    linear = [(g.name.removesuffix(".weight"), len(g.shape) == 3) for g in build_inventory(model).groups if g.role in LINEAR_ROLES]
    modules = [m for m, _ in linear]
    if left and experts_alone(model, scheme):
        if hit := next((m for m, expert in linear if any(_matches(pattern, m) for pattern in left) == expert), None):
            raise NotModelled(f"{id}: its quantization_config quantizes other layers than the experts alone: {hit.replace('{layer}', 'N')}", hint=_HEADERS)
        return
    for pattern in left:
        if hit := next((m for m in modules if _matches(pattern, m)), None):
            raise NotModelled(f"{id}: its quantization_config leaves out {quoted(pattern)}, which covers {hit.replace('{layer}', 'N')}", hint=_HEADERS)


def _names(value: Any, id: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value) or len(value) > 10_000:
        raise UnreadableFile(f"{id}: modules left out of quantization aren't a list of names", hint="the config.json as published")
    return value


def _matches(pattern: str, module: str) -> bool:
    """Whether a pattern covers a module of some layer. One that could take long to try counts as covering it."""
    if not pattern.startswith("re:") and "*" not in pattern:
        wanted = _INDEX.sub(".{layer}", pattern)
        return wanted in (module, *module.split(".")) or module.startswith(wanted + ".") or module.endswith("." + wanted)
    expression = pattern.removeprefix("re:") if pattern.startswith("re:") else re.escape(pattern).replace(r"\*", ".*")
    if len(expression) > 300 or len(re.findall(r"[*+{?]", expression)) > 4 or re.search(r"\)[*+{?]", expression):
        return True
    try:
        compiled = re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return True
    layers = {"0", "1", *re.findall(r"\d{1,5}", expression)}
    return any(compiled.match(module.replace("{layer}", layer)) for layer in layers)


def _gptq(config: Config, id: str) -> str:
    if config.get("dynamic"):
        raise NotModelled(f"{id}: GPTQ with rules a module ('dynamic')", hint=_HEADERS)
    return f"gptq-int{_number(config, 'bits', id)}-g{_number(config, 'group_size', id)}"


def _awq(config: Config, id: str) -> str:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise NotModelled(f"{id}: AWQ version {quoted(version)} is packed differently from gemm", hint=_HEADERS)
    bits = "bits" if "bits" in config else "w_bit"
    group = "group_size" if "group_size" in config else "q_group_size"
    return f"awq-int{_number(config, bits, id)}-g{_number(config, group, id)}"


def _bitsandbytes(config: Config, id: str) -> str:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return "bnb-int8"
    kind = config.get("bnb_4bit_quant_type", "fp4")
    if not (config.get("load_in_4bit") or config.get("_load_in_4bit")) or kind not in ("nf4", "fp4"):
        raise NotModelled(f"{id}: bitsandbytes of type {quoted(str(kind))}", allowed="8 bits, nf4, fp4", hint=_HEADERS)
    return f"bnb-{kind}" + ("-dq" if config.get("bnb_4bit_use_double_quant") else "")


def _compressed_tensors(config: Config, id: str) -> str:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(g, dict) for g in groups.values()):
        raise UnreadableFile(f"{id}: quantization_config has no config_groups", hint="the config.json as published")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise NotModelled(f"{id}: sparse compressed-tensors are stored differently", hint=_HEADERS)
    kinds = {_compressed(group, id) for group in groups.values()}
    if len(kinds) > 1:
        raise NotModelled(f"{id}: compressed-tensors groups of several formats ({', '.join(sorted(kinds))})", hint=_HEADERS)
    return kinds.pop()


def _compressed(group: dict[str, Any], id: str) -> str:
    w, x = group.get("weights"), group.get("input_activations")
    if not isinstance(w, dict) or (x is not None and not isinstance(x, dict)):
        raise NotModelled(f"{id}: compressed-tensors without quantized weights", hint=_HEADERS)
    kind = (w.get("type", "int"), w.get("num_bits"), w.get("strategy"))
    static = x is not None and not x.get("dynamic")
    if kind == ("float", 8, "tensor"):
        return "fp8" if static else "fp8-dynamic"
    if kind == ("float", 8, "channel") and not static:
        return "fp8-per-channel"
    if kind == ("float", 8, "block") and w.get("block_structure") in ([128, 128], "128x128"):
        return "fp8-block"
    if kind == ("int", 8, "channel") and x is not None and not static and w.get("symmetric", True):
        return "int8-w8a8"
    if kind[:2] == ("float", 4) and kind[2] == "tensor_group" and w.get("group_size") == 16 and x is not None:
        return "nvfp4"
    if kind[0] == "int" and kind[2] in ("group", "channel") and x is None and w.get("symmetric", True) and w.get("actorder") in _IN_ORDER:
        size = w.get("group_size") if kind[2] == "group" else -1
        return f"w{kind[1]}a16-g{size}"
    shown = f"{w.get('num_bits')}-bit {w.get('type', 'int')} weights by {w.get('strategy')}"
    raise NotModelled(f"{id}: compressed-tensors with {shown[:60]} have no layout here", hint=_HEADERS)


def _fp8(config: Config, id: str) -> str:
    block, scheme = config.get("weight_block_size"), config.get("activation_scheme", "dynamic")
    if block is not None:
        if block != [128, 128] or scheme != "dynamic":
            raise NotModelled(f"{id}: fp8 in blocks of {str(block)[:30]} with {str(scheme)[:20]} activations", allowed="[128, 128], dynamic", hint=_HEADERS)
        return "fp8-block"
    if scheme not in ("static", "dynamic"):
        raise NotModelled(f"{id}: fp8 with activation_scheme {quoted(str(scheme))}", allowed="static, dynamic", hint=_HEADERS)
    return "fp8" if scheme == "static" else "fp8-dynamic"


def _mxfp4(config: Config, id: str) -> str:  # noqa: ARG001
    return "mxfp4"


def _modelopt(config: Config, id: str) -> str:
    inner = config.get("quantization")
    algo = str((inner if isinstance(inner, dict) else config).get("quant_algo") or "").upper()
    if algo not in ("FP8", "NVFP4"):
        raise NotModelled(f"{id}: modelopt's quant_algo {quoted(algo)}", allowed="FP8, NVFP4", hint=_HEADERS)
    return {"FP8": "fp8", "NVFP4": "nvfp4"}[algo]


def _quark(config: Config, id: str) -> str:
    if config.get("layer_quant_config") or config.get("layer_type_quant_config"):
        raise NotModelled(f"{id}: quark with a configuration a layer", hint=_HEADERS)
    whole = config.get("global_quant_config")
    w, x = (whole.get("weight"), whole.get("input_tensors")) if isinstance(whole, dict) else (None, None)
    kind = (w.get("dtype"), w.get("qscheme")) if isinstance(w, dict) else (None, None)
    if kind == ("fp8_e4m3", "per_tensor"):
        return "fp8" if isinstance(x, dict) and not x.get("is_dynamic") else "fp8-dynamic"
    if isinstance(w, dict) and kind == ("fp4", "per_group") and w.get("group_size") == 32 and w.get("scale_format") == "e8m0":
        return "mxfp4"
    raise NotModelled(f"{id}: quark weights of {quoted(f'{kind[0]} {kind[1]}')}", allowed="fp8_e4m3 per_tensor, fp4 per_group of 32", hint=_HEADERS)


def _number(config: Config, key: str, id: str) -> int:
    value = config.get(key)
    if type(value) is not int or not -1 <= value <= 2**16:
        raise UnreadableFile(f"{id}: quantization_config's {key} {str(value)[:20]!r} is not a number", hint="the config.json as published")
    return value


_METHODS: dict[str, Callable[[Config, str], str]] = {
    "gptq": _gptq, "awq": _awq, "bitsandbytes": _bitsandbytes, "compressed-tensors": _compressed_tensors, "fp8": _fp8, "mxfp4": _mxfp4,
    "modelopt": _modelopt, "quark": _quark,
}  # fmt: skip
