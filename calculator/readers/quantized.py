"""The quantization_config of a checkpoint that is already quantized: the name of the scheme that it is stored in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from calculator.errors import NotModelled

_LEFT = re.compile(r"(^|\.)(lm_head|embed_tokens|[a-z_]*norm|mlp\.gate|gate|e_score_correction_bias|visual)(\.|$)")  # never quantized anyway
UNKNOWN = "?"  # before the method's name: read, but its sizes aren't known here


def checkpoint_scheme(config: Mapping[str, Any], id: str) -> str:
    """The --quant name of the checkpoint's own format; "" where it isn't quantized, "?METHOD" where its format has no name here.

    Raises NotModelled for a quantization_config that doesn't name a method.
    """
    settings = config.get("quantization_config")
    if settings is None:
        return ""
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str):
        raise NotModelled(f"{id}: config of an already quantized checkpoint that doesn't say how (quant_method)",
                          hint="the config.json of the unquantized model, with --quant naming the format")  # fmt: skip
    if method == "mxfp4" and config.get("model_type") == "gpt_oss":
        return "mxfp4"
    found = _FORMATS.get(method.lower(), _none)(settings)
    return found or UNKNOWN + method[:40]


def _none(_: Mapping[str, Any]) -> str:
    return ""


def _gptq(s: Mapping[str, Any]) -> str:
    bits, group = s.get("bits"), s.get("group_size")
    return f"gptq-int{bits}-g{group}" if bits in (2, 3, 4, 8) and isinstance(group, int) else ""


def _awq(s: Mapping[str, Any]) -> str:
    bits, group = s.get("bits", s.get("w_bit")), s.get("group_size", s.get("q_group_size"))
    return f"awq-int{bits}-g{group}" if bits in (4, 8) and isinstance(group, int) and s.get("version", "gemm") in ("gemm", "GEMM") else ""


def _bitsandbytes(s: Mapping[str, Any]) -> str:
    if s.get("load_in_8bit"):
        return "bnb-int8"
    kind = s.get("bnb_4bit_quant_type", "fp4")
    if not s.get("load_in_4bit") or kind not in ("nf4", "fp4"):
        return ""
    return f"bnb-{kind}" + ("-dq" if s.get("bnb_4bit_use_double_quant") else "")


def _compressed_tensors(s: Mapping[str, Any]) -> str:
    """One group of linear layers, their weights of one kind, the head left alone: what the names here describe."""
    groups = s.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        return ""
    group = next(iter(groups.values()))
    weights, inputs = (group.get("weights"), group.get("input_activations")) if isinstance(group, dict) else (None, None)
    if not isinstance(weights, dict) or group.get("targets") != ["Linear"] or s.get("ignore") not in (["lm_head"], None, []):
        return ""
    kind = f"{weights.get('type')} {weights.get('num_bits')} {weights.get('strategy')}"
    if not isinstance(inputs, dict):
        return ""
    if kind == "float 8 tensor" and not inputs.get("dynamic"):
        return "fp8"
    return {"float 8 channel": "fp8-per-channel", "int 8 channel": "int8-w8a8"}.get(kind, "")


def _fp8(s: Mapping[str, Any]) -> str:
    """Blocks of 128 x 128, with nothing left out that the decoder's linear layers are made of."""
    left = s.get("modules_to_not_convert") or []
    known = isinstance(left, list) and all(isinstance(name, str) and _LEFT.search(name) for name in left)
    return "fp8-block" if s.get("weight_block_size") == [128, 128] and known else ""


_FORMATS = {"gptq": _gptq, "awq": _awq, "bitsandbytes": _bitsandbytes, "compressed-tensors": _compressed_tensors, "fp8": _fp8}
