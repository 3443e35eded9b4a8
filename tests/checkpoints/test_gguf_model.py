from __future__ import annotations

from dataclasses import replace

import pytest

from calculator.catalog import load_model
from calculator.checkpoints.gguf import FILE_TYPES, stored_of
from calculator.errors import CalculatorError, NotModelled, UnknownArchitecture
from calculator.estimate import estimate
from calculator.formats import FORMATS
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.quantization.gguf_types import RECIPES
from calculator.readers.hf_config import model_from_config

gguf = pytest.importorskip("gguf")
from readers.files import gguf_bytes, text  # noqa: E402

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight", "model.norm.weight": "output_norm.weight",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps", "mlp.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.experts.gate_proj": "ffn_gate_exps", "block_sparse_moe.experts.up_proj": "ffn_up_exps",
    "block_sparse_moe.experts.down_proj": "ffn_down_exps", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "pre_feedforward_layernorm": "pre_ffw_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
U32, F32, STR, ARR = 4, 6, 8, 9


def name_in_file(name: str, layer: int) -> str:
    """A checkpoint's name in llama.cpp's terms, by its own table where the package has one."""
    if name in NAMES or not name.startswith("model.layers."):
        return NAMES.get(name, name)
    module, _, kind = name.removeprefix("model.layers.{layer}.").rpartition(".")
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def as_gguf(path, spec, stored, *, arch, recipe, extra=()):
    """The header of a file that holds `stored`."""
    u32 = lambda n: n.to_bytes(4, "little")  # noqa: E731
    keys = [("general.architecture", STR, text(arch)), ("general.file_type", U32, u32({v: k for k, v in FILE_TYPES.items()}[recipe]))]
    dims = {"embedding_length": spec.hidden_size, "block_count": spec.num_hidden_layers, "attention.head_count": spec.num_attention_heads,
            "attention.head_count_kv": spec.num_key_value_heads, "attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim,
            "context_length": spec.max_position_embeddings, "feed_forward_length": spec.intermediate_size}  # fmt: skip
    if spec.num_experts:
        dims |= {"expert_count": spec.num_experts, "expert_used_count": spec.num_experts_per_tok, "expert_feed_forward_length": spec.expert_intermediate_size}
    if spec.sliding_window:
        dims["attention.sliding_window"] = spec.sliding_window
    keys += [(f"{arch}.{k}", U32, u32(v)) for k, v in dims.items()]
    numbers, tensors, offset = {v: k for k, v in _types().items()}, [], 0
    for g in stored:
        for layer in g.layers or (-1,):
            tensors.append((name_in_file(g.group.name, layer), tuple(reversed(g.group.shape)), numbers[g.format], offset))
            offset += -(-g.tensor_nbytes // 32) * 32
    path.write_bytes(gguf_bytes(keys=[*keys, *extra], tensors=tensors))
    return path


def _types():
    from calculator.readers.gguf import TYPES

    return TYPES


BASE = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 1024,
        "vocab_size": 1000, "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "float16"}  # fmt: skip
FAMILIES = {
    "llama": ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, "llama"),
    "tied": ({"model_type": "llama", "tie_word_embeddings": True}, "llama"),
    "qwen2": ({"model_type": "qwen2"}, "qwen2"),
    "qwen3": ({"model_type": "qwen3"}, "qwen3"),
    "phi3": ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "phi3"),
    "gemma2": ({"model_type": "gemma2", "sliding_window": 512, "tie_word_embeddings": True}, "gemma2"),
    "gemma3": ({"model_type": "gemma3_text", "sliding_window": 512, "tie_word_embeddings": True}, "gemma3"),
    "mixtral": ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, "llama"),
    "qwen3moe": ({"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 256}, "qwen3moe"),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q8_0", "IQ2_XXS", "TQ1_0", "F16", "MXFP4_MOE"])
def test_a_file_of_a_family_gives_the_model_that_it_was_made_of(tmp_path, family, recipe):
    config, arch = FAMILIES[family]
    spec = model_from_config(BASE | config, id="made")
    stored = quantize(spec, parse(recipe))
    found = load_model(str(as_gguf(tmp_path / "m.gguf", spec, stored, arch=arch, recipe=recipe)))
    assert replace(found.spec, id="made", sliding_window=spec.sliding_window) == spec
    assert stored_nbytes(found.checkpoint.stored) == stored_nbytes(stored)
    assert found.checkpoint.scheme.name == recipe
    said = [w for w in found.checkpoint.warnings if "ends before" not in w]
    assert not said
    ours, theirs = estimate(found, context=2048), _of_spec(spec, recipe, 2048)
    assert [(x.name, x.nbytes, x.device) for x in ours.ledger.lines] == [(x.name, x.nbytes, x.device) for x in theirs.ledger.lines]
    assert {x.basis for x in ours.ledger.lines if x.component == "weights"} == {"exact"}
    assert ours.tensor_bytes == theirs.tensor_bytes
    assert ours.parameters == theirs.parameters


def _of_spec(spec, recipe, context):
    from calculator.catalog import Model

    return estimate(Model(spec, {"name": "m", "family": "f", "sources": {"config": "made"}}), quant=recipe, engine="llama.cpp", context=context,
                    settings={"quantizer": "2026"})  # fmt: skip


def test_the_files_own_types_win_over_the_recipe(tmp_path):
    spec = model_from_config(BASE | FAMILIES["llama"][0], id="made")
    stored = [g if g.group.role != "attn_q" else replace(g, format="Q6_K", parts=(g.parts[0]._replace(nbytes=g.group.rows * FORMATS["Q6_K"].nbytes(512)),))
              for g in quantize(spec, parse("Q4_K_M"))]  # fmt: skip
    found = load_model(str(as_gguf(tmp_path / "m.gguf", spec, stored, arch="llama", recipe="Q4_K_M")))
    assert estimate(found).tensor_bytes == sum(g.nbytes for g in stored) > stored_nbytes(quantize(spec, parse("Q4_K_M")))
    assert any("llama-quantize's rules" in w for w in found.checkpoint.warnings)
    assert estimate(found, quant="Q8_0").tensor_bytes == stored_nbytes(quantize(spec, parse("Q8_0")))


def test_a_tensor_that_the_dimensions_do_not_imply_is_counted_and_said(tmp_path):
    spec = model_from_config(BASE | FAMILIES["llama"][0], id="made")
    stored = quantize(spec, parse("F16"))
    extra = replace(stored[0], group=replace(stored[0].group, name="strange.weight"))
    found = load_model(str(as_gguf(tmp_path / "m.gguf", spec, (*stored, extra), arch="llama", recipe="F16")))
    assert estimate(found).tensor_bytes == stored_nbytes(stored) + extra.nbytes
    assert "other [1,000 x 512]" in found.checkpoint.warnings[0]


def test_a_header_of_the_1b_predicts_the_measured_file(tmp_path):  # 799,862,912 bytes of tensors, llama-quantize 0c1e570
    spec = load_model("llama-3.2-1b").spec
    path = as_gguf(tmp_path / "m.gguf", spec, quantize(spec, parse("Q4_K_M")), arch="llama", recipe="Q4_K_M")
    found = estimate(str(path), gpu="rtx 4090")
    assert found.tensor_bytes == 799_862_912
    assert found.parameters == 1_235_814_400
    assert found.file_bytes == path.stat().st_size // 32 * 32 + (32 if path.stat().st_size % 32 else 0) + 799_862_912


@pytest.mark.parametrize(("extra", "error", "what"), [
    ([("llama.attention.head_count", ARR, b"")], CalculatorError, "twice"),
    ([("llama.expert_shared_count", U32, b"\1\0\0\0")], NotModelled, "expert_shared_count"),
    ([("llama.rope.dimension_count", U32, b"\x20\0\0\0")], NotModelled, "rotary"),
])  # fmt: skip
def test_what_has_no_formula_is_refused_by_name(tmp_path, extra, error, what):
    spec = model_from_config(BASE | FAMILIES["llama"][0], id="made")
    with pytest.raises(error, match=what):
        load_model(str(as_gguf(tmp_path / "m.gguf", spec, quantize(spec, parse("F16")), arch="llama", recipe="F16", extra=extra)))


def test_a_missing_dimension_is_named_as_the_file_would_name_it(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys=[("general.architecture", STR, text("llama")), ("llama.block_count", U32, b"\1\0\0\0")]))
    with pytest.raises(CalculatorError, match=r"lacks llama\.embedding_length, llama\.attention\.head_count"):
        load_model(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize("arch", ["rwkv7", "clip", "t5"])
def test_an_unknown_architecture_is_refused_by_name(tmp_path, arch):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(keys=[("general.architecture", STR, text(arch))]))
    with pytest.raises(UnknownArchitecture, match=arch):
        load_model(str(tmp_path / "m.gguf"))


def test_recipes_and_file_types_agree():
    assert set(RECIPES) <= set(FILE_TYPES.values())
    theirs = {t.value: t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in gguf.LlamaFileType if t.value < 1000}
    assert {k: v for k, v in FILE_TYPES.items() if k in theirs} == theirs


def test_every_name_that_the_package_gives_a_known_family_has_a_role():
    from calculator.readers.header import Header, Tensor

    arches = {"LLAMA", "QWEN2", "QWEN3", "QWEN3MOE", "PHI3", "GEMMA2", "GEMMA3"}
    unused = {"blk.{bid}.attn_rot_embd"}  # tables that no file holds any more
    for arch in arches:
        for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch]]:
            name = gguf.TENSOR_NAMES[tensor]
            if name in unused or "{xid}" in name or ".cls" in name or name in ("cls", "rope_freqs"):
                continue
            full = name.format(bid=0) + ".weight"
            role = stored_of(Header("gguf", {}, (Tensor(full, "F16", (2, 2), 8, 0),), ("f",), 8, False))[0].group.role
            assert role != "other" or "factors" in name, (arch, full)
