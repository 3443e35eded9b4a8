"""The dashboard: one page over the same functions as the command line. The verdict first, then the lines, then why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from calculator import charts
from calculator.catalog import Model
from calculator.errors import CalculatorError
from calculator.estimate import Estimate, estimate
from calculator.fit import fit, why_refused
from calculator.report.text import pool_text
from calculator.ui import controls, state, tables
from calculator.units import gib, tokens

_FIRST = {"smallest": "The smallest", "speed": "The fastest", "headroom": "The roomiest"}
_TINTS = {"fits": "#e3f1e8", "tight": "#fbefd9", "fits after a change": "#f1f3f5"}

gpu_rows = st.cache_data(show_spinner=False, max_entries=64)(tables.gpu_rows)
context_series = st.cache_data(show_spinner=False, max_entries=64)(tables.context_series)


def main() -> None:
    """Draw the page."""
    st.set_page_config(page_title="VRAM calculator", layout="wide", initial_sidebar_state="expanded")
    state.restore()
    st.title("VRAM calculator", anchor=False)
    st.caption("How much GPU memory a language model needs to run, line by line, and where every number comes from.")
    hints, headline = st.container(), st.container()
    left, right = st.columns([2, 3], gap="large")
    with st.sidebar:
        model = controls.model_selector()
    with right:
        model = controls.entry_selector(model)
    with st.sidebar:
        options, gpu, gpus = controls.deployment(model)
    state.save(model.spec.id)
    try:
        estimated = estimate(model, **options, gpu=gpu, gpus=gpus, partial=True)
    except CalculatorError as e:
        show_hints(hints)
        headline.info(tables.plain(str(e)))
        st.stop()
    with left:
        required(estimated)
    with right:
        twins(model, options, gpu, gpus)
    lines(estimated)
    rows: list[dict[str, Any]] = []
    if estimated.job.gpu is not None:  # before the search, which takes seconds
        with headline:
            verdict(estimated, rows)
    if not estimated.partial:  # of a lower bound neither a curve nor a recommendation can be drawn
        over_context(estimated, options, gpu, gpus)
        rows = recommended(model, options, gpus)
    specification(estimated)
    if estimated.job.gpu is None:
        with headline:
            verdict(estimated, rows)
    show_hints(hints)


def show_hints(where: DeltaGenerator) -> None:
    """What the reader should know about their input."""
    for text in st.session_state["hints"]:
        where.warning(tables.plain(text))


def verdict(estimated: Estimate, rows: Sequence[dict[str, Any]]) -> None:
    """One line: does it fit, or without a GPU the smallest that holds it."""
    job, ledger = estimated.job, estimated.ledger
    n = job.workload.sequences
    what = (f"**{estimated.model.record['name']}**, {job.deployment.quant}, {tokens(job.workload.context)} context, "
            f"{n:,} sequence{'s' if n > 1 else ''}, {job.deployment.engine}")  # fmt: skip
    beside = ""
    if ledger.host_bytes > ledger.total_bytes / 4:  # a small need on the GPU must not pass for a small model
        beside = f" Another {gib(ledger.host_bytes)} stays in host memory."
    if job.gpu is None:
        first = next((r for r in rows if r["verdict"] == "fits"), None)
        best = "No single card below holds it unchanged."
        if first:
            best = f"{_FIRST[st.session_state['sort']]} of the cards below that holds it: **{first['GPU']}**."
        if estimated.partial:
            st.info(f"{what} needs **more than {gib(ledger.total_bytes)}**: weights and cache, its activations have no formula.{beside}")
            return
        st.info(f"{what} needs **{gib(ledger.total_bytes)}**.{beside} {best}")
        return
    held = fit(estimated, job.gpu)
    if not estimated.decides(held.verdict):
        st.info(f"**not known** · {what} on **{job.gpu.name}**: needs more than {gib(held.binding.required_bytes)} of usable "
                f"{gib(held.binding.usable_bytes)}; its activations have no formula.{beside}")  # fmt: skip
        return
    device, word = held.binding, tables.VERDICTS[held.verdict]
    many = f"{len(held.devices)} x " if len(held.devices) > 1 else ""
    each = " on the fullest device" if many else ""
    spare = device.headroom_bytes
    outside = f" and {gib(device.beside_bytes)} beside it" if device.beside_bytes else ""
    room = f"headroom {gib(spare)}" if spare >= 0 else f"**{gib(-spare)} short**"
    if spare < 0 and held.verdict == "tight":  # a server runs fewer sequences at once than asked
        room = f"{gib(-spare)} short of all at once: **some sequences queue**"
    if spare >= 0 and held.verdict == "does_not_fit":
        room = why_refused(estimated, job.gpu)
    box = {"fits": st.success, "tight": st.warning, "does_not_fit": st.error}[held.verdict]
    box(
        f"**{word}** · {what} on **{many}{job.gpu.name}**: needs {gib(device.required_bytes)} "
        f"(up to {gib(device.high_bytes)}){each}, usable {gib(device.usable_bytes)}{outside}, {room}.{beside}"
    )


def required(estimated: Estimate) -> None:
    """The number, its band, and the exact bytes."""
    ledger = estimated.ledger
    st.metric("VRAM required, at least" if estimated.partial else "VRAM required", gib(ledger.total_bytes), help=f"{ledger.total_bytes:,} bytes over all GPUs")
    if not estimated.partial:
        band = f"{gib(ledger.low_bytes)} to {gib(ledger.high_bytes)}; the weakest line is *{ledger.basis}*"
    elif ledger.component_bytes("activations"):
        band = "a lower bound: not all of it is modelled"
    else:
        band = "weights and cache alone"
    st.markdown(band)
    beside = f" · {gib(ledger.host_bytes)} beside it in host memory" if ledger.host_bytes else ""
    st.caption(f"{ledger.total_bytes:,} bytes{beside}")
    peak = "activations not modelled" if estimated.partial else f"peak in {estimated.peak.phase}, step *{estimated.peak.step.name}*"
    st.caption(f"{peak} · KV cache "
               f"{estimated.kv_bytes_per_token:,} bytes a token ({estimated.job.deployment.kv_dtype})")  # fmt: skip
    if estimated.pool is not None:
        st.caption(pool_text(estimated.pool, devices=len(ledger.devices)))


def twins(model: Model, options: dict[str, Any], gpu: str | None, gpus: int) -> None:
    """Entries that must not be mistaken for each other, and what that costs at this setting."""
    ids = controls.entries(st.session_state["model"])
    if len(ids) == 1:
        st.markdown(f"**{model.record['name']}**, {model.record.get('licence', 'licence not given')}")
        st.caption(f"Dimensions: {model.source('config')}")
        return
    frame = pd.DataFrame(tables.twin_rows(ids, {**options, "gpu": gpu, "gpus": gpus})).set_index("")
    st.table(frame.rename(columns=controls.entry_label))
    for other in model.related:
        st.caption(f"The other entry: {other['why']}.")


def lines(estimated: Estimate) -> None:
    """The stacked bar and the table underneath."""
    job = estimated.job
    usable = fit(estimated, job.gpu).binding.usable_bytes if job.gpu else None
    st.subheader("What the memory holds", anchor=False)
    st.plotly_chart(charts.ledger_bar(estimated.ledger, usable_bytes=usable), theme=None, key="bar",
                    config={"displayModeBar": False}, alt="Stacked bar of the memory by line")  # fmt: skip
    frame = pd.DataFrame(tables.line_rows(estimated))
    st.dataframe(frame, hide_index=True, key="lines", height="content", column_config={
        "component": _column(95), "line": _column(170), "on": _column(100), "basis": _column(80),
        "GiB": st.column_config.NumberColumn(format="%.4f", width=70), "low - high": _column(110, "low - high (GiB)"),
        "formula (bytes)": _column(270), "source": _column(200),
    })  # fmt: skip
    with st.expander("Every line in full: formula, source, note", key="in_full"):
        st.markdown("\n".join(tables.line_paragraphs(estimated)))
    for text in estimated.warnings:
        if not text.startswith("see also"):  # the other entry is shown at the top
            st.warning(tables.plain(text))
    if (command := estimated.start_command) is not None:
        st.caption("This deployment is started with")
        st.code(command, language="bash", wrap_lines=True)
    name = f"{job.model.id}-{job.deployment.quant}-{state.short(job.workload.context)}"
    with st.container(horizontal=True):
        st.download_button("Lines as CSV", tables.lines_csv(estimated), f"{name}.csv", "text/csv", key="csv",
                           on_click="ignore")  # fmt: skip
        st.download_button("Estimate as JSON", tables.estimate_json(estimated), f"{name}.json", "application/json",
                           key="json", on_click="ignore", help="the document of vram estimate --json")  # fmt: skip


def over_context(estimated: Estimate, options: dict[str, Any], gpu: str | None, gpus: int) -> None:
    """Memory against context for all quantizations."""
    st.subheader("Memory against context", anchor=False)
    job = estimated.job
    asked = {k: v for k, v in options.items() if k != "context"}
    steps = tuple(sorted({*tables.contexts(estimated.model), job.workload.context}))
    series = context_series(job.model.id, {**asked, "gpu": gpu, "gpus": gpus}, steps)
    figure = charts.context_chart(series, chosen=asked["quant"], context=job.workload.context, marks=tables.marks(gpu, job.deployment.gpus))
    st.plotly_chart(figure, theme=None, key="curve", config={"displayModeBar": False},
                    alt="Total memory against context length for all quantizations")  # fmt: skip
    n, over, together = job.workload.sequences, "", ""
    if job.deployment.gpus > 1:
        over, together = " over all GPUs", ", and of the chosen ones together"
    st.caption(f"Total{over} for {n:,} sequence{'s' if n > 1 else ''}; both axes are logarithmic. Each pale line is "
               "another quantization (point at it for its name); those of the other engine run with its defaults. "
               f"Dotted: usable memory of one card, less than its sold size{together}.")  # fmt: skip


def recommended(model: Model, options: dict[str, Any], gpus: int) -> list[dict[str, Any]]:
    """The table of GPUs that hold it, and those that don't."""
    st.subheader("Recommended GPUs", anchor=False)
    vendor, segment, sort = controls.gpu_filters()
    asked = {**options, "gpus": gpus} if gpus > 1 else options
    try:
        rows, rejected = gpu_rows(model.spec.id, asked, vendor=vendor, segment=segment, sort=sort)
    except CalculatorError as e:
        st.info(tables.plain(str(e)))
        return []
    if rows:
        frame = pd.DataFrame(rows)
        if not frame["change"].any():
            frame = frame.drop(columns="change")
        styled = frame.style.map(lambda v: f"background-color: {_TINTS.get(v, '#fff')}", subset=["verdict"])
        number = st.column_config.NumberColumn
        st.dataframe(styled, hide_index=True, key="gpus_table", height=388 if len(rows) > 10 else "content", column_config={
            "GPU": _column(200), "verdict": _column(120), "change": _column(130, "the change"),
            "needs": number("needs GiB", format="%.2f", width=80),
            "headroom": number("headroom GiB", format="%.2f", width=100), "largest context": _column(105),
            "largest concurrency": number(width=130, help="sequences of the chosen context, with the same verdict"),
            "tokens/s": number("tokens/s bound", format="%.0f", width=110,
                               help="memory bandwidth over the bytes of one step: an upper bound, not a prediction"),
        })  # fmt: skip
        st.caption("fits: the high end of the band is within usable memory; tight: only the point is. "
                   "tokens/s is a bandwidth bound, not a prediction; real engines reach 0.2 to 0.9 of it.")  # fmt: skip
    else:
        st.info("None of these GPUs holds it, even after a change.")
    with st.expander(f"{len(rejected)} that do not fit, and why", key="rejected"):
        st.dataframe(pd.DataFrame(rejected, columns=["gpu", "reason"]), hide_index=True, key="rejected_table")
    return rows


def specification(estimated: Estimate) -> None:
    """What the model is and who says so; for a card also its text, claim by claim."""
    st.subheader("Specification", anchor=False)
    model = estimated.model
    rows = pd.DataFrame(tables.spec_table(model))
    flagged = rows["contradicted by"] != ""
    if not flagged.any():
        rows = rows.drop(columns="contradicted by")
    styled = rows.style.apply(lambda r: ["background-color: #fdf0e6" if flagged[r.name] else ""] * len(r), axis=1)
    st.dataframe(styled, hide_index=True, key="spec", height="content", column_config={
        "field": _column(180), "value": _column(220), "contradicted by": _column(320),
    })  # fmt: skip
    if claims := tables.claim_rows(model):
        st.markdown("**The card's text**, held against its own dimensions and the released checkpoint")
        st.dataframe(pd.DataFrame(claims), hide_index=True, key="claims", height="content")


def _column(width: int, label: str | None = None) -> Any:
    return st.column_config.Column(label, width=width)
