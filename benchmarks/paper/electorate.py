"""What a table of wins says: Borda count, Bradley-Terry scores (Elo), von Neumann winner, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import kendalltau

from nlhf_zoo.data import counts_to_probabilities
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import find_winner

__all__ = ["RULES", "Opinion", "bradley_terry", "opinion", "shares", "simulated", "three_cycles"]

Floats = NDArray[np.float64]

RULES = ("borda", "bradley_terry", "von_neumann")
_PRIOR = 0.1
"""Of the Bradley-Terry scores, one over their variance: so that who never lost has a finite score."""


@attrs.frozen(eq=False)
class Opinion:
    """One electorate's matrix, read in three ways.

    Attributes:
        matrix: (Y, Y) P.
        scores: rule -> (Y,) what it orders the responses by; for "von_neumann" the payoff against the winner, where
            all of its support tie at 1/2.
        choices: rule -> (Y,) the policy it would have one play: its first response, or the winner.
        support: (Y,) bool, of the von Neumann winner of the largest entropy.
        strangers: share of the pairs of different responses drawn from the winner that nobody compared.
    """

    matrix: Floats
    scores: dict[str, Floats]
    choices: dict[str, Floats]
    support: NDArray[np.bool_]
    strangers: float

    @property
    def condorcet(self) -> bool:
        """Whether a response beats every other."""
        return bool(((self.matrix > 0.5).sum(1) == len(self.matrix) - 1).any())

    @property
    def effective(self) -> float:
        """exp of the winner's entropy: of how many responses it is a mixture."""
        p = self.choices["von_neumann"]
        return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))

    def exploited(self, rule: str) -> float:
        """What the best response wins beyond 1/2 over the choice of a rule."""
        return float((self.matrix @ self.choices[rule]).max() - 0.5)

    def tau(self, first: str, second: str) -> float:
        return _tau(self.scores[first], self.scores[second])

    def tau_with(self, other: Opinion, rule: str) -> float:
        """Kendall's tau-b of two electorates under one rule."""
        return _tau(self.scores[rule], other.scores[rule])


def opinion(wins: Floats, matrix: Floats | None = None) -> Opinion:
    """Of win counts (Y, Y), a tie half to each; `matrix` stands for the smoothed shares where it is given."""
    p = shares(wins) if matrix is None else matrix
    winner = find_winner(MatrixOracle(p))
    mixture = winner.policy.probs.numpy()
    borda = (p.sum(1) - 0.5) / (len(p) - 1)
    # Of a matrix that was drawn the scores are those of the drawn shares, each worth as many comparisons as before.
    scores = bradley_terry(wins if matrix is None else (wins + wins.T) * matrix)
    return Opinion(
        p,
        {"borda": borda, "bradley_terry": scores, "von_neumann": (p @ mixture).round(9)},
        {"borda": _only(borda), "bradley_terry": _only(scores), "von_neumann": mixture},
        winner.support.numpy(),
        _strangers(wins, mixture),
    )


def _strangers(wins: Floats, mixture: Floats) -> float:
    pairs = np.outer(mixture, mixture)
    np.fill_diagonal(pairs, 0)
    return float(pairs[wins + wins.T == 0].sum() / pairs.sum()) if pairs.sum() > 1e-9 else 0.0


def shares(wins: Floats) -> Floats:
    """(Y, Y) P = (W + 1/2) / (W + W^T + 1), as the files are read."""
    import torch

    return counts_to_probabilities(torch.from_numpy(wins)).numpy()


def bradley_terry(wins: Floats) -> Floats:
    """(Y,) scores of the largest posterior under independent normal scores, by Newton's method; Elo is 173.7 of one."""
    scores, played = np.zeros(len(wins)), wins + wins.T
    for _ in range(100):
        p = expit(scores[:, None] - scores[None, :])
        slope = (wins - played * p).sum(1) - _PRIOR * scores
        if np.abs(slope).max() < 1e-9 * (1 + played.sum(1).max()):
            break
        bend = played * p * (1 - p)
        scores = scores + np.linalg.solve(np.diag(bend.sum(1) + _PRIOR) - bend, slope)
    return scores


def simulated(wins: Floats, ties: float, generator: np.random.Generator) -> Floats:
    """Win counts that Bradley-Terry's own scores give at as many comparisons: what luck alone makes of cycles.

    Args:
        ties: share of comparisons that end in one, likelier between equals, as in Davidson's model.
    """
    scores = bradley_terry(wins)
    played = np.triu(wins + wins.T, 1).round().astype(np.int64)
    p = expit(scores[:, None] - scores[None, :])
    tied = _tie_chances(p, played, ties)
    chances = np.stack([p - tied / 2, tied, 1 - p - tied / 2], -1).clip(0, 1)
    won, even, lost = np.moveaxis(generator.multinomial(played, chances / chances.sum(-1, keepdims=True)), -1, 0)
    return won + even / 2 + (lost + even / 2).T


def _tie_chances(p: Floats, played: NDArray[np.int64], share: float) -> Floats:
    """(Y, Y) of each pair, so that `share` of all that is played is expected to be tied."""
    if share == 0:
        return np.zeros_like(p)

    def chances(scale: float) -> Floats:
        return np.minimum(scale * np.sqrt(4 * p * (1 - p)), 2 * np.minimum(p, 1 - p))

    def off(scale: float) -> float:
        return float((chances(scale) * played).sum() / played.sum()) - share

    found: Any = brentq(off, 0, 100) if off(100) > 0 else 100.0
    return chances(found)


def three_cycles(matrix: Floats) -> int:
    """Triples in which each beats another, strictly."""
    beats = (matrix > 0.5).astype(np.float64)
    return round(float(np.trace(beats @ beats @ beats)) / 3)


def _only(scores: Floats) -> Floats:
    return np.eye(len(scores))[int(scores.argmax())]


def _tau(first: Sequence[float] | Floats, second: Sequence[float] | Floats) -> float:
    tau: Any = kendalltau(first, second)
    return float(tau.statistic) if np.isfinite(tau.statistic) else 0.0
