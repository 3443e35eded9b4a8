"""The inputs as types: ModelSpec, GpuSpec, Workload, Deployment. Frozen; what comes from outside is validated before.

Plain dataclasses, because importing pydantic costs a third of a start-up: `readers/inputs.py` validates a stranger's
file with pydantic, and the tests hold all shipped data to the same rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
AttentionBias = Literal["none", "qkv", "qkvo"]
Segment = Literal["datacenter", "workstation", "consumer", "unified"]
LayerKind = Literal["attention", "recurrent", "both", "dense", "sparse"]  # the last two: a feed-forward alone (Nemotron-H)
RecurrentKind = Literal["delta", "kda", "mamba", "mamba2", "conv", "lightning"]


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): keys and values from one compressed row a token [elements]."""

    q_lora_rank: int  # 0: queries aren't compressed
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True, slots=True)
class Indexer:
    """The indexer of sparse attention (DeepSeek V3.2, GLM 5): small queries and one small key a token choose what is attended."""

    heads: int
    head_dim: int
    top_k: int  # index_topk: tokens that are attended
    full: tuple[int, ...] = ()  # layers that choose, where the others take the choice of the one before (GLM 5.2); (): all


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower's dimensions, in its vision_config's own words where towers agree on them [elements, pixels, counts]."""

    kind: str  # the model type that it comes in
    hidden_size: int
    num_heads: int
    intermediate_size: int
    patch_size: int
    spatial_merge_size: int  # patches of a token, along each side
    temporal_patch_size: int = 1
    in_channels: int = 3
    image_size: int = 0  # of one fixed side; 0: images keep their shape
    deep_layers: int = 0  # whose outputs are added to the text model's first layers


@dataclass(frozen=True, slots=True)
class Routing:
    """How a router's choice becomes weights: what llama.cpp's graph depends on beside the numbers of experts."""

    normalized: bool = False  # norm_topk_prob
    scale: float = 1.0  # routed_scaling_factor
    groups: int = 1  # n_group: experts are chosen from the best of them
    groups_used: int = 1  # topk_group


@dataclass(frozen=True, slots=True)
class ByLayer:
    """What Gemma 3n and 4 have by layer: inputs from a table of their own, shared caches, full layers of another width [elements]."""

    input_width: int  # hidden_size_per_layer_input; 0: no such inputs
    input_vocab: int  # rows of their table
    kv_shared_layers: int = 0  # the last layers read the cache of earlier ones
    laurel_rank: int = 0  # Gemma 3n: a low-rank residual beside attention
    altup_inputs: int = 0  # Gemma 3n: streams of which a layer computes one
    full_head_dim: int = 0  # Gemma 4: heads of layers that see everything; 0: as the others
    full_kv_heads: int = 0
    values_are_keys: bool = False  # Gemma 4: no matrix of values in layers that see everything
    double_wide: bool = False  # Gemma 4: layers with a shared cache have twice the feed-forward


@dataclass(frozen=True, slots=True)
class Windowed:
    """Heads of layers with a window, where they aren't those of layers that see everything (Step 3.5)."""

    num_attention_heads: int
    num_key_value_heads: int


@dataclass(frozen=True, slots=True)
class Recurrent:
    """A layer whose state has one size whatever the context: a gated delta rule, Mamba, a short convolution [elements].

    Each token reads and rewrites heads x head_dim x state_size elements, and the last inputs of a causal convolution.
    """

    kind: RecurrentKind
    heads: int  # of values; Mamba 1: its inner width
    head_dim: int  # of a value
    groups: int  # heads of queries and keys; Mamba 2's groups of B and C; 0 where they aren't convolved
    state_size: int  # of a key; 0: a convolution alone
    conv_kernel: int  # 0: no convolution
    dt_rank: int = 0  # Mamba 1's time step
    conv_bias: bool = False
    in_bias: bool = False  # of the projection into the layer
    out_bias: bool = False
    norm: bool = True  # a gated norm before the projection out, where a model type may have none
    state_bytes: int = 0  # of an element of the state, where the config says it; 0: as the engine chooses
    chunk_size: int = 0  # tokens that Mamba 2's scan takes at once, where a model type has several and the config says it

    @property
    def inner(self) -> int:
        """Width of the values."""
        return self.heads * self.head_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: values, and queries and keys (B and C)."""
        return self.inner + 2 * self.groups * self.state_size if self.conv_kernel else 0

    @property
    def state_elements(self) -> int:
        """Elements of the recurrent state of one sequence in one layer."""
        return self.inner * self.state_size


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Dimensions of a decoder-only transformer, in Hugging Face config names [elements, counts]."""

    id: str = field(compare=False)  # models of the same dimensions share what is computed from them
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    dtype: DType
    sliding_window: int | None = None
    attention_bias: AttentionBias = "none"
    mlp_bias: bool = False
    rope_type: str = "default"
    rope_factor: float = 1.0  # by which linear scaling stretches the positions
    num_experts: int = 0
    num_experts_per_tok: int = 0
    expert_intermediate_size: int = 0  # of one expert
    full_every: int = 0  # each n-th layer sees everything, the others sliding_window tokens; 0: all layers alike
    full_at: tuple[int, ...] = ()  # the layers that see everything, where they aren't the last of each n
    windowed: Windowed | None = None  # heads of the others, where they have their own
    shared_expert_intermediate_size: int = 0  # of all shared experts together
    first_dense_layers: int = 0  # layers without experts before those with them
    expert_every: int = 1  # each n-th layer has experts
    mtp_layers: int = 0  # layers that predict further tokens, in the checkpoint
    mla: LatentAttention | None = None
    routing: Routing = Routing()
    rotary_dim: int = 0  # elements of a head that rotary embeddings turn; 0: all
    qk_norm: bool = False  # norms over queries and keys, where a model type may or may not have them
    head_bias: bool = False
    vision_parameters: int = 0  # of a vision tower and its projector, where the config has them
    vision_layers: int = 0  # num_hidden_layers of vision_config, and its hidden_size; 0 where it doesn't say
    vision_hidden_size: int = 0
    tower: Tower | None = None  # its dimensions, where a pass of it has formulas
    indexer: Indexer | None = None
    by_layer: ByLayer | None = None
    cross_attention_layers: tuple[int, ...] = ()  # layers that attend to images instead of text (Llama 3.2 Vision)
    image_tokens: int = 0  # rows of these layers' cache for an image of the most tiles
    token_types: int = 0  # rows of an encoder's table of segments
    labels: int = 0  # of an encoder's classifier (rerankers have one); 0: it makes embeddings
    block_norms: int = 0  # norms of a layer, where a model type has one or two (Falcon)
    layer_types: tuple[LayerKind, ...] = ()  # what each layer is, where not all attend
    recurrent: Recurrent | None = None  # of the layers that don't attend
    expert_latent_size: int = 0  # width that experts read and write where it isn't hidden_size

    @property
    def indexing_layers(self) -> tuple[int, ...]:
        """The layers that have an indexer, and keep its keys."""
        return (self.indexer.full or tuple(range(self.num_hidden_layers))) if self.indexer else ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that keep keys and values."""
        return self._layers("attention", "both") if self.layer_types else tuple(range(self.num_hidden_layers))

    @property
    def recurrent_layers(self) -> tuple[int, ...]:
        """The layers that keep a state."""
        return self._layers("recurrent", "both")

    def _layers(self, *kinds: LayerKind) -> tuple[int, ...]:
        return tuple(i for i, kind in enumerate(self.layer_types) if kind in kinds)

    @property
    def expert_layers(self) -> tuple[int, ...]:
        """The layers that have experts."""
        if "sparse" in self.layer_types:
            return self._layers("sparse")
        return tuple(i for i in range(self.first_dense_layers, self.num_hidden_layers) if (i + 1) % self.expert_every == 0) if self.num_experts else ()

    @property
    def full_indices(self) -> tuple[int, ...]:
        """The layers that see everything."""
        return self.full_at or tuple(range((self.full_every or 1) - 1, self.num_hidden_layers, self.full_every or 1))

    @property
    def full_layers(self) -> int:
        """How many layers see everything where others have a window."""
        return len(self.full_indices)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its source; low and high where it is known within a band."""

    value: int
    source: str
    low: int | None = None
    high: int | None = None
    verified: bool = True

    @property
    def low_value(self) -> int:
        """Low end of the band."""
        return self.value if self.low is None else self.low


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One accelerator. Memory is several numbers: as sold, as nvidia-smi prints it, as a program sees it [bytes]."""

    name: str
    vendor: str
    segment: Segment
    memory_sold_bytes: Quantity
    bandwidth_bytes_per_s: Quantity
    aliases: tuple[str, ...] = ()
    compute_capability: str | None = None
    launch_year: int | None = None
    nvml_total_bytes: Quantity | None = None
    cuda_total_bytes: Quantity | None = None
    bf16_dense_flops: Quantity | None = None
    fp8_dense_flops: Quantity | None = None
    interconnect: str | None = None
    tdp_w: int | None = None
    notes: str = ""

    @property
    def quantities(self) -> dict[str, Quantity]:
        """The fields that carry a source, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Quantity)}

    @property
    def unverified(self) -> list[str]:
        """Names of the fields whose source was not confirmed, or that nobody published."""
        found = [name for name, quantity in self.quantities.items() if not quantity.verified]
        return found if self.cuda_total_bytes else [*found, "cuda_total_bytes"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What the model is asked to hold: `sequences` concurrent sequences of `context` tokens each."""

    context: int
    sequences: int = 1


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the model is run. `settings` are the engine's own, in the engine's own names."""

    quant: str
    kv_dtype: str
    engine: str
    engine_version: str
    gpu: str | None = None
    gpus: int = 1
    settings: Mapping[str, str | int | bool | float] = field(default_factory=dict)
