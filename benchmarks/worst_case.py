"""Which number says how exploitable a policy is, where only answers can be compared?

On random games and games of low rank, where the truth is known: five solvers, each after few steps and after many, are
a comparison's final policies; two policies on the way of each are the earlier ones. "sampled" is what `compare`
measures on a language model, from one answer of each policy to 256 prompts; the others know each win rate exactly.

python -m benchmarks worst_case --games 100
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.comparison.pool import worst_case
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.registry import lookup

SOLVERS = ("nash_mp", "online_dpo", "online_ipo", "mmd", "sppo")
FINAL, EARLIER = (15, 60), (5, 30)
RESPONSES, PROMPTS, BETA = 8, 256, 0.02
REFERENCE = torch.full((1, RESPONSES), 1 / RESPONSES, dtype=torch.float64)

Floats = np.ndarray[Any, np.dtype[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1000, help="of the first game")
    given = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(given.seed, given.seed + given.games):
        for name, row in _on_a_game(seed).items():
            found.setdefault(name, []).append(row)
    print(
        f"{given.games} games; tau: rank correlation with the exploitability; lost: how much more exploitable the one"
    )
    print("ranked first is than the best; mean and its standard error")
    for name, rows in found.items():
        values = np.array(rows)
        means, errors = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
        print(f"{name:<34} tau {means[0]:.2f} ± {errors[0]:.2f}   lost {means[1]:.4f} ± {errors[1]:.4f}")


def _on_a_game(seed: int) -> dict[str, tuple[float, float]]:
    """Each number's rank correlation with the exploitability, and the excess of the one that it ranks first."""
    oracle = lookup("games", "random" if seed % 2 else "low_rank")(seed=seed, responses=RESPONSES)
    matrix = oracle.matrix()
    courses = [_course(nz.Game(oracle, beta=BETA), name) for name in SOLVERS]
    final = torch.stack([course[step] for course in courses for step in FINAL])
    earlier = torch.stack([course[step] for course in courses for step in EARLIER])
    exploited = (matrix @ final.T).max(0).values.numpy() - 0.5
    verdicts = _verdicts(matrix.numpy(), torch.cat([final, REFERENCE, earlier]), len(final), seed)
    numbers = {
        "win rate over the reference": _rates(matrix, final, REFERENCE)[:, 0],
        "worst case, final policies": _least(_rates(matrix, final, torch.cat([final, REFERENCE]))),
        "worst case, earlier ones too": _least(_rates(matrix, final, torch.cat([final, REFERENCE, earlier]))),
        "sampled win rate": verdicts[:, len(final)].mean(-1),
        "sampled worst case, final": worst_case(verdicts[:, : len(final) + 1]),
        "sampled worst case, earlier too": worst_case(verdicts),
    }
    return {
        name: (_correlation(-exploited, one), float(exploited[np.argmax(one)] - exploited.min()))
        for name, one in numbers.items()
    }


def _correlation(one: Floats, other: Floats) -> float:
    found: Any = kendalltau(one, other)
    return float(found.statistic)


def _course(game: nz.Game, solver: str) -> list[Tensor]:
    """(Y,) probabilities after each step."""
    states = itertools.islice(iterates(game, configure(solver)), max(FINAL) + 1)
    return [state.current.probs for state in states]  # type: ignore[attr-defined]  # a table's


def _rates(matrix: Tensor, policies: Tensor, others: Tensor) -> Floats:
    return (policies @ matrix @ others.T).numpy()


def _least(rates: Floats) -> Floats:
    """Over all others: the policies come first in the pool."""
    return np.where(np.eye(*rates.shape, dtype=bool), np.inf, rates).min(-1)


def _verdicts(matrix: Floats, pool: Tensor, policies: int, seed: int) -> Floats:
    """(policies, pool, prompts) P(answer > answer) of one answer of each to every prompt."""
    generator = np.random.default_rng(seed)
    answers = np.stack([generator.choice(RESPONSES, PROMPTS, p=(one / one.sum()).numpy()) for one in pool])
    return matrix[answers[:policies, None], answers[None]]


if __name__ == "__main__":
    main()
