"""Optimistic mirror descent: extragradient at one query a step, with and without a pull to the reference.

    next = argmax <pi, 2 u_k - u_{k-1}> - beta KL(pi || ref) - (1/eta) KL(pi || pi_k)

`onpo` (Zhang et al., arXiv 2502.16852) is the form without the pull, and speaks of the average policy. Before the
first step u_{-1} = u_0 here and 0 in `onpo`, whose first step is therefore one of 2 u_0.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz


def _ahead(state: nz.State) -> nz.Opponent:
    """2 pi_k - pi_{k-1}: what the next opponent will be, if it goes on as it did."""
    return nz.Opponent([(state.current, 2.0), (state.policies.get("previous", state.current), -1.0)])


@attrs.frozen
class OptimisticMirrorDescent(nz.Solver):
    """One improvement a step against 2 pi_k - pi_{k-1}, pulled to the reference.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "optimistic_md"
    summary = "optimistic mirror descent: extragradient at one query a step"
    paper = "arXiv 2502.16852"
    when = (
        "For extragradient at one query a step: a linear rate for eta < 1, at one more policy held than mmd. The "
        "factor that is proved is looser than that of nash_mp."
    )

    eta: float = nz.hyperparameter(0.5, above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def left(game: nz.Game) -> Callable[[int], float]:
            weight, spare = game.beta + 1 / self.eta, (1 / self.eta - 1) / 4
            loss = min(game.beta / (weight + 0.5), spare / (0.5 + spare))
            return lambda n: weight / (weight - 0.5) * (1 - loss) ** n

        return (
            nz.Guarantee(
                metric="kl",
                bound=nz.Affine(left),
                assumptions="beta > 0, eta < 1, reverse KL, exact expectations",
                holds=lambda game: self.eta < 1 and isinstance(game.divergence, nz.ReverseKL),
                source="docs/guarantees.md: a Lyapunov function of the optimistic step",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> OptimisticMirrorDescent:
        return attrs.evolve(self, eta=self.eta / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, 1 / self.eta)]
        return nz.Update(start=state.current, opponent=_ahead(state), anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy, previous=state.current)


@attrs.frozen
class ONPO(nz.Solver):
    """Optimistic multiplicative weights in self-play.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff.
    """

    name = "onpo"
    summary = "optimistic online Nash policy optimisation: average iterate at rate 1/n"
    paper = "arXiv 2502.16852"
    when = (
        "For the game without regularisation: its average iterate is a von Neumann winner at rate 1/n, where the "
        "bound of spo stops at eta/4. The reference is only where it starts; for the last iterate no rate is "
        "declared."
    )
    needs_beta = False

    eta: float = nz.hyperparameter(1.0, above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 1000.0}

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def regret(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            rarest: Tensor = game.reference.log_probs.amin(-1)  # type: ignore[attr-defined]  # guarantees are on tables
            return -2 * rarest / torch.tensor(self.eta * n, dtype=rarest.dtype)

        return (
            nz.Guarantee(
                metric="unregularised_gap",
                iterate="average",
                start="reference",
                bound=regret,
                assumptions="eta <= 1, reverse KL, exact expectations",
                holds=lambda game: self.eta <= 1 and isinstance(game.divergence, nz.ReverseKL),
                source="arXiv 1507.00418, theorem 4 and proposition 7, with |u_mu - u_nu| <= |mu - nu|_1 / 2",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> ONPO:
        return attrs.evolve(self, eta=self.eta / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        # Before the first step nothing was predicted: its payoff counts twice.
        weight = 1 / self.eta if state.step else 1 / (2 * self.eta)
        return nz.Update(start=state.current, opponent=_ahead(state), anchors=[(state.current, weight)])

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy, previous=state.current)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [OptimisticMirrorDescent, ONPO]
