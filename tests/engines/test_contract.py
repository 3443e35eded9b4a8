"""Laws that every engine keeps."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import contexts, models, sequences

from calculator.engines import ENGINES
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.ledger import COMPONENTS
from calculator.quantization import CATALOG, parse
from calculator.units import align_up

QUANTS = st.sampled_from([(q, e) for q in CATALOG for e in ENGINES if e in parse(q).engines])
_WORDS = re.compile(r"\([^()]*[a-zA-Z][^()]*\)")


def value_of(formula: str) -> float:
    """The arithmetic of a rendered formula: words in parentheses dropped, the rest evaluated."""
    text = formula
    while _WORDS.search(text):
        text = _WORDS.sub("", text)
    expression = text.replace(",", "").replace("×", "*")
    assert re.fullmatch(r"[\d\s.*+/()-]+", expression), formula
    return eval(expression)


@given(models(), QUANTS, contexts, sequences)
def test_the_formula_of_every_line_evaluates_to_its_bytes(model, chosen, context, count):
    quant, engine = chosen
    found = estimate(model, quant=quant, engine=engine, context=context, sequences=count)
    for line in found.ledger.lines:
        assert abs(value_of(str(line.formula)) - line.nbytes) <= 1, (line.name, str(line.formula), line.nbytes)


@given(models(), QUANTS, contexts, sequences, st.integers(1, 4))
def test_lines_add_up_and_have_what_a_line_must_have(model, chosen, context, count, gpus):
    assume(gpus <= model.spec.num_hidden_layers)
    quant, engine = chosen
    found = estimate(model, quant=quant, engine=engine, context=context, sequences=count, gpus=gpus)
    ledger = found.ledger
    assert ledger.total_bytes == sum(ledger.component_bytes(c) for c in COMPONENTS)
    assert ledger.total_bytes == sum(ledger.on(i).total_bytes for i in ledger.devices)
    assert ledger.devices == tuple(range(gpus))
    assert ledger.low_bytes <= ledger.total_bytes <= ledger.high_bytes
    for line in ledger.lines:
        assert 0 <= line.low_bytes <= line.nbytes <= line.high_bytes
        assert line.source
        assert line.basis in ("exact", "derived", "measured", "modelled")
        assert line.nbytes or line.note, line.name  # a zero has a reason


@given(models(), QUANTS, contexts, sequences, contexts, sequences)
def test_totals_grow_with_context_and_sequences(model, chosen, context, count, more_context, more_count):
    quant, engine = chosen
    small = estimate(model, quant=quant, engine=engine, context=min(context, more_context), sequences=min(count, more_count))
    large = estimate(model, quant=quant, engine=engine, context=max(context, more_context), sequences=max(count, more_count))
    assert small.total_bytes <= large.total_bytes
    assert small.ledger.high_bytes <= large.ledger.high_bytes


@given(models(), QUANTS, contexts, sequences, st.integers(1, 5))
def test_the_dynamic_part_is_what_changes_between_two_workloads(model, chosen, context, count, gpus):
    assume(gpus <= model.spec.num_hidden_layers)
    quant, engine = chosen
    a = estimate(model, quant=quant, engine=engine, context=context, sequences=count, gpus=gpus)
    b = estimate(model, quant=quant, engine=engine, context=1, sequences=1, gpus=gpus)
    dynamic = []
    for e in (a, b):
        phases = [e.engine.dynamic(e.job, p)(e.job.workload.context, e.job.workload.sequences) for p in e.engine.phases(e.job)]
        dynamic.append((max(point for point, _ in phases), max(high for _, high in phases)))
    assert a.total_bytes - b.total_bytes == dynamic[0][0] - dynamic[1][0]
    assert a.ledger.high_bytes - b.ledger.high_bytes == dynamic[0][1] - dynamic[1][1]


@given(models(), QUANTS, st.integers(1, 8))
def test_layers_on_several_devices_add_up_to_the_whole(model, chosen, gpus):
    """Weights split without loss; only a device's padding and small shared tables may repeat."""
    assume(gpus <= model.spec.num_hidden_layers)
    quant, engine = chosen
    assume(engine != "vllm")  # its stages repeat the rotary table and a tied embedding
    one = estimate(model, quant=quant, engine=engine, context=512)
    many = estimate(model, quant=quant, engine=engine, context=512, gpus=gpus)
    assert many.ledger.component_bytes("kv_cache") == one.ledger.component_bytes("kv_cache")
    repeated = 0
    if engine == "llama.cpp" and model.spec.rope_type == "llama3":  # a table of rotary frequencies on each device with layers
        repeated = sum(any(line.device == i for line in many.ledger.lines if line.component == "kv_cache") for i in range(1, gpus))
    table = align_up(2 * model.spec.head_dim, 128)
    assert many.ledger.component_bytes("weights") == one.ledger.component_bytes("weights") + repeated * table


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_unknown_setting_is_refused_with_the_known_ones(engine):
    quant = "Q8_0" if engine.name == "llama.cpp" else "bf16"
    with pytest.raises(CalculatorError) as error:
        estimate("llama-3.2-1b", quant=quant, engine=engine.name, settings={"no_such_setting": "1"})
    assert all(name in str(error.value) for name in engine.settings)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("context", [1, 2**40])
def test_huge_values_neither_hang_nor_wrap(engine, context):
    quant = "Q8_0" if engine.name == "llama.cpp" else "bf16"
    settings = {"allow_long_max_model_len": 1} if engine.name == "vllm" else {}
    found = estimate("llama-3.3-70b", quant=quant, engine=engine.name, context=context, sequences=256, settings=settings)
    assert found.ledger.component_bytes("kv_cache") >= 256 * context * found.kv_bytes_per_token


@given(models(), st.sampled_from(["int8", "int4", "int2", "fp8"]), st.integers(1, 3000), st.integers(1, 3000))
def test_the_high_end_of_a_quantized_cache_grows_too(model, kind, one, other):
    """Which phase is larger may change with the context; the band must hold for both."""
    small, large = (estimate(model, quant="bnb-nf4", kv_dtype=kind, context=n).ledger for n in sorted((one, other)))
    assert small.high_bytes <= large.high_bytes
    assert small.total_bytes <= large.total_bytes
