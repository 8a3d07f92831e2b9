"""Nash Prox (Tiapkin et al., arXiv 2505.19731v2): self-play inside a proximal point scheme.

next = argmax P(pi > next) - beta KL(pi || ref) - (beta/eta) KL(pi || target_k),
target_{k+1} = (1 - kappa) target_k + kappa next. With kappa = 1 this is the exact proximal point method; on a
language model each batch is one gradient step of self-play, and the moving average stands for the centre.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz


@attrs.frozen
class NashProx(nz.Solver):
    """One implicit improvement a step, held at the reference and at a moving average of the past answers.

    Attributes:
        eta: step size, > 0; `None` is 2 beta.
        kappa: weight in (0, 1] of the newest answer in the centre.
    """

    name = "nash_prox"
    summary = "Nash Prox: self-play policy gradient inside a proximal point scheme with a moving centre"
    paper = "arXiv 2505.19731v2"
    when = (
        "For the proximal point scheme on a language model: one gradient step of self-play a batch, held at a moving "
        "average. With kappa = 1, its default on tables, it is exact_prox, the only form with a guarantee; the "
        "practical form has none."
    )

    no_guarantee = "with kappa < 1 the centre is a moving average, which no proof covers"

    eta: float | None = nz.hyperparameter(above=0)
    kappa: float = nz.hyperparameter(1.0, above=0, at_most=1)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1, "kappa": 0.1}

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 2 * game.beta

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        if self.kappa < 1:
            return ()
        return (
            nz.linear_rate(
                lambda game: 1 / (1 + self._eta(game)),
                assumptions="beta > 0, kappa = 1, reverse KL, exact improvements; any eta > 0",
                source="arXiv 2505.19731, the proximal point recursion",
            ),
            nz.span_rate(
                lambda game: 1 / (1 + self._eta(game)),
                lambda game: self._eta(game) / game.beta / (1 + self._eta(game)) ** 1.5 / 2,
                assumptions="beta > 0, kappa = 1, reverse KL, exact improvements; any eta > 0",
                source="docs/guarantees.md: from the rate in KL",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> NashProx:
        return attrs.evolve(self, eta=self._eta(game))

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "target": policy})

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state["target"], game.beta / self._eta(game))]
        return nz.Update(start=state.current, opponent=nz.ITSELF, anchors=anchors, steps=1)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy, target=state["target"].average(outcome.policy, self.kappa))


@nz.hookimpl
def nlhf_zoo_solvers():
    return [NashProx]
