"""Figures as plotly's own JSON, without colours: those are CSS variables that the page fills in, light or dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nlhf_zoo.report.convergence import FLOOR, Claim, Curve
from nlhf_zoo.report.palette import Ink, Palette

__all__ = ["clip", "convergence", "distribution", "embed", "height", "label", "lines", "matrix", "spent", "win_rates"]

_LONGEST_LABEL = 34
_CELLS_WITH_TEXT = 150


def label(text: object, longest: int = _LONGEST_LABEL) -> str:
    """Text for plotly, which reads a small HTML of its own in every label: one line, escaped, not too long."""
    return html.escape(clip(text, longest), quote=False)


def clip(text: object, longest: int = _LONGEST_LABEL) -> str:
    """The text as one line, not too long."""
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def height(figure: Mapping[str, Any]) -> int:
    """Pixels that a figure of kind "rows" takes; report.js reckons the same."""
    return round(110 + figure["rows"] * 38)


def embed(figure: Mapping[str, Any]) -> str:
    """JSON that may stand inside a <script> element: nothing in it can close the element."""
    text = json.dumps(_finite(figure), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate({ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def convergence(ink: Palette, title: str, measured: Sequence[Curve], claimed: Sequence[Claim]) -> dict[str, Any]:
    """Median, band and dashed claim of each solver; `xs` holds x for every choice of the horizontal axis.

    A curve stands here once, with `low` and `high` beside `y`; the page makes a line and a band of it.
    """
    axes = spent(measured)
    traces = [_curve(ink[curve.solver], curve, axes) for curve in measured]
    traces += [_claim(claim.thinned(), curve, ink[claim.solver].colour, axes) for claim in claimed
               for curve in measured if curve.solver == claim.solver]  # fmt: skip
    layout = {"yaxis": {"type": "log", "title": {"text": title}}}
    return {"kind": "convergence", "data": traces, "layout": layout}


def spent(measured: Sequence[Curve]) -> list[str]:
    """What the curves can be drawn against: tokens, for one, only where some were counted."""
    axes = ("queries", "seconds", "tokens", "steps")
    return [axis for axis in axes if any(x > 0 for curve in measured for x in curve.x(axis))] or ["steps"]


def _curve(ink: Ink, curve: Curve, axes: Sequence[str]) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "lines+markers", "group": curve.solver, "name": label(curve.solver),
        "xs": {axis: _short(curve.x(axis)) for axis in axes}, "y": _clip(curve.median),
        "line": {"width": 2.4, "color": ink.colour},
        "marker": {"size": 8, "symbol": ink.marker, "color": ink.colour, "maxdisplayed": 7},
    }  # fmt: skip
    if curve.seeds > 1:
        trace |= {"low": _clip(curve.low), "high": _clip(curve.high), "fillcolor": ink.band}
    return trace


def _claim(claim: Claim, curve: Curve, colour: str, axes: Sequence[str]) -> dict[str, Any]:
    # A bound is a function of steps; on another axis it stands where the solver was at that step.
    xs = {axis: _short(np.interp(claim.steps, curve.steps, curve.x(axis), left=np.nan, right=np.nan)) for axis in axes}
    return {
        "type": "scatter", "mode": "lines", "group": claim.solver, "xs": xs, "y": _clip(claim.values),
        "name": label(f"{claim.solver}, claimed bound"), "line": {"width": 1.8, "dash": "dash", "color": colour},
    }  # fmt: skip


def _clip(values: Sequence[float]) -> list[float]:
    return _short([max(value, FLOOR) if math.isfinite(value) else value for value in values])


def _short(values: Iterable[float]) -> list[float]:
    """Six significant digits: more cannot be seen, and half of a page of fifty runs would be digits."""
    return [float(f"{value:.6g}") for value in values]


def lines(
    ink: Palette, y_title: str, x_title: str, series: Mapping[str, Sequence[tuple[float, float]]], percent: bool
) -> dict[str, Any]:
    """Plain curves on linear axes, one per name."""
    form = ".1%" if percent else ".4~g"
    traces = [
        {
            "type": "scatter", "mode": "lines+markers", "group": name, "name": label(name),
            "x": [x for x, _ in points], "y": [y for _, y in points],
            "line": {"width": 2.4, "color": ink[name].colour},
            "marker": {"size": 6, "symbol": ink[name].marker, "color": ink[name].colour},
            "hovertemplate": f"<b>%{{fullData.name}}</b> %{{y:{form}}}<br>at %{{x:,}}<extra></extra>",
        }
        for name, points in series.items()
    ]  # fmt: skip
    layout: dict[str, Any] = {"xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}}}
    if percent:
        layout["yaxis"]["tickformat"] = ".0%"
    return {"kind": "lines", "data": traces, "layout": layout}


def win_rates(ink: Palette, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows with policy, label, rate, low, high; one line each, from top to bottom."""
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": label(row["label"], 60), "x": [row["rate"]], "y": [at],
            "error_x": {"type": "data", "symmetric": False, "array": [row["high"] - row["rate"]],
                        "arrayminus": [row["rate"] - row["low"]], "thickness": 2, "width": 5,
                        "color": ink[row["policy"]].colour},
            "marker": {"size": 11, "symbol": ink[row["policy"]].marker, "color": ink[row["policy"]].colour},
            "customdata": [[row["low"], row["high"], row["comparisons"]]],
            "hovertemplate": "<b>%{fullData.name}</b> %{x:.1%}<br>95 % interval %{customdata[0]:.1%} to"
            " %{customdata[1]:.1%}<br>%{customdata[2]:,} comparisons<extra></extra>",
        }
        for at, row in enumerate(rows)
    ]  # fmt: skip
    rungs = {"tickvals": list(range(len(rows))), "ticktext": [label(row["label"], 60) for row in rows], "wide": True}
    half = {"type": "line", "xref": "x", "yref": "paper", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1,
            "line": {"width": 1.5, "dash": "dot", "color": "var(--muted)"}}  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "Win rate"}, "range": [0, 1], "tickformat": ".0%"},
        "yaxis": {**rungs, "range": [len(rows) - 0.5, -0.5]},
        "shapes": [half],
    }
    return {"kind": "rows", "rows": len(rows), "data": traces, "layout": layout}


def matrix(
    labels: Sequence[str],
    values: Sequence[Sequence[float]],
    verb: str = "beats",
    intervals: Sequence[Sequence[tuple[float, float]]] | None = None,
    cycles: Sequence[Sequence[int]] = (),
    support: int = 0,
) -> dict[str, Any]:
    """P(row beats column), colours diverging from 1/2.

    Args:
        labels: Y names.
        values: (Y, Y).
        verb: what the row does to the column.
        intervals: (Y, Y) pairs of lower and upper end, shown on hovering.
        cycles: each some positions of which every one beats the next and the last the first; the page
            outlines the cells of the one that is chosen.
        support: a line is drawn after so many responses.
    """
    names = [label(text) for text in labels]
    ticks = list(range(len(names))) if len(names) <= 40 else list(range(0, len(names), math.ceil(len(names) / 20)))
    axis = {"tickvals": ticks, "ticktext": [names[at] for at in ticks]}
    trace = {
        "type": "heatmap", "z": [_short(row) for row in values],
        "zmin": 0, "zmax": 1, "colorscale": "diverging", "names": names,
        "xgap": 1 if len(names) <= 40 else 0, "ygap": 1 if len(names) <= 40 else 0,
        "hovertemplate": f"%{{text}}: <b>%{{z:.1%}}</b>{'<br>%{customdata}' if intervals else ''}<extra></extra>",
        "verb": verb,
        "colorbar": {"tickformat": ".0%", "thickness": 10, "len": 0.8, "outlinewidth": 0},
    }  # fmt: skip
    if intervals:
        trace["customdata"] = [[f"95 % interval {low:.1%} to {high:.1%}" for low, high in row] for row in intervals]
    if len(names) ** 2 <= _CELLS_WITH_TEXT:
        trace["texttemplate"] = "%{z:.0%}"
    layout: dict[str, Any] = {
        "xaxis": {**axis, "side": "top", "tickangle": -40, "title": {"text": ""}},
        "yaxis": {**axis, "range": [len(names) - 0.5, -0.5], "wide": True},
    }
    if 0 < support < len(names):
        edge = {"type": "line", "line": {"width": 1.5, "dash": "dot", "color": "var(--ink)"}}
        span = {"x0": -0.5, "x1": len(names) - 0.5, "y0": support - 0.5, "y1": support - 0.5}
        layout["shapes"] = [
            {**edge, **span},
            {**edge, "x0": span["y0"], "x1": span["y1"], "y0": span["x0"], "y1": span["x1"]},
        ]
    return {
        "kind": "matrix",
        "rows": len(names),
        "cycles": [list(cycle) for cycle in cycles],
        "data": [trace],
        "layout": layout,
    }


def distribution(
    ink: Palette,
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]],
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> dict[str, Any]:
    """Horizontal bars of each policy's probabilities, grouped by response; a whisker where an interval is known."""
    names = [label(text) for text in labels]
    traces = []
    for policy, values in probabilities.items():
        trace: dict[str, Any] = {
            "type": "bar", "orientation": "h", "group": policy, "name": label(policy), "x": list(values),
            "y": list(range(len(names))), "marker": {"color": ink[policy].colour},
            "customdata": [[name, ""] for name in names],
            "hovertemplate": "<b>%{customdata[0]}</b> %{x:.2%} in %{fullData.name}%{customdata[1]}<extra></extra>",
        }  # fmt: skip
        if intervals and policy in intervals:
            ends = intervals[policy]
            # A bootstrap's interval need not hold the value it was drawn around.
            trace["error_x"] = {
                "type": "data", "symmetric": False, "thickness": 1.6, "width": 4, "color": "var(--ink)",
                "array": [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)],
                "arrayminus": [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)],
            }  # fmt: skip
            trace["customdata"] = [
                [name, f"<br>interval {low:.1%} to {high:.1%}"] for name, (low, high) in zip(names, ends, strict=True)
            ]
        traces.append(trace)
    rungs = {"tickvals": list(range(len(names))), "ticktext": names, "wide": True}
    layout = {
        "barmode": "group", "bargap": 0.3,
        "xaxis": {"title": {"text": "Probability"}, "tickformat": "~%", "rangemode": "tozero"},
        "yaxis": {**rungs, "range": [len(names) - 0.5, -0.5]},
    }  # fmt: skip
    return {"kind": "rows", "rows": len(names) * (0.45 + 0.25 * len(traces)), "data": traces, "layout": layout}
