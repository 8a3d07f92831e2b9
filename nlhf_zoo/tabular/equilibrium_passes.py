"""One game as numpy sees it: passes over its matrix, and what each says of a policy.

Small games are a matter of microseconds here, hence the vectors are numpy arrays, whose calls cost a third of torch's.
"""

from __future__ import annotations

import math

import attrs
import numpy as np
import torch

from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point

__all__ = ["Array", "Passes", "Seen", "normalised"]

Array = np.ndarray

_BY_NUMPY = 8192
_ROUNDING = 8 * float(np.finfo(float).eps)


@attrs.define(eq=False)
class Seen:
    """A policy after a pass: log-probabilities z, p, payoffs u = P p, residual r and max |r|; (Y,) each.

    Where it is not `exact`, the payoffs have the error of a product in float32.
    """

    z: Array
    p: Array
    u: Array
    r: Array
    size: float
    exact: bool = True


def normalised(logits: Array) -> tuple[Array, Array]:
    """(Y,) log-probabilities and (Y,) probabilities."""
    z = logits - np.maximum.reduce(logits)
    p = np.exp(z)
    total = float(np.add.reduce(p))
    z -= math.log(total)
    p /= total
    return z, p


class Passes:
    """A single game; each `look` is one matrix-vector product, done by torch wherever the matrix is."""

    def __init__(self, payoffs: Payoffs) -> None:
        self.payoffs = payoffs
        self.beta = payoffs.beta
        self._device = payoffs.log_reference.device
        self.log_reference: Array = payoffs.log_reference.cpu().numpy()
        matrix, half = payoffs.matrix, -(-payoffs.size // 2)
        self._whole = matrix.numpy() if matrix.device.type == "cpu" and matrix.dtype == torch.float64 else None
        self._halves: list[Array] | None = None
        if self._whole is not None and half * payoffs.size <= _BY_NUMPY:
            # In two, so that numpy's own threads, which would fight with torch's, have too little to do.
            self._halves = [self._whole[:half], self._whole[half:]]

    def rows(self, some: slice) -> Array:
        """(m, Y) those rows of P - 1/2."""
        return (
            self._whole[some] if self._whole is not None else self.payoffs.matrix[some].double().cpu().numpy()
        ) - 0.5

    def sample(self, step: int, count: int) -> Array:
        """(count, count) of P - 1/2, every `step`-th row and column."""
        part = slice(0, step * count, step)
        if self._whole is not None:
            return self._whole[part, part] - 0.5
        return self.payoffs.matrix[part, part].double().cpu().numpy() - 0.5

    def look(self, logits: Array, near: Seen | None = None) -> Seen:
        """What a pass says of the policy with these logits; with `near` a cheaper pass over the difference will do."""
        z, p = normalised(logits)
        u = self._of(p) if near is None else near.u + self.payoffs.narrow_change(p - near.p)
        r = z - self.log_reference
        r -= u / self.beta
        r -= p @ r
        return Seen(z, p, u, r, float(np.maximum.reduce(np.abs(r))), near is None)

    def _of(self, p: Array) -> Array:
        if self._halves is not None:
            first, second = self._halves
            return np.concatenate((first @ p, second @ p))
        return self.payoffs.of(torch.from_numpy(p).to(self._device)).cpu().numpy()

    def settled(self, seen: Seen, enough: float) -> bool:
        """Whether |r| <= `enough`, or no larger than rounding leaves it."""
        if seen.size <= enough:
            return True
        # Twice what `Payoffs.rounding` allows: z may be a sum of many payoffs here.
        return seen.exact and seen.size <= _ROUNDING * (1 / self.beta - float(np.minimum.reduce(seen.z)))

    def gap(self, seen: Seen) -> float:
        """The duality gap 2 beta KL(p || best response), the best response being proportional to p exp(-r)."""
        log_ratio = seen.r + math.log1p(float(seen.p @ np.expm1(-seen.r)))
        return 2 * self.beta * float(seen.p @ (np.expm1(-log_ratio) + log_ratio))

    def point(self, seen: Seen) -> Point:
        return Point(*(torch.from_numpy(x).to(self._device) for x in (seen.z, seen.p, seen.u, seen.r)))

    def seen(self, point: Point) -> Seen:
        """What a point in torch's tensors says."""
        z, p, u, r = (x.cpu().numpy() for x in (point.z, point.p, point.u, point.r))
        return Seen(z, p, u, r, float(point.size))
