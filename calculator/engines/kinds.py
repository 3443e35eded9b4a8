"""Caches of models whose layers differ, or that keep more or less than keys and values of each token.

A model is cut into models of equal layers, whose caches the engine knows: each kind of layer with a cache of its own.
"""

from __future__ import annotations

from dataclasses import replace

from calculator.architectures import architecture
from calculator.errors import BadValue, NotModelled, Unsupported
from calculator.ledger import Formula, Line
from calculator.spec import ByLayer, ModelSpec

NOT_IN_LLAMA_CPP = frozenset({"opt", "gptj", "mllama_text_model"})  # no graph in src/models @0c1e57098
TABLES = frozenset({"bert", "roberta", "xlm-roberta", "gpt2", "gpt_bigcode", "opt"})  # learned positions: none beyond
IMAGE_SOURCE = "transformers v5.23.0 models/mllama/modeling_mllama.py MllamaTextCrossAttention: keys and values of an image's rows"
INDEXER_SOURCE = "transformers v5.23.0 cache_utils.py DynamicIndexedLayer; llama.cpp src/llama-kv-cache-dsa.cpp @0c1e57098: one key of the indexer a token and layer"


def by_kind(model: ModelSpec, *, engine: str) -> tuple[ModelSpec, ...]:
    """Models of equal layers whose caches together are this one's.

    Falcon's grouped keys and values are repeated for all heads before transformers caches them (models/falcon/modeling_falcon.py _split_heads).
    """
    if model.model_type == "falcon" and engine == "transformers" and model.num_key_value_heads > 1:
        return (replace(model, num_key_value_heads=model.num_attention_heads),)
    if model.cross_attention_layers:
        return (replace(model, num_hidden_layers=model.num_hidden_layers - len(model.cross_attention_layers), cross_attention_layers=()),)
    own = model.by_layer
    if own is None:
        return (model,)
    caching = model.num_hidden_layers - own.kv_shared_layers
    full = sum(i < caching for i in model.full_indices)
    found = []
    if full:
        found.append(replace(model, num_hidden_layers=full, full_every=0, sliding_window=None, by_layer=None, head_dim=own.full_head_dim or model.head_dim,
                             num_key_value_heads=own.full_kv_heads or model.num_key_value_heads))  # fmt: skip
    if windowed := caching - full:
        found.append(replace(model, num_hidden_layers=windowed, full_every=windowed + 1, by_layer=None))
    return tuple(found)


def indexer_keys(model: ModelSpec) -> ModelSpec | None:
    """A model whose keys are the indexer's; its values aren't kept."""
    if model.indexer is None:
        return None
    return replace(model, num_hidden_layers=len(model.indexing_layers), num_key_value_heads=1, head_dim=model.indexer.head_dim, mla=None, indexer=None)


def image_line(model: ModelSpec, *, sequences: int, element_bytes: int) -> Line:
    """Keys and values of one image a sequence, which layers of cross-attention keep; none for text alone."""
    symbols = {"L": len(model.cross_attention_layers), "B": sequences, "K": model.num_key_value_heads, "d": model.head_dim, "e": element_bytes, "n": model.image_tokens}
    most = 2 * symbols["L"] * sequences * model.num_key_value_heads * model.head_dim * element_bytes * model.image_tokens
    rows = f"an image of the most tiles has {model.image_tokens:,} rows" if model.image_tokens else "how many rows an image has stands in vision_config"
    return Line("kv_cache", "cross-attention", 0, Formula("0 (images) × 2 × {L} (layers) × {B} × {K} × {d} × {e} × {n} (rows of an image)", symbols),
                IMAGE_SOURCE, high=most, note=f"for text alone; high: an image a sequence; {rows}")  # fmt: skip


def no_cache(model: ModelSpec) -> Line:
    """An encoder's cache."""
    return Line("kv_cache", "none", 0, Formula("0"), architecture(model.model_type).source, note="an encoder sees all tokens at once and keeps none of them")


def check(model: ModelSpec, *, engine: str, context: int, plain: bool, split: bool) -> None:
    """Refuse what isn't known of these models. `plain`: weights in 16 or 32 bits; `split`: layers on several devices."""
    if context > model.max_position_embeddings and model.model_type in TABLES:
        raise BadValue(f"{model.id} has learned positions for {model.max_position_embeddings:,} tokens, not for {context:,}", hint=f"--context {model.max_position_embeddings}")
    if engine == "llama.cpp" and model.labels:
        raise NotModelled(f"{model.id} in llama.cpp: how a file keeps a classifier has no record", hint="--engine vllm or transformers")
    if engine == "llama.cpp" and model.indexer and model.indexer.full:
        raise NotModelled(f"{model.id} in llama.cpp: what it caches for layers that share a choice of tokens has no record", hint="--engine vllm or transformers")
    unknown = model.model_type in NOT_IN_LLAMA_CPP or (model.model_type == "falcon" and model.attention_bias != "none")
    if engine == "llama.cpp" and unknown:
        raise Unsupported(f"llama.cpp @0c1e57098 doesn't run {model.model_type}{' with biases' if model.model_type == 'falcon' else ''}", hint="--engine transformers")
    if split and (model.by_layer or model.indexer or model.cross_attention_layers):
        raise NotModelled(f"{model.model_type} with layers on several devices: where the cache of each kind of layer lies", hint="one GPU that holds all layers")
    if engine != "llama.cpp" and not plain and architecture(model.model_type).plain_only:
        raise NotModelled(f"{model.model_type} quantized by a library of transformers: what it leaves alone isn't known here", hint="--quant bf16, or a GGUF recipe")


def loaded(own: ByLayer, name: str, layer: int, layers: int) -> bool:
    """Whether transformers loads a tensor: layers with a shared cache have no keys and values there, though checkpoints hold some.

    Source: transformers v5.23.0 models/gemma3n/modeling_gemma3n.py Gemma3nTextAttention.
    """
    return layer < layers - own.kv_shared_layers or not any(part in name for part in ("k_proj", "v_proj", "k_norm"))
