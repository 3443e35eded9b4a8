from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import models

from calculator.architectures import build_inventory
from calculator.catalog import load_model
from calculator.estimate import estimate
from calculator.quantization import gguf, gguf_types, parse, quantize, stored_nbytes
from calculator.spec import ModelSpec
from calculator.units import GIB

# exact sizes of published files, each quoted in public repositories with its sha256
PUBLISHED_FILES = {
    "llama-3.2-1b": 807_694_464,  # bartowski Llama-3.2-1B-Instruct-Q4_K_M
    "llama-3.2-3b": 2_019_377_696,
    "llama-3.1-8b": 4_920_739_232,
    "tinyllama-1.1b": 668_788_096,  # TheBloke
    "qwen2.5-7b": 4_683_074_240,
    "qwen2.5-0.5b": 397_808_192,  # rows of 896: Q4_K falls back to Q5_0, Q6_K to Q8_0
}


@pytest.mark.parametrize(("id", "size"), PUBLISHED_FILES.items())
def test_file_bytes_equal_the_published_q4_k_m(id, size):
    """The tokenizer's size comes from the same file; what is tested is that it is plausible and used."""
    model = load_model(id)
    metadata = model.record["gguf_metadata_bytes"]["value"]
    assert 20 < metadata / model.spec.vocab_size < 70
    assert gguf.file_nbytes(quantize(model.spec, parse("Q4_K_M")), metadata_bytes=metadata) == size


@pytest.mark.parametrize(("id", "size", "tokens"), [("phi-3-mini-4k-instruct", 2_393_231_072, 32_064), ("phi-4", 9_053_114_464, 100_352)])
def test_files_from_before_2026_follow_the_rules_of_2025(id, size, tokens):
    """Microsoft's q4 and ollama's phi4, both Q4_K_M: the tokenizer makes up the rest; by the rules of 2026 nothing would be left for it."""
    spec = load_model(id).spec
    old, new = (stored_nbytes(quantize(spec, parse("Q4_K_M"), quantizer=year)) for year in ("2025", "2026"))
    assert 20 < (size - old) / tokens < 40
    assert new > size
    assert gguf.quantizer_of(spec) == "2025"


@pytest.mark.parametrize(("recipe", "gigabytes"), [("Q4_K_M", "3.412"), ("Q3_K_S", "3.094")])
def test_gemma_4_follows_the_rules_of_2026(recipe, gigabytes):
    """Sizes that a model card of Gemma 4 E2B gives (Asystemoffields/gemma-4-E2B-it-PMRA-GGUF): the table by layer as the output is."""
    assert f"{stored_nbytes(quantize(load_model('gemma-4-e2b-it').spec, parse(recipe))) / 1e9:.3f}" == gigabytes


def test_the_year_changes_nothing_but_fused_attention_and_tables_by_layer():
    for id in ("llama-3.2-1b", "qwen3-30b-a3b", "gemma-4-26b-a4b-it", "deepseek-v2-lite"):
        for recipe in ("Q4_K_M", "IQ2_XS", "Q3_K_L"):
            old, new = (quantize(load_model(id).spec, parse(recipe), quantizer=year) for year in ("2025", "2026"))
            assert old == new


@pytest.mark.parametrize(
    ("recipe", "gigabytes"),
    [("F16", "2.48"), ("Q8_0", "1.32"), ("Q6_K", "1.02"), ("Q5_K_M", "0.91"), ("Q5_K_S", "0.89"), ("Q4_K_M", "0.81"), ("Q4_K_S", "0.78"),
     ("Q6_K_L", "1.09"), ("Q5_K_L", "0.98"), ("Q4_K_L", "0.87"), ("Q3_K_XL", "0.80")],
)
def test_other_files_of_the_1b_to_the_printed_digit(recipe, gigabytes):
    """bartowski/Llama-3.2-1B-Instruct-GGUF card, llama.cpp b3821, decimal GB; metadata from the Q4_K_M file alone."""
    model = load_model("llama-3.2-1b")
    size = gguf.file_nbytes(
        quantize(model.spec, parse(recipe), imatrix=True), metadata_bytes=model.record["gguf_metadata_bytes"]["value"]
    )
    assert f"{size / 1e9:.2f}" == gigabytes


def test_model_sizes_printed_by_llama_cpp_for_the_8b():
    """'model size = 4.58 GiB (4.89 BPW)', 'CUDA0 model buffer size = 4403.49 MiB', 'CPU ... 281.81 MiB'; Q4_K_M."""
    stored = quantize(load_model("llama-3.1-8b").spec, parse("Q4_K_M"))
    total = stored_nbytes(stored)
    host = sum(g.nbytes for g in stored if g.group.role == "embedding")
    assert f"{total / 2**30:.2f}" == "4.58"
    assert f"{(total - host) / 2**20:.2f}" == "4403.49"
    assert f"{host / 2**20:.2f}" == "281.81"


QWEN3_32B = ModelSpec("qwen3-32b", "qwen3", 5120, 64, 64, 8, 128, 25600, 151936, False, 40960, "bfloat16")
GEMMA2_9B = ModelSpec("gemma-2-9b", "gemma2", 3584, 42, 16, 8, 256, 14336, 256000, True, 8192, "bfloat16", sliding_window=4096, full_every=2)


@pytest.mark.parametrize(
    ("model", "tokenizer", "printed"),
    [
        (QWEN3_32B, 5_930_000, {"Q8_0": 34.82, "Q6_K_L": 27.26, "Q6_K": 26.88, "Q5_K_L": 23.69, "Q5_K_M": 23.21, "Q4_K_L": 20.34, "Q4_K_M": 19.76,
                                "Q3_K_XL": 18.01, "Q3_K_L": 17.33, "Q2_K_L": 13.10, "Q2_K": 12.34}),
        (GEMMA2_9B, 4_240_000, {"Q6_K_L": 7.81, "Q6_K": 7.59, "Q5_K_L": 6.87, "Q5_K_M": 6.65, "Q4_K_L": 5.98, "Q4_K_M": 5.76, "Q2_K_L": 4.03, "Q2_K": 3.81}),
    ],
)  # fmt: skip
def test_published_files_of_larger_models(model, tokenizer, printed):
    """Cards of bartowski/Qwen_Qwen3-32B-GGUF (b5200) and gemma-2-9b-it-GGUF (b3389) [GB]; the tokenizer's bytes are about these."""
    for recipe, size in printed.items():
        assert abs(gguf.file_nbytes(quantize(model, parse(recipe), imatrix=True), metadata_bytes=tokenizer) / 1e9 - size) <= 0.01


def test_a_publishers_wide_recipe_differs_in_output_and_embedding_alone():
    for wide, base in gguf_types.WIDE_OUTER.items():
        for name in ("llama-3.2-1b", "llama-3.1-8b", "qwen2.5-0.5b"):
            model = load_model(name).spec
            a, b = (quantize(model, parse(q)) for q in (wide, base))
            outer = [g for g in a if g.group.role in ("output", "embedding")]
            assert {g.format for g in outer} == {"Q8_0"}
            assert [g for g in a if g not in outer] == [g for g in b if g.group.role not in ("output", "embedding")]


@given(models(), st.sampled_from(sorted((*gguf_types.RECIPES, *gguf_types.WIDE_OUTER))), st.booleans())
def test_every_element_is_stored_once(model, recipe, imatrix):
    inventory = build_inventory(model.spec)
    stored = gguf.quantize(model.spec, inventory, recipe, imatrix=imatrix)
    extra = model.spec.head_dim // 2 if model.spec.rope_type == "llama3" else 0
    assert sum(g.group.elements * g.count for g in stored) == inventory.parameters + extra


def test_low_bit_recipes_count_the_matrices_of_shared_experts():
    """A layer with shared experts has two ffn_down, so fewer layers are early. Q2_K, or Q4_0 where 256 doesn't divide the row."""
    model = load_model("deepseek-v2-lite").spec  # 27 layers, the first dense: 27 // 8 = 3 matrices are early
    stored = quantize(model, parse("IQ2_XS"))
    early = {(g.group.name, layer) for g in stored if g.format in ("Q2_K", "Q4_0") and "down_proj" in g.group.name for layer in g.layers}
    assert early == {("model.layers.{layer}.mlp.down_proj.weight", 0), ("model.layers.{layer}.mlp.experts.down_proj.weight", 1),
                     ("model.layers.{layer}.mlp.shared_experts.down_proj.weight", 1)}  # fmt: skip


def test_mtp_layers_are_in_the_file_and_not_in_the_buffers():
    """GLM 4.5 Air as Q4_K_S: 62.27 GiB and 110.47 B parameters in llama-bench, 803 tensors; the layers that predict are 2.25 GiB of Q4_K_M."""
    found = estimate("glm-4.5-air", quant="Q4_K_S", context=1024, partial=True)
    assert round(found.tensor_bytes / GIB, 2) == 62.27
    held = sum(line.nbytes for line in found.ledger.lines if line.component == "weights")
    assert held < found.tensor_bytes - GIB
    model = load_model("glm-4.5-air").spec
    beside = gguf.predicting(model, build_inventory(model), "Q4_K_M", imatrix=False)
    assert stored_nbytes(beside) / GIB == pytest.approx(67.96 - 65.71, abs=0.0101)
    assert sum(g.count for g in (*beside, *quantize(model, parse("Q4_K_M")))) == 803
