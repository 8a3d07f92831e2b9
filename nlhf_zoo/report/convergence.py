"""From tidy measurements to curves: medians over seeds, their range, and what was claimed against what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces.guarantee import MEASURED

__all__ = [
    "FLOOR",
    "METRICS",
    "POINTS",
    "Check",
    "Claim",
    "Curve",
    "Measured",
    "check_claims",
    "checked",
    "claims",
    "curve",
    "curves",
    "thinned",
]

METRICS: Mapping[str, str] = {
    "duality_gap": "Duality gap",
    "kl_to_equilibrium": "KL(equilibrium ‖ policy)",
    "span_to_equilibrium": "Span of log policy − log equilibrium",
}
FLOOR = 1e-16
"""Smaller values are drawn here: in float64 they are rounding, and a log axis has no zero."""
ROUNDING = 1e-12
"""A measured value below this is never counted as a broken bound."""
POINTS = 240
"""The most points that one curve is drawn with."""


@attrs.frozen
class Curve:
    """One solver's metric over steps; `low` and `high` are the least and the greatest value over seeds."""

    solver: str
    seeds: int
    steps: tuple[int, ...]
    queries: tuple[float, ...]
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def x(self, axis: str) -> tuple[float, ...]:
        return {"steps": self.steps, "queries": self.queries, "tokens": self.tokens, "seconds": self.seconds}[axis]


@attrs.frozen
class Claim:
    """A solver's bound on a metric at some of its steps."""

    solver: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    source: str = ""

    def thinned(self, points: int = POINTS) -> Claim:
        """The same claim at no more steps than a curve is drawn with."""
        kept = set(thinned(np.array(self.steps), points).tolist())
        pairs = [(step, value) for step, value in zip(self.steps, self.values, strict=True) if step in kept]
        return Claim(self.solver, *(tuple(column) for column in zip(*pairs, strict=True)), source=self.source)


@attrs.frozen
class Check:
    """How a claim fared: over `points` measured iterates, the largest measured / claimed was `worst`."""

    solver: str
    points: int
    worst: float
    broken: int


@attrs.frozen
class Measured:
    """One metric of every solver, as it is drawn, and how its claims fared."""

    curves: Sequence[Curve]
    claims: Sequence[Claim] = ()
    checks: Sequence[Check] = ()


def curves(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Curve]:
    """One curve per solver that has the metric, in order of appearance.

    Raises:
        BadInput: a row lacks solver or step, or holds something else than numbers.
    """
    runs: dict[str, dict[Any, list[tuple[float, ...]]]] = {}
    for at, row in enumerate(rows):
        value = _float(row, metric, at, default=math.nan)
        if math.isfinite(value):
            # A solver without an equilibrium to compare with has no such rows, and no curve.
            spent = (
                _float(row, "queries", at),
                _float(row, "tokens", at, math.nan),
                _float(row, "seconds", at, math.nan),
            )
            point = (_float(row, "step", at), *spent, value)
            runs.setdefault(str(_get(row, "solver", at)), {}).setdefault(row.get("seed", 0), []).append(point)
    return [curve(solver, [np.array(sorted(points)) for points in seeds.values()]) for solver, seeds in runs.items()]


def curve(solver: str, runs: Sequence[np.ndarray], points: int = POINTS) -> Curve:
    """A solver's runs, one a seed, as a median with its range.

    A seed that stopped early keeps its last value, so that a median never jumps because the seeds that
    converged have left it; queries, tokens and seconds are medians over the seeds that are still running.

    Args:
        solver: what the runs are called.
        runs: one a seed, (n, 5) float64 in order of the step: step, queries, tokens, seconds, value; spent
            amounts that nobody counted are NaN.
        points: at most so many are kept.
    """
    grid = thinned(np.unique(np.concatenate([run[:, 0] for run in runs])), points)
    held = np.full((len(runs), len(grid)), np.nan)
    spent = np.full((3, len(runs), len(grid)), np.nan)
    for seed, run in enumerate(runs):
        at = np.searchsorted(run[:, 0], grid, side="right") - 1
        held[seed] = np.where(at >= 0, run[np.maximum(at, 0), 4], np.nan)
        running = (grid >= run[0, 0]) & (grid <= run[-1, 0])
        for axis in range(3):
            spent[axis, seed] = np.where(running, np.interp(grid, run[:, 0], run[:, 1 + axis]), np.nan)
    queries, tokens, seconds = (_over_seeds(np.nanmedian, axis) for axis in spent)
    return Curve(
        solver=solver,
        seeds=len(runs),
        steps=tuple(int(step) for step in grid),
        queries=queries,
        tokens=tokens,
        seconds=seconds,
        median=_over_seeds(np.nanmedian, held),
        low=_over_seeds(np.nanmin, held),
        high=_over_seeds(np.nanmax, held),
    )


def _over_seeds(reduce: Any, values: np.ndarray) -> tuple[float, ...]:
    # numpy warns of a column without a number; there is none to report, so it stays NaN.
    known = ~np.isnan(values).all(axis=0)
    result = np.full(values.shape[1], np.nan)
    result[known] = reduce(values[:, known], axis=0)
    return tuple(result.tolist())


def thinned(grid: np.ndarray, points: int = POINTS) -> np.ndarray:
    """At most `points` of the (n,) sorted grid, both ends among them."""
    if len(grid) <= points:
        return grid
    # Half of the points evenly spaced, half evenly on a log scale: a curve is looked at on either axis.
    even = np.linspace(0, len(grid) - 1, points // 2)
    log = np.geomspace(1, len(grid) - 1, points // 2)
    return grid[np.unique(np.concatenate([even, log]).round().astype(int))]


def claims(bounds: Iterable[Mapping[str, Any]], metric: str) -> list[Claim]:
    """The claims on `metric` out of tidy rows with solver, metric, step, bound and perhaps source.

    Raises:
        BadInput: a row lacks a key or holds something else than numbers.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    sources: dict[str, str] = {}
    for at, row in enumerate(bounds):
        name = str(_get(row, "metric", at, "bound"))
        if MEASURED.get(name, name) != metric:
            continue
        solver = str(_get(row, "solver", at, "bound"))
        point = (int(_float(row, "step", at, kind="bound")), _float(row, "bound", at, kind="bound"))
        found.setdefault(solver, []).append(point)
        sources.setdefault(solver, str(row.get("source", "")))
    return [
        Claim(solver, *(tuple(column) for column in zip(*sorted(set(points)), strict=True)), source=sources[solver])
        for solver, points in found.items()
    ]


def check_claims(rows: Sequence[Mapping[str, Any]], claimed: Sequence[Claim], metric: str) -> list[Check]:
    """Each claim against every measured row at or between the claim's steps, all seeds, before any thinning.

    Between two of its steps a claim is interpolated on a log scale.
    """
    checks = []
    for claim in claimed:
        mine = [row for row in rows if str(row.get("solver")) == claim.solver and row.get(metric) is not None]
        measured = np.array([(float(row["step"]), float(row[metric])) for row in mine]).reshape(-1, 2)
        inside = (measured[:, 0] >= claim.steps[0]) & (measured[:, 0] <= claim.steps[-1]) & ~np.isnan(measured[:, 1])
        measured = measured[inside]
        if not len(measured):
            continue
        bound = np.exp(np.interp(measured[:, 0], claim.steps, np.log(np.maximum(claim.values, 1e-300))))
        checks.append(checked(claim.solver, measured[:, 1], bound))
    return checks


def checked(solver: str, values: np.ndarray, bounds: np.ndarray) -> Check:
    """(n,) measured values against the (n,) bounds claimed at the same steps, n > 0."""
    ratio = np.where(values > ROUNDING, values / np.maximum(bounds, 1e-300), 0.0)
    # One part in 1e9 is what a log, an interpolation and an exponential may cost.
    return Check(solver, len(ratio), float(ratio.max()), int((ratio > 1 + 1e-9).sum()))


def _get(row: Mapping[str, Any], key: str, at: int, kind: str = "measurement") -> Any:
    if key not in row:
        raise BadInput(f"{kind} row {at} has no {key!r}; it has {', '.join(map(repr, row)) or 'nothing'}")
    return row[key]


def _float(row: Mapping[str, Any], key: str, at: int, default: float | None = None, kind: str = "measurement") -> float:
    if default is not None and row.get(key) is None:
        return default
    value = _get(row, key, at, kind)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{kind} row {at}: {key} must be a number, got {value!r}") from None
