"""The papers' updates written a second time, from the formulas alone: what a solver of that name must do.

Each takes the solver (for its hyperparameters), P (Y, Y), log pi_ref and log pi_k (Y,), beta and k, and returns
log pi_{k+1} up to a constant. A solver that is not listed may bring its own, as a method
`formula(matrix, log_reference, beta, log_policy, step)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nlhf_zoo.interfaces import Solver

__all__ = ["FORMULAS", "formula_of"]

Formula = Callable[[Tensor, Tensor, float, Tensor, int], Tensor]


def _nash_mp(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """(u_mu + beta l + (beta/eta) lambda_k) / (beta + beta/eta), first with mu = pi_k and then with that answer."""
    eta = solver.eta or 2 * beta
    half = (matrix @ now.softmax(-1) / beta + ref + now / eta) / (1 + 1 / eta)
    return (matrix @ half.softmax(-1) / beta + ref + now / eta) / (1 + 1 / eta)


def _nash_md(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """m = pi_k^(1 - eta beta) ref^(eta beta) / Z, then log m + eta u_m."""
    eta = solver.eta or 2 / (beta * (step + 2))
    mixed = (now + eta * beta * (ref - now)).log_softmax(-1)
    return mixed + eta * (matrix @ mixed.exp())


def _online_ipo(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """lambda_k + eta E[P - 1/2 - beta h] over partners from pi_k."""
    eta = solver.eta or 4 * beta / (1 + 4 * beta**2)
    return now + eta * (matrix @ now.exp() - beta * (now - ref))


def _online_dpo(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """lambda_k + eta E[P - sigma(beta h)] over partners from pi_k."""
    ratio = now - ref
    implied = 1 / (1 + (beta * (ratio.unsqueeze(0) - ratio.unsqueeze(1))).exp())
    return now + (solver.eta or 1 / beta) * ((matrix - implied) @ now.exp())


def _mmd(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """(u_k + beta l + lambda_k / eta) / (beta + 1 / eta)."""
    eta = solver.eta or 4 * beta
    return (matrix @ now.softmax(-1) + beta * ref + now / eta) / (beta + 1 / eta)


def _egpo(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """(1 - eta beta) lambda_k + eta beta l + eta u_mu, first with mu = pi_k and then with that answer."""
    eta = solver.eta or 2 * ((1 + beta**2) ** 0.5 - beta)
    kept = (1 - eta * beta) * now + eta * beta * ref
    half = kept + eta * (matrix @ now.softmax(-1))
    return kept + eta * (matrix @ half.softmax(-1))


def _multiplicative_weights(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """lambda_k + eta u_k."""
    return now + solver.eta * (matrix @ now.softmax(-1))


def _spin(solver: Any, matrix: Tensor, ref: Tensor, beta: float, now: Tensor, step: int) -> Tensor:
    """lambda_k + (l - lambda_k) / weight, the reference being the data."""
    return now + (ref - now) / solver.weight


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "nash_mp": _nash_mp,
    "nash_md": _nash_md,
    "online_ipo": _online_ipo,
    "online_dpo": _online_dpo,
    "mmd": _mmd,
    "inpo": _mmd,
    "f_dpg": _mmd,
    "egpo": _egpo,
    "spo": _multiplicative_weights,
    "sppo": _multiplicative_weights,
    "rebel": _multiplicative_weights,
    "dno": _multiplicative_weights,
    "spin": _spin,
}
"""By the name of the solver."""


def formula_of(solver: Solver) -> Formula | None:
    """The solver's own formula, or that of its name; `None` where neither is known."""
    own = getattr(solver, "formula", None)
    if own is not None:
        return own
    known = FORMULAS.get(getattr(solver, "name", ""))
    if known is None or getattr(solver, "kappa", None) is not None:
        return None
    return lambda *arguments: known(solver, *arguments)
