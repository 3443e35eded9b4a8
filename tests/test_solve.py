from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calculator.catalog import load_gpu, load_model
from calculator.errors import BadValue, CalculatorError
from calculator.estimate import estimate
from calculator.fit import fit
from calculator.quantization import stored_nbytes
from calculator.solve import largest, solve


@given(st.integers(0, 10**13), st.integers(1, 10**13))
def test_bisection_finds_the_last_accepted_in_few_steps(limit, high):
    calls = 0

    def accept(n):
        nonlocal calls
        calls += 1
        return n <= limit

    assert largest(accept, 1, high) == (min(limit, high) if limit else None)
    assert calls < 100


@pytest.mark.parametrize(
    ("model", "gpu", "options"),
    [("llama-3.1-8b", "rtx 4090", {}), ("llama-3.1-8b", "rtx 4060", {"quant": "Q4_K_M"}),
     ("llama-3.3-70b", "h100", {"quant": "Q4_K_M", "kv_dtype": "q8_0", "sequences": 4}),
     ("qwen2.5-7b", "t4", {"quant": "bnb-nf4"})],
)  # fmt: skip
def test_the_largest_context_fits_and_the_next_does_not(model, gpu, options):
    card, found = load_gpu(gpu), load_model(model)
    solved = solve(found, card, "context", options)
    assert solved.binding == "memory"
    assert fit(estimate(found, **options, context=solved.value, gpu=card), card).verdict == "fits"
    assert fit(estimate(found, **options, context=solved.value + 1, gpu=card), card).verdict != "fits"


def test_a_context_bound_by_training_says_so():
    solved = solve(load_model("llama-3.2-1b"), load_gpu("h100"), "context", {})
    assert solved.value == 131_072
    assert solved.binding.startswith("max_position_embeddings")
    assert solved.next_value_fits


def test_sequences_fill_the_card():
    card, model = load_gpu("rtx 4090"), load_model("llama-3.2-1b")
    solved = solve(model, card, "sequences", {"quant": "Q8_0"})
    assert fit(estimate(model, quant="Q8_0", sequences=solved.value, gpu=card), card).verdict == "fits"
    assert fit(estimate(model, quant="Q8_0", sequences=solved.value + 1, gpu=card), card).verdict != "fits"


def test_the_best_quantization_is_the_widest_that_fits():
    card, model = load_gpu("rtx 3060 12gb"), load_model("llama-3.1-8b")
    solved = solve(model, card, "quant", {"engine": "llama.cpp"})
    assert solved.value == "Q8_0"
    assert fit(estimate(model, quant="BF16", engine="llama.cpp"), card).verdict == "does_not_fit"


def test_nothing_fits_is_an_answer():
    solved = solve(load_model("llama-3.3-70b"), load_gpu("t4"), "context", {"quant": "bf16"})
    assert solved.value is None
    assert "needs" in solved.binding


def test_an_unknown_unknown_is_refused():
    with pytest.raises(BadValue, match="context, sequences, quant"):
        solve(load_model("llama-3.2-1b"), load_gpu("t4"), "price", {})


def test_what_is_looked_for_is_not_given():
    with pytest.raises(BadValue, match="both given and looked for"):
        solve(load_model("llama-3.2-1b"), load_gpu("t4"), "context", {"context": "8k"})


@pytest.mark.parametrize(("name", "card", "quant"), [("llama-3.3-70b", "rtx 4090", "Q4_K_M"), ("llama-3.1-8b", "t4", "F16"), ("llama-3.2-1b", "rtx 4090", "Q8_0")])
def test_one_layer_more_on_the_gpu_does_not_fit(name, card, quant):
    model, gpu = load_model(name), load_gpu(card)
    solved = solve(model, gpu, "n_gpu_layers", {"quant": quant})
    verdicts = [fit(estimate(model, quant=quant, gpu=gpu, settings={"n_gpu_layers": solved.value + n}), gpu).verdict for n in (0, 1)]
    assert verdicts[0] == "fits"
    assert verdicts[1] != "fits" or solved.value == model.spec.num_hidden_layers + 1
    assert not solved.next_value_fits
    assert solved.offload.host_bytes == solved.estimate.ledger.host_bytes


def test_layers_on_the_host_cost_speed_and_host_memory():
    """By the slower of two memories: each layer moved to the host adds its bytes to the time of a step."""
    model, gpu = load_model("llama-3.3-70b"), load_gpu("rtx 4090")
    solved = solve(model, gpu, "n_gpu_layers", {"quant": "Q4_K_M"})
    o = solved.offload
    assert o.tokens_per_s_bound_low < o.tokens_per_s_bound < o.tokens_per_s_bound_high < o.tokens_per_s_bound_all_layers
    host = stored_nbytes(solved.estimate.engine.host_read(solved.estimate.job)[0])
    assert o.tokens_per_s_bound < o.host_bandwidth_bytes_per_s / host
    assert host < o.host_bytes


def test_n_gpu_layers_is_llama_cpp_s():
    model, gpu = load_model("llama-3.2-1b"), load_gpu("t4")
    with pytest.raises(CalculatorError, match=r"setting of llama\.cpp"):
        solve(model, gpu, "n_gpu_layers", {"engine": "vllm"})
    with pytest.raises(CalculatorError, match="both given"):
        solve(model, gpu, "n_gpu_layers", {"settings": {"n_gpu_layers": "3"}})
    huge = solve(load_model("llama-3.3-70b"), gpu, "n_gpu_layers", {"quant": "Q4_K_M", "context": "128k", "sequences": 8})
    assert huge.value is not None
    assert 0 <= huge.value < 5
