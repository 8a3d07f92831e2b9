"""How sure an equilibrium is that was computed from win counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.comparison.entries import GameEntry
from nlhf_zoo.comparison.table import labels_of, setting
from nlhf_zoo.comparison.tasks import Done, Task
from nlhf_zoo.interfaces import Game
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import TabularPolicy, equilibrium, find_winner
from nlhf_zoo.tabular.threads import one_thread

__all__ = ["Uncertainty", "drawn_matrices"]

LEVEL = 0.95
_JEFFREYS = 0.5


def drawn_matrices(wins: Tensor, smoothing: float, draws: int, seed: int) -> Tensor:
    """(draws, Y, Y) preference matrices that the counts allow, P(i > j) ~ Beta(W_ij + s, W_ji + s) for each pair.

    Its mean is the smoothed share of wins, the game that is played. Without smoothing s is 1/2 (Jeffreys' prior).
    A pair that was never compared may be anything.

    Args:
        wins: (Y, Y) counts, a tie half to each.
    """
    prior = smoothing or _JEFFREYS
    counts = wins.double().numpy()
    rows, columns = np.triu_indices(len(counts), 1)
    generator = np.random.default_rng(seed)
    upper = generator.beta(counts[rows, columns] + prior, counts[columns, rows] + prior, size=(draws, len(rows)))
    matrices = np.full((draws, *counts.shape), 0.5)
    matrices[:, rows, columns] = upper
    matrices[:, columns, rows] = 1 - upper
    return torch.from_numpy(matrices)


@attrs.frozen(kw_only=True)
class Uncertainty(Task):
    """The equilibrium again and again, on matrices that the counts allow."""

    game: GameEntry
    draws: int

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"uncertainty": self.game.identity, "draws": self.draws}

    def perform(self) -> Done:
        found = setting(self.game, 0)
        matrices = drawn_matrices(found.wins, self.game.smoothing, self.draws, seed=0)
        with one_thread():
            # A few at a time: the search takes a batch, and a batch takes memory.
            parts = [self._drawn(found.game, part) for part in matrices.split(max(1, 2**22 // matrices[0].numel()))]
        masses, support = (np.concatenate(side) for side in zip(*parts, strict=True))
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(masses, [tail, 1 - tail], axis=0)
        target = found.target if found.target is not None else find_winner(found.oracle).policy
        return Done(
            {
                "draws": self.draws,
                "level": LEVEL,
                "labels": labels_of(found.oracle),
                "mass": target.probs.tolist(),
                "low": low.tolist(),
                "high": high.tolist(),
                "in_support": support.mean(0).tolist(),
            }
        )

    def _drawn(self, game: Game, matrices: Tensor) -> tuple[Any, Any]:
        """(draws, Y) masses of the equilibrium, and whether each response is in the support of a winner."""
        assert isinstance(game.reference, TabularPolicy)
        oracle = MatrixOracle(matrices)
        winners = find_winner(oracle)
        masses = winners.policy.probs
        if game.beta > 0:
            reference = TabularPolicy(game.reference.log_probs.expand(matrices.shape[:-1]).contiguous())
            masses = equilibrium(attrs.evolve(game, oracle=oracle, reference=reference)).probs
        return masses.numpy(), winners.support.numpy()
