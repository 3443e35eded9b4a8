"""The page's state: every choice is a widget with a key; what differs from the defaults is in the URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import streamlit as st

from calculator import engines
from calculator.catalog import load_gpu, load_gpus, load_model, load_named
from calculator.engines.settings import Real, Setting
from calculator.errors import BadValue, CalculatorError
from calculator.estimate import KV_DTYPES
from calculator.names import key, nearest
from calculator.quantization import parse
from calculator.recommend import OBJECTIVES
from calculator.units import parse_count

MAX_SEQUENCES, MAX_GPUS, MAX_SETTING = 4096, 16, 1 << 20  # what the number fields take
AUTO = "default"  # the first option of a selector whose choice may be left open; None would show as "Choose an option"
OFFERED_SETTINGS: dict[str, tuple[str, ...]] = {
    "transformers": ("attn_implementation", "logits_to_keep", "cache_implementation", "phase"),
    "llama.cpp": ("n_gpu_layers", "flash_attn", "n_ubatch", "kv_unified"),
    "vllm": ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_expert_parallel", "block_size"),
    "sglang": ("mem_fraction_static", "max_running_requests", "chunked_prefill_size", "disable_cuda_graph", "page_size"),
}
SORTS = tuple(name for name in OBJECTIVES if name != "price")
VENDORS = tuple(dict.fromkeys(gpu.vendor for gpu in load_gpus()))
SEGMENTS = tuple(dict.fromkeys(gpu.segment for gpu in load_gpus()))


def shown(value: Any) -> str:
    """A value as it stands in the URL."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(count: int) -> str:
    """A context as it stands in the URL: 8192 is "8k"."""
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


class Param(NamedTuple):
    """One parameter of the URL: its default, how to read it and how to write it. `read` raises CalculatorError."""

    default: Any
    read: Callable[[str], Any]
    write: Callable[[Any], str] = shown


def setting(name: str) -> Setting:
    """An engine's setting by its name; the offered names are distinct."""
    return next(e.settings[name] for e in engines.ENGINES.values() if name in OFFERED_SETTINGS[e.name])


def catalog_id(text: str) -> str:
    """The id of a catalog model. Unlike load_model this never opens a path: the text comes from a URL."""
    return load_named(text, listing="the model selector").spec.id


def _word(name: str, allowed: Sequence[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        for word in allowed:
            if key(word) == key(text):
                return word
        raise BadValue(f"{name} {text[:30]!r} is not known", allowed=", ".join(allowed))

    return read


def _count(name: str, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        count = parse_count(text, name=name, example="1")
        if count > most:
            raise BadValue(f"{name} {count:,} is out of range here", allowed=f"1 to {most:,}", hint="the command line")
        return count

    return read


def _setting_param(name: str) -> Param:
    wanted = setting(name)
    default = wanted.default if isinstance(wanted.allowed, range | Real) else AUTO

    def read(text: str) -> str | int | bool | float:
        value = wanted.parse(name, text)
        if isinstance(value, int) and value > MAX_SETTING:
            raise BadValue(f"{name} {value:,} is out of range here", allowed=f"up to {MAX_SETTING:,}")
        return value

    return Param(default, read)


PARAMS: dict[str, Param] = {
    "model": Param("llama-3.2-1b", catalog_id),
    "quant": Param(AUTO, lambda text: parse(text).name),
    "context": Param(8192, lambda text: parse_count(text, name="context"), short),
    "sequences": Param(1, _count("sequences", MAX_SEQUENCES)),
    "kv_dtype": Param(AUTO, _word("kv_dtype", KV_DTYPES)),
    "engine": Param(AUTO, lambda text: engines.load(engines.canonical(text))[0].name),
    "gpu": Param(AUTO, lambda text: load_gpu(text).name),
    "gpus": Param(1, _count("gpus", MAX_GPUS)),
    **{name: _setting_param(name) for names in OFFERED_SETTINGS.values() for name in names},
    "vendor": Param(AUTO, _word("vendor", VENDORS)),
    "segment": Param(AUTO, _word("segment", SEGMENTS)),
    "sort": Param("smallest", _word("sort", SORTS)),
}


def restore() -> None:
    """At the start of a session, and when the reader goes back: the URL's values into the widgets."""
    state, url = st.session_state, st.query_params.to_dict()
    state["hints"] = []
    if "written" in state and (url == state["written"] or _moved()):
        return
    chosen = {name: param.default for name, param in PARAMS.items()}
    for name, text in url.items():
        if name not in PARAMS:
            near = nearest(name, PARAMS, n=1)
            hint(BadValue(f"the URL's {name[:30]!r} is not a parameter", hint=", ".join(near) or ", ".join(PARAMS)))
            continue
        try:
            chosen[name] = PARAMS[name].read(text)
        except CalculatorError as e:
            hint(e, then=f"The page uses {name}={shown(chosen[name])} instead.")
    model = load_model(chosen["model"])
    state["first"] = dict(chosen)  # values beyond the usual steps stay on offer for the session
    for name, value in chosen.items():
        state[name] = value
    state["entry"], state["model"] = model.spec.id, model.record.get("released", model.spec.id)


def save(model_id: str) -> None:
    """Write what differs from the defaults to the URL; the model is the entry that the page shows."""
    now = {name: st.session_state[name] for name in (*PARAMS, "entry") if name in st.session_state}
    st.session_state["seen"] = now
    chosen = {**now, "model": model_id}
    wanted = {n: p.write(chosen[n]) for n, p in PARAMS.items() if n in chosen and chosen[n] != p.default}
    st.session_state["written"] = wanted
    if st.query_params.to_dict() != wanted:
        st.query_params.from_dict(wanted)


def _moved() -> bool:
    """Whether a widget has changed: then a URL that isn't the last written one is only late, not asked for."""
    state = st.session_state
    return any(state[name] != value for name, value in state["seen"].items() if name in state)


def hint(error: CalculatorError, *, then: str = "") -> None:
    """Remember something that the reader should know about their input."""
    st.session_state["hints"].append(f"{error}. {then}".strip() if then else str(error))


def settle(name: str, options: Sequence[Any], *, default: Any, labels: Sequence[str] = (), allowed: str = "") -> None:
    """Before a widget is drawn: its value must be among the options; keep it when the options have changed.

    Streamlit forgets a widget whose options changed and refuses a value that isn't offered.
    """
    state, offered = st.session_state, f"offered_{name}"
    fresh = (tuple(options), tuple(labels))
    value = state.get(name, default)
    if value not in options:
        if name in state:
            refused = BadValue(f"{name} {shown(value)} isn't available here", allowed=allowed)
            hint(refused, then=f"The page uses {shown(default)} instead.")
        value = default
    if name not in state or state[name] != value or state.get(offered) != fresh:
        state[name], state[offered] = value, fresh
