"""The regularised equilibrium, certified by its duality gap: the search is chosen by the game's size and beta."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, ReverseKL
from nlhf_zoo.metrics import duality_gap
from nlhf_zoo.tabular.equilibrium_payoffs import Array, here, there
from nlhf_zoo.tabular.equilibrium_search import METHODS, Effort, search
from nlhf_zoo.tabular.general_equilibrium import general_equilibrium
from nlhf_zoo.tabular.policy import TabularPolicy, enumerable, of_normalised
from nlhf_zoo.tabular.winner import von_neumann_winner

__all__ = ["EXACT", "EquilibriumReport", "NotConverged", "equilibrium", "find_equilibrium"]

EXACT = 1e-20
"""A `tol` that takes a search to the limits of double precision, which leave a gap of about 1e-31 / beta."""

_CERTIFIED = 1e-10
"""What is asked of the gap under another divergence than the reverse KL at most: there it is a difference of large
numbers, and the search goes as far as it gets whatever is asked."""

_FARTHEST = 1e-2


class NotConverged(ArithmeticError):
    """The tolerance was not reached; the message says what was."""


@attrs.frozen(eq=False)
class EquilibriumReport:
    """What the search found.

    Attributes:
        policy: the equilibrium, (..., Y).
        duality_gap: (...) what it reaches.
        newton_steps: linear systems factored, by whichever method.
        rescues: proximal point steps taken, where all else failed.
        method: what it took, the last resort of a batch: "fixed point" (matrix-vector products only), "low rank",
            "newton", "interior point", "proximal point", or "von Neumann winner" at beta = 0.
    """

    policy: TabularPolicy
    duality_gap: Tensor
    newton_steps: int
    rescues: int
    method: str = ""


def equilibrium(game: Game, tol: float = 1e-10) -> TabularPolicy:
    """The symmetric equilibrium of the game, with a duality gap of at most `tol`; for beta = 0 a von Neumann winner.

    The log-probabilities of the answer pi are within sqrt(tol) of those of its best response, or within what
    rounding allows, and |pi - pi*|_1 is at most that: 1e-5 at the default. Who measures distances to the
    equilibrium asks for `EXACT`. Batched over the leading dimensions; computed in float64, whatever the matrix is.

    Raises:
        NotConverged: the tolerance was not reached.
        BadInput: the responses cannot be listed, or the reference leaves one out.
    """
    return find_equilibrium(game, tol).policy


def find_equilibrium(game: Game, tol: float = 1e-10) -> EquilibriumReport:
    """As `equilibrium`, with an account of the search.

    Solves r(z) = z - log pi_ref - P softmax(z) / beta = 0 modulo constants, for the log-probabilities z, and
    certifies the gap by the exact residual, a pass over the matrix in float64. What is tried, in this order:

    - for one game, the range of P - 1/2, where its rank is at most 6 (`on_range`);
    - for one game, best responses to mixtures of the policies seen (`mixed`), unless beta turns out too small;
    - Newton's method, if the reference is near enough;
    - an interior point method (`interior`), and Newton's from where it leads: a dozen linear systems whatever beta
      and Y are. Single games of more than 512 responses solve them by GMRES, with products in float32 and as few
      float32 factorisations as will do;
    - the exact proximal point method, which converges from anywhere.
    """
    if game.beta > 0 and not isinstance(game.divergence, ReverseKL):
        found = general_equilibrium(game, max(tol, _CERTIFIED))
        return EquilibriumReport(found.policy, found.duality_gap, found.newton_steps, found.rescues, "newton")
    oracle = enumerable(game)
    if not isinstance(game.reference, TabularPolicy):
        raise BadInput(f"equilibrium() needs a tabular reference, not a {type(game.reference).__name__}")
    if game.beta == 0:
        policy = von_neumann_winner(oracle)
        matrix = oracle.matrix()
        gap = duality_gap((matrix @ policy.probs.unsqueeze(-1)).squeeze(-1), policy.log_probs, policy.log_probs, 0)
        return EquilibriumReport(policy, gap, 0, 0, "von Neumann winner")
    log_reference = game.reference.log_probs
    if not np.minimum.reduce(here(log_reference), axis=None, initial=0.0) > -torch.inf:
        raise BadInput("the reference gives a response probability zero; every response needs a positive one")
    effort = Effort()
    found = search(oracle.matrix(), log_reference, game.beta, tol, effort)
    policy, method = of_normalised(found.log_probs), METHODS[effort.rank]
    gap = there(found.duality_gap, log_reference)
    report = EquilibriumReport(policy, gap, effort.systems, effort.rescues, method)
    worst = _largest(found.duality_gap)
    if not worst <= tol:
        raise NotConverged(f"equilibrium: duality gap {worst:.1e} reached, {tol:.1e} asked for")
    # A beta near `tol` would let any policy pass: the log-probabilities have to be right as well.
    residual = _largest(found.residual)
    if residual > _FARTHEST:
        raise NotConverged(
            f"equilibrium: log-probabilities within {residual:.1e} of the best response's reached, {_FARTHEST:g} asked"
            f" for; beta = {game.beta:g} is too small for double precision"
        )
    return report


def _largest(values: Array) -> float:
    """0 of none."""
    return float(np.maximum.reduce(values, axis=None, initial=0.0))
