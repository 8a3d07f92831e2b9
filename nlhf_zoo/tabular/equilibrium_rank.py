"""Games whose P - 1/2 is of low rank: the range from a few rows, the equilibrium from a few equations."""

from __future__ import annotations

import attrs
import numpy as np

from nlhf_zoo.tabular.equilibrium_passes import Array, Passes, normalised

__all__ = ["on_range"]

_MOST_PAIRS = 3
_NEGLIGIBLE = 1e-11
_ROWS = 2 * _MOST_PAIRS + 1
_SAMPLE = 2 * _MOST_PAIRS + 2
_SINGULAR = 1e-26
_MOST_STEPS = 25
_SMALLEST_STEP = 1e-7


def on_range(passes: Passes, enough: float) -> Array | None:
    """(Y,) z of the equilibrium, if P - 1/2 has a rank of at most 6; `None` if a few rows show that it has not.

    The residual there is about `enough`; only a pass tells whether the rows looked at tell all. With those rows W,
    P - 1/2 = W^T S W, the policy p(c) = softmax(log pi_ref + W^T c / beta) is the equilibrium if W p(c) - S^-1 c = 0:
    the gradient of a convex function plus a skew matrix, which Newton's method solves in few dimensions, along
    falling betas where it does not at once.
    """
    found = _rows_that_span(passes)
    if found is None:
        return None
    basis, skew = found
    try:
        equations = _Equations(passes.log_reference, basis, skew, max(0.3 * enough**0.5, _SMALLEST_STEP))
        z = _falling(equations, passes.beta, passes.beta)
        return _falling(equations, max(1.0, passes.beta), passes.beta) if z is None else z
    except np.linalg.LinAlgError:  # not finite, or singular
        return None


def _rows_that_span(passes: Passes) -> tuple[Array, Array] | None:
    """W (k, Y) and -S^-1 (k, k), by elimination with skew 2 x 2 pivots; `None` where that does not end soon."""
    size = passes.payoffs.size
    if size >= _SAMPLE and abs(np.linalg.det(passes.sample(size // _SAMPLE, _SAMPLE))) > _SINGULAR:
        return None
    step = max(1, size // _ROWS)
    some = slice(0, step * _ROWS, step)
    left = passes.rows(some)  # what the pairs found do not yet explain
    rows: list[Array] = []
    pivots: list[float] = []
    while True:
        where = int(np.abs(left).argmax())
        i, j = divmod(where, size)
        pivot = float(left[i, j])
        if abs(pivot) <= _NEGLIGIBLE:
            break
        if len(pivots) == _MOST_PAIRS:
            return None
        first, second = left[i].copy(), passes.rows(slice(j, j + 1))[0]
        for k, other in enumerate(pivots):
            second -= _explained(rows[2 * k], rows[2 * k + 1], other, slice(j, j + 1))[0]
        rows += [first, second]
        pivots.append(pivot)
        left -= _explained(first, second, pivot, some)
    if not rows:
        return None
    skew = np.zeros((len(rows), len(rows)))
    for k, pivot in enumerate(pivots):
        skew[2 * k, 2 * k + 1], skew[2 * k + 1, 2 * k] = pivot, -pivot
    return np.array(rows), skew


def _explained(first: Array, second: Array, pivot: float, rows: slice) -> Array:
    """What a pair of rows i, j with (P - 1/2)_ij = pivot says of the others."""
    return first[rows, None] * (second / pivot) - second[rows, None] * (first / pivot)


@attrs.frozen(eq=False)
class _Equations:
    """W p(c) - S^-1 c = 0; a Newton step that moves no log-probability by more than `small` needs no other."""

    log_reference: Array
    basis: Array
    skew: Array
    small: float


def _falling(equations: _Equations, beta: float, goal: float) -> Array | None:
    c = np.zeros(len(equations.basis))
    while True:
        found = _solved(equations, c, beta)
        if found is None:
            return None
        c, z = found
        if beta <= goal:
            return z
        beta = max(goal, beta / 8)


def _solved(equations: _Equations, c: Array, beta: float) -> tuple[Array, Array] | None:
    basis, skew, log_reference = equations.basis, equations.skew, equations.log_reference
    z, p = normalised(log_reference + (c @ basis) / beta)
    g = basis @ p + skew @ c
    value = g @ g
    for _ in range(_MOST_STEPS):
        weighted = basis * p
        mean = np.add.reduce(weighted, 1)
        step = np.linalg.solve((weighted @ basis.T - mean[:, None] * mean) / beta + skew, -g)
        # What is left of a small step is its square.
        last, length = bool(np.add.reduce(np.abs(step)) <= equations.small * beta), 1.0
        while True:
            trial = c + length * step
            z, p = normalised(log_reference + (trial @ basis) / beta)
            if last:
                return trial, z
            g_trial = basis @ p + skew @ trial
            value_trial = g_trial @ g_trial
            if value_trial <= (1 - 0.2 * length) * value:
                break
            length /= 2
            if length < 1e-3:
                return None
        c, g, value = trial, g_trial, value_trial
    return None
