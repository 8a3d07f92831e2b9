"""Games with a reward behind them, and the same with a controlled intransitive part."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.games.cycles import cycle
from nlhf_zoo.games.parameters import batch, generator, number, whole
from nlhf_zoo.oracles.matrix import MatrixOracle

__all__ = ["bradley_terry", "bradley_terry_cyclic"]


def bradley_terry(*, seed: int, responses: int = 100, scale: float = 1.0, games: int | None = None) -> MatrixOracle:
    """P(i > j) = sigmoid(s_i - s_j), scores s independent normal with standard deviation `scale`.

    Args:
        seed: whole number >= 0.
        responses: Y >= 1.
        scale: standard deviation of the scores, >= 0.
        games: G independent games in one batch, `None` for a single one without batch dimension.

    Returns:
        An oracle with a (Y, Y) or (G, Y, Y) float64 matrix.

    Raises:
        BadInput: a parameter out of range.
    """
    return MatrixOracle(_bradley_terry("bradley_terry", seed, responses, scale, games))


def bradley_terry_cyclic(
    *,
    seed: int,
    responses: int = 100,
    weight: float = 0.5,
    scale: float = 1.0,
    strength: float = 1.0,
    games: int | None = None,
) -> MatrixOracle:
    """P = (1 - weight) * Bradley-Terry + weight * cyclic: from transitive (0) to a pure cycle (1).

    The scores are drawn independently of the order of the cycle, and for one seed they are those of
    `bradley_terry`, whatever the weight: the weight is the only thing that changes.

    Args:
        seed: whole number >= 0.
        responses: Y >= 3.
        weight: of the cycle, in [0, 1].
        scale: standard deviation of the scores, >= 0.
        strength: of the cycle, in [0, 1].
        games: G independent games in one batch, `None` for a single one without batch dimension.

    Returns:
        An oracle with a (Y, Y) or (G, Y, Y) float64 matrix.

    Raises:
        BadInput: a parameter out of range.
    """
    name = "bradley_terry+cyclic"
    share = number(name, "weight", weight, 1)
    around = cycle(name, responses, strength)
    return MatrixOracle((1 - share) * _bradley_terry(name, seed, responses, scale, games) + share * around)


def _bradley_terry(name: str, seed: int, responses: int, scale: float, games: int | None) -> Tensor:
    shape = (*batch(name, games), whole(name, "responses", responses, 1))
    scores = torch.randn(shape, generator=generator(name, seed), dtype=torch.float64) * number(name, "scale", scale)
    return torch.sigmoid(scores.unsqueeze(-1) - scores.unsqueeze(-2))
