"""The tabular part: the first experiment of the Nash-MP paper, five solvers at equal queries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import attrs

from nlhf_zoo.drive import Result, configure, solve
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Solver
from nlhf_zoo.registry import lookup
from nlhf_zoo.report import claimed_bounds
from nlhf_zoo.tabular import TabularPolicy, equilibrium

__all__ = ["RESPONSES", "SOLVERS", "Play", "low_rank_game", "play", "tune"]

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "exact_prox")
RESPONSES, RANK, BETA = 100, 2, 0.01
ETAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TUNING_SEEDS = (1000, 1001)

Progress = Callable[[str], None]


@attrs.frozen(eq=False)
class Play:
    """What came of one comparison.

    Attributes:
        rows: tidy measurements, as `Report.add_convergence` takes them.
        bounds: tidy claims, at every step.
        game: the game of the first seed.
        equilibrium: its equilibrium.
        finals: solver to its last iterate on that game.
    """

    rows: list[dict[str, Any]]
    bounds: list[dict[str, Any]]
    game: Game
    equilibrium: TabularPolicy
    finals: Mapping[str, TabularPolicy]

    def final(self, solver: str, metric: str) -> list[float]:
        """The metric's last value, seed by seed."""
        last = {row["seed"]: row[metric] for row in self.rows if row["solver"] == solver}
        return [last[seed] for seed in sorted(last)]

    def queries_to(self, solver: str, gap: float) -> float:
        """Queries until the duality gap is at most `gap`, median over seeds; infinite where it never is."""
        firsts: dict[int, float] = {}
        for row in self.rows:
            if row["solver"] == solver:
                firsts.setdefault(row["seed"], math.inf)
                if row["duality_gap"] <= gap:
                    firsts[row["seed"]] = min(firsts[row["seed"]], row["queries"])
        return median(firsts.values())


def low_rank_game(seed: int) -> Game:
    """Rank 2, 100 responses, beta = 0.01, uniform reference."""
    oracle = lookup("games", "low_rank")(seed=seed, responses=RESPONSES, rank=RANK)
    return Game(oracle, oracle.uniform_policy(), beta=BETA, name=f"low_rank, seed {seed}")


def play(
    solvers: Mapping[str, Solver], seeds: Sequence[int], queries: int, progress: Progress = lambda _: None
) -> Play:
    """Every solver on the game of every seed, all stopped at the same count of queries.

    Raises:
        BadInput: no seeds or no solvers.
    """
    if not seeds or not solvers:
        raise BadInput("a comparison needs at least one solver and one seed")
    games = [low_rank_game(seed) for seed in seeds]
    targets = [equilibrium(game) for game in games]
    rows: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    finals: dict[str, TabularPolicy] = {}
    for name, solver in solvers.items():
        steps = 0
        for seed, game, target in zip(seeds, games, targets, strict=True):
            result = solve(game, solver, queries=queries, seed=seed, target=target)
            rows += _tidy(name, seed, result, queries)
            steps = max(steps, result.state.step)
            if seed == seeds[0]:
                assert isinstance(result.policy, TabularPolicy)
                finals[name] = result.policy
            progress(f"{name}, seed {seed}")
        bounds += claimed_bounds(name, solver, games[0], range(steps + 1))
    return Play(rows, bounds, games[0], targets[0], finals)


def _tidy(name: str, seed: int, result: Result, queries: int) -> list[dict[str, Any]]:
    # A step may ask many times, and so end beyond the budget: then it came too late.
    kept = ("step", "queries", "seconds", "duality_gap", "kl_to_equilibrium", "span_to_equilibrium")
    rows = [row for row in result.history if row["queries"] <= queries]
    return [{"solver": name, "seed": seed, **{key: row[key] for key in kept}} for row in rows]


def tune(names: Sequence[str], queries: int, progress: Progress = lambda _: None) -> dict[str, float]:
    """Each solver's step size eta, out of `ETAS`, with the least duality gap at the end of two games of their own.

    The comparison's games, while its seeds stay below a thousand, are not among them.
    A step size that a solver refuses on these games is passed over.
    """
    games = [low_rank_game(seed) for seed in TUNING_SEEDS]
    targets = [equilibrium(game) for game in games]
    best: dict[str, float] = {}
    for name in names:
        scores: dict[float, float] = {}
        for eta in ETAS:
            solver = configure(name, eta=eta)
            try:
                runs = [
                    solve(game, solver, queries=queries, target=target)
                    for game, target in zip(games, targets, strict=True)
                ]
            except BadInput:
                continue
            scores[eta] = max(_tidy(name, 0, run, queries)[-1]["duality_gap"] for run in runs)
            progress(f"{name}, eta {eta:g}")
        best[name] = min(scores, key=lambda eta: scores[eta])
    return best
