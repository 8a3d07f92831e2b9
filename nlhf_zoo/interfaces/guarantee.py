"""What a solver promises, in a form that can be tested."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

import attrs

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.interfaces.game import Game
    from nlhf_zoo.interfaces.policy import Policy

__all__ = ["Bound", "Guarantee", "contraction"]


class Bound(Protocol):
    def __call__(self, n: int, game: Game, initial: Tensor | None = None) -> Tensor: ...


def _always(game: Game) -> bool:
    return True


@attrs.frozen(kw_only=True)
class Guarantee:
    """metric(target, iterate after n steps) <= bound(n, game), whenever `holds(game)`.

    Attributes:
        metric: "kl" is KL(target || pi), "span" is span(log pi - log target), "duality_gap" needs no target.
        bound: called with the number n of completed steps, the game and, where it is known, the metric's
            `initial` value at n = 0; returns a (...) tensor, one entry a game. `None` claims the target to
            be a fixed point that is reached in the limit, and no rate.
        iterate: which iterate the claim speaks of.
        assumptions: what must hold of the game and the hyperparameters, in words.
        holds: the same as a predicate on the game (the hyperparameters are the solver's own).
        target: the policy that the metric measures the distance to; `None` is the game's equilibrium.
        source: paper and theorem.
    """

    metric: Literal["kl", "duality_gap", "span"]
    bound: Bound | None
    iterate: Literal["last", "average"] = "last"
    assumptions: str = "beta > 0"
    holds: Callable[[Game], bool] = _always
    target: Callable[[Game], Policy] | None = None
    source: str


def contraction(factor: float | Callable[[Game], float]) -> Bound:
    """The bound initial * factor^n of a linear rate in KL(equilibrium || pi).

    Without an initial value the start is taken to be the reference, where
    beta KL(equilibrium || reference) <= 1/2 because payoffs lie in [0, 1].
    """

    def bound(n: int, game: Game, initial: Tensor | None = None) -> Tensor:
        import torch

        first = torch.tensor(1 / (2 * game.beta), dtype=torch.float64) if initial is None else initial
        return first * (factor(game) if callable(factor) else factor) ** n

    return bound
