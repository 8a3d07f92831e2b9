"""Games whose P - 1/2 is of low rank: the range from a few rows, the equilibrium from a few equations."""

from __future__ import annotations

import math

import attrs
import numpy as np

from nlhf_zoo.tabular.equilibrium_passes import Passes, normalised
from nlhf_zoo.tabular.equilibrium_payoffs import Array, Payoffs

__all__ = ["on_range"]

_MOST_PAIRS = 3
_NEGLIGIBLE = 1e-11
_ROWS = 2 * _MOST_PAIRS + 1
_SAMPLE = 2 * _MOST_PAIRS + 2
_SINGULAR = 1e-26
_MOST_STEPS = 25
_SMALLEST_STEP = 1e-7


def on_range(passes: Passes, enough: float) -> Array | None:
    """(Y,) logits of the equilibrium, if P - 1/2 has a rank of at most 6; `None` if a few rows show that it has not.

    The residual there is about `enough`; only a pass tells whether the rows looked at tell all. With those rows W,
    P - 1/2 = W^T S W, the policy p(c) = softmax(log pi_ref + W^T c / beta) is the equilibrium if W p(c) - S^-1 c = 0:
    the gradient of a convex function plus a skew matrix, which Newton's method solves in few dimensions, along
    falling betas where it does not at once.
    """
    found = _rows_that_span(passes.payoffs)
    if found is None:
        return None
    equations = _Equations(passes.log_reference, *found, max(0.3 * enough**0.5, _SMALLEST_STEP))
    logits = _falling(equations, passes.beta, passes.beta)
    return _falling(equations, max(1.0, passes.beta), passes.beta) if logits is None else logits


def _rows_that_span(payoffs: Payoffs) -> tuple[Array, Array] | None:
    """W (k, Y) and -S^-1 (k, k), by elimination with skew 2 x 2 pivots; `None` where that does not end soon."""
    size, everything = payoffs.size, slice(None)
    if size >= _SAMPLE:
        part = slice(0, size // _SAMPLE * _SAMPLE, size // _SAMPLE)
        if abs(np.linalg.det(payoffs.block(part, part))) > _SINGULAR:
            return None
    step = max(1, size // _ROWS)
    some = slice(0, step * _ROWS, step)
    left = payoffs.block(some, everything)  # what the pairs found do not yet explain
    pairs: list[tuple[Array, float]] = []
    while True:
        i, j = divmod(int(np.abs(left).argmax()), size)
        pivot = float(left[i, j])
        if abs(pivot) <= _NEGLIGIBLE:
            break
        if len(pairs) == _MOST_PAIRS:
            return None
        pair = np.empty((2, size))
        row = slice(j, j + 1)
        pair[:1], pair[1:] = left[i : i + 1], payoffs.block(row, everything)
        for other in pairs:
            pair[1:] -= _explained(*other, row)
        pairs.append((pair, pivot))
        left -= _explained(pair, pivot, some)
    if not pairs:
        return None
    skew = np.zeros((2 * len(pairs), 2 * len(pairs)))
    for k, (_, pivot) in enumerate(pairs):
        skew[2 * k, 2 * k + 1], skew[2 * k + 1, 2 * k] = pivot, -pivot
    return np.concatenate([pair for pair, _ in pairs]), skew


def _explained(pair: Array, pivot: float, rows: slice) -> Array:
    """What a pair of rows i, j with (P - 1/2)_ij = pivot says of the others."""
    first, second = pair[:, rows] / pivot
    return np.array([-second, first]).T @ pair


@attrs.frozen(eq=False)
class _Equations:
    """W p(c) - S^-1 c = 0; a Newton step that moves no log-probability by more than `small` needs no other."""

    log_reference: Array
    basis: Array
    skew: Array
    small: float


def _falling(equations: _Equations, beta: float, goal: float) -> Array | None:
    c, p = np.zeros(len(equations.basis)), np.exp(equations.log_reference)
    while True:
        found = _solved(equations, c, p, beta)
        if found is None:
            return None
        c, logits = found
        if beta <= goal:
            return logits
        beta = max(goal, beta / 8)
        _, p = normalised(equations.log_reference + c @ equations.basis / beta)


def _solved(equations: _Equations, c: Array, p: Array, beta: float) -> tuple[Array, Array] | None:
    """c and the logits of p(c), from a c and its p (Y,)."""
    basis, skew, log_reference = equations.basis, equations.skew, equations.log_reference
    slopes, mean = basis / beta, basis @ p
    g = mean + skew @ c
    value = float(g @ g)
    for _ in range(_MOST_STEPS):
        step = _solution(((basis - mean[:, None]) * p) @ slopes.T + skew, -g)
        if step is None:
            return None
        # What is left of a small step is its square.
        last, length = sum(map(abs, step)) <= equations.small * beta, 1.0
        while True:
            trial = c + [length * x for x in step]
            logits = log_reference + trial @ slopes
            if last:
                return trial, logits
            _, p = normalised(logits)
            mean = basis @ p
            g_trial = mean + skew @ trial
            value_trial = float(g_trial @ g_trial)
            if value_trial <= (1 - 0.2 * length) * value:
                break
            length /= 2
            if length < 1e-3:
                return None
        c, g, value = trial, g_trial, value_trial
    return None


def _solution(matrix: Array, right: Array) -> list[float] | None:
    """Of two to six equations, by elimination in Python, where numpy's solver takes longer to begin.

    `None` where it is singular, or not finite.
    """
    rows = [[*row, last] for row, last in zip(matrix.tolist(), right.tolist(), strict=True)]
    for k in range(len(rows)):
        at = max(range(k, len(rows)), key=lambda i: abs(rows[i][k]))
        rows[k], rows[at] = rows[at], rows[k]
        top = rows[k]
        if not 0 < abs(top[k]) < math.inf:
            return None
        for i in range(k + 1, len(rows)):
            factor = rows[i][k] / top[k]
            rows[i] = [x - factor * y for x, y in zip(rows[i], top, strict=True)]
    found: list[float] = []
    for k in reversed(range(len(rows))):
        known = sum(x * y for x, y in zip(rows[k][k + 1 : -1], found, strict=True))
        found.insert(0, (rows[k][-1] - known) / rows[k][k])
    return found
