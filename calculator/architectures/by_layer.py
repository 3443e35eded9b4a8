"""Decoders whose layers differ in more than their window: Gemma 3n and 4, and Llama 3.2 Vision."""

from __future__ import annotations

from collections.abc import Sequence

from calculator.architectures.dense import AROUND
from calculator.architectures.inventory import Inventory, Role, TensorGroup
from calculator.architectures.parts import LAYER, Groups, attention, decoder, gated
from calculator.spec import ByLayer, ModelSpec


def gemma3n(model: ModelSpec) -> Inventory:
    """Gemma 3n: Gemma 3's layers, and a table of inputs by layer, AltUp's streams and LAuReL's low-rank residual.

    beside Gemma 3: V' L w + L w h + w + 2 (A - 1) h h, and a layer's 2 h w + 2 h r + A h + A A + A A A + 4 h      derived
    V' rows of the table, w its width a layer, A streams, r LAuReL's rank

    Source: transformers v5.23.0 models/gemma3n/modeling_gemma3n.py.
    """
    own = model.by_layer
    assert own is not None
    h, n, streams, rank = model.hidden_size, model.num_hidden_layers, own.altup_inputs, own.laurel_rank
    inner = [*attention(model, qk_norm="head"), *gated(model, model.intermediate_size), *_inputs(model, own)]
    shapes: tuple[tuple[str, tuple[int, ...], Role], ...] = (
        ("altup.correct_output_scale", (h,), "small"), ("altup.correction_coefs.weight", (streams, streams), "small"),
        ("altup.prediction_coefs.weight", (streams * streams, streams), "small"), ("altup.modality_router.weight", (streams, h), "side"),
        ("altup.router_norm.weight", (h,), "norm"), ("laurel.linear_left.weight", (rank, h), "side"), ("laurel.linear_right.weight", (h, rank), "side"),
        ("laurel.post_laurel_norm.weight", (h,), "norm"),
    )  # fmt: skip
    inner += [TensorGroup(LAYER + name, shape, role, n) for name, shape, role in shapes]
    for i in range(streams - 1):
        inner += [TensorGroup(f"model.{name}.{i}.weight", (h, h), "side") for name in ("altup_projections", "altup_unembed_projections")]
    return decoder(model, inner, norms=AROUND)


def gemma4(model: ModelSpec) -> Inventory:
    """Gemma 4: wider heads in layers that see everything, there possibly without values; late layers, which share a cache, may be
    twice as wide; experts beside the feed-forward in the MoE.

    Checkpoints hold keys and values of all layers, though transformers builds none where a cache is shared: the published totals
    of E2B (5,123,178,051) and E4B (7,996,156,490) are met exactly with them.

    Source: transformers v5.23.0 models/gemma4/modeling_gemma4.py Gemma4TextAttention, Gemma4TextDecoderLayer.
    """
    own = model.by_layer
    assert own is not None
    h, n, every = model.hidden_size, model.num_hidden_layers, model.full_every or 1
    caching = n - own.kv_shared_layers
    inner: Groups = []
    for full in (False, True):
        layers = [i for i in range(n) if ((i + 1) % every == 0) == full]
        if layers:
            inner += _attention(model, own, layers, full=full)
    wide = [i for i in range(n) if own.double_wide and i >= caching]
    for layers, width in (([i for i in range(n) if i not in set(wide)], model.intermediate_size), (wide, 2 * model.intermediate_size)):
        if layers:
            inner += gated(model, width, layers=layers)
    if own.input_width:
        inner += _inputs(model, own)
    norms: tuple[str, ...] = AROUND
    if model.num_experts:
        e, f = model.num_experts, model.expert_intermediate_size
        inner += [TensorGroup(LAYER + "router.proj.weight", (e, h), "router", n), TensorGroup(LAYER + "router.scale", (h,), "small", n),
                  TensorGroup(LAYER + "router.per_expert_scale", (e,), "small", n),
                  TensorGroup(LAYER + "experts.gate_up_proj", (e, 2 * f, h), "ffn_gate", n), TensorGroup(LAYER + "experts.down_proj", (e, h, f), "ffn_down", n)]  # fmt: skip
        norms = (*AROUND, "post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")
    inner.append(TensorGroup(LAYER + "layer_scalar", (1,), "small", n))
    return decoder(model, inner, norms=norms)


def _attention(model: ModelSpec, own: ByLayer, layers: Sequence[int], *, full: bool) -> Groups:
    """Attention of the layers of one kind."""
    h, at, where = model.hidden_size, LAYER + "self_attn.", (len(layers), tuple(layers))
    d = (own.full_head_dim if full else 0) or model.head_dim
    kv = ((own.full_kv_heads if full else 0) or model.num_key_value_heads) * d
    q = model.num_attention_heads * d
    groups = [TensorGroup(at + "q_proj.weight", (q, h), "attn_q", *where), TensorGroup(at + "k_proj.weight", (kv, h), "attn_k", *where),
              TensorGroup(at + "o_proj.weight", (h, q), "attn_output", *where), TensorGroup(at + "q_norm.weight", (d,), "norm", *where),
              TensorGroup(at + "k_norm.weight", (d,), "norm", *where)]  # fmt: skip
    if not (full and own.values_are_keys):
        groups.append(TensorGroup(at + "v_proj.weight", (kv, h), "attn_v", *where))
    return groups


def _inputs(model: ModelSpec, own: ByLayer) -> Groups:
    """The table of inputs by layer, what projects the embedding into them, and each layer's gate, projection and norm."""
    h, n, w = model.hidden_size, model.num_hidden_layers, own.input_width
    return [TensorGroup("model.embed_tokens_per_layer.weight", (own.input_vocab, n * w), "layer_embedding"),
            TensorGroup("model.per_layer_model_projection.weight", (n * w, h), "side"), TensorGroup("model.per_layer_projection_norm.weight", (w,), "norm"),
            TensorGroup(LAYER + "per_layer_input_gate.weight", (w, h), "projection", n), TensorGroup(LAYER + "per_layer_projection.weight", (h, w), "projection", n),
            TensorGroup(LAYER + "post_per_layer_input_norm.weight", (h,), "norm", n)]  # fmt: skip


def mllama(model: ModelSpec) -> Inventory:
    """Llama 3.2 Vision's text model: some layers attend to an image's rows instead, with norms and gates of their own.

    Eight rows of the embedding are beyond the vocabulary; the head has none of them.

    Source: transformers v5.23.0 models/mllama/modeling_mllama.py MllamaTextModel, MllamaTextCrossAttention.
    """
    cross, d = model.cross_attention_layers, model.head_dim
    plain = tuple(i for i in range(model.num_hidden_layers) if i not in set(cross))
    inner: Groups = []
    for layers, name in ((plain, "self_attn"), (cross, "cross_attn")):
        inner += [TensorGroup(g.name.replace("self_attn", name), g.shape, g.role, len(layers), layers) for g in attention(model) if layers]
    if cross:
        shapes = (("cross_attn.q_norm.weight", d), ("cross_attn.k_norm.weight", d), ("cross_attn_attn_gate", 1), ("cross_attn_mlp_gate", 1))
        inner += [TensorGroup(LAYER + name, (size,), "norm" if "norm" in name else "small", len(cross), cross) for name, size in shapes]
    inner += gated(model, model.intermediate_size)
    whole = decoder(model, inner)
    extra = TensorGroup("model.embed_tokens.weight", (model.vocab_size + 8, model.hidden_size), "embedding")
    return Inventory((extra, *whole.groups[1:]), whole.tied)
