"""What a graph is built from: the model's dimensions, what its family computes differently, and the micro-batch.

Source: llama.cpp @0c1e57098 src/models/*.cpp, a file a family; what a file may hold beside (biases, rope factors)
load_arch_tensors there.
"""

from __future__ import annotations

from math import lcm
from typing import NamedTuple

from calculator.engines.llama_cpp.buffers import NEWEST, Adapters, Release
from calculator.engines.llama_cpp.graph import F16, F32, Graph, Tensor
from calculator.formats import FORMATS, Format


class Family(NamedTuple):
    """What sets a family's graph apart from llama's."""

    qk_norm: bool = False  # over each head, before the rotation
    whole_qk_norm: bool = False  # over all heads at once
    late_qk_norm: bool = False  # over each head, after the rotation
    plain_qk_norm: bool = False  # after the rotation, without weights; in rotated layers alone
    q_scaled: bool = False  # the query is scaled before attention
    embedding_scaled: bool = False
    residual_scaled: bool = False  # what attention and the feed-forward add is scaled
    logits_scaled: bool = False
    layer_norm: bool = False  # mean and variance, in place of the root mean square
    norm_bias: bool = False
    input_norms: bool = True  # norms before attention and before the feed-forward
    post_norms: bool = False  # norms after attention and after the feed-forward
    post_norm_pinned: bool = False  # the last of them stays on its layer's device
    parallel: bool = False  # attention and feed-forward read one norm
    attention_softcap: bool = False
    logit_softcap: bool = False
    sinks: bool = False  # a logit a head in each softmax
    fused_qkv: bool = False
    fused_gate_up: bool = False
    activation: tuple[str, ...] = ()  # of a feed-forward without a gate
    residual_first: bool = False  # residual + feed-forward, not the other way round
    windows: bool = False  # a second cache for sliding-window layers
    window_optional: bool = False  # ... where the model has a window
    rotates_windows: bool = False  # where there is a window, layers that see everything have no rotation
    unrotated_every: int = 0  # each n-th layer has no rotation
    temperature: bool = False  # queries of layers without rotation are scaled by position
    scaled_by_position: bool = False  # queries of all layers are
    late_outputs: bool = False  # rows without an output are dropped after the last layer, not in it
    gating: str = "softmax"  # of the router; "chosen": a softmax over the chosen experts
    normalizes: bool | None = True  # the weights of a token's experts sum to one; None: where the model says so
    router_bias: bool = False  # and of the experts
    weights_first: bool = False  # an expert's weight multiplies its input
    shared_first: bool = False  # the shared expert is computed before the others
    shared_gate: bool = False


_GEMMA2 = Family(q_scaled=True, embedding_scaled=True, post_norms=True, attention_softcap=True, logit_softcap=True, windows=True)
_GRANITE = Family(embedding_scaled=True, residual_scaled=True, logits_scaled=True)
_COMMAND_R = Family(layer_norm=True, parallel=True, logits_scaled=True)
_OLMO2 = Family(whole_qk_norm=True, input_norms=False, post_norms=True, windows=True, window_optional=True)
_SQUARED = ("unary", "sqr")
FAMILIES = {
    "llama": Family(),
    "qwen2": Family(),
    "qwen3": Family(qk_norm=True),
    "qwen3moe": Family(qk_norm=True),
    "gemma": Family(q_scaled=True, embedding_scaled=True),
    "gemma2": _GEMMA2,
    "gemma3": Family(qk_norm=True, q_scaled=True, embedding_scaled=True, post_norms=True, windows=True),
    "phi3": Family(q_scaled=True, fused_qkv=True, fused_gate_up=True, residual_first=True),
    "mistral3": Family(scaled_by_position=True),
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "smollm3": Family(unrotated_every=4),
    "seed_oss": Family(),
    "ernie4_5": Family(),
    "ernie4_5-moe": Family(),
    "arcee": Family(activation=_SQUARED),
    "nemotron": Family(layer_norm=True, norm_bias=True, activation=_SQUARED),
    "starcoder2": Family(layer_norm=True, norm_bias=True, activation=("unary",)),
    "stablelm": Family(layer_norm=True, norm_bias=True),
    "command-r": _COMMAND_R,
    "cohere2": _COMMAND_R._replace(windows=True, rotates_windows=True),
    "olmo2": _OLMO2,
    "exaone4": _OLMO2._replace(whole_qk_norm=False, qk_norm=True, rotates_windows=True),
    "glm4": Family(post_norms=True, post_norm_pinned=True, fused_gate_up=True),
    "olmoe": Family(whole_qk_norm=True, normalizes=False),
    "phimoe": Family(q_scaled=True, norm_bias=True, residual_first=True),
    "qwen2moe": Family(shared_gate=True, normalizes=False),
    "hunyuan-moe": Family(late_qk_norm=True, shared_first=True),
    "minimax-m2": Family(whole_qk_norm=True, gating="sigmoid"),
    "glm4moe": Family(gating="sigmoid", normalizes=None),
    "gpt-oss": Family(sinks=True, windows=True, late_outputs=True, gating="chosen", router_bias=True),
    "llama4": Family(plain_qk_norm=True, windows=True, unrotated_every=4, temperature=True, gating="sigmoid", normalizes=False, weights_first=True),
    "deepseek2": Family(normalizes=None),  # whether softmax or sigmoid makes no difference in memory
}  # fmt: skip


class Routes(NamedTuple):
    """How a model's tokens find their experts."""

    shared: int = 0  # width of all shared experts together [elements]
    first_dense: int = 0  # layers before those with experts
    every: int = 1  # each n-th layer has experts
    normalized: bool = True  # the weights of a token's experts sum to one
    scaled: bool = False  # and are scaled
    corrected: bool = False  # a bias of the choice
    groups: int = 1  # experts are chosen from the best groups
    groups_used: int = 1


class Latent(NamedTuple):
    """Latent attention's ranks and widths of a head [elements]."""

    q_rank: int  # 0: queries aren't compressed
    rank: int
    nope: int
    rope: int
    value: int


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
    head_norms: bool = False  # norms over queries and keys that this model has and others of its family don't
    head_bias: bool = False  # of the output
    routes: Routes = Routes()
    latent: Latent | None = None

    @property
    def two_caches(self) -> bool:
        """Whether sliding-window layers have a cache of their own."""
        family = FAMILIES[self.family]
        return family.windows and not (family.window_optional and not self.window)

    @property
    def period(self) -> int:
        """Layers after which their kinds repeat."""
        windows = self.full_every if self.two_caches and self.window else 1
        return lcm(windows, FAMILIES[self.family].unrotated_every or 1, self.routes.every)

    def windowed(self, layer: int) -> bool:
        """Whether a layer has a sliding window."""
        return self.two_caches and self.window > 0 and layer % self.full_every < self.full_every - 1

    def rotated(self, layer: int) -> bool:
        """Whether a layer's queries and keys are rotated."""
        family = FAMILIES[self.family]
        if family.rotates_windows and self.two_caches:
            return self.windowed(layer)
        return not family.unrotated_every or (layer + 1) % family.unrotated_every != 0

    def sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts > 0 and layer >= self.routes.first_dense and (layer + 1) % self.routes.every == 0


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


class Kind(NamedTuple):
    """What a layer has in common with each n-th other."""

    windowed: bool = False
    sparse: bool = False
    rotated: bool = True


class Layer(NamedTuple):
    """One layer's kind and place."""

    kind: Kind
    home: int  # backend of its weights
    cache_home: int
    experts_home: int
    formats: Formats = ()
    moved: Moved = ()
    leading: bool = False  # before the layers with experts


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
        self.scales: Tensor | None = None  # of queries, by position

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
        """A norm, its weight, and its bias where the family has one."""
        t = self.g.like(name, "norm" if self.family.layer_norm else "rms_norm", x)
        if pin and self.b.pin:
            t.pinned = self.home
        t = self.g.like(name, "mul", t, self.weight(name, x.ne[0], fmt=F32))
        return self.g.like(name, "add", t, self.weight(name + ".bias", x.ne[0], fmt=F32)) if self.family.norm_bias else t

    def softcap(self, name: str, x: Tensor) -> Tensor:
        """Scale, tanh, scale."""
        for op in ("scale", "unary", "scale"):
            x = self.g.like(name, op, x)
        return x
