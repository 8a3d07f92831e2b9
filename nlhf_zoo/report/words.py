"""What the figures show, in words: for the captions, for screen readers, and for the tables below them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nlhf_zoo.report.convergence import FLOOR, Check, Curve
from nlhf_zoo.report.cycles import Cycles
from nlhf_zoo.report.markup import number

__all__ = [
    "SAMPLED",
    "SHORT",
    "checked",
    "convergence",
    "convergence_table",
    "curves",
    "curves_table",
    "distribution",
    "key",
    "matrix",
    "reading",
    "waypoints",
    "win_rates",
]

SHORT: Mapping[str, str] = {"duality_gap": "Duality gap", "kl_to_equilibrium": "KL", "span_to_equilibrium": "Span"}
_COLUMNS = {
    "duality_gap": "Gap",
    "kl_to_equilibrium": "KL to equilibrium",
    "span_to_equilibrium": "Span to equilibrium",
}
_MOST_SPOKEN = 6
"""More win rates than this are counted in the caption, not read out: the table has them."""
_TARGETS = ((1e-4, "10⁻⁴"), (1e-8, "10⁻⁸"))


def convergence(metric: str, measured: Sequence[Curve]) -> str:
    ends = sorted(measured, key=lambda curve: curve.median[-1])
    parts = [f"{curve.solver} {reading(curve.median[-1])}" for curve in ends]
    budgets = {number(curve.queries[-1]) for curve in measured}
    when = f"After {budgets.pop()} queries" if len(budgets) == 1 else "At the end of each run"
    median = "median " if any(curve.seeds > 1 for curve in measured) else ""
    clipped = any(value < FLOOR for curve in measured for value in curve.low)
    floor = " Values below 10⁻¹⁶ are drawn at 10⁻¹⁶: they are rounding." if clipped else ""
    return f"{when}, {median}{_inline(metric)}: {', '.join(parts)}.{floor}"


def _inline(metric: str) -> str:
    return {"duality_gap": "duality gap", "span_to_equilibrium": "span"}.get(metric, SHORT[metric])


def reading(value: float) -> str:
    """A measure for reading, without the digits that are only rounding."""
    return number(value) if value >= FLOOR else "below 10⁻¹⁶"


def key(measured: Iterable[Sequence[Curve]], has_claims: bool) -> str:
    every = [curve for found in measured for curve in found]
    seeds = {curve.seeds for curve in every}
    text = f"Line: median over {_span(seeds)} seeds. Shaded: from the least to the greatest of them."
    if seeds == {1}:
        text = "Line: the run."
    if has_claims:
        text += " Dashed: what the solver is proved to stay below, where anything is proved."
    return text + " Step 0 has no place on a log axis; choose the linear scale to see it."


def _span(values: set[int]) -> str:
    return str(min(values)) if len(values) == 1 else f"{min(values)} to {max(values)}"


def checked(metric: str, checks: Sequence[Check]) -> list[str]:
    result = []
    for check in checks:
        head = f"{check.solver}, {_inline(metric)}: "
        if check.broken:
            result.append(
                f"{head}{check.broken:,} of {check.points:,} measured values lie above the claimed bound;"
                f" the worst is {number(check.worst)} times the bound."
            )
        else:
            result.append(
                f"{head}all {check.points:,} measured values obey the claimed bound;"
                f" the closest reaches {number(check.worst)} of it."
            )
    if checks:
        result[-1] += " (Values below 10⁻¹² count as zero.)"
    return result


def convergence_table(measured: Mapping[str, Sequence[Curve]]) -> tuple[list[str], list[list[Any]]]:
    by_solver: dict[str, dict[str, Curve]] = {}
    for metric, found in measured.items():
        for curve in found:
            by_solver.setdefault(curve.solver, {})[metric] = curve
    targets = _TARGETS if "duality_gap" in measured else ()
    columns = ["Solver", "Seeds", "Steps", "Queries", "Seconds", *(_COLUMNS[metric] for metric in measured)]
    columns += [f"Queries to gap {name}" for _, name in targets]
    rows = []
    for solver, found in by_solver.items():
        any_curve = next(iter(found.values()))
        ends = [found[metric].median[-1] if metric in found else None for metric in measured]
        seconds = any_curve.seconds[-1]
        gap = found.get("duality_gap")
        firsts = [_first_below(gap, target) if gap else None for target, _ in targets]
        seconds = None if math.isnan(seconds) else seconds
        rows.append([solver, any_curve.seeds, any_curve.steps[-1], any_curve.queries[-1], seconds, *ends, *firsts])
    return columns, rows


def _first_below(curve: Curve, target: float) -> float | None:
    return next((q for q, value in zip(curve.queries, curve.median, strict=True) if value <= target), None)


SAMPLED = "median at some counts of queries"
_WAYPOINTS = 8


def waypoints(measured: Sequence[Curve]) -> tuple[list[str], list[list[Any]]]:
    """A table of the curves: one row a count of queries, one column a solver."""
    last = max(curve.queries[-1] for curve in measured)
    firsts = [query for curve in measured for query in curve.queries if query > 0]
    counts = np.geomspace(min(firsts), last, _WAYPOINTS).round() if firsts else np.zeros(0)
    rows: list[list[Any]] = []
    for count in [0.0, *np.unique(counts).tolist()]:
        # The last value known at this count, and none beyond the end of a run.
        known = [None if count > curve.queries[-1] else _held(curve, count) for curve in measured]
        rows.append([count, *known])
    return ["Queries", *(curve.solver for curve in measured)], rows


def _held(curve: Curve, queries: float) -> float | None:
    at = int(np.searchsorted(curve.queries, queries, side="right")) - 1
    return curve.median[at] if at >= 0 else None


def curves_table(
    series: Mapping[str, Sequence[tuple[float, float]]], x_title: str
) -> tuple[list[str], list[list[Any]]]:
    """A table of plain curves: one row a place on the horizontal axis, one column a name."""
    places = sorted({x for points in series.values() for x, _ in points})
    known = {name: dict(points) for name, points in series.items()}
    return [x_title, *series], [[x, *(found.get(x) for found in known.values())] for x in places]


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, percent: bool) -> str:
    write = "{:.1%}".format if percent else number
    parts = [f"{name} from {write(points[0][1])} to {write(points[-1][1])}" for name, points in series.items()]
    return f"{y_title}, first to last {x_title[:1].lower()}{x_title[1:]}: {', '.join(parts)}."


def win_rates(points: Sequence[Mapping[str, Any]]) -> str:
    parts, sides = [], Counter[str]()
    for point in points:
        side = "not told apart from one half"
        if point["low"] > 0.5 or point["high"] < 0.5:
            side = "above one half" if point["low"] > 0.5 else "below one half"
        sides[side] += 1
        parts.append(f"{point['label']} {point['rate']:.1%} ({point['low']:.1%} to {point['high']:.1%}, {side})")
    if len(points) > _MOST_SPOKEN:
        parts = [f"{count:,} {side}" for side, count in sides.most_common()]
    return f"Bars are 95 % intervals, the dotted line is one half. {'; '.join(parts)}."


def matrix(
    labels: Sequence[str],
    values: Sequence[Sequence[float]],
    ordered: str,
    omitted: int,
    cycles: Cycles,
    support: int = 0,
) -> str:
    size = len(labels)
    beaten = [sum(1 for other, value in enumerate(row) if other != at and value > 0.5) for at, row in enumerate(values)]
    top = max(range(size), key=lambda at: beaten[at])
    order = f" Ordered by the {ordered}, its likeliest first." if ordered else ""
    if 0 < support < size:
        order += f" The dotted lines end the {support:,} that it plays with at least 0.1 %."
    rest = f" {omitted:,} less likely responses are left out." if omitted else ""
    if size == 1:
        return f"One entry, {labels[0]}.{order}{rest}"
    if beaten[top] == size - 1:
        first = f"{labels[top]} beats every other with a probability above one half."
    else:
        first = (
            f"Nothing beats every other; {labels[top]} beats the most, {beaten[top]:,} of {size - 1:,} with a"
            " probability above one half."
        )
    return f"{first}{_cycles(labels, values, cycles)}{order}{rest}"


def _cycles(labels: Sequence[str], values: Sequence[Sequence[float]], cycles: Cycles) -> str:
    if not cycles.clearest:
        return " There is no cycle of three." if cycles.triples else ""
    i, j, k = cycles.clearest[0]
    links = [f"{labels[a]} beats {labels[b]} ({values[a][b]:.1%})" for a, b in ((i, j), (j, k), (k, i))]
    number_of = "One" if cycles.count == 1 else f"{cycles.count:,}"
    verb = "is a cycle" if cycles.count == 1 else "are cycles; the clearest"
    return f" {number_of} of {cycles.triples:,} triples {verb}: {', '.join(links)}."


def distribution(
    labels: Sequence[str],
    probabilities: Mapping[str, Sequence[float]],
    total: int,
    ends: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    parts = []
    for policy, values in probabilities.items():
        best = max(range(len(labels)), key=lambda at: values[at])
        sure = f", between {ends[policy][best][0]:.1%} and {ends[policy][best][1]:.1%}" if policy in ends else ""
        parts.append(f"{policy} gives most to {labels[best]} ({values[best]:.1%}{sure})")
    rest = f" The {len(labels):,} likeliest of {total:,} responses are drawn." if total > len(labels) else ""
    whiskers = " Whiskers are 95 % intervals: the preferences are known from counts only." if ends else ""
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}.{whiskers}{rest}"
