"""An engine's knobs under its own names: defaults, what is allowed, and what is known but not modelled."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from calculator.errors import BadValue, NotModelled
from calculator.names import nearest
from calculator.units import MAX_COUNT


@dataclass(frozen=True, slots=True)
class Real:
    """Allowed values of a setting that is not whole: low < value <= high, or low too."""

    low: float
    high: float
    from_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether a value is allowed."""
        return self.low < value <= self.high or (self.from_low and value == self.low)


@dataclass(frozen=True, slots=True)
class Shares:
    """Allowed values of a setting that is a list of shares: numbers from 0, separated by commas or slashes."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """Allowed values of a setting that gives devices memory: 0:10GiB,1:8GiB,cpu:30GiB."""

    @staticmethod
    def of(text: str | int | bool | float | None) -> dict[int | str, int]:
        """GPUs by index and the host -> bytes; empty for none. Raises ValueError."""
        found: dict[int | str, int] = {}
        for part in str(text).split(",") if text else ():
            match = re.fullmatch(_BUDGET, part.strip(), re.IGNORECASE)
            if match is None or (device := int(match[1]) if match[1].isdigit() else "cpu") in found:
                raise ValueError(part)
            found[device] = int(float(match[2]) * _UNITS[(match[3] or "b").lower()])
        return found


@dataclass(frozen=True, slots=True)
class Text:
    """Allowed values of a setting with a grammar of its own, which the engine checks: printable, up to so many characters."""

    most: int
    example: str


class Setting(NamedTuple):
    """One knob: its default and what is allowed: words, bool, a range of integers or of real numbers, shares, budgets or text."""

    default: str | int | bool | float | None
    allowed: tuple[str, ...] | type[bool] | range | Real | Shares | Budgets | Text
    meaning: str

    def parse(self, name: str, value: str | int | bool | float) -> str | int | bool | float:
        """The value in its own type. Raises BadValue with what is allowed."""
        text = str(value).strip()
        if self.allowed is bool:
            if text.lower() in ("1", "true", "on", "yes"):
                return True
            if text.lower() in ("0", "false", "off", "no"):
                return False
            raise BadValue(f"{name}={text[:30]!r}", allowed="true or false")
        if isinstance(self.allowed, range):
            if not re.fullmatch(r"-?[0-9]{1,40}", text) or int(text) not in self.allowed:
                shown = f"{self.allowed.start:,} to {self.allowed.stop - 1:,}"
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"a whole number, {shown}")
            return int(text)
        if isinstance(self.allowed, Real):
            if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,20})?|\.[0-9]{1,20}", text) or not self.allowed.holds(float(text)):
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"{'from' if self.allowed.from_low else 'above'} {self.allowed.low:g}, up to {self.allowed.high:g}")
            return float(text)
        if isinstance(self.allowed, Shares):
            if len(text) > 400 or not re.fullmatch(rf"{_SHARE}(\s*[,/]\s*{_SHARE})*", text):
                raise BadValue(f"{name}={text[:30]!r}", allowed="numbers separated by commas: 3,1")
            return re.sub(r"\s*[,/]\s*", ",", text)
        if isinstance(self.allowed, Budgets):
            try:
                given = Budgets.of(text[:400].strip("{}").replace("=", ":"))
            except ValueError:
                given = {}
            if not given:
                raise BadValue(f"{name}={text[:30]!r}", allowed="memory by device: 0:10GiB,1:8GiB,cpu:30GiB")
            return ",".join(f"{device}:{nbytes}" for device, nbytes in given.items())
        if isinstance(self.allowed, Text):
            if not text or len(text) > self.allowed.most or not text.isprintable():
                raise BadValue(f"{name}={text[:30]!r}", allowed=f"up to {self.allowed.most} printable characters: {self.allowed.example}")
            return text
        assert isinstance(self.allowed, tuple)
        if text.lower() not in self.allowed:
            raise BadValue(f"{name}={text[:30]!r}", allowed=", ".join(self.allowed))
        return text.lower()


COUNT = range(1, MAX_COUNT + 1)
_OFF = ("0", "0.0", "false", "off", "no", "none", "null", "")
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_BUDGET = r"""["']?(\d{1,4}|cpu)["']?\s*:\s*["']?(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]i?b|b)?["']?"""
_SHARE = r"[0-9]{1,9}(\.[0-9]{1,9})?"


# settings that an engine has and the formulas don't cover: engine -> setting -> what is missing
NOT_MODELLED: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "speculative_config": "fields of its JSON other than speculative_method, speculative_model and num_speculative_tokens, which are settings,",
        **dict.fromkeys(("decode_context_parallel_size", "prefill_context_parallel_size"), "ranks that divide a sequence's tokens"),
        **dict.fromkeys(("kv_transfer_config", "kv_offloading_size"), "cache outside of the GPU"),
    },
    "llama.cpp": dict.fromkeys(("mmproj", "mmproj_offload"), "a projector's weights and the buffer that images are encoded in"),
    "sglang": {
        **dict.fromkeys(("speculative_draft_model_quantization", "speculative_token_map", "enable_multi_layer_eagle", "enable_linear_replayssm_spec"), "drafts and their states other than MTP layers, heads and 16-bit models as they are"),
        "data_parallel_size": "copies of the model (dp_size with enable_dp_attention divides attention alone)",
        "enable_dp_lm_head": "a head that each attention group holds",
        **dict.fromkeys(("enable_ep_moe", "enable_deepep_moe", "moe_a2a_backend"), "buffers of experts split by number (ep_size has the weights)"),
        "lora_paths": "adapters by file (enable_lora with max_lora_rank has their slots)",
        **dict.fromkeys(("cpu_offload_gb", "enable_hierarchical_cache"), "weights or cache outside of the GPU"),
    },
}


# what is an option of the command line here, or has another name in the other server
ELSEWHERE: Mapping[str, str] = {
    "kv_cache_dtype": "--kv-dtype", "dtype": "--quant", "quantization": "--quant", "tp": "--tp", "tp_size": "--tp", "pp_size": "--pp", "pipeline_parallel_size": "--pp", "model_path": "MODEL",
    "mem_fraction_static": "gpu_memory_utilization", "gpu_memory_utilization": "mem_fraction_static", "ep_size": "enable_expert_parallel", "enable_expert_parallel": "ep_size",
    "max_running_requests": "max_num_seqs", "max_num_seqs": "max_running_requests", "max_model_len": "context_length", "context_length": "max_model_len",
    "chunked_prefill_size": "max_num_batched_tokens", "max_num_batched_tokens": "chunked_prefill_size", "disable_cuda_graph": "enforce_eager", "enforce_eager": "disable_cuda_graph",
    "n_ubatch": "max_num_batched_tokens or chunked_prefill_size", "n_ctx": "max_model_len or context_length",
}  # fmt: skip


def parse_settings(engine: str, table: Mapping[str, Setting], given: Mapping[str, Any]) -> dict[str, str | int | bool | float]:
    """The given settings in their types; what isn't modelled may be given as off. Raises BadValue for a name that the engine doesn't have."""
    unknown = NOT_MODELLED.get(engine, {})
    off = {name for name, value in given.items() if name in unknown and str(value).strip().lower() in _OFF}
    for name in (name for name in given if name not in off):
        if (missing := unknown.get(name)) is not None:
            raise NotModelled(f"{engine} with {name}: {missing} have no formula yet", hint="leaving it out")
        if name not in table:
            said, near = ELSEWHERE.get(name.strip().lower().replace("-", "_"), ""), nearest(name, table)
            known = [other for other in said.split(" or ") if other.startswith("--") or other in table]
            hint = known[0] if known else near[0] if near else ""
            raise BadValue(f"{engine} has no setting {name[:40]!r} here", allowed="" if hint else ", ".join(table), hint=f"{hint}, or vram engines, which lists them" if hint else "")
    return {name: table[name].parse(name, value) for name, value in given.items() if name not in off}
