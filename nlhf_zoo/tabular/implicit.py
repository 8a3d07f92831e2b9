"""The implicit improvement: a policy that is its own best answer, by payoff queries alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlhf_zoo.interfaces import Divergence, EnumerableOracle
from nlhf_zoo.metrics import span

__all__ = ["solve_implicit"]

_TOLERANCE = 1e-14
_MOST = 100_000


def solve_implicit(
    oracle: EnumerableOracle,
    anchors: Sequence[tuple[Tensor, float]],
    divergence: Divergence,
    start: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, float]]:
    """(..., Y) the pi with pi = argmax_p p . u_pi - sum_j w_j D(p || rho_j), and what it took.

    With total weight w >= 1/2 and the reverse KL the map is a contraction with factor 1 / (2 w) (payoffs
    lie in [0, 1]), and is iterated as it stands. Below that, Nash-MP's two steps with step size 2 are
    taken, which contract by 1 / (1 + 2 w). Every payoff is a query and is counted.

    Raises:
        ArithmeticError: not converged within 100,000 iterations.
    """
    total = sum(weight for _, weight in anchors)
    current, change = start, float("inf")
    for iteration in range(1, _MOST + 1):
        if total >= 0.5:
            new = divergence.improve(oracle.payoff(current.exp(), generator=generator), anchors)
        else:
            held = [*anchors, (current, 0.5)]
            half = divergence.improve(oracle.payoff(current.exp(), generator=generator), held)
            new = divergence.improve(oracle.payoff(half.exp(), generator=generator), held)
        # Log-probabilities of size s carry rounding of s * 2e-16: asking for less would never end.
        scale = 1 + new.abs().amax()
        change = float((span(new, current) / scale).amax())
        current = new
        if change <= _TOLERANCE * max(1.0, torch.finfo(new.dtype).eps / 2e-16):
            return current, {"inner_iterations": float(iteration)}
    raise ArithmeticError(f"implicit update not converged: relative change {change:.1e} after {_MOST} iterations")
