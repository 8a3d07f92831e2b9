"""Nash-EMA (Munos et al., arXiv 2312.00886, section 7): best answers to a moving average of one's own past.

next = argmax P(pi > average_k) - beta KL(pi || ref) - (1/eta) KL(pi || pi_k),
average_{k+1} = (1 - kappa) average_k + kappa next, in parameters (on a table: a geometric mixture).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import attrs

import nlhf_zoo as nz


@functools.lru_cache(maxsize=64)
def _shrinkage(eta: float, beta: float, kappa: float, length: int) -> tuple[float, ...]:
    """Bounds on span(log pi_n - log equilibrium), n < length, as shares of the first; docs/guarantees.md."""
    spare, keep = beta - eta / 4, 1 / (1 + eta * beta)
    # sqrt KL, the span of average to policy, the span of policy to equilibrium.
    near, lag, far = 1 / math.sqrt(8), 0.0, 1.0
    found = [far]
    for _ in range(length - 1):
        off = lag / 2 + min(math.sqrt(2) * near, far / 2)
        moved = eta * keep * (off + beta * far)
        pulled = keep * eta * lag**2 / (32 * spare) if lag else 0.0
        near, lag, far = math.sqrt(keep * near**2 + pulled), (1 - kappa) * (lag + moved), keep * (far + eta * off)
        found.append(far)
    return tuple(found)


@attrs.frozen
class NashEMA(nz.Solver):
    """One proximal improvement a step, against an exponential moving average of the policies.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is one that is proved to converge, 3/2 beta kappa /
            (1 + 2 beta), and for kappa = 1 mmd's 4 beta. Near the latter it spirals outwards for the default kappa.
        kappa: weight in (0, 1] of the newest policy in the average; 1 is magnetic mirror descent.
    """

    name = "nash_ema"
    summary = "best answers to a moving average of the policy's own past"
    paper = "arXiv 2312.00886"
    when = (
        "For a steadier opponent than oneself, at the cost of one more model; but an opponent that lags behind makes "
        "circles wider, so that the step must be shorter by about kappa than that of mmd, which it is with kappa = 1."
    )

    eta: float | None = nz.hyperparameter(above=0)
    kappa: float = nz.hyperparameter(0.125, above=0, at_most=1)

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    def init(self, game: nz.Game, policy: nz.Policy) -> nz.State:
        return attrs.evolve(super().init(game, policy), policies={"current": policy, "average": policy})

    def _eta(self, game: nz.Game) -> float:
        if self.eta is not None:
            return self.eta
        return 4 * game.beta if self.kappa == 1 else 1.5 * game.beta * self.kappa / (1 + 2 * game.beta)

    def _contracts(self, game: nz.Game) -> bool:
        eta, beta = self._eta(game), game.beta
        if self.kappa == 1:
            return eta <= 4 * beta
        lag = (1 - self.kappa) / self.kappa * eta / (1 + eta * beta)
        return eta < 4 * beta and lag < 1 and lag / (1 - lag) < 2 * math.sqrt(beta * (beta - eta / 4))

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        def left(game: nz.Game) -> Callable[[int], float]:
            return lambda n: _shrinkage(self._eta(game), game.beta, self.kappa, 2 << n.bit_length())[n]

        return (
            nz.Guarantee(
                metric="span",
                bound=nz.Affine(left, first=lambda game: 1 / game.beta),
                assumptions="beta > 0, eta < 4 beta, K/(1 - K) < 2 sqrt(beta (beta - eta/4)) with"
                " K = (1/kappa - 1) eta/(1 + eta beta); reverse KL, exact expectations",
                holds=lambda game: isinstance(game.divergence, nz.ReverseKL) and self._contracts(game),
                source="docs/guarantees.md: the lag of the average",
            ),
        )

    def scaled(self, factor: float, game: nz.Game) -> NashEMA:
        return attrs.evolve(self, eta=self._eta(game) / factor)

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        anchors = [(game.reference, game.beta), (state.current, 1 / self._eta(game))]
        return nz.Update(start=state.current, opponent=state["average"], anchors=anchors)

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy, average=state["average"].average(outcome.policy, self.kappa))


@nz.hookimpl
def nlhf_zoo_solvers():
    return [NashEMA]
