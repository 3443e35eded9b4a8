"""What a graph is built from: the model's dimensions, what its family computes differently, and the micro-batch.

Source: llama.cpp @0c1e57098 src/models/{llama,qwen2,qwen3,qwen3moe,gemma2,gemma3,phi3}.cpp; what a file may hold beside
(biases, rope factors) load_arch_tensors there.
"""

from __future__ import annotations

from typing import NamedTuple

from calculator.engines.llama_cpp.buffers import NEWEST, Adapters, Release
from calculator.engines.llama_cpp.graph import F16, F32, Graph, Tensor
from calculator.formats import FORMATS, Format


class Family(NamedTuple):
    """What sets a family's graph apart from llama's."""

    qk_norm: bool = False
    q_scaled: bool = False  # the query is scaled before attention
    embedding_scaled: bool = False
    post_norms: bool = False  # norms after attention and after the feed-forward
    attention_softcap: bool = False
    logit_softcap: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    residual_first: bool = False  # residual + feed-forward, not the other way round
    windows: bool = False  # a second cache for sliding-window layers


FAMILIES = {
    "llama": Family(),
    "qwen2": Family(),
    "qwen3": Family(qk_norm=True),
    "qwen3moe": Family(qk_norm=True),
    "gemma2": Family(q_scaled=True, embedding_scaled=True, post_norms=True, attention_softcap=True, logit_softcap=True, windows=True),
    "gemma3": Family(qk_norm=True, q_scaled=True, embedding_scaled=True, post_norms=True, windows=True),
    "phi3": Family(q_scaled=True, fused_qkv=True, fused_gate_up=True, residual_first=True),
}  # fmt: skip


class Decoder(NamedTuple):
    """Dimensions of a model [elements, counts] and the tensors that its file may or may not have."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    window: int = 0  # tokens that a sliding-window layer sees
    full_every: int = 1  # each n-th layer sees everything, the others a window
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    rope_factors: bool = False

    def windowed(self, layer: int) -> bool:
        """Whether a layer has a sliding window."""
        return FAMILIES[self.family].windows and self.window > 0 and layer % self.full_every < self.full_every - 1


class Cache(NamedTuple):
    """The KV cache that a kind of layers reads."""

    cells: int  # a stream
    streams: int
    type_k: Format
    type_v: Format


class Batch(NamedTuple):
    """The micro-batch that buffers are reserved for."""

    tokens: int
    outputs: int
    flash: bool
    pin: bool = False  # a layer's norms stay on its device
    attend_on_host: bool = False  # the cache, and attention without its fused kernel, are the host's
    release: Release = NEWEST
    adapters: Adapters | None = None


Formats = tuple[tuple[str, Format], ...]  # of a layer's matrices by their name in the file, where not F16
Moved = tuple[tuple[str, int], ...]  # weights by name that aren't where their layer is, and their place


class Layer(NamedTuple):
    """One layer's kind and place."""

    windowed: bool
    home: int  # backend of its weights
    cache_home: int
    experts_home: int
    formats: Formats = ()
    moved: Moved = ()


class Base:
    """The parts that all of a graph's sections share."""

    def __init__(self, model: Decoder, batch: Batch, caches: tuple[Cache, Cache], layers: tuple[Layer, ...],
                 output: Layer, host: int) -> None:  # fmt: skip
        """`caches` are of full and of sliding-window layers; `output` says where the head is."""
        self.g = Graph()
        self.m, self.b, self.family = model, batch, FAMILIES[model.family]
        self.caches, self.layers, self.output, self.host = caches, layers, output, host
        self.home = host  # backend of the current layer's weights
        self.formats: dict[str, Format] = {}
        self.moved: dict[str, int] = dict(output.moved)
        self.shared: dict[int, Tensor] = {}  # rope factors by place

    def enter(self, layer: Layer) -> None:
        """Weights are this layer's from now on."""
        self.home, self.formats, self.moved = layer.home, dict(layer.formats), dict(layer.moved)

    def weight(self, name: str, *ne: int, fmt: Format | None = None, home: int | None = None) -> Tensor:
        """A weight of the current layer."""
        place = self.moved.get(name, self.home if home is None else home)
        t = self.g.resident(name, fmt or self.formats.get(name, F16), place, *ne)
        adapters = self.b.adapters
        if adapters is not None and name in adapters.targets:
            t.adapters = tuple(self.adapter(place, adapters, *ne) for _ in range(adapters.number))
        return t

    def adapter(self, place: int, adapters: Adapters, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """The two matrices of a LoRA adapter; ggml doesn't take their buffer for one of weights."""
        fmt = FORMATS[adapters.type]
        a = self.g.resident("lora_a", fmt, place, inputs, adapters.rank, weight=False)
        return a, self.g.resident("lora_b", fmt, place, adapters.rank, outputs, weight=False)

    def norm(self, name: str, x: Tensor, *, pin: bool = True) -> Tensor:
        """RMS norm and its weight."""
        t = self.g.like(name, "rms_norm", x)
        if pin and self.b.pin:
            t.pinned = self.home
        return self.g.like(name, "mul", t, self.weight(name, x.ne[0], fmt=F32))

    def softcap(self, name: str, x: Tensor) -> Tensor:
        """Scale, tanh, scale."""
        for op in ("scale", "unary", "scale"):
            x = self.g.like(name, op, x)
        return x
