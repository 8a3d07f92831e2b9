"""summary.json: the final table of each game, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.comparison.entries import GameEntry
from nlhf_zoo.comparison.scores import DRAWS, Criterion, QueriesToTolerance, Ranking, combined, fewest, ranking
from nlhf_zoo.comparison.tasks import Run
from nlhf_zoo.comparison.tuning import Choice

__all__ = ["Played", "game_summary", "overall"]

_TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
_ROUNDING = 1e-12  # below, a measurement breaks no bound

Cell = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Played:
    """One game's finished runs.

    Attributes:
        criteria: what contestants are ranked by; any others are beside it.
        cells: contestant's entry label -> its runs and cells, by seed.
        choices: entry label -> what its tuning came to, for those that were tuned.
        deterministic: nothing is random on this game.
    """

    game: GameEntry
    criteria: Sequence[Criterion]
    seeds: Sequence[int]
    cells: Mapping[str, Mapping[int, tuple[Run, Cell]]]
    choices: Mapping[str, Choice]
    deterministic: bool

    @property
    def entries(self) -> list[str]:
        """Those that have runs."""
        return [entry for entry, cells in self.cells.items() if cells]

    def ranked(self, criterion: Criterion) -> Ranking | None:
        """Of `entries`, over the seeds that all of them have played; `None` where that is not known."""
        entries = self.entries
        seeds = [seed for seed in self.seeds if all(seed in self.cells[entry] for entry in entries)]
        ended = [[self.cells[entry][seed] for entry in entries] for seed in seeds]
        values = [[criterion.end(run.key, cell) for run, cell in row] for row in ended]
        if not entries or not seeds or any(value is None for row in values for value in row):
            return None
        known = np.array(values, dtype=float)
        redrawn = [[criterion.redrawn(run.key) for run, _ in row] for row in ended]
        if all(one is None for row in redrawn for one in row):
            return ranking(known, criterion.lower, self.deterministic)
        filled = [
            [np.full(DRAWS, value) if one is None else one for one, value in zip(*rows, strict=True)]
            for rows in zip(redrawn, known, strict=True)
        ]
        return ranking(known, criterion.lower, self.deterministic, np.moveaxis(np.array(filled), -1, 0))


def game_summary(played: Played, extra: Mapping[str, Any]) -> tuple[dict[str, Any], Ranking | None]:
    """The summary of one game, and its ranking; `extra` is laid over it."""
    main, *others = played.criteria
    ranks = played.ranked(main)
    table = [_table_row(played, entry) for entry in played.entries]
    beside = {other.metric: _beside(played, table, other) for other in others}
    best = _place(table, ranks, "rank", "best")
    if ranks is not None:
        table = [table[at] for at in np.argsort(ranks.mean, kind="stable")]
    summary = {
        "beta": played.game.beta,
        "seeds": list(played.seeds),
        "deterministic": played.deterministic,
        "metric": main.metric,
        "ranked_by": main.words,
        "better": "lower" if main.lower else "higher",
        "table": table,
        "best": best,
        "verdict": _verdict(played, main, table, ranks, "best"),
        "beside": beside,
        "tuning": {entry: attrs.asdict(choice) for entry, choice in played.choices.items()},
        **extra,
    }
    for tuned in summary["tuning"].values():
        tuned["chosen"] = tuned.pop("options")
    return summary, ranks


def _beside(played: Played, table: list[dict[str, Any]], criterion: Criterion) -> dict[str, Any]:
    """Ranks by another criterion, marked in the rows as `rank_METRIC` and `best_METRIC`, and the verdict by it."""
    ranks, rank, best = played.ranked(criterion), f"rank_{criterion.metric}", f"best_{criterion.metric}"
    leaders = _place(table, ranks, rank, best)
    ordered = table if ranks is None else [table[at] for at in np.argsort(ranks.mean, kind="stable")]
    return {
        "ranked_by": criterion.words,
        "best": leaders,
        "verdict": _verdict(played, criterion, ordered, ranks, best),
    }


def _place(table: list[dict[str, Any]], ranks: Ranking | None, rank: str, best: str) -> list[str]:
    """Write ranks into the rows, and give the leaders."""
    if ranks is None:
        return []
    for at, row in enumerate(table):
        row[rank] = _rank(ranks, at)
        row[best] = at in ranks.best
    return [table[at]["solver"] for at in ranks.best]


def _rank(ranks: Ranking, at: int) -> dict[str, float]:
    return {"mean": float(ranks.mean[at]), "low": float(ranks.low[at]), "high": float(ranks.high[at])}


def _table_row(played: Played, entry: str) -> dict[str, Any]:
    runs = [played.cells[entry][seed] for seed in sorted(played.cells[entry])]
    first = runs[0][0]
    ended = [cell["rows"] for _, cell in runs if "rows" in cell]
    errors = list(dict.fromkeys(cell["error"] for _, cell in runs if "error" in cell))
    metrics = list(dict.fromkeys(metric for rows in ended for metric in rows["metrics"]))
    return {
        "solver": first.solver,
        "entry": entry,
        "name": first.name,
        "options": dict(first.options),
        "runs": len(ended),
        "failed": len(runs) - len(ended),
        "errors": errors,
        **{spent: _median([rows[spent][-1] for rows in ended]) for spent in ("queries", "tokens", "seconds")},
        "final": {
            **{metric: _quartiles([rows["metrics"][metric][-1] for rows in ended]) for metric in metrics},
            **_ends(played.criteria, runs, metrics),
        },
        "reached": next((_reached(one, runs) for one in played.criteria if isinstance(one, QueriesToTolerance)), None),
        "queries_to": {f"{target:g}": _queries_to(ended, target) for target in _TARGETS}
        if "duality_gap" in metrics
        else {},
        "bounds": _bounds(ended),
    }


def _ends(
    criteria: Sequence[Criterion], runs: Sequence[tuple[Run, Cell]], measured: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """What the criteria add to a run's own measurements; null is infinite."""
    found: dict[str, dict[str, float | None]] = {}
    for criterion in criteria:
        values = [criterion.known(run.key, cell) for run, cell in runs if "rows" in cell]
        known = [value for value in values if value is not None]
        if known and criterion.metric not in measured:
            found[criterion.metric] = _quartiles(known)
    return found


def _reached(criterion: QueriesToTolerance, runs: Sequence[tuple[Run, Cell]]) -> dict[str, Any]:
    """How many of the runs got to `tol`."""
    values = [criterion.known(run.key, cell) for run, cell in runs if "rows" in cell]
    return {"tol": criterion.tol, "runs": sum(math.isfinite(value) for value in values)}


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _quartiles(values: Sequence[float]) -> dict[str, float | None]:
    # Between two numbers, one of which is infinite, there is no number.
    method = "linear" if all(map(math.isfinite, values)) else "higher"
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75], method=method))
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("median", median), ("low", low), ("high", high))
    }


def _queries_to(ended: Sequence[Mapping[str, Any]], target: float) -> float | None:
    """Median over runs of the first measurement at or below the target; none where half of them never are."""
    firsts = [
        next(
            (q for q, gap in zip(rows["queries"], rows["metrics"]["duality_gap"], strict=True) if gap <= target),
            math.inf,
        )
        for rows in ended
    ]
    middle = float(np.median(firsts))
    return middle if math.isfinite(middle) else None


def _bounds(ended: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many measurements a claim speaks of, and how many lie above it."""
    points = broken = 0
    for rows in ended:
        for metric, bound in rows["bounds"].items():
            values, claims = np.array(rows["metrics"][metric]), np.array(bound)
            points += len(values)
            broken += int(((values > _ROUNDING) & (values > claims * (1 + 1e-9))).sum())
    return {"points": points, "broken": broken}


def _verdict(
    played: Played, criterion: Criterion, table: Sequence[Mapping[str, Any]], ranks: Ranking | None, best: str
) -> str:
    """In words, beginning with what it goes by; `table` is in the order of the ranks."""
    return f"by {criterion.words}: {_found(played, criterion, table, ranks, best)}"


def _found(
    played: Played, criterion: Criterion, table: Sequence[Mapping[str, Any]], ranks: Ranking | None, best: str
) -> str:
    if ranks is None or not table:
        return "not known yet" if played.entries else "no run of every solver has ended yet"
    if all(row["reached"] and not row["reached"]["runs"] for row in table):
        return "no run got there within its budget"
    if len(table) == 1:
        return f"one solver only: {table[0]['solver']}, {_end(table[0], criterion)}"
    leaders = [row for row in table if row[best]]
    names = ", ".join(row["solver"] for row in leaders)
    if len(leaders) == 1:
        how = "nothing is random here" if played.deterministic else f"{ranks.runs} runs each"
        ends = [_end(row, criterion) for row in (leaders[0], table[1])]
        return f"{leaders[0]['solver']} is ahead, {ends[0]}; next is {table[1]['solver']}, {ends[1]} ({how})"
    if played.deterministic:
        return f"{criterion.tie}: {names}"
    needed = fewest(len(table))
    if ranks.runs < needed:
        return f"not distinguishable in {ranks.runs} run(s), of which at least {needed} are needed: {names}"
    rest = ", ".join(row["solver"] for row in table if not row[best])
    return f"not distinguishable in {ranks.runs} runs: {names}{f'; behind them {rest}' if rest else ''}"


def _end(row: Mapping[str, Any], criterion: Criterion) -> str:
    if criterion.metric not in row["final"]:
        return "which failed"
    value = row["final"][criterion.metric]["median"]
    return criterion.shown(math.inf if value is None else value)


def overall(entries: Sequence[list[str]], rankings: Sequence[Ranking | None]) -> dict[str, Any] | None:
    """Ranks over all games, where all of them were played by the same contestants; `None` otherwise."""
    known = [ranks for ranks in rankings if ranks is not None]
    if not known or len(known) < len(rankings) or any(names != entries[0] for names in entries):
        return None
    names, ranks = entries[0], combined(known)
    best = [names[at] for at in ranks.best]
    place = f"over {len(known)} game(s) and {ranks.runs} runs"
    found = f"{best[0]} is ahead {place}" if len(best) == 1 else f"not distinguishable {place}: {', '.join(best)}"
    verdict = f"by mean rank: {found}"
    if len(names) == 1:
        verdict = "one solver only"
    return {"ranks": {name: _rank(ranks, at) for at, name in enumerate(names)}, "best": best, "verdict": verdict}
