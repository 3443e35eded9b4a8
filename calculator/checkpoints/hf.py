"""config.json and safetensors headers -> a model, and its tensors as the files store them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from calculator.architectures import Inventory, TensorGroup, build_inventory
from calculator.architectures.inventory import LINEAR_ROLES, Role
from calculator.checkpoints import Checkpoint
from calculator.checkpoints.inventory import OTHER, differences, elements, kinds_of_inventory, kinds_of_stored
from calculator.checkpoints.quantization_config import scheme_of
from calculator.errors import NotModelled, UnreadableFile
from calculator.quantization import Scheme, Stored, parse
from calculator.quantization.hf import DTYPE_BYTES, QUANT_NAMES
from calculator.quantization.stored import Part, StoredGroup
from calculator.readers.header import Header, Tensor
from calculator.readers.hf_config import MAX_BYTES, model_from_config, read_config
from calculator.readers.safetensors import INDEX, SINGLE, read_safetensors
from calculator.readers.untrusted import LocalFile, inside, read_json, shown
from calculator.spec import ModelSpec

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
MODELOPT = "hf_quant_config.json"
RULE = "each tensor as its files store it"
RUN_AS_STORED = ("gptq", "awq", "bnb", "fp8", "compressed-tensors")  # of these we know what transformers makes on the device

_LAYER = re.compile(r"\.layers\.(\d{1,5})\.")
_EXPERT = re.compile(r"\.experts\.\d{1,5}\.")
_MTP = ("mtp.", "model.mtp.")  # Qwen3-Next, Qwen3.5, Nemotron 3: _keys_to_ignore_on_load_unexpected of their classes
_STACKS = ("model.layers.", "backbone.layers.")
_PREFIXES = ("language_model.", "model.language_model.")
_MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_VISION = re.compile(r"(^|\.)(visual|vision_tower|vision_model|multi_modal_projector|vision_encoder|merger)\.")
_NOT_LOADED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")


class Config(NamedTuple):
    """A config.json: all of it, how it was quantized, and what lies beside the decoder that no formula counts."""

    whole: dict[str, Any]
    quantization: dict[str, Any] | None
    beside: tuple[str, ...]


def split_config(config: Mapping[str, Any], *, id: str) -> Config:
    """A config and its quantization, said at the top or in text_config. Raises UnreadableFile."""
    text = config.get("text_config")
    inner = text.get("quantization_config") if isinstance(text, dict) else None
    quantization = inner if config.get("quantization_config") is None else config["quantization_config"]
    if quantization is not None and not isinstance(quantization, dict):
        raise UnreadableFile(f"{id}: quantization_config is not an object", hint="the config.json as published")
    return Config(dict(config), quantization, tuple(k for k in ("audio_config",) if config.get(k)))


def load(path: Path, *, id: str) -> tuple[dict[str, Any], ModelSpec, Checkpoint | None]:
    """Model of a config.json, of its folder with or without weights, or of a .safetensors file beside one.

    Raises UnreadableFile, UnknownArchitecture, NotModelled.
    """
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".safetensors" and not (folder / "config.json").is_file():
        raise UnreadableFile(f"{shown(path)} says what is stored but not what the model is: there is no config.json beside it",
                             hint="the model's config.json in the same folder, or vram inspect")  # fmt: skip
    config = split_config(read_config(folder / "config.json" if path.suffix == ".safetensors" else path), id=id)
    if config.quantization is None and path.suffix != ".json" and (folder / MODELOPT).is_file():  # its exports before quantization_config
        with LocalFile(inside(folder, MODELOPT)) as source:
            config = config._replace(quantization={"quant_method": "modelopt", **read_json(source, limit=MAX_BYTES)})
    return model_and_checkpoint(config, _header(path, folder), id=id)


def _header(path: Path, folder: Path) -> Header | None:
    if path.suffix == ".safetensors":
        return read_safetensors(folder if (folder / INDEX).is_file() else path)
    if path.is_dir() and ((folder / INDEX).is_file() or (folder / SINGLE).is_file() or any(folder.glob("*.safetensors"))):
        return read_safetensors(folder)
    return None


def model_and_checkpoint(config: Config, header: Header | None, *, id: str) -> tuple[dict[str, Any], ModelSpec, Checkpoint | None]:
    """The config, the model, and what is stored by headers where they are at hand, else by quantization_config."""
    whole = config.whole if header is None else {k: v for k, v in config.whole.items() if k != "vision_config"}  # the header counts the tower
    spec = model_from_config(whole, id=id)
    beside = tuple(f"{name.removesuffix('_config')} tower: not in the decoder's dimensions" + ("" if header else ", not counted") for name in config.beside)
    if header is not None:
        return config.whole, spec, checkpoint_of(header, spec, _scheme(config.quantization, spec, header, id=id), warnings=beside)
    if config.quantization is not None:
        return config.whole, spec, declared(config.quantization, spec, warnings=beside)
    return config.whole, spec, Checkpoint(parse(QUANT_NAMES[spec.dtype]), warnings=beside) if beside else None


def declared(quantization: dict[str, Any], spec: ModelSpec, *, warnings: tuple[str, ...] = ()) -> Checkpoint:
    """What a quantization_config says alone; a form without sizes is kept as a refusal, since another format may be asked for."""
    try:
        scheme = scheme_of(quantization, spec, id=spec.id)
    except NotModelled as e:
        return Checkpoint(parse(QUANT_NAMES[spec.dtype]), warnings=warnings, refused=e)
    return Checkpoint(scheme, warnings=warnings)


def _scheme(quantization: dict[str, Any] | None, spec: ModelSpec, header: Header, *, id: str) -> Scheme:
    """The named scheme where there is one; a layout that only the headers know keeps its method's name."""
    if quantization is None:
        if odd := next((t for t in header.tensors if t.type not in DTYPES and not t.name.endswith((".position_ids", ".masked_bias"))), None):
            raise NotModelled(f"{id}: {odd.name[:60]!r} is {odd.type} and the config has no quantization_config", hint="the config.json as published")
        return parse(QUANT_NAMES[spec.dtype])._replace(source=f"header of {header.files[0]}")
    try:
        found = scheme_of(quantization, spec, id=id)
    except NotModelled:
        method = str(quantization.get("quant_method", "bitsandbytes")).lower().replace("_", "-").replace("bitsandbytes", "bnb")
        if method not in RUN_AS_STORED:
            raise
        return Scheme(method, "stored", ("transformers",), RULE, f"header of {header.files[0]}")
    return found._replace(source=f"header of {header.files[0]}", rule=RULE)


def checkpoint_of(header: Header, spec: ModelSpec, scheme: Scheme, *, warnings: tuple[str, ...] = ()) -> Checkpoint:
    """The header's tensors as transformers holds them; what it doesn't load and what differs are warnings."""
    inventory, said = build_inventory(spec), list(warnings)
    kept = [t for t in header.tensors if not _NOT_LOADED.search(t.name)]
    if spec.tie_word_embeddings and any(t.name == "lm_head.weight" for t in kept):
        kept = [t for t in kept if t.name != "lm_head.weight"]
        said.append("the file stores lm_head.weight though it is tied to the embedding: it is held once")
    if beyond := [t for t in kept if _pattern(t.name)[1] >= spec.num_hidden_layers]:
        kept = [t for t in kept if _pattern(t.name)[1] < spec.num_hidden_layers]
        said.append(f"{len(beyond):,} tensors of layers beyond the {spec.num_hidden_layers} of the config are not loaded and not counted")
    if ahead := [t for t in kept if t.name.startswith(_MTP)]:
        kept = [t for t in kept if not t.name.startswith(_MTP)]
        said.append(f"{len(ahead):,} tensors of MTP layers are not loaded and not counted")
    plain = scheme.family == "plain"
    stored = _groups(kept, inventory, scheme)
    said += differences(kinds_of_inventory(inventory), kinds_of_stored(stored))
    if plain and (others := sorted({g.format for g in stored} - {spec.dtype})):
        said.append(f"the file stores {', '.join(others)} and its config says {spec.dtype}: transformers loads it as {spec.dtype}")
        stored = tuple(_as(g, spec.dtype) for g in stored)
    if header.truncated:
        said.append(f"{header.files[0]} ends before its tensors do: the header alone, or an unfinished download")
    parameters = elements(stored) if plain else inventory.parameters
    return Checkpoint(scheme, stored, parameters, header.file_bytes, tuple(said))


def _groups(tensors: list[Tensor], inventory: Inventory, scheme: Scheme) -> Stored:
    known = {g.name.removesuffix(".weight") if g.role not in ("norm", "bias", "ssm") else g.name: g for g in inventory.groups}
    modules: dict[tuple[str, int], list[tuple[str, Tensor]]] = {}
    for t in tensors:
        pattern, layer = _pattern(t.name)
        module, parameter = _module(pattern, known)
        modules.setdefault((module, layer), []).append((parameter, t))
    groups: dict[tuple[Any, ...], list[int]] = {}
    for (module, layer), held in modules.items():
        made = _store(module, held, known.get(module), scheme)
        groups.setdefault(made, []).extend([layer] if layer >= 0 else [])
    return tuple(_located(group, label, parts, tuple(layers)) for (group, label, parts), layers in groups.items())


def _located(group: TensorGroup, label: str, parts: tuple[Part, ...], layers: tuple[int, ...]) -> StoredGroup:
    return StoredGroup(replace(group, layers=len(layers)), label, parts, layers)


def _pattern(name: str) -> tuple[str, int]:
    """The name as the inventory writes it, and the layer; -1 outside the layers."""
    for prefix in _PREFIXES:
        if name.startswith(prefix) and not name.startswith(prefix + "visual"):
            rest = name.removeprefix(prefix)
            name = rest if rest.startswith(("model.", "lm_head.")) else "model." + rest
            break
    match = _LAYER.search(name)
    if match and name.startswith(_STACKS):
        name = _EXPERT.sub(".experts.", _LAYER.sub(".layers.{layer}.", name, count=1))
        for old, new in _MIXTRAL.items():
            name = name.replace(f".experts.{old}.", f".experts.{new}.")
        return name, int(match[1])
    return name, -1


def _module(pattern: str, known: Mapping[str, TensorGroup]) -> tuple[str, str]:
    """A tensor's module and parameter: the longest beginning that the inventory knows."""
    if pattern in known:
        return pattern, "weight"
    at = len(pattern)
    while (at := pattern.rfind(".", 0, at)) > 0:
        if pattern[:at] in known and known[pattern[:at]].role in LINEAR_ROLES | {"embedding", "output", "router"}:
            if pattern[at + 1 :] == "bias":
                break
            return pattern[:at], pattern[at + 1 :]
    return pattern, "weight"


def _store(module: str, held: list[tuple[str, Tensor]], known: TensorGroup | None, scheme: Scheme) -> tuple[TensorGroup, str, tuple[Part, ...]]:
    """Group, format and parts of what one layer holds of a module."""
    sizes: dict[str, int] = {}
    nested = any(parameter.endswith("nested_absmax") for parameter, _ in held)
    for parameter, t in held:
        # bitsandbytes' packed description of a weight leaves on the device the offset of a nested absmax alone
        name, nbytes = ("offset", 4 if nested else 0) if "quant_state." in parameter else (parameter, t.nbytes)
        sizes[name] = sizes.get(name, 0) + nbytes
    first = held[0][1]
    if set(sizes) == {"weight"}:
        dtype = DTYPES.get(first.type, first.type)
        shape = (len(held), *first.shape) if known is not None and len(known.shape) == 3 and len(first.shape) == 2 else first.shape
        name, role = (known.name, known.role) if known else (module, _role(module))
        per = sum(t.nbytes for _, t in held) * 8 // max(1, sum(t.elements for _, t in held))
        return TensorGroup(name, shape, role), dtype, (Part("values", sizes["weight"], f"{per // 8}" if per % 8 == 0 else f"{per} / 8"),)
    parts = tuple(Part(name, n, f"{n:,}") for name, n in sizes.items() if n)
    group = replace(known, layers=0) if known else TensorGroup(module, first.shape, _role(module))
    return group, scheme.name.upper(), parts


def _role(module: str) -> Role:
    """Of a module that the decoder's inventory doesn't know."""
    return "vision" if _VISION.search(module + ".") else OTHER


def _as(group: StoredGroup, dtype: str) -> StoredGroup:
    """A plain group in another type."""
    if group.format == dtype or group.format not in DTYPE_BYTES:
        return group
    size = DTYPE_BYTES[dtype]
    return replace(group, format=dtype, parts=(Part("values", group.group.elements * size, f"{size}"),))
