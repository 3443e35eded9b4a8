"""The selectors: model, deployment, filters. Each is a widget whose key is its name in the URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from calculator.catalog import Model, load_gpu, load_gpus, load_model, model_ids
from calculator.engines import ENGINES
from calculator.engines.settings import Budgets, Real, Shares, Text
from calculator.estimate import splits_tensors
from calculator.quantization import CATALOG, parse, rule_of
from calculator.ui import state, tables
from calculator.ui.state import AUTO, OFFERED_SETTINGS, PARAMS, SEGMENTS, SORTS, VENDORS, settle
from calculator.units import GIB, tokens

SORT_LABELS = {"smallest": "smallest card", "speed": "bandwidth", "headroom": "headroom"}


def model_selector() -> Model:
    """The model; entries that restate another one share its place here."""
    ids = [id for id in model_ids() if "released" not in load_model(id).record]
    names = [load_model(id).record["name"] for id in ids]
    settle("model", ids, default=PARAMS["model"].default, labels=names)
    labels = dict(zip(ids, names, strict=True))
    return load_model(st.selectbox("Model", ids, format_func=labels.__getitem__, key="model"))


def entries(id: str) -> list[str]:
    """The released model and the entries that restate it."""
    return [id, *(other for other in model_ids() if load_model(other).record.get("released") == id)]


def entry_label(id: str) -> str:
    """How the entries of one model are told apart."""
    return "published card" if "released" in load_model(id).record else "released checkpoint"


def entry_selector(model: Model) -> Model:
    """Released checkpoint or published card, where the catalog has both."""
    ids = entries(model.spec.id)
    if len(ids) == 1:
        return model
    if st.session_state.get("entry") not in ids:  # another model was chosen before
        st.session_state["entry"] = ids[0]
    question = f"{model.record['name']}: which dimensions?"
    chosen = st.segmented_control(question, ids, format_func=entry_label, key="entry", required=True)
    return load_model(chosen or ids[0])


def deployment(model: Model) -> tuple[dict[str, Any], str | None, int]:
    """Quantization, workload, engine and GPU: the options of `estimate`, the GPU and how many."""
    now = st.session_state
    first = now["first"]["quant"]
    names = list(dict.fromkeys((*CATALOG, *(() if first == AUTO else (parse(first).name,)))))
    labels = {AUTO: f"as published: {tables.quant_label(model, model.own_quant)}"} | {name: tables.quant_label(model, name) for name in names}
    settle("quant", [AUTO, *names], default=AUTO, labels=list(labels.values()))
    quant = _chosen(st.selectbox("Quantization", [AUTO, *names], format_func=labels.__getitem__, key="quant",
                                 help="the size is that of the weights alone, in this format")) or model.own_quant  # fmt: skip
    st.caption(tables.plain(rule_of(model.spec, parse(quant))))

    limit = model.spec.max_position_embeddings
    steps = sorted({*tables.contexts(model), *(n for n in (now["first"]["context"],) if n <= limit)})
    usual = max(n for n in steps if n <= PARAMS["context"].default)
    settle("context", steps, default=usual, allowed=f"1 to {limit:,}, what {model.spec.id} was trained for")
    about = f"prompt plus output; {model.record['name']} was trained for {tokens(limit)}"
    context = st.select_slider("Context, tokens per sequence", steps, format_func=tokens, key="context", help=about)
    settle_number("sequences")
    sequences = st.number_input("Concurrent sequences", 1, state.MAX_SEQUENCES, key="sequences")

    settle("engine", [AUTO, *ENGINES], default=AUTO)
    engine = _chosen(st.selectbox("Engine", [AUTO, *ENGINES], format_func=_labelled("automatic"), key="engine"))
    runner = engine or ("llama.cpp" if parse(quant).recipe else "transformers")
    cache = st.container()
    with st.expander(f"{runner} settings", key=f"settings_{runner}"):
        settings = engine_settings(runner)
    options: dict[str, Any] = {"quant": quant, "context": context, "sequences": int(sequences), "engine": engine,
                               "settings": settings}  # fmt: skip
    with cache:
        kinds = [AUTO, *tables.kv_types(model, options)]
        settle("kv_dtype", kinds, default=AUTO)
        kind = st.selectbox("KV cache type", kinds, format_func=_labelled("engine default"), key="kv_dtype")
        options["kv_dtype"] = _chosen(kind)

    gpus = [AUTO, *(gpu.name for gpu in load_gpus())]
    settle("gpu", gpus, default=AUTO)
    gpu = _chosen(st.selectbox("GPU", gpus, format_func=_gpu_label, key="gpu"))
    if gpu is None:
        return options, None, 1
    settle_number("gpus")
    how = "each layer split over them (tensor parallel) where it can be" if splits_tensors(runner) else "layers split"
    return options, gpu, int(st.number_input(f"Number of GPUs, {how}", 1, state.MAX_GPUS, key="gpus"))


def engine_settings(runner: str) -> dict[str, Any]:
    """The settings that differ from the engine's defaults."""
    chosen: dict[str, Any] = {}
    for name in OFFERED_SETTINGS[runner]:
        wanted = state.setting(name)
        if isinstance(wanted.allowed, range):
            settle_number(name)
            most, first = min(wanted.allowed.stop - 1, state.MAX_SETTING), wanted.allowed.start
            value: Any = st.number_input(name, first, most, None if wanted.default is None else first, key=name, help=wanted.meaning, placeholder="by the engine")
        elif isinstance(wanted.allowed, Real):
            settle_number(name)
            value = st.number_input(name, 0.01, float(wanted.allowed.high), step=0.01, key=name, help=wanted.meaning)
        else:
            assert not isinstance(wanted.allowed, Shares | Budgets | Text)  # not offered
            words = [True, False] if wanted.allowed is bool else list(wanted.allowed)
            default = wanted.default if wanted.default is not None else "by the engine"
            offered = [AUTO, *words]
            settle(name, offered, default=AUTO)
            label = _labelled(f"default ({_word(default)})")
            value = st.selectbox(name, offered, key=name, help=wanted.meaning, format_func=label)
        if value not in (AUTO, wanted.default):
            chosen[name] = value
    return chosen


def settle_number(name: str) -> None:
    """A number widget that was out of sight starts at its default again."""
    if name not in st.session_state:
        st.session_state[name] = PARAMS[name].default


def gpu_filters() -> tuple[str | None, str | None, str]:
    """Vendor, segment and order of the GPU table."""
    first, second, third = st.columns(3)
    for name, options in (("vendor", [AUTO, *VENDORS]), ("segment", [AUTO, *SEGMENTS]), ("sort", list(SORTS))):
        settle(name, options, default=PARAMS[name].default)
    vendor = first.selectbox("Vendor", [AUTO, *VENDORS], format_func=_labelled("all"), key="vendor")
    segment = second.selectbox("Segment", [AUTO, *SEGMENTS], format_func=_labelled("all"), key="segment")
    sort = third.selectbox("Order by", SORTS, format_func=SORT_LABELS.__getitem__, key="sort")
    return _chosen(vendor), _chosen(segment), sort


def _chosen(value: str) -> str | None:
    return None if value == AUTO else value


def _labelled(auto: str) -> Callable[[Any], str]:
    return lambda value: auto if value == AUTO else _word(value)


def _gpu_label(name: str) -> str:
    if name == AUTO:
        return "none"
    return f"{name} · {load_gpu(name).memory_sold_bytes.value // GIB} GB"


def _word(value: Any) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
