"""Encoders that make embeddings: no head, no cache; each token sees all others.

Published checkpoints tie nothing, but have no head either: llama.cpp's recipes then treat the embedding as a tied one.
"""

from __future__ import annotations

from calculator.architectures.inventory import Inventory, TensorGroup
from calculator.architectures.parts import Groups
from calculator.spec import ModelSpec


def bert(model: ModelSpec, *, offset: int = 0) -> Inventory:
    """BERT, RoBERTa and XLM-RoBERTa: learned positions, segments, biases everywhere, a pooler. `offset`: positions before the first.

    A classifier is beside BERT's pooler; RoBERTa has one of two layers in its place.

    V h + P h + T h + L (4 h h + 2 h f + 9 h + f) + h h + h, and a norm of 2 h           P positions, T segments       derived

    Source: transformers v5.23.0 models/{bert,roberta,xlm_roberta}/modeling_*.py.
    """
    h, f, n, at = model.hidden_size, model.intermediate_size, model.num_hidden_layers, "encoder.layer.{layer}."
    groups: Groups = [TensorGroup("embeddings.word_embeddings.weight", (model.vocab_size, h), "embedding"),
                      TensorGroup("embeddings.position_embeddings.weight", (model.max_position_embeddings + offset, h), "position"),
                      TensorGroup("embeddings.token_type_embeddings.weight", (model.token_types, h), "position")]  # fmt: skip
    groups += _norm("embeddings.LayerNorm", h) + _norm(at + "attention.output.LayerNorm", h, n) + _norm(at + "output.LayerNorm", h, n)
    matrices = (("attention.self.query", (h, h), "attn_q"), ("attention.self.key", (h, h), "attn_k"), ("attention.self.value", (h, h), "attn_v"),
                ("attention.output.dense", (h, h), "attn_output"), ("intermediate.dense", (f, h), "ffn_up"), ("output.dense", (h, f), "ffn_down"))  # fmt: skip
    for name, shape, role in matrices:
        groups += [TensorGroup(f"{at}{name}.weight", shape, role, n), TensorGroup(f"{at}{name}.bias", shape[:1], "bias", n)]  # type: ignore[arg-type]
    dense, out = ("classifier.dense", "classifier.out_proj") if model.labels and offset else ("pooler.dense", "classifier")
    groups += _linear(dense, h, h) + (_linear(out, model.labels, h) if model.labels else [])
    return Inventory(tuple(groups), tied=True)


def nomic(model: ModelSpec) -> Inventory:
    """Nomic BERT: rotary positions, q, k and v in one matrix, a gated feed-forward, no biases but those of norms.

    Source: transformers v5.23.0 models/nomic_bert/modeling_nomic_bert.py.
    """
    h, f, n, at = model.hidden_size, model.intermediate_size, model.num_hidden_layers, "encoder.layers.{layer}."
    groups: Groups = [TensorGroup("embeddings.word_embeddings.weight", (model.vocab_size, h), "embedding"),
                      TensorGroup("embeddings.token_type_embeddings.weight", (model.token_types, h), "position"),
                      TensorGroup(at + "attn.Wqkv.weight", (3 * h, h), "attn_qkv", n), TensorGroup(at + "attn.out_proj.weight", (h, h), "attn_output", n),
                      TensorGroup(at + "mlp.fc11.weight", (f, h), "ffn_up", n), TensorGroup(at + "mlp.fc12.weight", (f, h), "ffn_gate", n),
                      TensorGroup(at + "mlp.fc2.weight", (h, f), "ffn_down", n)]  # fmt: skip
    groups += _norm("emb_ln", h) + _norm(at + "norm1", h, n) + _norm(at + "norm2", h, n)
    return Inventory(tuple(groups), tied=True)


def modernbert(model: ModelSpec) -> Inventory:
    """ModernBERT: rotary positions, fused q, k and v, fused gate and up; norms without biases, none before the first attention.

    Source: transformers v5.23.0 models/modernbert/modeling_modernbert.py.
    """
    h, f, n, at = model.hidden_size, model.intermediate_size, model.num_hidden_layers, "layers.{layer}."
    groups: Groups = [TensorGroup("embeddings.tok_embeddings.weight", (model.vocab_size, h), "embedding"), TensorGroup("embeddings.norm.weight", (h,), "norm"),
                      TensorGroup(at + "attn.Wqkv.weight", (3 * h, h), "attn_qkv", n), TensorGroup(at + "attn.Wo.weight", (h, h), "attn_output", n),
                      TensorGroup(at + "mlp.Wi.weight", (2 * f, h), "ffn_up", n), TensorGroup(at + "mlp.Wo.weight", (h, f), "ffn_down", n),
                      TensorGroup(at + "mlp_norm.weight", (h,), "norm", n), TensorGroup("final_norm.weight", (h,), "norm")]  # fmt: skip
    if n > 1:
        groups.append(TensorGroup(at + "attn_norm.weight", (h,), "norm", n - 1, tuple(range(1, n))))
    if model.labels:
        groups += [TensorGroup("head.dense.weight", (h, h), "pooler"), TensorGroup("head.norm.weight", (h,), "pooler"), *_linear("classifier", model.labels, h)]
    return Inventory(tuple(groups), tied=True)


def _norm(name: str, width: int, layers: int = 0) -> Groups:
    return [TensorGroup(f"{name}.{part}", (width,), "norm", layers) for part in ("weight", "bias")]


def _linear(name: str, rows: int, columns: int) -> Groups:
    return [TensorGroup(f"{name}.weight", (rows, columns), "pooler"), TensorGroup(f"{name}.bias", (rows,), "pooler")]
