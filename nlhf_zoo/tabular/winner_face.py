"""From a support to the exact winner on it: the indifference equations, and the choice among their solutions.

The set of winners is a face: x = 0 off the largest support S, A_SS x_S = 0, sum x = 1, and no response outside S is
better. Off S all inequalities are strict in its relative interior, so its dimension is dim ker A_SS - 1.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from nlhf_zoo.tabular.winner_closest import closest_on_face
from nlhf_zoo.tabular.winner_path import Floats, Mask

__all__ = ["Winner", "any_winner", "only_winner", "winner_of_many"]

CLEAR = 1e-13
"""What is at most this, of a probability on the support or a shortfall off it, is not told from zero."""

_SINGULAR = 1e-14
_Index = NDArray[np.intp]


@attrs.frozen(eq=False)
class Winner:
    """The winner of one game.

    Attributes:
        log_probs: (Y,) float64, -inf off the support.
        gap: 2 (max_y P(y > pi) - 1/2), at least 0.
        dimension: of the set of winners; 0 for a unique one, -1 where it could not be told.
        margin: the smallest probability on the support or shortfall off it, at a point inside the set.
        choice: why this one.
        method: how it was found.
    """

    log_probs: Floats
    gap: float
    dimension: int
    margin: float
    choice: str
    method: str


def only_winner(matrix: Floats, supported: Mask, workspace: Floats) -> Winner | bool:
    """The winner, if it is unique and this its support; otherwise whether several may share this support.

    The solution of P_SS x = 1/2 is the one of A_SS x = 0, sum x = 1, wherever the latter has just one.
    """
    from scipy.linalg import get_lapack_funcs

    getrf, getrs, gecon = get_lapack_funcs(("getrf", "getrs", "gecon"), dtype=np.float64)
    support = np.flatnonzero(supported)
    block = _block(matrix, support, workspace)
    norm = float(block.sum(1).max())
    lu, pivots, info = getrf(block.T, overwrite_a=True)
    if info != 0 or gecon(lu, norm)[0] < _SINGULAR:
        return True
    # What was factorised is P_SS^T; `trans` undoes it.
    x = getrs(lu, pivots, np.full(len(support), 0.5), trans=1)[0]
    if not (abs(x.sum() - 1) < 0.5 and x.min() > 0):  # 0 for a support of even size
        return False
    policy = _spread(x / x.sum(), support, len(matrix))
    policy[support] += getrs(lu, pivots, (0.5 - matrix @ policy)[support], trans=1)[0]
    if policy[support].min() <= 0:
        return False
    policy /= policy.sum()
    margin = _margin(matrix, policy, supported)
    if margin <= CLEAR:
        return False
    return Winner(_log(policy), _gap(matrix, policy), 0, margin, "the only winner", "interior point, support solved")


def winner_of_many(
    matrix: Floats, supported: Mask, x: Floats, log_reference: Floats, workspace: Floats
) -> Winner | None:
    """The winner closest to the reference, if this is the largest support of a winner.

    It is, because a winner inside the face near `x` proves it: positive on S, and with a shortfall everywhere else.

    Args:
        matrix: (Y, Y) P.
        supported: (Y,) bool, S.
        x: (Y,) near the relative interior of the set of winners.
        log_reference: (Y,), finite.
        workspace: (Y, Y), overwritten.
    """
    support = np.flatnonzero(supported)
    rows = _row_space(matrix, support, workspace)
    inside = x[support] - rows.T @ (rows @ x[support])
    if not (inside.sum() > 0 and inside.min() > 0):
        return None
    centre = _spread(inside / inside.sum(), support, len(matrix))
    margin = _margin(matrix, centre, supported)
    dimension = len(support) - len(rows) - 1
    if margin <= CLEAR or dimension < 0:
        return None
    method = "interior point, face solved"
    if dimension == 0:
        return Winner(_log(centre), _gap(matrix, centre), 0, margin, "the only winner", method)
    chosen = closest_on_face(matrix, support, rows, log_reference)
    choice = f"closest to the reference in KL(winner || reference), in a set of dimension {dimension}"
    gap = _gap(matrix, np.exp(chosen))
    if not gap <= 10 * max(CLEAR, _gap(matrix, centre)):
        chosen, gap = _log(centre), _gap(matrix, centre)
        choice = f"some winner inside a set of dimension {dimension}; the closest to the reference was not reached"
    return Winner(chosen, gap, dimension, margin, choice, method)


def any_winner(matrix: Floats, x: Floats, supported: Mask) -> Winner:
    """`x`, without what seems to be off the support where that does no harm; nothing is claimed of the set."""
    trimmed = np.where(supported, x, 0.0) if supported.any() else x
    trimmed = trimmed / trimmed.sum()
    policy = trimmed if _gap(matrix, trimmed) <= max(_gap(matrix, x), CLEAR) else x / x.sum()
    choice = "some winner; in double precision it cannot be told whether it is the only one"
    return Winner(_log(policy), _gap(matrix, policy), -1, 0.0, choice, "interior point")


def _block(matrix: Floats, support: _Index, workspace: Floats) -> Floats:
    """P_SS, in the workspace."""
    size = len(support)
    block = workspace.ravel()[: size * size].reshape(size, size)
    for row, index in zip(block, support, strict=True):
        np.take(matrix[index], support, out=row, mode="clip")  # "raise" would buffer `out`
    return block


def _row_space(matrix: Floats, support: _Index, workspace: Floats) -> Floats:
    """(rank, |S|) an orthonormal basis of the rows of A_SS, by pivoted QR of its columns: A is skew."""
    from scipy.linalg import get_lapack_funcs

    geqp3, orgqr = get_lapack_funcs(("geqp3", "orgqr"), dtype=np.float64)
    block = _block(matrix, support, workspace)
    block -= 0.5
    packed, _, scales, _, _ = geqp3(block.T, overwrite_a=True)
    diagonal = np.abs(np.diagonal(packed))
    rank = int((diagonal > _SINGULAR * max(1.0, 2 * diagonal[0])).sum())
    if rank == 0:
        return np.zeros((0, len(support)))
    return orgqr(packed[:, :rank], scales[:rank])[0].T


def _spread(x: Floats, support: _Index, size: int) -> Floats:
    policy = np.zeros(size)
    policy[support] = x
    return policy


def _margin(matrix: Floats, policy: Floats, supported: Mask) -> float:
    payoffs = matrix @ policy
    return float(np.where(supported, policy, 0.5 - payoffs).min())


def _gap(matrix: Floats, policy: Floats) -> float:
    return max(0.0, 2 * float((matrix @ policy).max() - 0.5))


def _log(policy: Floats) -> Floats:
    with np.errstate(divide="ignore"):
        answer: Any = np.log(policy)
    return answer
