"""A GGUF header's metadata -> config fields of models with recurrent layers.

Source: llama.cpp @0c1e57098 src/models/{qwen3next,qwen35,qwen35moe,nemotron-h,granite-hybrid,falcon-h1,lfm2,lfm2moe,jamba,mamba,mamba2,
minimax-01}.cpp load_arch_hparams, conversion/*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calculator.errors import NotModelled, UnreadableFile

MODEL_TYPES: dict[str, str] = {
    "qwen3next": "qwen3_next", "qwen35": "qwen3_5_text", "qwen35moe": "qwen3_5_moe_text", "nemotron_h": "nemotron_h", "nemotron_h_moe": "nemotron_h",
    "granitehybrid": "granitemoehybrid", "falcon-h1": "falcon_h1", "lfm2": "lfm2", "lfm2moe": "lfm2_moe", "jamba": "jamba", "mamba": "mamba",
    "mamba2": "mamba2", "minimax-01": "minimax",
}  # fmt: skip
READS = frozenset({"expert_shared_count", "leading_dense_block_count", "nextn_predict_layers", "ssm.state_size"})
_INTERVAL = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}  # each n-th layer attends, where the file doesn't list them
_HINT = "the model's own file, as published"
_MAX_LAYERS = 10_000


def fields(arch: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of a config.json beside those that all models have; `metadata` without the architecture's prefix.

    Raises UnreadableFile, NotModelled.
    """
    name, file = arch, _File(arch, metadata, shapes, arch)
    layers, model_type = file.layers(), MODEL_TYPES[arch]
    found: dict[str, Any] = {"num_hidden_layers": layers, "num_key_value_heads": file.one("attention.head_count_kv"), "intermediate_size": file.one("feed_forward_length")}
    if model_type.startswith("qwen"):
        found |= {"layer_types": file.kinds("full_attention", "linear_attention"), "linear_num_key_heads": file.whole("ssm.group_count"),
                  "linear_num_value_heads": file.whole("ssm.time_step_rank"), "linear_key_head_dim": file.whole("ssm.state_size"),
                  "linear_value_head_dim": file.whole("ssm.inner_size") // file.whole("ssm.time_step_rank"), "linear_conv_kernel_dim": file.whole("ssm.conv_kernel"),
                  "shared_expert_intermediate_size": file.one("expert_shared_feed_forward_length")}  # fmt: skip
        found["intermediate_size"] = found["intermediate_size"] or file.one("expert_feed_forward_length")
    elif model_type == "nemotron_h":
        found |= {"hybrid_override_pattern": file.nemotron(), "mamba_num_heads": file.whole("ssm.time_step_rank"), "ssm_state_size": file.whole("ssm.state_size"),
                  "mamba_head_dim": file.whole("ssm.inner_size") // file.whole("ssm.time_step_rank"), "n_groups": file.whole("ssm.group_count"),
                  "conv_kernel": file.whole("ssm.conv_kernel"), "moe_shared_expert_intermediate_size": file.one("expert_shared_feed_forward_length"),
                  "moe_latent_size": file.one("moe_latent_size"), "use_conv_bias": file.has("ssm_conv1d.bias")}  # fmt: skip
    elif model_type in ("granitemoehybrid", "falcon_h1"):
        found |= {"mamba_n_heads": file.whole("ssm.time_step_rank"), "mamba_d_head": file.whole("ssm.inner_size") // file.whole("ssm.time_step_rank"),
                  "mamba_n_groups": file.whole("ssm.group_count"), "mamba_d_state": file.whole("ssm.state_size"), "mamba_d_conv": file.whole("ssm.conv_kernel"),
                  "mamba_d_ssm": file.whole("ssm.inner_size"), "mamba_conv_bias": file.has("ssm_conv1d.bias"), "mamba_rms_norm": file.has("ssm_norm.weight")}  # fmt: skip
        if model_type == "granitemoehybrid":
            shared = file.one("expert_shared_feed_forward_length") if file.one("expert_count") else found["intermediate_size"]
            found |= {"layer_types": file.kinds("attention", "mamba"), "shared_intermediate_size": shared, "num_local_experts": file.one("expert_count") or 0}
    elif model_type.startswith("lfm2"):
        found |= {"layer_types": file.kinds("full_attention", "conv"), "conv_L_cache": file.whole("shortconv.l_cache"), "block_auto_adjust_ff_dim": False,
                  "conv_bias": file.has("shortconv.in_proj.bias"), "num_dense_layers": file.one("leading_dense_block_count") or 0}  # fmt: skip
        if file.one("attention.sliding_window"):
            raise NotModelled(f"{name}: {arch} with a sliding window has no formulas here", hint="vram inspect, which shows what the file holds")
    elif model_type == "jamba":
        found |= {"layers_block_type": file.kinds("attention", "mamba"), "mamba_d_state": file.whole("ssm.state_size"), "mamba_d_conv": file.whole("ssm.conv_kernel"),
                  "mamba_expand": file.whole("ssm.inner_size") // file.whole("embedding_length"), "mamba_dt_rank": file.whole("ssm.time_step_rank"),
                  **file.every_other_with_experts()}  # fmt: skip
    elif model_type == "minimax":
        found["layer_types"] = file.kinds("full_attention", "linear_attention")
    else:
        found |= {"state_size": file.whole("ssm.state_size"), "conv_kernel": file.whole("ssm.conv_kernel"), "intermediate_size": file.whole("ssm.inner_size"),
                  "time_step_rank": file.whole("ssm.time_step_rank"), "use_conv_bias": file.has("ssm_conv1d.bias")}  # fmt: skip
        if model_type == "mamba2":
            heads = file.whole("ssm.time_step_rank")
            found |= {"num_heads": heads, "head_dim": file.whole("ssm.inner_size") // heads, "n_groups": file.whole("ssm.group_count"), "time_step_rank": "auto",
                      "expand": file.whole("ssm.inner_size") // file.whole("embedding_length")}  # fmt: skip
    if arch in ("lfm2moe", "nemotron_h_moe") or model_type in ("qwen3_next", "qwen3_5_moe_text"):
        found["moe_intermediate_size"] = file.one("expert_feed_forward_length")
    mtp = file.one("nextn_predict_layers") or 0
    found |= {"mtp_num_hidden_layers": mtp, "num_nextn_predict_layers": mtp} if mtp else {}
    return {k: v for k, v in found.items() if v is not None}


class _File:
    """The metadata of one architecture, and what its tensors tell beside."""

    def __init__(self, arch: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
        self.arch, self.metadata, self.shapes, self.name = arch, metadata, shapes, name

    def layers(self) -> int:
        """Layers without those that predict further tokens, which llama.cpp counts too."""
        return self.whole("block_count", high=_MAX_LAYERS) - (self.one("nextn_predict_layers") or 0)

    def raw(self, key: str) -> Any:
        return self.metadata.get(key)

    def one(self, key: str) -> int | None:
        """A number, or the only one above 0 among those of each layer; None where there is none."""
        value = self.raw(key)
        if isinstance(value, list):
            above = {v for v in value if v}
            if len(above) > 1:
                raise NotModelled(f"{self.name}: {key} differs between layers", hint="vram inspect, which shows what the file holds")
            value = above.pop() if above else 0
        if value is not None and type(value) is not int:
            raise UnreadableFile(f"{self.name}: {self.arch}.{key} {str(value)[:30]!r} is not a whole number", hint=_HINT)
        return value

    def whole(self, key: str, *, high: int = 2**31) -> int:
        value = self.one(key)
        if value is None:
            raise UnreadableFile(f"{self.name} lacks {self.arch}.{key}", hint=_HINT)
        if not 1 <= value <= high:
            raise UnreadableFile(f"{self.name}: {self.arch}.{key} {value} is out of range", allowed=f"1 to {high:,}", hint=_HINT)
        return value

    def has(self, tensor: str) -> bool:
        """Whether some layer has this tensor."""
        return any(name.endswith("." + tensor) for name in self.shapes)

    def each(self, key: str) -> list[int]:
        """A number for each layer."""
        value, count = self.raw(key), self.layers()
        found = value if isinstance(value, list) else [value] * count
        if len(found) < count or not all(type(v) in (int, bool) for v in found[:count]):
            raise UnreadableFile(f"{self.name}: {self.arch}.{key} has no number for each of {count} layers", hint=_HINT)
        return found[:count]

    def kinds(self, attends: str, other: str) -> list[str]:
        """Which layers attend: listed, or each n-th, or those with KV heads."""
        if self.arch in _INTERVAL:
            if isinstance(self.raw("attention.recurrent_layers"), list):
                return [other if recurrent else attends for recurrent in self.each("attention.recurrent_layers")]
            every = self.one("full_attention_interval") or _INTERVAL[self.arch]
            return [other if (i + 1) % every else attends for i in range(self.layers())]
        return [attends if heads else other for heads in self.each("attention.head_count_kv")]

    def nemotron(self) -> str:
        """M a state, * attention, - a feed-forward, E experts: by KV heads and widths."""
        wide = "E" if self.one("expert_count") else "-"
        return "".join("*" if heads else wide if width else "M" for heads, width in zip(self.each("attention.head_count_kv"), self.each("feed_forward_length"), strict=True))

    def every_other_with_experts(self) -> dict[str, int]:
        """Jamba's layers with experts, as its tensors are."""
        sparse = [i for i in range(self.layers()) if f"blk.{i}.ffn_gate_inp.weight" in self.shapes]
        if not sparse:
            return {"num_experts": 0}
        return {"expert_layer_period": sparse[0] + 1, "expert_layer_offset": sparse[0]}
