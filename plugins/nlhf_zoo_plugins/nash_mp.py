"""Nash Mirror Prox (Tiapkin et al., arXiv 2505.19731).

    half = argmax P(pi > pi_k)  - beta KL(pi || ref) - (beta/eta) KL(pi || pi_k)
    next = argmax P(pi > half)  - beta KL(pi || ref) - (beta/eta) KL(pi || pi_k)

The practical form for language models (`kappa`) lets a moving average of the parameters stand for the
proximal centre pi_k and takes one gradient step a batch, against itself.
"""

from __future__ import annotations

import attrs

from nlhf_zoo.interfaces import Game, Guarantee, Outcome, Solver, State, Update, hyperparameter, linear_rate, span_rate
from nlhf_zoo.registry import hookimpl


@attrs.frozen
class NashMP(Solver):
    """Two proximal improvements a step, both held at the reference and at the step's own start.

    Attributes:
        eta: step size, > 0; `None` is the theory's 2 beta.
        kappa: weight in (0, 1] of the moving average of the practical form; `None` is the literal two-step form.
    """

    name = "nash_mp"
    summary = "Nash Mirror Prox: extragradient with KL proximal steps, linear last-iterate rate"
    paper = "arXiv 2505.19731"
    when = (
        "The solver to begin with: a linear rate for the last iterate at two queries a step, on a batch of games "
        "too. With kappa it is a language model's form, where nothing is proved. To solve one game to high accuracy, "
        "adaptive_nash_mp asks less."
    )
    no_guarantee = "with kappa it is one gradient step held at a moving average, which no proof covers"

    eta: float | None = hyperparameter(above=0)
    kappa: float | None = hyperparameter(above=0, at_most=1)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1, "kappa": 0.1}

    def _eta(self, game: Game) -> float:
        return self.eta or 2 * game.beta

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        if self.kappa is not None:
            return ()
        return (
            linear_rate(
                lambda game: 1 / (1 + self._eta(game)),
                assumptions="beta > 0, eta <= 2 beta, reverse KL, exact improvements",
                holds=lambda game: self._eta(game) <= 2 * game.beta,
                source="arXiv 2505.19731, last-iterate theorem: (1 + 2 beta)^(-N/2) at eta = 2 beta, N = 2n queries",
            ),
            span_rate(
                lambda game: 1 / (1 + self._eta(game)),
                self._gain,
                assumptions="beta > 0, eta <= 2 beta, reverse KL, exact improvements",
                holds=lambda game: self._eta(game) <= 2 * game.beta,
                source="docs/guarantees.md: from the rate in KL",
            ),
        )

    def _gain(self, game: Game) -> float:
        # KL(equilibrium || half) <= far KL(equilibrium || pi_k)
        held = game.beta / self._eta(game)
        far = held / (game.beta + held - max(0.0, 1 / (4 * held) - game.beta))
        return far**0.5 / (game.beta + held) / 2

    def scaled(self, factor: float, game: Game) -> NashMP:
        return attrs.evolve(self, eta=self._eta(game))

    def init(self, game: Game, policy):
        state = super().init(game, policy)
        return state if self.kappa is None else attrs.evolve(state, policies={"current": policy, "target": policy})

    def propose(self, game: Game, state: State) -> Update:
        opponent = state["half"] if state.phase else state.current
        centre = state.current if self.kappa is None else state["target"]
        return Update(
            start=opponent,
            opponent=opponent,
            anchors=[(game.reference, game.beta), (centre, game.beta / self._eta(game))],
            steps=None if self.kappa is None else 1,
        )

    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        if self.kappa is not None:
            target = state["target"].average(outcome.policy, self.kappa)
            return state.next(current=outcome.policy, target=target)
        return state.next(current=outcome.policy) if state.phase else state.middle(half=outcome.policy)


@hookimpl
def nlhf_zoo_solvers():
    return [NashMP]
