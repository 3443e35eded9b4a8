"""What a stranger's file must hold, as pydantic models: strict types, bounds, no unknown fields.

Imported only when such a file is read: see spec.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from calculator.errors import UnreadableFile
from calculator.spec import AttentionBias, DType, LayerKind, RecurrentKind, Segment

# larger than anything real; a hostile file can't make numbers that nobody can read
Dimension = Annotated[int, Field(ge=1, le=2**31)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Tokens = Annotated[int, Field(ge=1, le=2**40)]
Width = Annotated[int, Field(ge=0, le=2**31)]
Positive = Annotated[int, Field(ge=1)]


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LatentAttentionInput(_Input):
    """LatentAttention, checked."""

    q_lora_rank: Annotated[int, Field(ge=0, le=2**31)]
    kv_lora_rank: Dimension
    qk_nope_head_dim: Dimension
    qk_rope_head_dim: Dimension
    v_head_dim: Dimension


class RoutingInput(_Input):
    """Routing, checked."""

    normalized: bool = False
    scale: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    groups: Annotated[int, Field(ge=1, le=100_000)] = 1
    groups_used: Annotated[int, Field(ge=1, le=100_000)] = 1

    @model_validator(mode="after")
    def _groups_are_there(self) -> RoutingInput:
        if self.groups_used > self.groups:
            raise ValueError(f"topk_group {self.groups_used} of n_group {self.groups}")
        return self


class IndexerInput(_Input):
    """Indexer, checked."""

    heads: Count
    head_dim: Dimension
    top_k: Width
    full: tuple[Annotated[int, Field(ge=0, lt=10_000)], ...] = ()


class TowerInput(_Input):
    """Tower, checked."""

    kind: str
    hidden_size: Dimension
    num_heads: Count
    intermediate_size: Dimension
    patch_size: Annotated[int, Field(ge=1, le=10_000)]
    spatial_merge_size: Annotated[int, Field(ge=1, le=1000)]
    temporal_patch_size: Annotated[int, Field(ge=1, le=1000)] = 1
    in_channels: Annotated[int, Field(ge=1, le=1000)] = 3
    image_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    deep_layers: Annotated[int, Field(ge=0, le=10_000)] = 0


class ByLayerInput(_Input):
    """ByLayer, checked."""

    input_width: Width
    input_vocab: Width
    kv_shared_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    laurel_rank: Width = 0
    altup_inputs: Annotated[int, Field(ge=0, le=1000)] = 0
    full_head_dim: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    full_kv_heads: Annotated[int, Field(ge=0, le=100_000)] = 0
    values_are_keys: bool = False
    double_wide: bool = False


class WindowedInput(_Input):
    """Windowed, checked."""

    num_attention_heads: Count
    num_key_value_heads: Count


class RecurrentInput(_Input):
    """Recurrent, checked."""

    kind: RecurrentKind
    heads: Dimension
    head_dim: Dimension
    groups: Annotated[int, Field(ge=0, le=100_000)]
    state_size: Annotated[int, Field(ge=0, le=2**31)]
    conv_kernel: Annotated[int, Field(ge=0, le=1024)]
    dt_rank: Annotated[int, Field(ge=0, le=2**31)]
    conv_bias: bool
    in_bias: bool
    out_bias: bool
    norm: bool
    state_bytes: Annotated[int, Field(ge=0, le=8)]
    chunk_size: Annotated[int, Field(ge=0, le=2**20)]


class ModelInput(_Input):
    """ModelSpec, checked."""

    id: str
    model_type: str
    hidden_size: Dimension
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)]
    num_attention_heads: Annotated[int, Field(ge=0, le=100_000)]  # 0 where no layer attends
    num_key_value_heads: Annotated[int, Field(ge=0, le=100_000)]
    head_dim: Annotated[int, Field(ge=0, le=1_000_000)]
    intermediate_size: Dimension
    vocab_size: Dimension
    tie_word_embeddings: bool
    max_position_embeddings: Tokens
    dtype: DType
    sliding_window: Tokens | None = None
    attention_bias: AttentionBias = "none"
    mlp_bias: bool = False
    rope_type: str = "default"
    rope_factor: Annotated[float, Field(ge=1, le=4096)] = 1.0
    num_experts: Annotated[int, Field(ge=0, le=100_000)] = 0
    num_experts_per_tok: Annotated[int, Field(ge=0, le=100_000)] = 0
    expert_intermediate_size: Annotated[int, Field(ge=0, le=2**31)] = 0
    full_every: Annotated[int, Field(ge=0, le=10_000)] = 0
    full_at: tuple[Annotated[int, Field(ge=0, lt=10_000)], ...] = ()
    windowed: WindowedInput | None = None
    shared_expert_intermediate_size: Annotated[int, Field(ge=0, le=2**31)] = 0
    first_dense_layers: Annotated[int, Field(ge=0, le=10_000)] = 0
    expert_every: Annotated[int, Field(ge=1, le=10_000)] = 1
    mtp_layers: Annotated[int, Field(ge=0, le=100)] = 0
    mla: LatentAttentionInput | None = None
    routing: RoutingInput = RoutingInput()
    rotary_dim: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    qk_norm: bool = False
    head_bias: bool = False
    vision_parameters: Annotated[int, Field(ge=0, le=2**40)] = 0
    vision_layers: Width = 0
    vision_hidden_size: Width = 0
    tower: TowerInput | None = None
    indexer: IndexerInput | None = None
    by_layer: ByLayerInput | None = None
    cross_attention_layers: Annotated[tuple[Annotated[int, Field(ge=0, le=10_000)], ...], Field(max_length=10_000)] = ()
    image_tokens: Annotated[int, Field(ge=0, le=2**31)] = 0
    token_types: Width = 0
    labels: Annotated[int, Field(ge=0, le=100_000)] = 0
    block_norms: Annotated[int, Field(ge=0, le=2)] = 0
    layer_types: tuple[LayerKind, ...] = ()
    recurrent: RecurrentInput | None = None
    expert_latent_size: Annotated[int, Field(ge=0, le=2**31)] = 0

    @model_validator(mode="after")
    def _layers_are_the_models(self) -> ModelInput:
        shared = self.by_layer.kv_shared_layers if self.by_layer else 0
        if shared >= self.num_hidden_layers or any(i >= self.num_hidden_layers for i in self.cross_attention_layers):
            raise ValueError(f"kv_shared_layers {shared} or cross_attention_layers lie beyond {self.num_hidden_layers} layers")
        return self

    @model_validator(mode="after")
    def _layers_that_see_everything_are_some_of_them(self) -> ModelInput:
        if any(i >= self.num_hidden_layers for i in self.full_at) or (self.full_every and len(self.full_at) == self.num_hidden_layers):
            raise ValueError(f"full_at names layers beyond {self.num_hidden_layers}, or all of them")
        if self.windowed and self.windowed.num_attention_heads % self.windowed.num_key_value_heads:
            raise ValueError(f"num_key_value_heads {self.windowed.num_key_value_heads} doesn't divide num_attention_heads {self.windowed.num_attention_heads} of layers with a window")
        return self

    @model_validator(mode="after")
    def _layers_that_attend_have_heads(self) -> ModelInput:
        attends = not self.layer_types or bool({"attention", "both"} & set(self.layer_types))
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
            if attends and not getattr(self, name):
                raise ValueError(f"{name} 0 can't be")
        return self

    @model_validator(mode="after")
    def _some_layers_have_experts(self) -> ModelInput:
        if self.num_experts and (self.first_dense_layers >= self.num_hidden_layers or self.expert_every > self.num_hidden_layers):
            raise ValueError(f"no layer of {self.num_hidden_layers} has experts (first_dense_layers {self.first_dense_layers}, each {self.expert_every}.)")
        return self

    @model_validator(mode="after")
    def _experts_are_whole(self) -> ModelInput:
        if self.num_experts_per_tok > self.num_experts or (self.num_experts and not (self.num_experts_per_tok and self.expert_intermediate_size)):
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} of {self.num_experts} experts can't be")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelInput:
        if self.num_attention_heads % max(1, self.num_key_value_heads):
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} doesn't divide "
                f"num_attention_heads {self.num_attention_heads}"
            )
        return self


class QuantityInput(_Input):
    """Quantity, checked: the band holds the value."""

    value: Positive
    source: Annotated[str, Field(min_length=8)]
    low: Positive | None = None
    high: Positive | None = None
    verified: bool = True

    @model_validator(mode="after")
    def _band_holds_the_value(self) -> QuantityInput:
        if (self.low is not None and self.low > self.value) or (self.high is not None and self.high < self.value):
            raise ValueError(f"band {self.low} to {self.high} doesn't hold {self.value}")
        return self


class GpuInput(_Input):
    """GpuSpec, checked."""

    name: str
    vendor: str
    segment: Segment
    aliases: list[str]
    compute_capability: str | None
    launch_year: int | None
    memory_sold_bytes: QuantityInput
    nvml_total_bytes: QuantityInput | None
    cuda_total_bytes: QuantityInput | None
    bandwidth_bytes_per_s: QuantityInput
    bf16_dense_flops: QuantityInput | None
    fp8_dense_flops: QuantityInput | None
    interconnect: str | None
    tdp_w: int | None
    notes: str


def check_model(fields: Mapping[str, Any]) -> None:
    """Raise UnreadableFile for the first field that can't be, in one line."""
    try:
        ModelInput.model_validate({name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value for name, value in fields.items()})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        got = f" (got {str(first['input'])[:40]!r})" if where else ""
        raise UnreadableFile(
            f"{fields['id']}: {where + ': ' if where else ''}{message}{got}", hint="the model's own config.json, as published"
        ) from None
