"""A draft model on the same GPUs: as large as a server of its own, at the target's cells."""

import shlex

import pytest

from calculator.errors import CalculatorError
from calculator.estimate import estimate


def sized(model="qwen3-32b", sequences=1, quant="Q4_K_M", **settings):
    return estimate(model, quant=quant, context=8192, sequences=sequences, settings=settings)


def test_the_draft_is_what_it_is_alone():
    """But for the outputs that the target reserves for what is proposed, and the driver's context that both share."""
    for chosen in ({}, {"n_gpu_layers": 20}, {"backend": "cpu"}, {"offload_kqv": False}):
        both, target = sized(draft="qwen3-0.6b", **chosen), sized(**chosen)
        alone = sized("qwen3-0.6b", **{k: v for k, v in chosen.items() if k != "n_gpu_layers"})
        own = [line.nbytes for line in both.ledger.lines if line.name.endswith(", draft")]
        assert own == [line.nbytes for line in alone.ledger.lines if line.component != "overhead"]
        assert both.kv_bytes_per_token == target.kv_bytes_per_token + alone.kv_bytes_per_token


def test_the_target_reserves_outputs_for_all_that_is_proposed():
    found = sized(sequences=4, draft="qwen3-0.6b", draft_max=7)
    assert found.engine.resolved_settings(found.job)["n_outputs_max"] == 4 * 8
    assert next(line.nbytes for line in found.ledger.lines if line.name == "output buffer") == 4 * 151936 * 4 * 8


def test_the_draft_has_a_recipe_layers_and_a_cache_type_of_its_own():
    found = sized(draft="qwen3-0.6b", draft_quant="Q8_0", draft_n_gpu_layers=0, draft_type="q8_0")
    of_draft = {line.name: line for line in found.ledger.lines if line.name.endswith(", draft")}
    assert of_draft["KV buffer, draft"].device == "host"
    assert of_draft["KV buffer, draft"].nbytes == 28 * 2 * 1024 * 8192 * 34 // 32
    words = shlex.split(found.start_command)
    assert words[words.index("-md") + 1] == "qwen3-0.6b-Q8_0.gguf"
    assert (words[words.index("-ngld") + 1], words[words.index("-ctkd") + 1]) == ("0", "q8_0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"draft": "llama-3.2-1b"}, "vocabulary"),
        ({"draft": "nobody"}, "nobody"),
        ({"draft_quant": "Q8_0"}, "without a draft"),
        ({"draft": "qwen3-0.6b", "draft_quant": "bnb-nf4"}, "llama.cpp"),
        ({"draft": "qwen3-0.6b", "fit": True, "fit_free": 20000}, "fit together"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(CalculatorError, match=words) as error:
        sized(**settings)
    assert "\n" not in str(error.value)
