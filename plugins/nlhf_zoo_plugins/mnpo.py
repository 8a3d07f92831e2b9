"""MNPO, multiplayer Nash preference optimisation (arXiv 2509.23102): best answers to a population of one's past.

next = argmax mean over the last n policies mu of P(pi > mu) - beta KL(pi || ref) - (1/eta) KL(pi || pi_k),
on a language model by a regression of log-ratios on pairs.
"""

from __future__ import annotations

import attrs

import nlhf_zoo as nz


def _whole(_: object, field: object, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise nz.BadInput(f"mnpo plays against players >= 1 policies, a whole number; got {value!r}")


@attrs.frozen
class MNPO(nz.Solver):
    """One proximal improvement a step, against the last `players` policies in equal parts.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is one that is proved to converge, for one player 4 beta
            and otherwise x / beta / (1 + x)^(players - 1) with x = 16 beta^2 / (players + 1)^2.
        players: how many of the last policies are met, the current one included; each is a model held.
    """

    name = "mnpo"
    summary = "multiplayer Nash preference optimisation: best answers to the last few policies"
    paper = "arXiv 2509.23102"
    when = (
        "For an opponent that is a small population: one more model for each further player, and a step that must be "
        "shorter by about the square of their number. With players = 1 the step is that of mmd."
    )

    eta: float | None = nz.hyperparameter(above=0)
    players: int = attrs.field(default=3, validator=_whole)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    def _eta(self, game: nz.Game) -> float:
        if self.eta is not None:
            return self.eta
        alone = 16 * game.beta**2 / (self.players + 1) ** 2
        return alone / game.beta / (1 + alone) ** (self.players - 1)

    def _contracts(self, game: nz.Game) -> bool:
        """Whether a step is short enough for its opponent, `players` - 1 steps behind at most."""
        eta, count = self._eta(game), self.players
        lag = sum((count - j) / count * (1 + eta * game.beta) ** j for j in range(count))
        return eta * (count + 1) / 2 * lag <= 4 * game.beta * (1 + 1e-12)

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        return (
            nz.Guarantee(
                metric="kl",
                bound=nz.contraction(lambda game: 1 / (1 + self._eta(game) * game.beta)),
                assumptions="beta > 0, reverse KL, exact expectations, eta (m + 1)/2 sum over j < m of"
                " (1 - j/m) (1 + eta beta)^j <= 4 beta with m players",
                holds=lambda game: isinstance(game.divergence, nz.ReverseKL) and self._contracts(game),
                source="docs/guarantees.md: the lag of the population; arXiv 2206.05825 for one player",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> MNPO:
        return attrs.evolve(self, eta=self._eta(game) / factor)

    def _past(self, state: nz.State) -> list[nz.Policy]:
        """The last policies, the newest first; before there are enough of them, those that there are."""
        names = ["current", *(f"previous{i}" for i in range(1, self.players))]
        return [state.policies[name] for name in names if name in state.policies]

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        past = self._past(state)
        anchors = [(game.reference, game.beta), (state.current, 1 / self._eta(game))]
        opponent = nz.Opponent([(policy, 1 / len(past)) for policy in past])
        return nz.Update(start=state.current, opponent=opponent, anchors=anchors, fit=nz.PairRegression())

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        kept = {f"previous{i}": policy for i, policy in enumerate(self._past(state), 1) if i < self.players}
        return state.next(current=outcome.policy, **kept)


@nz.hookimpl
def nlhf_zoo_solvers():
    return [MNPO]
