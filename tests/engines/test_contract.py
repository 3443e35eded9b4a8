"""Laws that every engine keeps."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import contexts, models, sequences

from calculator.engines import ENGINES
from calculator.errors import CalculatorError
from calculator.estimate import estimate
from calculator.ledger import COMPONENTS, alike
from calculator.parallelism import tensor_sizes
from calculator.quantization import CATALOG, parse
from calculator.report.text import estimate_text
from calculator.units import align_up

# but what sglang has for some model types alone: tests/engines/test_sglang_formats.py
QUANTS = st.sampled_from([(q, e) for q in CATALOG for e in ENGINES if e in parse(q).engines and not (e == "sglang" and q.startswith(("mxfp4", "bnb"))) and not (e == "vllm" and q.startswith("hqq"))])
SERVERS = ("vllm", "sglang")
_WORDS = re.compile(r"\([^()]*[a-zA-Z][^()]*\)")


def value_of(formula: str) -> float:
    """The arithmetic of a rendered formula: words in parentheses dropped, the rest evaluated."""
    text = formula
    while _WORDS.search(text):
        text = _WORDS.sub("", text)
    expression = text.replace(",", "").replace("×", "*")
    assert re.fullmatch(r"[\d\s.*+/()-]+", expression), formula
    return eval(expression)


IN_STAGES = {engine: {"tensor_parallel_size": 1} for engine in SERVERS}  # else each layer is split


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
    one = estimate(model, quant=quant, engine=engine, context=512)
    many = estimate(model, quant=quant, engine=engine, context=512, gpus=gpus, settings=IN_STAGES.get(engine))
    assert many.ledger.component_bytes("kv_cache") == one.ledger.component_bytes("kv_cache")
    repeated = 0
    if engine == "llama.cpp" and model.spec.rope_type == "llama3":  # a table of rotary frequencies on each device with layers
        repeated = sum(any(line.device == i for line in many.ledger.lines if line.component == "kv_cache") for i in range(1, gpus))
    table = align_up(2 * model.spec.head_dim, 128)
    assert weights(many, engine) == weights(one, engine) + repeated * table


def weights(found, engine):
    """Without what a serving engine's stages repeat by name: rotary table, a tied embedding, what the allocator adds."""
    repeated = ("rotary cos and sin", "allocator rounding", "load slack", *(("embedding",) if found.job.model.tie_word_embeddings else ()))
    lines = [line for line in found.ledger.lines if line.component == "weights"]
    return sum(line.nbytes for line in lines if engine not in SERVERS or line.name not in repeated)


@given(models(), st.sampled_from(SERVERS), st.sampled_from(["bf16", "fp16", "fp32"]), st.data())
def test_ranks_hold_the_whole_and_what_is_replicated_by_name(model, engine, quant, data):
    """Tensor parallel: matrices add up; norms are on every rank, KV heads on several where there are fewer, the vocabulary is padded."""
    size = data.draw(st.sampled_from(tensor_sizes(model.spec)))
    one, many = (estimate(model, quant=quant, engine=engine, context=512, settings={"tensor_parallel_size": n}) for n in (1, size))
    copies = max(1, size // model.spec.num_key_value_heads)
    assert many.ledger.component_bytes("kv_cache") == copies * one.ledger.component_bytes("kv_cache")
    for name in ("linear layers", "norms and biases"):
        whole, parts = (sum(line.nbytes for line in e.ledger.lines if line.name == name) for e in (one, many))
        assert parts == size * whole if name.startswith("norms") else whole <= parts <= copies * whole


@given(models(), QUANTS, st.integers(1, 4), st.integers(1, 4))
def test_each_device_of_more_devices_holds_no_more(model, chosen, few, many):
    quant, engine = chosen
    assume(engine != "transformers")  # accelerate's balance leaves what is over to the last GPU: three may hold less well than two
    few, many = sorted((few, many))
    assume(many <= model.spec.num_hidden_layers)
    a, b = (estimate(model, quant=quant, engine=engine, context=512, gpus=n, settings=IN_STAGES.get(engine)).ledger for n in (few, many))
    assert max(b.on(i).component_bytes("kv_cache") for i in b.devices) <= max(a.on(i).component_bytes("kv_cache") for i in a.devices)


@given(models(), QUANTS, contexts)
def test_every_line_is_explained(model, chosen, context):
    quant, engine = chosen
    found = estimate(model, quant=quant, engine=engine, context=context)
    text = estimate_text(found, explain=True)
    for line in found.ledger.lines:
        assert line.name in text
        assert line.source in text


@given(models(), QUANTS, contexts, st.integers(2, 5))
def test_lines_shown_once_for_several_devices_lose_none(model, chosen, context, gpus):
    quant, engine = chosen
    assume(gpus <= model.spec.num_hidden_layers)
    lines = estimate(model, quant=quant, engine=engine, context=context, gpus=gpus, settings=IN_STAGES.get(engine)).ledger.lines
    shown = [(line.component, line.name, line.nbytes, device) for line, on in alike(lines) for device in on]
    assert Counter(shown) == Counter((line.component, line.name, line.nbytes, line.device) for line in lines)


@given(models(), st.sampled_from(SERVERS), contexts, sequences, st.sampled_from([None, "rtx 4090", "H100 SXM5 80GB"]), st.data(), st.booleans())
def test_the_start_command_gives_the_estimate_again(model, engine, context, count, gpu, data, fp8):
    size = data.draw(st.sampled_from(tensor_sizes(model.spec)))
    options = {"quant": "bf16", "engine": engine, "context": context, "sequences": count, "gpu": gpu}
    first = estimate(model, **options, kv_dtype="fp8" if fp8 else None, settings={"tensor_parallel_size": size})
    words = first.start_command.split()
    flags = {word[2:].replace("-", "_"): value for word, value in pairwise(words) if word.startswith("--")}
    kv = flags.pop("kv_cache_dtype", None)
    assert flags.pop("dtype") == "bfloat16"
    assert flags.pop("pipeline_parallel_size", "1") == "1"
    flags.pop("model_path", None)
    again = estimate(model, **options, kv_dtype="fp8" if kv else None, settings=flags)
    assert [(line.name, line.nbytes, line.low_bytes, line.high_bytes) for line in again.ledger.lines] == [
        (line.name, line.nbytes, line.low_bytes, line.high_bytes) for line in first.ledger.lines]
    assert again.pool == first.pool


@pytest.mark.parametrize("engine", SERVERS)
@pytest.mark.parametrize(("model", "named"), [("llama-3.2-1b", "meta-llama/Llama-3.2-1B"), ("llama-3.2-1b-card", "llama-3.2-1b-card")])
def test_a_server_is_told_a_name_that_it_can_load(engine, model, named):
    """The catalog's short id means nothing to a server; the card as published has no checkpoint, least of all the released one."""
    assert named in estimate(model, engine=engine, gpu="h100").start_command.split()
    assert "llama-3.2-1b-awq-int4-g128" in estimate("llama-3.2-1b", quant="awq-int4-g128", engine=engine, gpu="h100").start_command.split()


def test_engines_without_a_command_line_have_no_start_command():
    assert estimate("llama-3.2-1b", quant="bf16").start_command is None


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
    settings = {"vllm": {"allow_long_max_model_len": 1}, "sglang": {"allow_overwrite_longer_context_len": 1}}.get(engine.name, {})
    found = estimate("llama-3.3-70b", quant=quant, engine=engine.name, context=context, sequences=256, settings=settings)
    assert found.ledger.component_bytes("kv_cache") >= 256 * context * found.kv_bytes_per_token


@given(models(), st.sampled_from(["int8", "int4", "int2", "fp8"]), st.integers(1, 3000), st.integers(1, 3000))
def test_the_high_end_of_a_quantized_cache_grows_too(model, kind, one, other):
    """Which phase is larger may change with the context; the band must hold for both."""
    small, large = (estimate(model, quant="bnb-nf4", kv_dtype=kind, context=n).ledger for n in sorted((one, other)))
    assert small.high_bytes <= large.high_bytes
    assert small.total_bytes <= large.total_bytes
