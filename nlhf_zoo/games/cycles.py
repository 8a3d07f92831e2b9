"""Games without a best response: everything is beaten by something."""

from __future__ import annotations

import torch
from torch import Tensor

from nlhf_zoo.games.parameters import generator, number, whole
from nlhf_zoo.oracles.matrix import MatrixOracle

__all__ = ["cycle", "cyclic", "rock_paper_scissors"]


def cyclic(*, seed: int = 0, responses: int = 100, strength: float = 1.0) -> MatrixOracle:
    """Response i beats the next ones around the cycle, half of all, with P = (1 + strength) / 2.

    P is circulant: i beats i+1, ..., i+ceil(Y/2)-1 (mod Y) and loses to as many. For even Y the response
    opposite is neither, and P is 1/2 there. The uniform policy is a von Neumann winner.

    Args:
        seed: every game takes one; nothing is random here.
        responses: Y >= 3.
        strength: in [0, 1]; 1 is deterministic.

    Returns:
        An oracle with a (Y, Y) float64 matrix.

    Raises:
        BadInput: a parameter out of range.
    """
    generator("cyclic", seed)
    return MatrixOracle(cycle("cyclic", responses, strength))


def rock_paper_scissors(*, seed: int = 0, strength: float = 1.0) -> MatrixOracle:
    """Rock beats scissors, scissors beat paper, paper beats rock, each with P = (1 + strength) / 2.

    Args:
        seed: every game takes one; nothing is random here.
        strength: in [0, 1]; 1 is deterministic.

    Returns:
        An oracle with a (3, 3) float64 matrix and the labels rock, paper, scissors.

    Raises:
        BadInput: a parameter out of range.
    """
    generator("rock_paper_scissors", seed)
    # In the order rock, paper, scissors each response loses to the next: the cycle run backwards.
    matrix = cycle("rock_paper_scissors", 3, strength).mT
    return MatrixOracle(matrix, labels=("rock", "paper", "scissors"))


def cycle(game: str, responses: int, strength: float) -> Tensor:
    """The (Y, Y) float64 matrix of `cyclic`; `game` is named in errors."""
    y = whole(game, "responses", responses, 3)
    amount = number(game, "strength", strength, 1)
    position = torch.arange(y)
    ahead = (position.unsqueeze(0) - position.unsqueeze(1)) % y
    # Twice the step ahead lies below Y for what i beats, above for what beats i; at 0 and Y nothing is decided.
    side = torch.where(ahead == 0, 0, (y - 2 * ahead).sign())
    return 0.5 + 0.5 * amount * side.to(torch.float64)
