"""Nash Mirror Descent (Munos et al., arXiv 2312.00886).

    m = pi_k^(1 - eta beta) ref^(eta beta) / Z,    next = argmax P(pi > m) - (1/eta) KL(pi || m)

The anchor m is written as its two factors, (1 - eta beta)/eta on pi_k and beta on ref: the same improvement,
since KL(pi || m) splits into the two up to a constant. So no mixture needs a log-probability, only samples.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Affine, Game, Guarantee, Outcome, ReverseKL, Solver, State, Update, hyperparameter
from nlhf_zoo.registry import hookimpl


@attrs.frozen
class NashMD(Solver):
    """One improvement a step, against the geometric mixture of policy and reference.

    Attributes:
        eta: fixed step size, 0 < eta <= 1/beta; `None` is the theory's decaying 2 / (beta (k + 2)).
    """

    name = "nash_md"
    summary = "Nash mirror descent: best answers to a mixture of policy and reference"
    paper = "arXiv 2312.00886"
    when = (
        "For one query a step and a proof without a step size to set; but the rate is 1/n, not linear. A fixed step "
        "settles near the equilibrium, not at it, the nearer the smaller eta beta is; the practical form is of that "
        "kind."
    )
    eta: float | None = hyperparameter(above=0)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        # A fixed share eta beta = 1/8 of the reference in the mixture.
        return {"eta": 0.125 / beta} if beta else {}

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        def left(game: Game) -> Callable[[int], float]:
            keep = 1 - self._mixing(game, 0)
            return (lambda n: 0.0) if self.eta is None else (lambda n: keep**n)

        def noise(game: Game) -> Callable[[int], float]:
            if self.eta is None:
                return lambda n: 8 / (game.beta**2 * (n + 1))
            mixing = self._mixing(game, 0)
            return lambda n: 2 * mixing / game.beta**2 * (1 - (1 - mixing) ** n)

        def lemma(step: int, game: Game, previous: Tensor) -> Tensor:
            mixing = self._mixing(game, step)
            return (1 - mixing) * previous + 2 * (mixing / game.beta) ** 2

        rate = Guarantee(
            metric="kl",
            bound=Affine(left, rest=noise),
            recursion=lemma,
            assumptions="beta > 0, reverse KL, exact improvements, n >= 1",
            holds=lambda game: isinstance(game.divergence, ReverseKL),
            source="arXiv 2312.00886, lemma 2 (and theorem 1 where the step decays)",
        )
        return (rate,)

    def scaled(self, factor: float, game: Game) -> NashMD:
        return self if self.eta is None else attrs.evolve(self, eta=self.eta / factor)

    def _mixing(self, game: Game, step: int) -> float:
        return 2 / (step + 2) if self.eta is None else self.eta * game.beta

    def init(self, game: Game, policy):
        if self.eta is not None and self.eta * game.beta > 1:
            raise BadInput(f"nash_md needs eta <= 1/beta = {1 / game.beta:g}, got {self.eta:g}")
        return super().init(game, policy)

    def propose(self, game: Game, state: State) -> Update:
        mixing = self._mixing(game, state.step)
        anchors = [(state.current, (1 - mixing) * game.beta / mixing), (game.reference, game.beta)]
        return Update(start=state.current, opponent=state.current.mixture(game.reference, mixing), anchors=anchors)

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        return state.next(current=outcome.policy)


@hookimpl
def nlhf_zoo_solvers():
    return [NashMD]
