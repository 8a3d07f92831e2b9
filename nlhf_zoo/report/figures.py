"""Figures as plotly's own JSON, without colours: those are CSS variables that the page fills in, light or dark."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nlhf_zoo.report.convergence import FLOOR, Claim, Curve
from nlhf_zoo.report.palette import Palette

__all__ = ["convergence", "distribution", "embed", "label", "lines", "matrix", "win_rates"]

_LONGEST_LABEL = 34
_CELLS_WITH_TEXT = 150


def label(text: object, longest: int = _LONGEST_LABEL) -> str:
    """Text for plotly, which reads a small HTML of its own in every label: one line, escaped, not too long."""
    line = " ".join(str(text).encode("utf-8", "replace").decode("utf-8").split())
    return html.escape(line if len(line) <= longest else line[: longest - 1] + "…", quote=False)


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
    """Median, band and dashed claim of each solver; `xs` holds x for every choice of the horizontal axis."""
    traces: list[dict[str, Any]] = []
    for curve in measured:
        colours, xs = ink[curve.solver], {axis: list(curve.x(axis)) for axis in ("queries", "seconds", "steps")}
        common = {"type": "scatter", "mode": "lines", "group": curve.solver, "xs": xs}
        if curve.seeds > 1:
            edge = {**common, "hoverinfo": "skip", "line": {"width": 0, "color": colours.colour}}
            traces.append({**edge, "y": _clip(curve.low)})
            traces.append({**edge, "y": _clip(curve.high), "fill": "tonexty", "fillcolor": colours.band})
        extra = zip(curve.low, curve.high, curve.steps, curve.queries, strict=True)
        ranges = "<br>%{customdata[0]:.3~g} to %{customdata[1]:.3~g} over seeds" if curve.seeds > 1 else ""
        traces.append(
            {
                **common,
                "name": label(curve.solver),
                "y": _clip(curve.median),
                "customdata": [list(row) for row in extra],
                "line": {"width": 2.4, "color": colours.colour},
                "hovertemplate": f"<b>%{{fullData.name}}</b> %{{y:.4~g}}{ranges}"
                "<br>step %{customdata[2]:,}, %{customdata[3]:,} queries<extra></extra>",
            }
        )
    traces += [_claim(claim, curve, ink[claim.solver].colour) for claim in claimed for curve in measured
               if curve.solver == claim.solver]  # fmt: skip
    return {"kind": "convergence", "data": traces, "layout": {"yaxis": {"type": "log", "title": {"text": title}}}}


def _claim(claim: Claim, curve: Curve, colour: str) -> dict[str, Any]:
    claim = claim.thinned()

    def at(values: Sequence[float], step: int) -> float | None:
        # A bound is a function of steps; on another axis it stands where the solver was at that step.
        for (s0, v0), (s1, v1) in zip(
            zip(curve.steps, values, strict=True), zip(curve.steps[1:], values[1:], strict=True), strict=False
        ):
            if s0 <= step <= s1:
                return v0 + (v1 - v0) * (step - s0) / (s1 - s0)
        return None

    xs = {axis: [at(curve.x(axis), step) for step in claim.steps] for axis in ("queries", "seconds", "steps")}
    return {
        "type": "scatter", "mode": "lines", "group": claim.solver, "xs": xs, "y": _clip(claim.values),
        "name": label(f"{claim.solver}, claimed bound"), "line": {"width": 1.8, "dash": "dash", "color": colour},
        "hovertemplate": "<b>%{fullData.name}</b> %{y:.4~g}<extra></extra>",
    }  # fmt: skip


def _clip(values: Sequence[float]) -> list[float]:
    return [max(value, FLOOR) if math.isfinite(value) else value for value in values]


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
    rungs = {"tickvals": list(range(len(rows))), "ticktext": [label(row["label"]) for row in rows], "wide": True}
    half = {"type": "line", "xref": "x", "yref": "paper", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1,
            "line": {"width": 1.5, "dash": "dot", "color": "var(--muted)"}}  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "Win rate"}, "range": [0, 1], "tickformat": ".0%"},
        "yaxis": {**rungs, "range": [len(rows) - 0.5, -0.5]},
        "shapes": [half],
    }
    return {"kind": "rows", "rows": len(rows), "data": traces, "layout": layout}


def matrix(labels: Sequence[str], values: Sequence[Sequence[float | None]], verb: str = "beats") -> dict[str, Any]:
    """P(row beats column), colours diverging from 1/2."""
    names = [label(text) for text in labels]
    ticks = list(range(len(names))) if len(names) <= 40 else list(range(0, len(names), math.ceil(len(names) / 20)))
    axis = {"tickvals": ticks, "ticktext": [names[at] for at in ticks]}
    trace = {
        "type": "heatmap", "z": [list(row) for row in values], "zmin": 0, "zmax": 1, "colorscale": "diverging",
        "xgap": 1 if len(names) <= 40 else 0, "ygap": 1 if len(names) <= 40 else 0,
        "customdata": [[[row, column] for column in names] for row in names],
        "hovertemplate": f"%{{customdata[0]}} {verb} %{{customdata[1]}}<br><b>%{{z:.1%}}</b><extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 10, "len": 0.8, "outlinewidth": 0},
    }  # fmt: skip
    if len(names) ** 2 <= _CELLS_WITH_TEXT:
        trace["texttemplate"] = "%{z:.0%}"
    layout = {
        "xaxis": {**axis, "side": "top", "tickangle": -40, "title": {"text": ""}},
        "yaxis": {**axis, "range": [len(names) - 0.5, -0.5], "wide": True},
    }
    return {"kind": "matrix", "rows": len(names), "data": [trace], "layout": layout}


def distribution(ink: Palette, labels: Sequence[str], probabilities: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Horizontal bars of each policy's probabilities, grouped by response."""
    names = [label(text) for text in labels]
    traces = [
        {
            "type": "bar", "orientation": "h", "group": policy, "name": label(policy), "x": list(values),
            "y": list(range(len(names))), "marker": {"color": ink[policy].colour}, "customdata": names,
            "hovertemplate": "<b>%{customdata}</b> %{x:.2%} in %{fullData.name}<extra></extra>",
        }
        for policy, values in probabilities.items()
    ]  # fmt: skip
    rungs = {"tickvals": list(range(len(names))), "ticktext": names, "wide": True}
    layout = {
        "barmode": "group", "bargap": 0.3,
        "xaxis": {"title": {"text": "Probability"}, "tickformat": "~%", "rangemode": "tozero"},
        "yaxis": {**rungs, "range": [len(names) - 0.5, -0.5]},
    }  # fmt: skip
    return {"kind": "rows", "rows": len(names) * (0.45 + 0.25 * len(traces)), "data": traces, "layout": layout}
