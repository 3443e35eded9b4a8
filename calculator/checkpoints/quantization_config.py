"""`quantization_config` of a config.json -> the scheme that its checkpoint is stored in, or a refusal that says why.

A config says how linear layers were quantized and which were left out. What the storage functions of quantization/hf.py
lay out is sized from the config alone; anything else needs the files' own headers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calculator.checkpoints.apart import EVERY, apart_of
from calculator.checkpoints.modules import HEADERS as _HEADERS
from calculator.errors import CalculatorError, NotModelled, UnreadableFile
from calculator.quantization import Apart, Scheme, parse
from calculator.readers.untrusted import quoted
from calculator.spec import ModelSpec

Config = Mapping[str, Any]
_IN_ORDER = (None, False, "weight", "static")  # activation orders that store no index of columns


def scheme_of(config: Config, model: ModelSpec, *, id: str) -> Scheme:
    """The scheme of a quantization_config, and what it stores apart. Raises NotModelled with the reason, UnreadableFile for nonsense."""
    method = config.get("quant_method")
    if method is None and ("load_in_4bit" in config or "load_in_8bit" in config):
        method = "bitsandbytes"
    if not isinstance(method, str):
        raise UnreadableFile(f"{id}: quantization_config has no quant_method", hint="the config.json as published")
    read = _METHODS.get(method.lower().replace("_", "-"))
    if read is None:
        raise NotModelled(f"{id}: quant_method {quoted(method)} has no layout here", allowed=", ".join(_METHODS), hint=_HEADERS)
    found = read(config, id)
    targets = found if isinstance(found, dict) else {}
    name = next((quant for quant, names in targets.items() if EVERY in names), next(iter(targets))) if isinstance(found, dict) else found
    try:
        scheme = parse(name)
    except CalculatorError as e:
        raise NotModelled(f"{id}: {method} as {name}: {e.given}", allowed=e.allowed, hint=_HEADERS) from None
    apart = apart_of(config, scheme, targets, model, id=id)
    return scheme._replace(apart=apart, rule=f"{scheme.rule}; {_told(apart)}" if apart else scheme.rule, declared_cache=declared_cache(config))


def declared_cache(config: Config) -> str:
    """The method whose config declares a cache of 8 bits, `modelopt-nvfp4` for one of 4; empty for none, and for what no server reads.

    Source: vllm v0.33.0 utils/torch_utils.py L443-515, model_executor/layers/attention/attention.py L287; sglang v0.5.3
    srt/model_executor/model_runner.py L1399, srt/layers/quantization/modelopt_quant.py L146-162, L598-620.
    """
    method, inner = str(config.get("quant_method", "")).lower(), config.get("quantization")
    parts = (inner, config) if isinstance(inner, dict) else (config,)
    said = next((part[key] for key in ("kv_cache_scheme", "kv_cache_quant_algo") for part in parts if part.get(key)), None)
    if isinstance(said, dict):
        said = f"{said.get('type')} {said.get('num_bits')}" if not said.get("dynamic") else None
    kind = {"fp8": "fp8", "float 8": "fp8", "nvfp4": "nvfp4", "float 4": "nvfp4"}.get(str(said).lower())
    if method.startswith("modelopt"):
        return {"fp8": "modelopt", "nvfp4": "modelopt-nvfp4", None: ""}[kind]
    return method if method == "compressed-tensors" and kind == "fp8" else ""


def _told(apart: tuple[Apart, ...]) -> str:
    """What the config stores apart, in a line."""
    kinds: dict[str, list[str]] = {}
    for each in apart:
        kinds.setdefault(each.quant or "16 bits", []).append(each.group.removesuffix(".weight").rpartition("{layer}.")[2])
    return "; ".join(f"by its config in {kind}: {', '.join(dict.fromkeys(names))}" for kind, names in kinds.items())


def _gptq(config: Config, id: str) -> str:
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


def _compressed_tensors(config: Config, id: str) -> dict[str, list[str]]:
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(g, dict) for g in groups.values()):
        raise UnreadableFile(f"{id}: quantization_config has no config_groups", hint="the config.json as published")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise NotModelled(f"{id}: sparse compressed-tensors are stored differently", hint=_HEADERS)
    return _targets(groups, id)


def _targets(groups: Config, id: str) -> dict[str, list[str]]:
    """Modules of each format of config_groups."""
    found: dict[str, list[str]] = {}
    for group in groups.values():
        named = group.get("targets", [EVERY])
        if not isinstance(named, list) or not all(isinstance(t, str) for t in named) or len(named) > 10_000:
            raise UnreadableFile(f"{id}: targets of a config group aren't a list of names", hint="the config.json as published")
        found.setdefault(_compressed(group, id), []).extend(named)
    return found


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


def _auto_round(config: Config, id: str) -> str:
    packing = str(config.get("packing_format", config.get("backend", "auto_round"))).lower()
    if "awq" not in packing and "gptq" not in packing and packing not in ("auto_round", "auto"):
        raise NotModelled(f"{id}: AutoRound packed as {quoted(packing)}", allowed="auto_gptq, auto_awq", hint=_HEADERS)
    if str(config.get("data_type", "int")) != "int":
        raise NotModelled(f"{id}: AutoRound of {quoted(str(config['data_type']))}", allowed="int", hint=_HEADERS)
    return f"{'awq' if 'awq' in packing else 'gptq'}-int{_number(config, 'bits', id)}-g{_number(config, 'group_size', id)}"


_ALGORITHMS = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4"}


def _modelopt(config: Config, id: str) -> str | dict[str, list[str]]:
    inner = config.get("quantization")
    said = inner if isinstance(inner, dict) else config
    algo = str(said.get("quant_algo") or "").upper()
    layers = said.get("quantized_layers")
    if algo == "MIXED_PRECISION" and isinstance(layers, dict) and layers and len(layers) <= 10_000:
        found: dict[str, list[str]] = {}
        for name, own in layers.items():
            each = str(own.get("quant_algo") or "").upper() if isinstance(own, dict) else ""
            if name.startswith(("mtp.", "model.mtp.")) or each == "UNQUANTIZED":
                continue
            found.setdefault(_algorithm(each, id), []).append(name)
        return dict(sorted(found.items(), key=lambda item: item[0] != "nvfp4"))  # named after what most of it is
    return _algorithm(algo, id)


def _algorithm(algo: str, id: str) -> str:
    if algo not in _ALGORITHMS:
        raise NotModelled(f"{id}: modelopt's quant_algo {quoted(algo)}", allowed="FP8, NVFP4, MIXED_PRECISION of these", hint=_HEADERS)
    return _ALGORITHMS[algo]


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


_METHODS: dict[str, Callable[[Config, str], str | dict[str, list[str]]]] = {
    "gptq": _gptq, "awq": _awq, "bitsandbytes": _bitsandbytes, "compressed-tensors": _compressed_tensors, "fp8": _fp8, "mxfp4": _mxfp4,
    "modelopt": _modelopt, "quark": _quark, "auto-round": _auto_round,
}  # fmt: skip
