"""Figures as plain data: plotly's JSON form, made by pure functions. Needs neither plotly nor streamlit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from calculator.ledger import COMPONENTS, Component, Ledger, Line
from calculator.units import GIB, gib, tokens

Figure = dict[str, Any]

LABELS: dict[Component, str] = {
    "weights": "weights", "kv_cache": "KV cache", "activations": "activations", "overhead": "overhead",
}  # fmt: skip
COLORS: dict[Component, str] = {
    "weights": "#2f5d8a", "kv_cache": "#3a9b8f", "activations": "#e0a33e", "overhead": "#a3abb5",
}  # fmt: skip
INK, MUTED, GRID, ACCENT = "#1f2933", "#52606d", "#e8ebef", "#c2410c"
GROUP_COLORS = {"transformers": "#b4c6da", "llama.cpp": "#c9bfae", "vllm": "#b9d3c4", "sglang": "#cdbfd8"}
_DARK = ("weights", "kv_cache")  # segments that need white text
_LABEL_SHARE = 0.09  # narrower segments carry their name in the hover only


class Series(NamedTuple):
    """Total memory of one quantization over contexts, and what it holds beside the GPUs [tokens, bytes]."""

    name: str
    engine: str
    contexts: tuple[int, ...]
    nbytes: tuple[int, ...]
    host: tuple[int, ...]


class Mark(NamedTuple):
    """A horizontal line at a card's usable memory [bytes]."""

    label: str
    nbytes: int
    chosen: bool = False


def ledger_bar(ledger: Ledger, *, usable_bytes: int | None = None) -> Figure:
    """One stacked bar a device: its lines coloured by component, its band, and the usable memory of the GPU."""
    devices = ledger.devices
    largest = max(ledger.on(index).total_bytes for index in devices)
    data = list(_segments(ledger, largest))
    parts = [ledger.on(index) for index in devices]
    data.append({
        "type": "scatter", "mode": "markers", "name": "band of the total", "showlegend": True,
        "x": [p.total_bytes / GIB for p in parts], "y": [index + 0.42 for index in devices],
        "marker": {"color": INK, "size": 7, "symbol": "line-ns", "line": {"color": INK, "width": 2}},
        "error_x": {"type": "data", "symmetric": False, "color": INK, "thickness": 1.6, "width": 6,
                    "array": [(p.high_bytes - p.total_bytes) / GIB for p in parts],
                    "arrayminus": [(p.total_bytes - p.low_bytes) / GIB for p in parts]},
        "hovertemplate": [f"total {gib(p.total_bytes)}<br>{gib(p.low_bytes)} - {gib(p.high_bytes)}<extra></extra>"
                          for p in parts],
    })  # fmt: skip
    reach = max(p.high_bytes for p in parts) / GIB
    layout = _layout(height=126 + 46 * len(devices))
    layout |= {"barmode": "stack", "hovermode": "closest", "uniformtext": {"mode": "hide", "minsize": 12}}
    if usable_bytes is not None:
        x = usable_bytes / GIB
        if x <= 3 * reach:  # a far larger card would squeeze the bar: its line stays out, the verdict says it
            reach = max(reach, x)
            layout["shapes"] = [_line(x0=x, x1=x, y0=0, y1=1, yref="paper", color=ACCENT)]
            layout["annotations"] = [_note(f"usable {gib(usable_bytes)}", x=x, y=1, yref="paper", yanchor="bottom")]
    layout["xaxis"] |= {"range": [0, reach * 1.06], "ticksuffix": " GiB"}
    layout["yaxis"] |= {"showgrid": False, "range": [devices[-1] + 0.6, devices[0] - 0.4], "tickvals": list(devices),
                        "ticktext": [f"GPU {index}" if len(devices) > 1 else "" for index in devices]}  # fmt: skip
    layout["legend"] |= {"y": -0.42 if len(devices) == 1 else -0.2}
    return {"data": data, "layout": layout}


def context_chart(series: Sequence[Series], *, chosen: str, context: int, marks: Sequence[Mark]) -> Figure:
    """Memory against context on log-2 axes for all quantizations, the chosen one emphasised."""
    data: list[dict[str, Any]] = []
    for engine in dict.fromkeys(s.engine for s in series):
        group = [s for s in series if s.engine == engine and s.name != chosen]
        data += [_curve(s, GROUP_COLORS[engine], 1.3, legend=engine if i == 0 else "") for i, s in enumerate(group)]
    data += [_curve(s, COLORS["weights"], 3.5, legend=s.name) for s in series if s.name == chosen]
    for s in series:
        if s.name == chosen and context in s.contexts:
            y = s.nbytes[s.contexts.index(context)]
            data.append({"type": "scatter", "mode": "markers", "x": [context], "y": [y / GIB], "showlegend": False,
                         "marker": {"size": 11, "color": COLORS["weights"], "line": {"color": "#fff", "width": 2}},
                         "hovertemplate": f"<b>{s.name}</b>, {tokens(context)}: {gib(y)}<extra></extra>"})  # fmt: skip
    values = [n / GIB for s in series for n in s.nbytes]
    top = _top(series, chosen)
    above = sorted(m.nbytes / GIB for m in marks if m.nbytes / GIB > top)[:2]
    shown = [m for m in marks if m.chosen or m.nbytes / GIB <= max([top, *above])]
    reach = max([top, *(m.nbytes / GIB for m in shown)]) * 1.25
    layout = _layout(height=470)
    contexts = sorted({c for s in series for c in s.contexts})
    powers = [c for c in contexts if c & (c - 1) == 0] or contexts
    layout["xaxis"] |= {"type": "log", "dtick": None, "tickvals": powers, "ticktext": [tokens(c) for c in powers],
                        "title": {"text": "context, tokens per sequence"}}  # fmt: skip
    ticks = [2.0**n for n in range(-4, 16)]
    layout["yaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{t:g}" for t in ticks],
                        "range": [_log10(min(values, default=1.0) * 0.85), _log10(reach)],
                        "title": {"text": "GiB"}}  # fmt: skip
    layout["hovermode"] = "closest"
    layout["legend"] |= {"y": -0.2}
    layout["margin"] |= {"r": 180, "l": 56, "t": 12}
    layout["shapes"] = [
        _line(x0=0, x1=1, xref="paper", y0=m.nbytes / GIB, y1=m.nbytes / GIB, color=ACCENT if m.chosen else MUTED)
        for m in shown
    ]
    layout["annotations"] = [
        _note(m.label, x=1.008, xref="paper", y=_log10(m.nbytes / GIB), xanchor="left", yanchor="middle",
              color=ACCENT if m.chosen else MUTED)
        for m in shown
    ]  # fmt: skip
    return {"data": data, "layout": layout}


def _top(series: Sequence[Series], chosen: str) -> float:
    """Highest value worth the frame [GiB]: attention without a fused kernel (fp32) would leave the rest no room."""
    tops = sorted(max(s.nbytes) / GIB for s in series)
    mine = [max(s.nbytes) / GIB for s in series if s.name == chosen]
    return max([1.5 * tops[len(tops) // 2], *mine]) if tops else 1.0


def _segments(ledger: Ledger, largest: int) -> Iterable[dict[str, Any]]:
    seen: set[str] = set()
    ordered = sorted((n for n in ledger.on_devices if n.nbytes), key=lambda n: COMPONENTS.index(n.component))
    for line in ordered:
        wide = line.nbytes >= _LABEL_SHARE * largest
        yield {
            "type": "bar", "orientation": "h", "x": [line.nbytes / GIB], "y": [line.device], "width": 0.6,
            "name": LABELS[line.component], "legendgroup": line.component, "showlegend": line.component not in seen,
            "marker": {"color": COLORS[line.component], "line": {"color": "#fff", "width": 1}},
            "text": [line.name if wide else ""], "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
            "insidetextfont": {"color": "#fff" if line.component in _DARK else INK, "size": 13},
            "constraintext": "inside",
            "hovertemplate": f"{_hover(line)}<extra></extra>",
        }  # fmt: skip
        seen.add(line.component)


def _hover(line: Line) -> str:
    band = f"<br>{gib(line.low_bytes)} - {gib(line.high_bytes)}" if line.low_bytes != line.high_bytes else ""
    return f"<b>{line.name}</b> ({LABELS[line.component]})<br>{gib(line.nbytes)}{band}<br>{line.basis}"


def _curve(series: Series, color: str, width: float, *, legend: str) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": list(series.contexts), "y": [n / GIB for n in series.nbytes],
        "line": {"color": color, "width": width}, "name": legend or series.name, "showlegend": bool(legend),
        "text": [
            f"{tokens(c)}: {gib(n)}{f', and {gib(beside)} of host memory' if beside else ''}"
            for c, n, beside in zip(series.contexts, series.nbytes, series.host, strict=True)
        ],
        "hovertemplate": f"<b>{series.name}</b>, %{{text}}<extra></extra>",
    }  # fmt: skip


def _layout(*, height: int) -> Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "tickfont": {"size": 13, "color": MUTED}}
    return {
        "height": height, "margin": {"l": 10, "r": 16, "t": 26, "b": 10}, "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "font": {"family": "Source Sans, sans-serif", "size": 13, "color": INK},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "top", "traceorder": "normal",
                   "itemclick": False, "itemdoubleclick": False, "font": {"size": 13}},
        "xaxis": {**axis, "automargin": True}, "yaxis": {**axis, "automargin": True},
        "hoverlabel": {"bgcolor": "#fff", "bordercolor": MUTED, "font": {"color": INK, "size": 13}},
    }  # fmt: skip


def _line(*, color: str, **where: Any) -> dict[str, Any]:
    return {"type": "line", "line": {"color": color, "width": 1.2, "dash": "dot"}, "layer": "below", **where}


def _note(text: str, *, color: str = ACCENT, **where: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": color}, **where}


def _log10(value: float) -> float:
    from math import log10

    return log10(value)
