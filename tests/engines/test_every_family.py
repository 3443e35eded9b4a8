"""What every engine says of every model type of the catalog: a sum of its lines, growing with the context, explained; or one line."""

from __future__ import annotations

from functools import lru_cache

import pytest
from test_contract import value_of

from calculator.catalog import load_model, model_ids
from calculator.engines import ENGINES
from calculator.engines.settings import Budgets, Setting
from calculator.errors import CalculatorError
from calculator.estimate import Estimate, estimate
from calculator.report import estimate_document
from calculator.report.text import estimate_text

OWN, RECIPE = None, "Q4_K_M"


@lru_cache(maxsize=1)
def first_of_each_type() -> dict[str, str]:
    found: dict[str, str] = {}
    for id in model_ids():
        found.setdefault(load_model(id).spec.model_type, id)
    return found


@lru_cache(maxsize=4096)
def sized(id: str, engine: str, context: int) -> Estimate | CalculatorError:
    try:
        return estimate(id, quant=RECIPE if engine == "llama.cpp" else OWN, engine=engine, context=context, gpu="h100", partial=True)
    except CalculatorError as refused:
        return refused


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model_type", sorted(first_of_each_type()))
def test_lines_add_up_and_grow_with_the_context(model_type, engine):
    id = first_of_each_type()[model_type]
    few, many = sized(id, engine, 256), sized(id, engine, 512)
    if refused := [found for found in (few, many) if isinstance(found, CalculatorError)]:
        assert all("\n" not in str(e) and (e.hint or "allowed" in str(e)) for e in refused), refused
        return
    for found in (few, many):
        document = estimate_document(found)
        assert sum(line["bytes"] for line in document["lines"] if line["device"] != "host") == document["total_bytes"] == sum(document["components"].values())
        assert document["total_low_bytes"] <= document["total_bytes"] <= document["total_high_bytes"]
        assert all(line["source"] and line["formula"] for line in document["lines"])
        assert estimate_text(found, explain=True).count("source: ") == len(document["lines"])
    assert few.total_bytes <= many.total_bytes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model_type", sorted(first_of_each_type()))
def test_formulas_evaluate_to_their_bytes(model_type, engine):
    found = sized(first_of_each_type()[model_type], engine, 512)
    for line in found.ledger.lines if isinstance(found, Estimate) else ():
        assert value_of(str(line.formula)) == pytest.approx(line.nbytes, abs=1), (line.name, str(line.formula))


def values_of(name: str, setting: Setting) -> list[str]:
    """Values of a setting that are allowed, whatever the model makes of them."""
    own = {"override_tensor": "ffn_.*=CPU", "lora_targets": "attn_q", "draft": "llama-3.2-1b", "draft_quant": "Q8_0", "tensor_split": "3,1"}
    allowed = setting.allowed
    if name in own:
        return [own[name]]
    if allowed is bool:
        return ["0" if setting.default else "1"]
    if isinstance(allowed, range):
        return [str(min(allowed.stop - 1, 7))]
    if isinstance(allowed, Budgets):
        return ["0:10GiB,cpu:30GiB"]
    return [word for word in allowed if word != setting.default][-1:] if isinstance(allowed, tuple) else ["0.5"]


@pytest.mark.parametrize(("engine", "name", "value"), [(e, n, v) for e, engine in ENGINES.items() for n, s in engine.settings.items() for v in values_of(n, s)])
def test_no_setting_ends_in_a_traceback(engine, name, value):
    settings = {name: value} | ({"device_map": "auto"} if name in ("max_memory", "host_memory_bytes") else {})
    for id in first_of_each_type().values():
        try:
            found = estimate(id, quant=RECIPE if engine == "llama.cpp" else OWN, engine=engine, context=64, gpu="rtx 4060", settings=settings, partial=True)
        except CalculatorError:
            continue
        assert found.total_bytes > 0
