"""The linear systems of the search: positive diagonal minus skew matrix, bordered by 'probabilities add up to one'."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_payoffs import Array, Payoffs, here, roomy, there

__all__ = ["DenseSystems", "SparedSystems", "Systems"]

_DENSE = 512
_ROWS = 32
_PATIENCE = 30
_PATIENCE_BARE = 60
_TIRING = 12
_PRODUCTS_FOR_A_FACTORISATION = 12
_NARROW_ERROR = 3e-4
_NARROWEST = 1e-5


class DenseSystems:
    """(D - A) x - v 1 = g and 1 . x = total, with A = P - 1/2; batched, by one LU factorisation a game.

    With x = h^(1/2) y and h = 1 / D the matrix is I - K, K skew: never singular, whatever D > 0 is.
    """

    def __init__(self, payoffs: Payoffs) -> None:
        self._skew = payoffs.matrix - 0.5
        self._ones: Array | None = None
        self.solved = 0

    def factor(self, h: Array) -> None:
        """Make ready for the diagonal D = 1 / h, h (..., Y) >= 0."""
        # Never singular; where numbers have overflowed, what comes out is not finite, and the caller sees it.
        self._q, self._ones = np.sqrt(h), None
        self._factors = self._factored(self._q)
        self.solved += 1

    def _factored(self, q: Array) -> tuple[Tensor, Tensor]:
        scale = there(q, self._skew)
        # I + K row by row is, K being skew, the transpose of I - K: column-major, as LAPACK wants it.
        rows = self._skew * scale.unsqueeze(-2)
        rows *= scale.unsqueeze(-1)
        rows.diagonal(dim1=-2, dim2=-1).fill_(1)
        return torch.linalg.lu_factor_ex(rows.mT)[:2]

    def solve(self, g: Array, total: Array | float, accuracy: float) -> tuple[Array, Array]:
        """x (..., Y) and v (..., 1); `accuracy` is what an iterative solver would need to be told."""
        columns = [g, np.ones_like(g)] if self._ones is None else [g]
        q = self._q[..., None]
        found = q * here(torch.linalg.lu_solve(*self._factors, there(q * np.stack(columns, -1), self._skew)))
        if self._ones is None:
            self._ones = found[..., 1]
            self._sum = np.add.reduce(self._ones, -1, keepdims=True)
        x = found[..., 0]
        v = (total - np.add.reduce(x, -1, keepdims=True)) / self._sum
        return x + v * self._ones, v


class SparedSystems:
    """The same for one large game: GMRES with as few factorisations, in float32, as it can do with.

    With y = x / h^(1/2), on the y that keep the probabilities' sum, the matrix is I - K with K skew. GMRES begins
    without a preconditioner; when it takes too long the responses that matter are factored, and the factors
    serve for as long as they help. Products are in float32 while that is exact enough. Beside P there are never
    more than P in float32, Y^2 float32 of factors, and some vectors.

    Attributes:
        solved: matrices factored.
        image: (Y,) float64 (P - 1/2) x of the last solution x, as exact as that.
    """

    def __init__(self, payoffs: Payoffs) -> None:
        self._payoffs = payoffs
        self._factors: tuple[Tensor, Tensor] | None = None
        self._tired, self._bare = False, 0
        self.solved = 0
        self.image = np.empty(0)

    def factor(self, h: Array) -> None:
        self._h, q = h, np.sqrt(h)
        error = float(np.finfo(np.float32).eps) * math.sqrt(q @ q) * float(q.max())
        self._narrow = self._payoffs.narrowing_pays and error <= _NARROW_ERROR
        dtype = np.float32 if self._narrow else np.float64
        self._norm = math.sqrt(q @ q)
        self._q, self._unit = q.astype(dtype), (q / self._norm).astype(dtype)
        if self._tired:
            self._factor()
        else:
            self._border()

    def _factor(self, everything: bool = False) -> None:
        self._factors, self._tired = None, False  # frees the last ones before the next are made
        h = there(self._h, self._payoffs.matrix)
        index = torch.arange(len(h), device=h.device) if everything else _mattering(h)
        size = len(index)
        dtype = torch.float64 if size <= _DENSE else torch.float32
        mine = h[index].sqrt()
        # I + K row by row is, K being skew, the transpose of I - K: column-major, as LAPACK wants it.
        rows, given = roomy(size, h, dtype), self._payoffs.matrix
        # A few rows at a time, always in the same place: malloc may keep what it is given back.
        whole, chosen = given.new_empty(_ROWS, len(h)), given.new_empty(_ROWS, size)
        block = h.new_empty(_ROWS, size)
        for start in range(0, size, _ROWS):
            some = index[start : start + _ROWS]
            count = len(some)
            torch.index_select(given, 0, some, out=whole[:count])
            torch.index_select(whole[:count], 1, index, out=chosen[:count])
            block[:count].copy_(chosen[:count]).sub_(0.5).mul_(mine).mul_(mine[start : start + count].unsqueeze(-1))
            rows[start : start + count].copy_(block[:count])
        rows.diagonal().add_(1)
        matrix, pivots = rows.mT, torch.empty(size, dtype=torch.int32, device=h.device)
        info = torch.empty((), dtype=torch.int32, device=h.device)
        torch.linalg.lu_factor_ex(matrix, out=(matrix, pivots, info))  # in place
        self._index, self._factors = here(index), (matrix, pivots)
        self.solved += 1
        self._border()

    def _border(self) -> None:
        if self._factors is not None:
            self._ones = self._rough(self._unit)
            self._sum = self._unit @ self._ones

    def solve(self, g: Array, total: Array | float, accuracy: float) -> tuple[Array, Array]:
        """x (Y,) and v (1,), to `accuracy` relative to the right-hand side."""
        total = float(np.asarray(total).item())
        accuracy = max(accuracy, _NARROWEST) if self._narrow else accuracy
        right = self._q * g
        base, base_image = None, 0.0
        if total:
            base = self._unit * (total / self._norm)  # the sum of q * base is the total
            base_image = self._image(base)
            right = right - base + self._q * base_image
        # What the border takes: the multiplier without what y brings to it.
        border = float(self._unit @ right)
        right = (right - self._unit * border).astype(self._unit.dtype)
        y, image, pull, steps, reached = self._gmres(right, accuracy)
        if reached > 5 * accuracy and (self._factors is None or steps > 3):
            self._factor()
            y, image, pull, steps, reached = self._gmres(right, accuracy)
            if reached > 0.1 and len(self._index) < len(g):
                self._factor(everything=True)
                y, image, pull, steps, reached = self._gmres(right, accuracy)
        if self._factors is None:
            self._bare += steps
            self._tired = self._bare > len(g) / _PRODUCTS_FOR_A_FACTORISATION
        else:
            self._tired = self._tired or steps > _TIRING
        y = y - self._unit * (self._unit @ y)  # which rounding may have spoilt
        y = y if base is None else y + base
        self.image = np.asarray(image + base_image, dtype=np.float64)
        return np.sqrt(self._h) * y, np.array([(pull - border) / self._norm])

    def _image(self, y: Array) -> Array:
        """(P - 1/2) (q y)."""
        x = self._q * y
        if self._narrow:
            return self._payoffs.narrow_change(x).astype(np.float32)
        return self._payoffs.product(x) - 0.5 * np.add.reduce(x)

    def _gmres(self, right: Array, accuracy: float) -> tuple[Array, Array, float, int, float]:
        """y with sum of q * y zero, its image, the border's pull, the steps taken, the relative residual reached.

        `right` is orthogonal to q; the pull is the part of (I - K) y along the unit vector of q.
        """
        scale = math.sqrt(right @ right)
        if not 0 < scale < math.inf:
            return right, right, 0.0, 0, 0.0
        most = _PATIENCE if self._factors is not None else _PATIENCE_BARE
        basis = np.empty((most + 1, len(right)), right.dtype)
        images = np.empty((most, len(right)), right.dtype)
        tried = basis if self._factors is None else np.empty((most, len(right)), right.dtype)
        np.divide(right, scale, out=basis[0])
        triangle, reached, pulls = _Rotated(), 1.0, []
        for k in range(most):
            if self._factors is not None:
                tried[k] = self._preconditioned(basis[k])
            images[k] = self._image(tried[k])
            w = tried[k] - self._q * images[k]
            pulls.append(float(self._unit @ w))
            w -= self._unit * (self._unit @ w)
            known = basis[: k + 1]
            first = known @ w
            w -= first @ known
            if w.dtype == np.float64:
                second = known @ w  # twice is enough (Kahan and Parlett)
                w -= second @ known
                first += second
            size = math.sqrt(w @ w)
            reached = triangle.add([*first.tolist(), size])
            if reached <= accuracy or not size > 0:
                break
            if k == most // 2 and self._factors is None and reached**2 > accuracy:
                break
            np.divide(w, size, out=basis[k + 1])
        weights = np.array(triangle.solution()) * scale
        steps = len(weights)
        narrow = weights.astype(right.dtype)
        return narrow @ tried[:steps], narrow @ images[:steps], float(weights @ pulls), steps, reached

    def _preconditioned(self, w: Array) -> Array:
        y = self._rough(w)
        return y - self._ones * ((self._unit @ y) / self._sum)

    def _rough(self, w: Array) -> Array:
        """About (I - K)^-1 w."""
        assert self._factors is not None
        lu, pivots = self._factors
        y = w.copy()
        part = w[self._index]
        size = max(float(np.abs(part).max()), float(np.finfo(w.dtype).tiny))
        scaled = there(part / size, lu).to(lu.dtype)
        solution = torch.linalg.lu_solve(lu, pivots, scaled.unsqueeze(-1)).squeeze(-1)
        y[self._index] = here(solution) * size
        return y


Systems = DenseSystems | SparedSystems


class _Rotated:
    """The small least-squares problem of GMRES, made triangular column by column by Givens rotations."""

    def __init__(self) -> None:
        self._columns: list[list[float]] = []
        self._turns: list[tuple[float, float]] = []
        self._right = [1.0]

    def add(self, column: list[float]) -> float:
        """Take in the next column of the Hessenberg matrix; returns the relative residual."""
        for i, (c, s) in enumerate(self._turns):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        below = column.pop()
        radius = math.hypot(column[-1], below)
        c, s = (column[-1] / radius, below / radius) if radius else (1.0, 0.0)
        column[-1] = radius
        self._turns.append((c, s))
        self._columns.append(column)
        last = self._right.pop()
        self._right += [c * last, -s * last]
        return abs(self._right[-1])

    def solution(self) -> list[float]:
        weights = self._right[:-1]
        for i in reversed(range(len(weights))):
            diagonal = self._columns[i][i]
            weights[i] = weights[i] / diagonal if diagonal else 0.0
            for j in range(i):
                weights[j] -= self._columns[i][j] * weights[i]
        return weights


def _mattering(h: Tensor) -> Tensor:
    """Indices of the responses whose coupling through A is not negligible, by an estimate of the norm of the rest.

    With |A| about 0.3 an entry and entries of either sign, the block between those left out (h_i) and all
    others has norm of about 0.3 (sqrt(max h_i sum h) + sqrt(max h sum h_i)); it should be well below 1. Where
    the estimate fails, the refinement shows it, and everything is factored.
    """
    ascending, order = h.sort()
    coupling = 0.3 * ((ascending * h.sum()).sqrt() + (ascending[-1] * ascending.cumsum(0)).sqrt())
    out = int((coupling <= 2.0).sum())
    return order[min(out, len(h) - 1) :].sort().values
