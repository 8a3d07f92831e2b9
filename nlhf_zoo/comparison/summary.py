"""summary.json: the final table of each game, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.comparison.entries import GameEntry
from nlhf_zoo.comparison.scores import FEWEST, FLOOR, Ranking, better, combined, final, ranking
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
        cells: contestant's entry label -> its runs and cells, by seed.
        choices: entry label -> what its tuning came to, for those that were tuned.
        deterministic: nothing is random on this game.
    """

    game: GameEntry
    metric: str
    seeds: Sequence[int]
    cells: Mapping[str, Mapping[int, tuple[Run, Cell]]]
    choices: Mapping[str, Choice]
    deterministic: bool

    def ranked(self) -> tuple[list[str], Ranking | None]:
        """The contestants with runs, and their ranks over the seeds that all of them have played."""
        entries = [entry for entry, cells in self.cells.items() if cells]
        seeds = [seed for seed in self.seeds if all(seed in self.cells[entry] for entry in entries)]
        if not entries or not seeds:
            return entries, None
        values = [[final(self.cells[entry][seed][1], self.metric) for entry in entries] for seed in seeds]
        return entries, ranking(np.array(values), self.metric, self.deterministic)


def game_summary(played: Played, extra: Mapping[str, Any]) -> tuple[dict[str, Any], Ranking | None]:
    """The summary of one game, and its ranking; `extra` is laid over it."""
    entries, ranks = played.ranked()
    table = [_table_row(played, entry) for entry in entries]
    best: list[str] = []
    if ranks is not None:
        for at, row in enumerate(table):
            row["rank"] = _rank(ranks, at)
            row["best"] = at in ranks.best
        best = [table[at]["solver"] for at in ranks.best]
        table = [table[at] for at in np.argsort(ranks.mean, kind="stable")]
    summary = {
        "beta": played.game.beta,
        "seeds": list(played.seeds),
        "deterministic": played.deterministic,
        "metric": played.metric,
        "better": "lower" if better(played.metric) > 0 else "higher",
        "table": table,
        "best": best,
        "verdict": _verdict(played, table, ranks),
        "tuning": {entry: attrs.asdict(choice) for entry, choice in played.choices.items()},
        **extra,
    }
    for tuned in summary["tuning"].values():
        tuned["chosen"] = tuned.pop("options")
    return summary, ranks


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
        "final": {metric: _quartiles([rows["metrics"][metric][-1] for rows in ended]) for metric in metrics},
        "queries_to": {f"{target:g}": _queries_to(ended, target) for target in _TARGETS}
        if "duality_gap" in metrics
        else {},
        "bounds": _bounds(ended),
    }


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75], method="linear"))
    return {"median": median, "low": low, "high": high}


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


def _verdict(played: Played, table: Sequence[Mapping[str, Any]], ranks: Ranking | None) -> str:
    if ranks is None or not table:
        return "no run of every solver has ended yet"
    what = "duality gap" if played.metric == "duality_gap" else "win rate against the reference"
    if len(table) == 1:
        return f"one solver only: {table[0]['solver']}, {_end(table[0], played.metric, what)}"
    best = [row for row in table if row["best"]]
    names = ", ".join(row["solver"] for row in best)
    if len(best) == 1:
        how = "nothing is random here" if played.deterministic else f"{ranks.runs} runs each"
        ends = [_end(row, played.metric, what) for row in (best[0], table[1])]
        return f"{best[0]['solver']} is ahead, {ends[0]}; next is {table[1]['solver']}, {ends[1]} ({how})"
    if played.deterministic:
        return f"equal within rounding: {names}"
    if ranks.runs < FEWEST:
        return f"not distinguishable in {ranks.runs} run(s), of which at least {FEWEST} are needed: {names}"
    rest = "" if len(best) == len(table) else "; behind them " + ", ".join(r["solver"] for r in table if not r["best"])
    return f"not distinguishable in {ranks.runs} runs: {names}{rest}"


def _end(row: Mapping[str, Any], metric: str, what: str) -> str:
    if metric not in row["final"]:
        return "which failed"
    value = row["final"][metric]["median"]
    shown = "below rounding" if better(metric) > 0 and value < FLOOR else f"{value:.3g}"
    return f"at a median {what} of {shown}"


def overall(entries: Sequence[list[str]], rankings: Sequence[Ranking | None]) -> dict[str, Any] | None:
    """Ranks over all games, where all of them were played by the same contestants; `None` otherwise."""
    known = [ranks for ranks in rankings if ranks is not None]
    if not known or len(known) < len(rankings) or any(names != entries[0] for names in entries):
        return None
    names, ranks = entries[0], combined(known)
    best = [names[at] for at in ranks.best]
    place = f"over {len(known)} game(s) and {ranks.runs} runs"
    verdict = f"{best[0]} is ahead {place}" if len(best) == 1 else f"not distinguishable {place}: {', '.join(best)}"
    if len(names) == 1:
        verdict = "one solver only"
    return {"ranks": {name: _rank(ranks, at) for at, name in enumerate(names)}, "best": best, "verdict": verdict}
