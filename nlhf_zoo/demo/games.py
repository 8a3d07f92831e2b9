"""The tabular part: the first experiment of the Nash-MP paper, five solvers compared at equal queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import attrs
import numpy as np

from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.engine import Comparison, run_comparison
from nlhf_zoo.report.comparison import measured
from nlhf_zoo.report.convergence import METRICS, Measured
from nlhf_zoo.report.reading import PlayedGame, read_comparison

__all__ = ["BETA", "ETAS", "RESPONSES", "SOLVERS", "Play", "play"]

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "exact_prox")
RESPONSES, RANK, BETA = 100, 2, 0.01
ETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

Progress = Callable[[int, int], None]


@attrs.frozen(eq=False)
class Play:
    """What came of one comparison; a solver is called by its registered name.

    Attributes:
        game: that of the first seed, and what was measured on those of all seeds.
        finals: solver to the (Y,) probabilities of its last iterate on that game.
        etas: solver to its tuned step size; empty where nothing was tuned.
    """

    game: PlayedGame
    finals: Mapping[str, np.ndarray]
    etas: Mapping[str, float]

    def measured(self) -> dict[str, Measured]:
        """Metric to its curves, its claims, and how these fared."""
        return {metric: measured(self.game, metric) for metric in METRICS}

    def final(self, solver: str, metric: str) -> list[float]:
        """The metric's last value, seed by seed."""
        return [float(run[-1, 4]) for run in self.game.runs[metric][solver]]

    def queries_to(self, solver: str, gap: float) -> float:
        """Queries until the duality gap is at most `gap`, median over seeds; infinite where it never is."""
        reached = [run[run[:, 4] <= gap, 1] for run in self.game.runs["duality_gap"][solver]]
        return median(float(queries[0]) if len(queries) else math.inf for queries in reached)


def play(out: Path, *, queries: int, seeds: int, seed: int, tuned: bool, progress: Progress | None = None) -> Play:
    """Compare all solvers in the folder `out`: with the step sizes that theory gives, or with tuned ones.

    Raises:
        BadInput: the folder holds something else, or cannot be written to.
    """
    game = {"name": "low_rank", "options": {"responses": RESPONSES, "rank": RANK}, "beta": BETA}
    grid: dict[str, Any] = {"options": {"eta": list(ETAS)}} if tuned else {}
    config = CompareConfig(
        games=[game],
        solvers=[{"name": name, **grid} for name in SOLVERS],
        queries=queries,
        seeds=seeds,
        seed=seed,
        out=out,
    )
    done = run_comparison(config, progress)
    read = read_comparison(out)
    (found,) = read.games
    runs = {metric: {read.names[called]: of for called, of in by.items()} for metric, by in found.runs.items()}
    (told,) = done.summary["games"].values()
    return Play(
        game=attrs.evolve(found, runs=runs),
        finals=_finals(done, seed),
        etas={read.names[called]: choice["chosen"]["eta"] for called, choice in (told.get("tuning") or {}).items()},
    )


def _finals(done: Comparison, seed: int) -> dict[str, np.ndarray]:
    results = done.results()
    columns = [results[name].to_pylist() for name in ("role", "seed", "name", "cell")]
    cells = {name: cell for role, of, name, cell in zip(*columns, strict=True) if (role, of) == ("run", seed)}
    return {name: np.array(done.policy(cell)["probabilities"]) for name, cell in cells.items()}
