"""Where each solver of a comparison stands: the final table, and the findings in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import quantiles
from typing import Any

from nlhf_zoo.report.convergence import METRICS, checked
from nlhf_zoo.report.markup import Span, number
from nlhf_zoo.report.reading import Comparison, PlayedGame
from nlhf_zoo.report.template import Sign

__all__ = ["counts", "ends", "standings", "verdicts"]

_HEADINGS: Mapping[str, str] = {
    "duality_gap": "Duality gap",
    "kl_to_equilibrium": "KL to equilibrium",
    "span_to_equilibrium": "Span to equilibrium",
    "win_rate_training": "Win rate",
    "win_rate_held_out": "Win rate, held-out judge",
    "kl_to_reference": "KL to reference",
    "length": "Length",
}
_MOST_VERDICTS = 8
"""Games whose verdict stands on top of the page; the others' are in the table."""


def counts(number_of: int, noun: str) -> str:
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def ends(game: PlayedGame) -> list[dict[str, Any]]:
    """One row a solver: the game's own summary where there is one, otherwise what its measurements say.

    Each has solver, runs and final (metric to median, low, high), and what else the summary knows.
    """
    told = game.summary.get("table")
    if told:
        return list(told)
    solvers = dict.fromkeys(solver for runs in game.runs.values() for solver in runs)
    return [_end(game, solver) for solver in solvers]


def _end(game: PlayedGame, solver: str) -> dict[str, Any]:
    mine = {metric: runs[solver] for metric, runs in game.runs.items() if solver in runs}
    last = {metric: [float(run[-1, 4]) for run in runs] for metric, runs in mine.items()}
    runs = next(iter(mine.values()))
    middle = {name: quantiles([float(run[-1, at]) for run in runs] * 2, n=2)[0] for at, name in _SPENT.items()}
    return {
        "solver": solver,
        "runs": len(runs),
        "final": {metric: _quartiles(values) for metric, values in last.items()},
        **middle,
    }


_SPENT: Mapping[int, str] = {1: "queries", 2: "tokens", 3: "seconds"}


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "low": low, "high": high}


def standings(comparison: Comparison) -> tuple[list[str], list[list[Any]], list[str]]:
    """Headings, rows and the solver of each row of the final table; columns that nobody fills are left out."""
    found = [(game, row) for game in comparison.games for row in ends(game)]
    metrics = [metric for metric in _HEADINGS if any(metric in row["final"] for _, row in found)]
    targets = list(dict.fromkeys(target for _, row in found for target in row.get("queries_to") or {}))
    columns: dict[str, list[Any]] = {
        "Solver": [row["solver"] for _, row in found],
        "Game": [game.label for game, _ in found] if len(comparison.games) > 1 else [],
        "Verdict": ["among the best" if row.get("best") else None for _, row in found],
        "Mean rank": [_rank(row) for _, row in found],
        **{_HEADINGS[metric]: [_final(row, metric) for _, row in found] for metric in metrics},
        **{
            f"Queries to gap {target}": [row.get("queries_to", {}).get(target) for _, row in found]
            for target in targets
        },
        "Queries": [row.get("queries") for _, row in found],
        "Tokens": [row.get("tokens") or None for _, row in found],
        "Seconds": [row.get("seconds") for _, row in found],
        "Runs": [row.get("runs") for _, row in found],
        "Failed": [row.get("failed") or None for _, row in found],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cell is not None for cell in cells)}
    rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
    return list(columns), rows, [row["solver"] for _, row in found]


def _rank(row: Mapping[str, Any]) -> Span | None:
    rank = row.get("rank")
    return Span(rank["mean"], rank["low"], rank["high"]) if rank else None


def _final(row: Mapping[str, Any], metric: str) -> Span | None:
    found = row["final"].get(metric)
    if not found or found["median"] is None:
        return None
    return Span(found["median"], found["low"], found["high"])


def verdicts(comparison: Comparison) -> Iterator[tuple[str, Sign]]:
    """The findings, the most important first; what is missing is said, too."""
    summary = comparison.summary
    yield from _unfinished(comparison)
    told = [game for game in comparison.games if game.summary.get("verdict")]
    overall = (summary.get("overall") or {}).get("verdict")
    if overall and len(comparison.games) > 1:
        yield str(overall), "note"
    for game in told[:_MOST_VERDICTS]:
        yield str(game.summary["verdict"]), "note"
    if len(told) > _MOST_VERDICTS:
        yield f"The verdicts on {counts(len(told) - _MOST_VERDICTS, 'further game')} are in the table.", "note"
    yield from _bounds(comparison)
    for game in comparison.games:
        yield from _uncertain(game)


def _unfinished(comparison: Comparison) -> Iterator[tuple[str, Sign]]:
    cells = comparison.summary.get("cells") or {}
    if not comparison.summary:
        yield "Unfinished: there is no summary yet. Medians are over the seeds that have ended so far.", "bad"
    elif comparison.summary.get("partial"):
        done = f" {cells['done']:,} of {cells['planned']:,} cells have ended." if cells else ""
        yield f"Unfinished:{done} Medians are over the seeds that have ended so far.", "bad"
    if cells.get("failed"):
        yield f"{counts(cells['failed'], 'cell')} failed, and are missing from every figure.", "bad"


def _bounds(comparison: Comparison) -> Iterator[tuple[str, Sign]]:
    import numpy as np

    checks = []
    for game in comparison.games:
        for metric in METRICS:
            for solver, runs in game.runs.get(metric, {}).items():
                rows = np.concatenate(runs)
                rows = rows[np.isfinite(rows[:, 5])]
                checks += [checked(solver, rows[:, 4], rows[:, 5])] if len(rows) else []
    if not checks:
        return
    points, broken = sum(check.points for check in checks), sum(check.broken for check in checks)
    names = ", ".join(dict.fromkeys(check.solver for check in checks))
    if broken:
        guilty = ", ".join(dict.fromkeys(check.solver for check in checks if check.broken))
        yield f"{broken:,} of {points:,} measurements lie above a bound that their solver claims ({guilty}).", "bad"
    else:
        yield f"All {points:,} measurements with a claimed bound obey it ({names}).", "good"


def _uncertain(game: PlayedGame) -> Iterator[tuple[str, Sign]]:
    unsure = (game.summary.get("equilibrium") or {}).get("uncertainty")
    if not unsure:
        return
    sure = [chance for chance in unsure["in_support"] if chance >= 0.95]
    maybe = [chance for chance in unsure["in_support"] if 0.05 < chance < 0.95]
    top = max(range(len(unsure["mass"])), key=lambda at: unsure["mass"][at])
    yield (
        f"{game.label} is known from win counts: {counts(len(sure), 'response')} belong to the equilibrium in at least"
        f" 95 % of the redraws, {number(len(maybe))} now and then; its likeliest, {unsure['labels'][top]}, has between"
        f" {unsure['low'][top]:.1%} and {unsure['high'][top]:.1%} of the mass.",
        "note",
    )
