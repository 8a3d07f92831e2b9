"""The regularised preference game."""

from __future__ import annotations

import math
from typing import Any

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces.divergence import Divergence, ReverseKL
from nlhf_zoo.interfaces.oracle import EnumerableOracle, PreferenceOracle
from nlhf_zoo.interfaces.policy import Policy

__all__ = ["Game"]


def _uniform(game: Game) -> Policy:
    if isinstance(game.oracle, EnumerableOracle):
        return game.oracle.uniform_policy()
    raise BadInput("this oracle's responses cannot be listed; give the game a reference policy")


def _check_beta(_: Any, __: Any, beta: float) -> None:
    if not (math.isfinite(beta) and beta >= 0):
        raise BadInput(f"beta must be a finite number >= 0, got {beta}")


@attrs.frozen(eq=False)
class Game:
    """f(pi, mu) = P(pi > mu) - beta D(pi || pi_ref) + beta D(mu || pi_ref).

    Attributes:
        oracle: who judges.
        reference: pi_ref; left out, it is the uniform policy where the oracle's responses can be listed.
        beta: strength of the regularisation, finite and >= 0. For beta > 0 the symmetric equilibrium is
            unique; for beta = 0 an equilibrium is a von Neumann winner.
        divergence: D, the reverse KL unless said otherwise.
        name: for reports.
    """

    oracle: PreferenceOracle = attrs.field(validator=attrs.validators.instance_of(PreferenceOracle))
    reference: Policy = attrs.field(default=attrs.Factory(_uniform, takes_self=True))
    beta: float = attrs.field(default=0.1, converter=float, validator=_check_beta)
    divergence: Divergence = attrs.field(factory=ReverseKL)
    name: str = "game"
