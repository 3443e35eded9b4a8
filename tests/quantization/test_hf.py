from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import models

from calculator.architectures import build_inventory
from calculator.architectures.inventory import LINEAR_ROLES
from calculator.catalog import load_model
from calculator.errors import UnknownName
from calculator.quantization import CATALOG, exl2, hf, parse, quantize, stored_nbytes
from calculator.readers.hf_config import model_from_config

MIB = 2**20
LLAMA_2_13B = model_from_config(
    {"model_type": "llama", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
     "intermediate_size": 13824, "vocab_size": 32000, "max_position_embeddings": 4096, "torch_dtype": "float16"},
    id="llama-2-13b",
)  # fmt: skip


# folder sizes in MiB: oobabooga.github.io/blog/posts/gptq-awq-exl2-llamacpp, 2023-10. What a folder holds beside the
# tensors doesn't depend on the group size: tokenizer.model 0.48 MiB, with AWQ and EXL2 tokenizer.json 1.76 MiB,
# safetensors headers and texts.
@pytest.mark.parametrize(
    ("quant", "printed", "others"),
    [("gptq-int4-g128", 6924, (0.5, 1.5)), ("gptq-int4-g32", 7633, (0.5, 1.5)),
     ("awq-int4-g128", 6915, (2.3, 3.5)), ("awq-int4-g32", 7624, (2.3, 3.5))],
)  # fmt: skip
def test_gptq_and_awq_folders_of_llama_2_13b(quant, printed, others):
    stored = quantize(LLAMA_2_13B, parse(quant))
    size = stored_nbytes(stored)
    if quant.startswith("gptq"):  # AutoGPTQ of 2023 saved a zero 16-bit bias with every Linear (_utils.py L90)
        size += sum(2 * g.group.rows * g.count for g in stored if g.group.role in LINEAR_ROLES)
    assert others[0] <= printed - size / MIB <= others[1]


@pytest.mark.parametrize(
    ("bits", "printed"), [(4.9, 7860), (4.65, 7481), (4.4, 7104), (4.25, 6876), (4.125, 6687), (4.0, 6498)]
)
def test_exl2_folders_of_llama_2_13b(bits, printed):
    """The converter of 2023-10 aims at the budget within about 1 MiB; tokenizer files take 2.3 MiB."""
    stored = exl2.quantize(LLAMA_2_13B, build_inventory(LLAMA_2_13B), bits=bits, generation=exl2.OCTOBER_2023)
    assert 2.2 <= printed - stored_nbytes(stored) / MIB <= 3.5


def test_vllm_prints_8_4926_gib_for_fp8_llama_3_1_8b():
    """vLLM 0.6.3.post1: 'Loading model weights took 8.4926 GB' (GiB): our FP8 by channel, a RoPE cache and Marlin's
    workspace of (out / 64) x 16 int32 a Linear."""
    model = load_model("llama-3.1-8b").spec
    stored = quantize(model, parse("fp8-per-channel"))
    rope = model.max_position_embeddings * model.head_dim * 2
    workspace = sum(4 * 16 * (g.group.rows // 64) * g.count for g in stored if g.group.role in LINEAR_ROLES)
    assert f"{(stored_nbytes(stored) + rope + workspace) / 2**30:.4f}" == "8.4926"


def test_vllm_prints_14_9888_gib_for_bf16_llama_3_1_8b():
    model = load_model("llama-3.1-8b").spec
    rope = model.max_position_embeddings * model.head_dim * 2
    assert f"{(stored_nbytes(quantize(model, parse('bf16'))) + rope) / 2**30:.4f}" == "14.9888"


@given(models(), st.sampled_from(CATALOG))
def test_every_scheme_stores_every_parameter(model, name):
    """Linear layers shrink, all else stays: a scheme never loses or invents a tensor."""
    inventory = build_inventory(model.spec)
    stored = quantize(model.spec, parse(name))
    held = sum(g.group.elements * g.count for g in stored if g.group.name != "rope_freqs.weight")
    again = model.spec.vocab_size * model.spec.hidden_size if name.startswith("exl2") and inventory.tied else 0
    assert held == inventory.parameters + again


def test_mxfp4_is_17_bytes_for_32_elements():  # OCP Microscaling Formats v1.0
    assert sum(p.nbytes for p in hf.mxfp4(64, 64)) == 64 * 64 // 32 * 17


def test_torchao_int4_pads_rows_of_896_to_1024():  # int4_tile_packed_to_4d_tensor.py from_hp
    codes = hf.torchao_int4(896, 896, group=128)[0]
    assert codes.nbytes == 896 * 1024 // 2


@pytest.mark.parametrize("bad", ["gptq-int5-g128", "gptq-int4-g7", "exl2-9.5", "exl2-1", "awq-int3-g128", "q4km", "", "x" * 500])
def test_a_quantization_that_nobody_makes_is_refused(bad):
    with pytest.raises(UnknownName) as error:
        parse(bad)
    assert len(str(error.value)) < 250


def test_names_ignore_case_and_bf16_belongs_to_the_engine():
    assert parse("q4_k_m").recipe == "Q4_K_M"
    assert parse("BF16").family == "plain"
    assert parse("BF16", engine="llama.cpp").recipe == "BF16"
    assert parse("fp16", engine="llama.cpp").recipe == "F16"
