"""The linear systems of the search: positive diagonal minus skew matrix, bordered by 'probabilities add up to one'."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs

__all__ = ["DenseSystems", "SparedSystems", "Systems"]

_DENSE = 512
_ROWS = 64
_PATIENCE = 30
_TIRING = 12


class DenseSystems:
    """(D - A) x - v 1 = g and 1 . x = total, with A = P - 1/2; batched, by one LU factorisation a game.

    With x = h^(1/2) y and h = 1 / D the matrix is I - K, K skew: never singular, whatever D > 0 is.
    """

    def __init__(self, payoffs: Payoffs) -> None:
        self._skew = payoffs.matrix - 0.5
        self._eye = torch.eye(payoffs.size, dtype=self._skew.dtype, device=self._skew.device)
        self.solved = 0

    def factor(self, h: Tensor) -> None:
        """Make ready for the diagonal D = 1 / h, h (..., Y) >= 0."""
        q = h.sqrt()
        # Never singular; where numbers have overflowed, what comes out is not finite, and the caller sees it.
        lu, pivots, _ = torch.linalg.lu_factor_ex(self._eye - q.unsqueeze(-1) * self._skew * q.unsqueeze(-2))
        self._q, self._factors = q, (lu, pivots)
        self._ones = self._scaled(torch.ones_like(q))
        self._sum = self._ones.sum(-1, keepdim=True)
        self.solved += 1

    def solve(self, g: Tensor, total: Tensor | float, accuracy: float) -> tuple[Tensor, Tensor]:
        """x (..., Y) and v (..., 1); `accuracy` is what an iterative solver would need to be told."""
        x = self._scaled(g)
        v = (total - x.sum(-1, keepdim=True)) / self._sum
        return x + v * self._ones, v

    def _scaled(self, g: Tensor) -> Tensor:
        return self._q * torch.linalg.lu_solve(*self._factors, (self._q * g).unsqueeze(-1)).squeeze(-1)


class SparedSystems:
    """The same for one large game: GMRES in float64, with as few factorisations, in float32, as it can do with.

    With y = x / h^(1/2), on the y that keep the probabilities' sum, the matrix is I - K with K skew. GMRES begins
    without a preconditioner; when it takes too long the responses that matter are factored, and the factors
    serve for as long as they help. Beside P there are never more than Y^2 float32 in memory, and some vectors.
    """

    def __init__(self, payoffs: Payoffs) -> None:
        self._payoffs = payoffs
        self._factors: tuple[Tensor, Tensor] | None = None
        self._tired = False
        self.solved = 0

    def factor(self, h: Tensor) -> None:
        self._q = h.sqrt()
        self._unit = self._q / self._q.norm()
        if self._tired:
            self._factor()
        else:
            self._border()

    def _factor(self, everything: bool = False) -> None:
        h, q = self._q.square(), self._q
        self._factors, self._tired = None, False  # frees the last ones before the next are made
        index = torch.arange(len(h), device=h.device) if everything else _mattering(h)
        size, whole = len(index), len(index) == len(h)
        dtype = torch.float64 if size <= _DENSE else torch.float32
        mine = q[index]
        # I + K row by row is, K being skew, the transpose of I - K: column-major, as LAPACK wants it.
        rows = torch.empty(size, size, dtype=dtype, device=h.device)
        for start in range(0, size, _ROWS):
            part = slice(start, start + _ROWS)
            block = self._payoffs.matrix[part] if whole else self._payoffs.matrix[index[part]][:, index]
            rows[part] = ((block.double() - 0.5) * mine * mine[part].unsqueeze(-1)).to(dtype)
        rows.diagonal().add_(1)
        matrix, pivots = rows.mT, torch.empty(size, dtype=torch.int32, device=h.device)
        info = torch.empty((), dtype=torch.int32, device=h.device)
        torch.linalg.lu_factor_ex(matrix, out=(matrix, pivots, info))  # in place
        self._index, self._factors = index, (matrix, pivots)
        self.solved += 1
        self._border()

    def _border(self) -> None:
        self._ones = self._rough(self._unit)
        self._sum = self._unit @ self._ones

    def solve(self, g: Tensor, total: Tensor | float, accuracy: float) -> tuple[Tensor, Tensor]:
        """x (Y,) and v (1,), to `accuracy` relative to the right-hand side."""
        q, norm = self._q, self._q.norm()
        base = self._unit * (total / norm)  # the sum of q * base is the total
        right = q * g - self._times(base)
        right = right - self._unit * (self._unit @ right)
        y, steps, reached = self._gmres(right, accuracy)
        if reached > 5 * accuracy and (self._factors is None or steps > 3):
            self._factor()
            y, steps, reached = self._gmres(right, accuracy)
            if reached > 0.1 and len(self._index) < len(g):
                self._factor(everything=True)
                y, steps, reached = self._gmres(right, accuracy)
        self._tired = self._tired or steps > _TIRING
        y = y + base
        v = (self._unit @ (self._times(y) - q * g)) / norm
        return q * y, v.reshape(1)

    def _times(self, y: Tensor) -> Tensor:
        """(I - K) y."""
        return y - self._q * self._payoffs.change(self._q * y)

    def _gmres(self, right: Tensor, accuracy: float) -> tuple[Tensor, int, float]:
        """y with sum of q * y zero, the steps taken, and the relative residual reached; `right` is orthogonal to q."""
        scale = float(right.norm())
        if scale == 0:
            return right, 0, 0.0
        basis = right.new_empty(_PATIENCE + 1, len(right))
        image = right.new_empty(_PATIENCE, len(right))
        basis[0] = right / scale
        triangle, reached = _Rotated(), 1.0
        for k in range(_PATIENCE):
            image[k] = self._preconditioned(basis[k])
            w = self._times(image[k])
            w = w - self._unit * (self._unit @ w)
            known = basis[: k + 1]
            first = known @ w
            w = w - first @ known
            second = known @ w  # twice is enough (Kahan and Parlett)
            w = w - second @ known
            size = w.norm()
            reached = triangle.add([*(first + second).tolist(), float(size)])
            if reached <= accuracy or not float(size) > 0:
                break
            basis[k + 1] = w / size
        weights = right.new_tensor(triangle.solution())
        return scale * (weights @ image[: len(weights)]), len(weights), reached

    def _preconditioned(self, w: Tensor) -> Tensor:
        y = self._rough(w)
        return y - self._ones * ((self._unit @ y) / self._sum)

    def _rough(self, w: Tensor) -> Tensor:
        """About (I - K)^-1 w."""
        if self._factors is None:
            return w
        lu, pivots = self._factors
        y = w.clone()
        part = y[self._index]
        size = part.abs().amax().clamp_min(torch.finfo(y.dtype).tiny)
        solution = torch.linalg.lu_solve(lu, pivots, (part / size).to(lu.dtype).unsqueeze(-1)).squeeze(-1)
        y[self._index] = solution.to(y.dtype) * size
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
    out = int((coupling <= 0.2).sum())
    return order[min(out, len(h) - 1) :].sort().values
