"""LoRA adapters: their buffers, their nodes, and where they are."""

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate


def sized(model="llama-3.1-8b", quant="Q4_K_M", **settings):
    return estimate(model, quant=quant, context=4096, settings=settings)


def lora(found, device=0):
    return sum(line.nbytes for line in found.ledger.lines if line.name == "LoRA buffer" and line.device == device)


def test_an_adapter_is_rank_times_inputs_and_outputs():
    """PEFT prints 41,943,040 trainable parameters for rank 16 on all linear layers of Llama 3.1 8B."""
    assert lora(sized(lora_rank=16)) == 41_943_040 * 4
    assert lora(sized(lora_rank=16, lora_type="f16", lora_adapters=3)) == 3 * 41_943_040 * 2
    assert lora(sized(lora_rank=8, lora_targets="q_proj,v_proj")) == 3_407_872 * 4


def test_without_a_rank_there_is_no_adapter():
    assert not [line for line in sized().ledger.lines if line.name == "LoRA buffer"]
    assert sized(lora_rank=0).total_bytes == sized().total_bytes


def test_an_adapter_follows_its_target():
    half = sized(lora_rank=16, n_gpu_layers=16)
    assert lora(half) + lora(half, "host") == lora(sized(lora_rank=16))
    assert lora(half) == lora(sized(lora_rank=16)) * 15 // 32
    assert lora(sized(lora_rank=16, override_tensor="ffn_=CPU"), "host") == 28_311_552 * 4


def test_the_graph_needs_the_adapters_product_beside_the_targets():
    """With all logits of a micro-batch: those of the head, and the adapter's before they are added."""
    logits = 128256 * 512 * 4
    for adapter, at_once in (({}, 1), ({"lora_rank": 16, "lora_targets": "output"}, 2)):
        nbytes = sized(n_outputs_max=0, **adapter).ledger.component_bytes("activations")
        assert at_once * logits < nbytes < at_once * logits + 2**24


def test_the_cpu_has_it_too():
    assert lora(sized(lora_rank=16, backend="cpu")) == 41_943_040 * 4


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("llama-3.1-8b", {"lora_targets": "attn_x"}, "no such matrix"),
        ("llama-3.1-8b", {"lora_targets": "all,attn_q"}, "no such matrix"),
        ("llama-3.2-1b", {"lora_targets": "output"}, "no such matrix"),
        ("llama-3.1-8b", {"lora_type": "q8_0"}, "f32, f16, bf16"),
        ("mixtral-8x7b-instruct-v0.1", {}, "of experts"),
    ],
)
def test_what_is_refused(model, settings, words):
    with pytest.raises(CalculatorError, match=words) as error:
        sized(model, lora_rank=8, **settings)
    assert "\n" not in str(error.value)


def test_the_start_command_names_an_adapter_each():
    assert "--lora adapter-1.gguf,adapter-2.gguf" in sized(lora_rank=8, lora_adapters=2).start_command
