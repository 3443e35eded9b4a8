"""Names of --quant -> Scheme: which engines run it and how it stores an inventory."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from calculator.architectures import build_inventory
from calculator.errors import UnknownName
from calculator.names import nearest
from calculator.quantization import exl2, gguf, gguf_types, hf
from calculator.quantization.stored import Part, Stored, StoredGroup, stored_nbytes
from calculator.spec import ModelSpec

__all__ = ["CATALOG", "Apart", "Part", "Scheme", "Stored", "StoredGroup", "compute_dtype", "parse", "quantize", "stored_nbytes"]

SERVERS = ("transformers", "vllm", "sglang")
TORCHAO = ("transformers", "vllm")  # sglang quantizes 16-bit weights on the card (--torchao-config), until 0.5.17: srt/layers/torchao_utils.py
LINEAR_RULE = "linear layers of the decoder quantized; embeddings, lm_head, norms and biases stay 16-bit"
GGUF_RULE = (
    "matrices by llama-quantize's rules for each tensor and layer; norms and biases F32; "
    "output (or tied embedding) kept wider"
)


class Apart(NamedTuple):
    """Tensors of a group, in these layers, in a format of their own: a name of --quant, or "" for 16 bits. () is outside the layers."""

    group: str
    layers: tuple[int, ...]
    quant: str


class Scheme(NamedTuple):
    """One way to store a model. `storage` is None for GGUF recipes, EXL2 and plain types."""

    name: str
    family: str
    engines: tuple[str, ...]
    rule: str
    source: str
    storage: hf.Storage | None = None
    dtype: str | None = None  # plain types: the type of everything; else None: the checkpoint's 16-bit type
    recipe: str = ""  # GGUF recipe
    bits: float = 0.0  # EXL2 bits a weight
    apart: tuple[Apart, ...] | None = None  # what is stored otherwise; None where no config says
    assumed: bool = False  # `apart` is what publishers commonly do, not what this checkpoint says
    declared_cache: str = ""  # the method whose config declares an fp8 cache: modelopt, compressed-tensors; modelopt-nvfp4 for a 4-bit one


def _plain(name: str, dtype: str) -> Scheme:
    return Scheme(name, "plain", SERVERS, "every tensor in this type", "safetensors dtypes", dtype=dtype)


def _linear(name: str, storage: hf.Storage, engines: tuple[str, ...], source: str) -> Scheme:
    return Scheme(name, "linear", engines, LINEAR_RULE, source, storage=storage)


def _gguf_rule(recipe: str) -> str:
    if recipe in gguf_types.WIDE_OUTER:
        return f"as {gguf_types.WIDE_OUTER[recipe]}, but output and embedding Q8_0: a publisher's name, not llama-quantize's"
    return GGUF_RULE


_BNB = "bitsandbytes 0.50.2"
_FIXED: dict[str, Scheme] = {
    s.name.lower(): s
    for s in (
        _plain("fp32", "float32"),
        _plain("bf16", "bfloat16"),
        _plain("fp16", "float16"),
        _linear("fp8", hf.fp8_tensor, SERVERS, "compressed-tensors, FP8 per tensor"),
        _linear("fp8-dynamic", hf.fp8_dynamic, SERVERS, "vLLM and compressed-tensors, FP8 per tensor, dynamic inputs"),
        _linear("fp8-block", hf.fp8_block, SERVERS, "FP8 in blocks of 128 x 128: DeepSeek V3, transformers finegrained_fp8"),
        _linear("fp8-per-channel", hf.channel_8bit, SERVERS, "compressed-tensors, FP8 per channel"),
        _linear("fp8-block", hf.fp8_block, SERVERS, "DeepSeek-V3's FP8, blocks of 128 x 128"),
        _linear("int8-w8a8", hf.channel_8bit, SERVERS, "compressed-tensors, INT8 W8A8"),
        _linear("bnb-int8", hf.bnb_int8, SERVERS, _BNB),
        _linear("bnb-nf4", hf.storage_of(hf.bnb_4bit, double_quant=False), SERVERS, _BNB),
        _linear("bnb-nf4-dq", hf.storage_of(hf.bnb_4bit, double_quant=True), SERVERS, _BNB),
        _linear("bnb-fp4", hf.storage_of(hf.bnb_4bit, double_quant=False), SERVERS, _BNB),
        _linear("bnb-fp4-dq", hf.storage_of(hf.bnb_4bit, double_quant=True), SERVERS, _BNB),
        _linear("torchao-int8wo", hf.torchao_int8, TORCHAO, "torchao 0.18.0"),
        _linear("torchao-fp8wo", hf.torchao_fp8, TORCHAO, "torchao 0.18.0"),
        _linear("quanto-int8", hf.quanto_8bit, ("transformers",), "optimum-quanto"),
        _linear("quanto-int4", hf.quanto_4bit, ("transformers",), "optimum-quanto"),
        _linear("quanto-fp8", hf.quanto_8bit, ("transformers",), "optimum-quanto"),
        _linear("mxfp4", hf.mxfp4, SERVERS, "OCP Microscaling Formats v1.0"),
        _linear("nvfp4", hf.nvfp4, SERVERS, "compressed-tensors nvfp4-pack-quantized"),
    )
}
_RECIPES = {
    name.lower(): Scheme(name, "gguf", ("llama.cpp",), _gguf_rule(name), gguf_types.SOURCE, recipe=name)
    for name in (*gguf_types.RECIPES, *gguf_types.WIDE_OUTER)
}
# a plain type by its Hugging Face name, run by llama.cpp
_USUAL = {"gptq": "gptq-int4-g128", "awq": "awq-int4-g128", "int4": "awq-int4-g128", "w4a16": "w4a16-g128", "bnb": "bnb-nf4", "fp4": "nvfp4"}  # what people mean
_GGUF_ALIASES = {"fp32": "f32", "fp16": "f16"}


def _gptq(bits: int, group: int) -> Scheme:
    storage = hf.storage_of(hf.gptq, bits=bits, group=group)
    return _linear(f"gptq-int{bits}-g{group}", storage, SERVERS, "AutoGPTQ v1 layout")


def _awq(bits: int, group: int) -> Scheme:
    storage = hf.storage_of(hf.awq, bits=bits, group=group)
    return _linear(f"awq-int{bits}-g{group}", storage, SERVERS, "AutoAWQ GEMM layout")


def _packed(bits: int, group: int) -> Scheme:
    storage = hf.storage_of(hf.packed_int, bits=bits, group=group)
    return _linear(f"w{bits}a16-g{group}", storage, SERVERS, "compressed-tensors pack-quantized, symmetric")


def _hqq(bits: int, group: int) -> Scheme:
    storage = hf.storage_of(hf.hqq, bits=bits, group=group)
    return _linear(f"hqq-int{bits}-g{group}", storage, ("transformers", "vllm"), "hqq")


def _torchao_int4(_: int, group: int) -> Scheme:
    storage = hf.storage_of(hf.torchao_int4, group=group)
    return _linear(f"torchao-int4wo-g{group}", storage, TORCHAO, "torchao 0.18.0")


_GROUPED: tuple[tuple[str, frozenset[int], frozenset[int], Callable[[int, int], Scheme]], ...] = (
    (r"gptq-int(\d)-g(-?\d+)", frozenset({2, 3, 4, 8}), frozenset({-1, 16, 32, 64, 128, 256, 512, 1024}), _gptq),
    (r"awq-int(\d)-g(-?\d+)", frozenset({4, 8}), frozenset({-1, 16, 32, 64, 128, 256}), _awq),
    (r"w(\d)a16-g(-?\d+)", frozenset({4, 8}), frozenset({-1, 16, 32, 64, 128, 256}), _packed),
    (r"hqq-int(\d)-g(\d+)", frozenset({1, 2, 3, 4, 8}), frozenset({8, 16, 32, 64, 128, 256}), _hqq),
    (r"torchao-int(4)wo-g(\d+)", frozenset({4}), frozenset({32, 64, 128, 256}), _torchao_int4),
)

# one of each kind, in the order in which people look for them: what tables, sweeps and selectors offer
CATALOG: tuple[str, ...] = (
    "fp32", "bf16", "fp16", "fp8", "fp8-per-channel", "int8-w8a8", "bnb-int8", "torchao-int8wo", "torchao-fp8wo",
    "quanto-int8", "quanto-fp8", "gptq-int8-g-1", "gptq-int4-g128", "awq-int4-g128", "bnb-nf4", "bnb-nf4-dq", "bnb-fp4",
    "bnb-fp4-dq", "torchao-int4wo-g128", "hqq-int4-g64", "quanto-int4", "mxfp4", "nvfp4", "exl2-6.0", "exl2-4.0",
    *(name for name in gguf_types.RECIPES if name != "BF16"),
)  # fmt: skip


def parse(name: str, *, engine: str | None = None) -> Scheme:
    """The scheme of a --quant name; case doesn't matter. With llama.cpp, bf16, fp16 and fp32 mean its own types.

    Raises UnknownName with the nearest names and, for grouped schemes, the allowed widths and groups.
    """
    wanted = name.strip().lower()
    if engine == "llama.cpp":
        wanted = _GGUF_ALIASES.get(wanted, wanted)
        if wanted in _RECIPES:
            return _RECIPES[wanted]
    if (scheme := _FIXED.get(wanted) or _RECIPES.get(wanted)) is not None:
        return scheme
    return _parametrized(wanted)


@lru_cache(maxsize=4096)
def quantize(model: ModelSpec, scheme: Scheme, *, imatrix: bool = False, quantizer: str = "2026") -> Stored:
    """The model's tensors as this scheme stores them. `imatrix`, `quantizer`: of a GGUF recipe, how and by whose rules it was made."""
    inventory = build_inventory(model)
    if scheme.recipe:
        return gguf.quantize(model, inventory, scheme.recipe, imatrix=imatrix, quantizer=quantizer)
    if scheme.bits:
        return exl2.quantize(model, inventory, bits=scheme.bits)
    return hf.quantize(
        inventory, scheme.storage, dtype=compute_dtype(model, scheme), label=scheme.name.upper(),
        experts_alone=experts_alone(model, scheme), apart=_apart(scheme),
    )  # fmt: skip


def _apart(scheme: Scheme) -> dict[str, list[hf.Own]]:
    made: dict[str, list[hf.Own]] = {}
    for each in scheme.apart or ():
        made.setdefault(each.group, []).append(hf.Own(each.layers, parse(each.quant).storage if each.quant else None, each.quant.upper()))
    return made


def experts_alone(model: ModelSpec, scheme: Scheme) -> bool:
    """Whether the scheme leaves all but the routed experts in 16 bits: MXFP4 as OpenAI publishes gpt-oss, 4 bits as Moonshot publishes Kimi K2.

    Where a config lists what stays, it decides.
    """
    return experts_in_mxfp4(model, scheme) or (model.model_type == "kimi_k2" and scheme.name == "w4a16-g32" and scheme.apart is None)


def experts_in_mxfp4(model: ModelSpec, scheme: Scheme) -> bool:
    """Whether the experts are in MXFP4, which engines lay out in ways of their own."""
    return model.model_type == "gpt_oss" and scheme.name == "mxfp4"


def rule_of(model: ModelSpec, scheme: Scheme) -> str:
    """Which tensors of this model the scheme quantizes."""
    return "the experts alone; the rest stays 16-bit" if experts_alone(model, scheme) else scheme.rule


def compute_dtype(model: ModelSpec, scheme: Scheme) -> str:
    """The type of activations, and of all that isn't quantized. A float32 checkpoint is quantized from bfloat16."""
    if scheme.dtype:
        return scheme.dtype
    return "bfloat16" if model.dtype == "float32" else model.dtype


@lru_cache(maxsize=256)
def _parametrized(wanted: str) -> Scheme:
    for pattern, widths, groups, make in _GROUPED:
        if match := re.fullmatch(pattern, wanted):
            bits, group = int(match[1]), int(match[2])
            if bits in widths and group in groups:
                return make(bits, group)
            raise UnknownName(
                f"quantization {wanted[:40]!r} has a width or group that isn't made",
                allowed=f"widths {_join(widths)}, groups {_join(groups)}",
            )
    if match := re.fullmatch(r"exl2-(\d(?:\.\d{1,3})?)", wanted):
        budget = float(match[1])
        if 2.0 <= budget <= 8.0:
            return Scheme(f"exl2-{budget}", "exl2", ("transformers",), exl2.RULE, exl2.SOURCE, bits=budget)
        raise UnknownName(f"quantization {wanted[:40]!r} is out of range", allowed="exl2-2.0 to exl2-8.0")
    usual = _USUAL.get(wanted)
    near = (usual,) if usual else nearest(wanted, (*CATALOG, *gguf_types.WIDE_OUTER))
    hint = f"{', '.join(near)}, or vram quants" if near else "vram quants lists all"
    raise UnknownName(f"quantization {wanted[:40]!r} is not known", hint=hint)


def _join(values: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(values)))
