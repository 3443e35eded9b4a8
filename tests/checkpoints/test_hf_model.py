from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from readers.files import read_or_refuse, safetensors_bytes

from calculator.catalog import Model, load_model
from calculator.errors import CalculatorError, NotModelled, UnreadableFile
from calculator.estimate import estimate
from calculator.quantization import parse, quantize, stored_nbytes
from calculator.readers.hf_config import model_from_config

CONFIG = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
          "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}  # fmt: skip
W = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True}
A = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True}


_FIELDS = ["quant_method", "bits", "group_size", "w_bit", "version", "load_in_4bit", "config_groups", "weights", "input_activations", "ignore", "type", "num_bits", "strategy",
           "weight_block_size", "activation_scheme", "quant_algo", "quantization", "global_quant_config", "weight", "dtype", "qscheme", "modules_to_not_convert", "dynamic"]  # fmt: skip


def compressed(weights, inputs=None, **more):
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}, **more}


SCHEMES = [
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "gptq-int4-g128"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "gptq-int8-g-1"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "modules_to_not_convert": None}, "awq-int4-g128"),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, "awq-int4-g64"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, "bnb-nf4-dq"),
    ({"load_in_4bit": True}, "bnb-fp4"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}, "bnb-int8"),
    (compressed(W), "w4a16-g128"), (compressed({**W, "actorder": "weight"}), "w4a16-g128"),
    (compressed({**W, "num_bits": 8, "strategy": "channel"}, {**A, "type": "int"}), "int8-w8a8"),
    (compressed({**A, "strategy": "tensor", "dynamic": False}, {**A, "strategy": "tensor", "dynamic": False}), "fp8"),
    (compressed({**A, "strategy": "channel", "dynamic": False}, A), "fp8-per-channel"),
    (compressed({"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}, A, ignore=["lm_head", "re:.*mlp.gate$"]), "nvfp4"),
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.input_layernorm"]}, "fp8-block"),
    ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, "fp8"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "fp8-dynamic"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.embed_tokens"]}, "mxfp4"),
    ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, "fp8"),
    ({"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}, "nvfp4"),
    ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}, "input_tensors": {"dtype": "fp8_e4m3"}}, "exclude": ["lm_head"]}, "fp8"),
    ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}}}, "mxfp4"),
]  # fmt: skip


def write_config(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


@pytest.mark.parametrize(("quantization", "name"), SCHEMES)
def test_a_quantized_config_is_sized_as_its_own_scheme(tmp_path, quantization, name):
    found = load_model(str(write_config(tmp_path, quantization_config=quantization)))
    ours, theirs = estimate(found), estimate(_plain(), quant=name)
    assert ours.job.deployment.quant == name
    assert ours.ledger.total_bytes == theirs.ledger.total_bytes
    assert {x.basis for x in ours.ledger.lines if x.component == "weights"} == {"derived"}


REFUSED = [
    ({"quant_method": "aqlm"}, "aqlm"), ({"bits": 4}, "quant_method"), ("int4", "not an object"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*down_proj": {"bits": 5}}}, "in 5 bits"),
    ({"quant_method": "gptq", "bits": 5, "group_size": 128}, "isn't made"), ({"quant_method": "gptq", "bits": "4"}, "bits"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "gemv"),
    (compressed(W, ignore=["re:(a+)+$"]), "isn't tried"), (compressed({**W, "symmetric": False}), "no layout"), (compressed({**W, "actorder": "group"}), "no layout"),
    (compressed(W, sparsity_config={"format": "sparse-24-bitmask"}), "sparse"), ({"quant_method": "compressed-tensors"}, "config_groups"),
    ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "blocks"), ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8"),
    ({"quant_method": "quark", "layer_quant_config": {"*down": {}}}, "a layer"), ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}}}, "int4"),
]  # fmt: skip


@pytest.mark.parametrize(("quantization", "what"), REFUSED)
def test_a_layout_that_is_not_modelled_is_refused_by_name(tmp_path, quantization, what):
    with pytest.raises(CalculatorError, match=what):
        estimate(load_model(str(write_config(tmp_path, quantization_config=quantization))))


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
                     | st.sampled_from(["gptq", "awq", "fp8", "quark", "modelopt", "mxfp4", "bitsandbytes", "compressed-tensors", "lm_head", "re:.*", "llama"]),
                     lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), inner, max_size=6), max_leaves=15)  # fmt: skip


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8), st.dictionaries(st.sampled_from(sorted(CONFIG)), _JSON, max_size=2), st.booleans())
def test_any_config_is_sized_or_refused_in_a_line(tmp_path_factory, quantization, changes, nested):
    config = CONFIG | changes | {"quantization_config": quantization}
    path = tmp_path_factory.mktemp("c") / "config.json"
    path.write_text(json.dumps({"model_type": "x", "text_config": config} if nested else config))
    found = read_or_refuse(lambda p: load_model(str(p)), path)
    if found is not None:
        assert read_or_refuse(lambda m: estimate(m, context=64), found) is None or estimate(found, context=64).tensor_bytes > 0


def _plain(**changes) -> Model:
    return Model(model_from_config(CONFIG | changes, id="made"), {"name": "m", "family": "f", "sources": {"config": "made"}})


SUFFIX = {"codes": "weight", "int8 codes": "weight", "4-bit codes": "weight", "F8_E4M3 values": "weight", "8-bit values": "weight", "4-bit values": "weight_packed",
          "SCB scales": "SCB", "absmax": "weight.absmax", "8-bit absmax": "weight.absmax", "code table": "weight.quant_map",
          "absmax of absmax, offset": "weight.nested_absmax", "absmax code table": "weight.nested_quant_map", "weight and input scale": "weight_scale",
          "scales": "scales", "block scales": "weight_scale", "global and input scale": "weight_global_scale"}  # fmt: skip
TYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def write_weights(folder, stored, *, rename=lambda name: name, files=1, extra=()):
    """Headers of a checkpoint that holds `stored`, in one file or several."""
    names = []
    for g in stored:
        for layer in g.layers or (0,):
            name = rename(g.group.name.replace("{layer}", str(layer)))
            if len(g.parts) == 1:
                names.append((name, TYPE[g.format], list(g.group.shape), g.tensor_nbytes))
                continue
            for part in g.parts:
                module = name.removesuffix(".weight")
                nested = "offset" in part.name  # the offset itself lies in a packed description of the weight
                names.append((f"{module}.{SUFFIX.get(part.name, part.name)}", "U8", [part.nbytes - 4 * nested], part.nbytes - 4 * nested))
                if nested:
                    names.append((f"{module}.weight.quant_state.bitsandbytes__nf4", "U8", [88], 88))
    names += list(extra)
    weight_map = {}
    for i in range(files):
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, kind, shape, nbytes in names[i::files]:
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        file = "model.safetensors" if files == 1 else f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        weight_map |= dict.fromkeys((n for n in header if n != "__metadata__"), file)
        (folder / file).write_bytes(safetensors_bytes(header))
    if files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("quantization", "name"), [(None, "bf16"), *(s for s in SCHEMES if s[1] not in ("bnb-fp4", "mxfp4"))])
@pytest.mark.parametrize("files", [1, 3])
def test_headers_of_a_scheme_give_its_bytes_and_are_exact(tmp_path, quantization, name, files):
    stored = quantize(_plain().spec, parse(name))
    write_weights(write_config(tmp_path, **({"quantization_config": quantization} if quantization else {})), stored, files=files)
    for path in [tmp_path, next(tmp_path.glob("*.safetensors"))]:
        found = estimate(load_model(str(path)))
        assert [w for w in found.warnings if "ends before" not in w] == []
        assert found.job.deployment.quant == name
        expected = estimate(_plain(), quant=name)
        assert [(x.name, x.nbytes) for x in found.ledger.lines] == [(x.name, x.nbytes) for x in expected.ledger.lines]
        assert {x.name: x.basis for x in found.ledger.lines}["linear layers"] == "exact"
        assert found.parameters == expected.parameters


def test_a_layout_that_only_headers_know_is_exact_and_named_by_its_method(tmp_path):
    spec = _plain().spec
    part = quantize(spec, parse("gptq-int4-g128"))
    mixed = tuple(g if g.group.role != "ffn_down" else next(x for x in quantize(spec, parse("bf16")) if x.group == g.group) for g in part)
    write_weights(write_config(tmp_path, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*down": {"bits": 5}}}), mixed)
    found = estimate(load_model(str(tmp_path)))
    assert found.job.deployment.quant == "gptq"
    assert found.tensor_bytes == stored_nbytes(mixed) + 256
    with pytest.raises(NotModelled, match="only their headers describe"):
        estimate(load_model(str(tmp_path)), engine="vllm", gpu="h100")


def test_an_older_modelopt_export_says_its_format_beside_the_config(tmp_path):
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (write_config(tmp_path) / "hf_quant_config.json").write_text(json.dumps(said))
    assert estimate(load_model(str(tmp_path))).job.deployment.quant == "fp8"
    said["quantization"]["exclude_modules"] = ["lm_head", "model.layers.0*"]
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    load_model.cache_clear()
    left = estimate(load_model(str(tmp_path)))
    assert {g.format for g in left.job.stored if 0 in g.layers} == {"bfloat16"} != {g.format for g in left.job.stored if 1 in g.layers}


def test_a_tied_head_that_is_stored_again_is_held_once(tmp_path):
    stored = quantize(_plain().spec, parse("bf16"))  # untied: it has lm_head
    write_weights(write_config(tmp_path, tie_word_embeddings=True), stored, extra=[("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", [32], 128)])
    found = estimate(load_model(str(tmp_path)))
    assert found.tensor_bytes == estimate(_plain(tie_word_embeddings=True)).tensor_bytes
    assert any("held once" in w for w in found.warnings)


def test_what_the_config_does_not_imply_is_counted_and_said(tmp_path):
    stored = quantize(_plain().spec, parse("bf16"))
    write_weights(write_config(tmp_path), stored, extra=[("model.adapter.weight", "BF16", [10, 20], 400), ("model.layers.6.mlp.up_proj.weight", "BF16", [4], 8)])
    found = estimate(load_model(str(tmp_path)))
    assert found.tensor_bytes == estimate(_plain()).tensor_bytes + 400
    assert any("1 of other [10 x 20] more" in w for w in found.warnings)
    assert any("beyond the 6" in w for w in found.warnings)


def test_a_wider_file_is_loaded_in_the_configs_type(tmp_path):
    write_weights(write_config(tmp_path), quantize(_plain().spec, parse("fp32")))
    found = estimate(load_model(str(tmp_path)))
    assert found.tensor_bytes == estimate(_plain()).tensor_bytes
    assert any("stores float32" in w for w in found.warnings)


def test_experts_of_a_checkpoint_are_one_matrix_of_the_inventory(tmp_path):
    config = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    stored = quantize(_plain(**config).spec, parse("bf16"))
    write_config(tmp_path, **config)
    names = []
    for g in stored:
        for layer in g.layers or (0,):
            name = g.group.name.replace("{layer}", str(layer))
            if len(g.group.shape) < 3:
                names.append((name, "BF16", list(g.group.shape), g.tensor_nbytes))
                continue
            for e in range(4):
                one = name.replace("experts.", f"experts.{e}.").replace("gate_proj", "w1").replace("up_proj", "w3").replace("down_proj", "w2")
                names.append((one, "BF16", list(g.group.shape[1:]), g.tensor_nbytes // 4))
    write_weights(tmp_path, (), extra=names)
    found = estimate(load_model(str(tmp_path)))
    assert [(x.name, x.nbytes) for x in found.ledger.lines] == [(x.name, x.nbytes) for x in estimate(_plain(**config)).ledger.lines]


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_the_text_model_of_a_nested_config_is_sized_and_its_tower_counted(tmp_path, prefix):
    text = {k: v for k, v in CONFIG.items() if k not in ("torch_dtype", "tie_word_embeddings")}
    nested = {"model_type": "llava", "text_config": text, "vision_config": {"hidden_size": 8}, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    with pytest.raises(NotModelled, match="vision tower"):  # only headers say how large this one is
        load_model(str(tmp_path))
    bare = estimate(_plain(), context=1024)
    rename = (lambda n: prefix + n) if prefix == "language_model." else (lambda n: n if n == "lm_head.weight" else n.replace("model.", prefix, 1))
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(nested))
    write_weights(folder, quantize(_plain().spec, parse("bf16")), rename=rename, extra=[("vision_tower.w", "BF16", [50], 100)])
    whole = estimate(load_model(str(folder)), context=1024)
    assert whole.tensor_bytes == bare.tensor_bytes + 100
    assert {x.name: x.nbytes for x in whole.ledger.lines}["vision tower"] == 100


def test_safetensors_without_a_config_say_what_is_missing(tmp_path):
    write_weights(tmp_path, quantize(_plain().spec, parse("bf16")))
    with pytest.raises(UnreadableFile, match="beside it"):
        load_model(str(tmp_path / "model.safetensors"))
