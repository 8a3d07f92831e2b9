"""RSPO (Tang et al., arXiv 2503.00030): self-play under a regulariser of one's choice.

    next = argmax P(pi > pi_k) - beta D(pi || ref) - (1/eta) KL(pi || pi_k)

`dph_rl` ("The Choice of Divergence", 2025) is the same step with a mass-covering D, as rehearsal of what the
reference could already do.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup


def relative_convexity(divergence: nz.Divergence, game: nz.Game) -> float:
    """sigma: D(. || ref) - sigma sum pi log pi is convex; the least t f''(t) of ratios t = pi/ref <= 1/min ref.

    t f''(t) is taken to be monotone in t, as it is of every divergence of the zoo.
    """
    ends = torch.tensor([-math.inf, _largest_log_ratio(game)], dtype=torch.float64).clamp_min(-600.0)
    return float(divergence.curvature_of_log(ends).amin()) if divergence.strictly_convex else 0.0


def _largest_log_ratio(game: nz.Game) -> float:
    return float(-game.reference.log_probs.amin())  # type: ignore[attr-defined]  # guarantees are on tables


def strong_convexity(divergence: nz.Divergence) -> float:
    """kappa: B(p, q) >= kappa/2 |p - q|_1^2 of D's Bregman distance B, from any reference; f''(1) or 0.

    By Cauchy and Schwarz kappa = 1 / max over p of E_ref[1 / f''(p/ref)], which is f''(1) by Jensen where 1/f'' is
    concave; that is asked of 4,001 ratios between e^-20 and e^20.
    """
    a = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    t = a.exp()
    flatness = t / divergence.curvature_of_log(a)
    slopes = flatness.diff() / t.diff()
    concave = bool((slopes.diff() <= 1e-9 * slopes.abs().amax()).all()) and bool(flatness.isfinite().all())
    return float(1 / flatness[2000]) if concave else 0.0


@attrs.frozen
class RSPO(nz.Solver):
    """Magnetic mirror descent whose pull to the reference is another divergence than the game's.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 4 beta.
        divergence: registered name of D.
    """

    name = "rspo"
    summary = "regularised self-play: mirror descent, pulled to the reference by a divergence of one's choice"
    paper = "arXiv 2503.00030"
    when = (
        "To be pulled to the reference by another divergence than the reverse KL. It aims at the equilibrium of the "
        "game under that divergence, not under the game's own; the default step is proved for chi-squared, and may be "
        "too long for the forward KL."
    )

    eta: float | None = nz.hyperparameter(above=0)
    divergence: str = "chi_squared"

    @classmethod
    def practical(cls, beta: float) -> dict[str, float]:
        return {"eta": 0.1 / beta} if beta else {}

    @property
    def guarantees(self) -> tuple[nz.Guarantee, ...]:
        divergence = self._divergence()
        steady = strong_convexity(divergence)

        def sigma(game: nz.Game) -> float:
            return relative_convexity(divergence, game)

        def shrunk(game: nz.Game, n: int) -> float:
            return (1 + self._eta(game) * game.beta * sigma(game)) ** -n

        def bound(n: int, game: nz.Game, initial: Tensor | None = None) -> Tensor:
            first = torch.tensor(_largest_log_ratio(game), dtype=torch.float64) if initial is None else initial
            return first * shrunk(game, n)

        def other(game: nz.Game, state: nz.State) -> nz.Game:
            return attrs.evolve(game, divergence=divergence)

        linear = nz.Guarantee(
            metric="kl",
            bound=bound,
            recursion=lambda step, game, previous: previous * shrunk(game, 1),
            about=other,
            assumptions="beta > 0, 0 < eta <= 4 beta sigma, sigma the least t f''(t) for t <= 1/min ref",
            holds=lambda game: self._eta(game) <= 4 * game.beta * sigma(game),
            source="arXiv 2206.05825, theorem 3.4, of D; docs/guarantees.md",
        )
        never = nz.Guarantee(
            metric="kl",
            bound=None,
            recursion=lambda step, game, previous: previous,
            about=other,
            assumptions="beta > 0, eta < 8 beta f''(1), 1/f'' concave (chi_squared, alpha in [1, 2])",
            holds=lambda game: self._eta(game) < 8 * game.beta * steady,
            source="docs/guarantees.md: KL to the equilibrium under D never grows, and tends to 0",
        )
        # Towards t = 0 the curvature of some divergences vanishes, and sigma is 0 whatever the reference.
        covers = float(divergence.curvature_of_log(torch.tensor(-600.0, dtype=torch.float64))) > 1e-9
        return ((linear,) if covers else ()) + ((never,) if steady else ())

    @property
    def no_guarantee(self) -> str:  # type: ignore[override]  # a property serves the attribute
        return f"of {self.divergence} t f''(t) comes near 0 and 1/f'' is not concave, and nothing is known of such"

    def _divergence(self) -> nz.Divergence:
        return lookup("divergences", self.divergence)()

    def _eta(self, game: nz.Game) -> float:
        return self.eta or 4 * game.beta

    def propose(self, game: nz.Game, state: nz.State) -> nz.Update:
        pull = nz.Anchor(game.reference, game.beta, self._divergence())
        near = nz.Anchor(state.current, 1 / self._eta(game), nz.ReverseKL())
        return nz.Update(start=state.current, opponent=state.current, anchors=[pull, near])

    def accept(self, game: nz.Game, state: nz.State, outcome: nz.Outcome) -> nz.State:
        return state.next(current=outcome.policy)


@attrs.frozen
class DPHRL(RSPO):
    """RSPO with a divergence that covers the reference's mass, so that no answer of it is forgotten.

    Attributes:
        eta: step size, > 0, in units of 1 / payoff; `None` is 4 beta.
        divergence: registered name of D; the paper's are forward_kl and jensen_shannon.
    """

    name = "dph_rl"
    summary = "DPH-RL: self-play with a mass-covering divergence to the reference, as rehearsal"
    paper = "The Choice of Divergence, 2025"
    when = (
        "To lose none of the reference's answers while learning, by a mass-covering divergence. It aims at the "
        "equilibrium of the game under that divergence, not under the reverse KL; a step of more than 4 beta min ref "
        "may be too long to come there."
    )

    divergence: str = "forward_kl"


@nz.hookimpl
def nlhf_zoo_solvers():
    return [RSPO, DPHRL]
