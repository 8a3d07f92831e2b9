"""Where each solver of a comparison stands: the final table, and the findings in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import quantiles
from typing import Any

from nlhf_zoo.report.convergence import METRICS, checked
from nlhf_zoo.report.markup import Span, number, power
from nlhf_zoo.report.reading import Comparison, PlayedGame
from nlhf_zoo.report.template import Sign

__all__ = ["counts", "ends", "final_table", "name_of", "overall_table", "verdicts"]

_HEADINGS: Mapping[str, str] = {
    "queries_to_tol": "Queries to the tolerance",
    "worst_case_training": "Worst case in the pool",
    "worst_case_held_out": "Worst case, held-out judge",
    "duality_gap": "Duality gap",
    "kl_to_equilibrium": "KL to equilibrium",
    "span_to_equilibrium": "Span to equilibrium",
    "win_rate_training": "Win rate over the reference",
    "win_rate_held_out": "Over the reference, held-out judge",
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


def final_table(game: PlayedGame) -> tuple[list[str], list[list[Any]], list[str]]:
    """Headings, rows and the solver of each row; columns that nobody fills are left out."""
    found = ends(game)
    metrics = [metric for metric in _HEADINGS if any(metric in row["final"] for row in found)]
    # Targets that are nearly reached at the start say little.
    targets = dict.fromkeys(key for row in found for key in row.get("queries_to") or {} if float(key) <= 1e-2)
    # A label says them already, unless tuning chose them.
    options = [_options(row.get("options") or {}) if name_of(row) != row["solver"] else "" for row in found]
    columns: dict[str, list[Any]] = {
        "Solver": [name_of(row) for row in found],
        "Hyperparameters": options if any(options) else [],
        "Mean rank": [_rank(row) for row in found],
        "Verdict": ["among the best" if row.get("best") else "" for row in found]
        if any("best" in row for row in found)
        else [],
        "Got there": [_got_there(row) for row in found],
        **{_HEADINGS[metric]: [_final(row, metric) for row in found] for metric in metrics},
        **{
            f"Queries to gap {power(float(key))}": [row.get("queries_to", {}).get(key) for row in found]
            for key in targets
        },
        _asked(game): [row.get("queries") for row in found],
        "Tokens": [row.get("tokens") or None for row in found],
        "Seconds": [row.get("seconds") for row in found],
        "Runs": [row.get("runs") for row in found],
        "Failed": [row.get("failed") or None for row in found],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cell is not None for cell in cells)}
    rows = [list(cells) for cells in zip(*columns.values(), strict=True)]
    return list(columns), rows, [name_of(row) for row in found]


def overall_table(comparison: Comparison) -> tuple[list[str], list[list[Any]], list[str]]:
    """One row a solver, one column a game: the mean rank over all, and where each ended."""
    ranks: Mapping[str, Any] = (comparison.summary.get("overall") or {}).get("ranks") or {}
    metric = {game.label: str(game.summary.get("metric", "duality_gap")) for game in comparison.games}
    found = {game.label: {name_of(row): row for row in ends(game)} for game in comparison.games}
    solvers = dict.fromkeys([*ranks, *(solver for rows in found.values() for solver in rows)])
    rows = []
    for solver in solvers:
        cells = [_final(rows[solver], metric[label]) if solver in rows else None for label, rows in found.items()]
        own = [Span(ranks[solver]["mean"], ranks[solver]["low"], ranks[solver]["high"])] if solver in ranks else [None]
        rows.append([solver, *(own if ranks else []), *cells])
    if ranks:
        rows.sort(key=lambda row: row[1].value if row[1] else float("inf"))
    heads = [f"{label}: {_HEADINGS.get(name, name).lower()}" for label, name in metric.items()]
    return ["Solver", *(["Mean rank"] if ranks else []), *heads], rows, [row[0] for row in rows]


def name_of(row: Mapping[str, Any]) -> str:
    """What a row of a game's table is called: as it was entered."""
    return str(row.get("entry", row["solver"]))


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _rank(row: Mapping[str, Any]) -> Span | None:
    rank = row.get("rank")
    return Span(rank["mean"], rank["low"], rank["high"]) if rank else None


def _asked(game: PlayedGame) -> str:
    """Which kind of queries."""
    return str((game.summary.get("budget") or {}).get("of") or "queries").capitalize()


def _got_there(row: Mapping[str, Any]) -> str | None:
    return f"{row['reached']['runs']} of {row['runs']}" if row.get("reached") else None


def _final(row: Mapping[str, Any], metric: str) -> Span | None:
    found = row["final"].get(metric)
    if found and metric == "queries_to_tol":
        # Null is a run that never got there, with all that it could spend.
        ends = {name: math.inf if value is None else value for name, value in found.items()}
        return Span(ends["median"], ends["low"], ends["high"], row["queries"])
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
        yield f"Over all games: {overall}.", "note"
    for game in told[:_MOST_VERDICTS]:
        for text in (game.summary["verdict"], *(one["verdict"] for one in (game.summary.get("beside") or {}).values())):
            yield f"{game.label}: {text}.", "note"
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
        errors = dict.fromkeys(
            error for game in comparison.games for row in ends(game) for error in row.get("errors", ())
        )
        why = f" {'; '.join(errors)}." if errors else ""
        yield (
            f"{counts(cells['failed'], 'cell')} failed, missing from every figure.{why}",
            "bad",
        )


def _bounds(comparison: Comparison) -> Iterator[tuple[str, Sign]]:
    checks = [
        checked(solver, rows[:, 4], rows[:, 5])
        for game in comparison.games
        for metric in METRICS
        for solver, rows in game.claimed(metric).items()
    ]
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
    known = game.summary.get("equilibrium") or {}
    unsure = known.get("uncertainty")
    if warning := (known.get("never_compared") or {}).get("warning"):
        mend = "the redraws below say how sure each of them is" if unsure else "redraws (--draws) say how sure it is"
        yield f"{game.label}: {warning}; {mend}.", "bad"
    if not unsure:
        return
    sure = [chance for chance in unsure["in_support"] if chance >= 0.95]
    maybe = [chance for chance in unsure["in_support"] if 0.05 < chance < 0.95]
    top = max(range(len(unsure["mass"])), key=lambda at: unsure["mass"][at])
    yield (
        f"{game.label} is known from win counts: {counts(len(sure), 'response')} belong{'s' * (len(sure) == 1)} to the"
        " equilibrium in at least"
        f" 95 % of the redraws, {number(len(maybe))} now and then; its likeliest, {unsure['labels'][top]}, has between"
        f" {unsure['low'][top]:.1%} and {unsure['high'][top]:.1%} of the mass.",
        "note",
    )
