"""One game as numpy sees it: passes over its matrix, fixed-point steps, and the search on a low-rank range.

Small games are a matter of microseconds here, hence the vectors are numpy arrays, whose calls cost a third of torch's.
"""

from __future__ import annotations

import attrs
import numpy as np
import torch

from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point

__all__ = ["Array", "Independence", "Passes", "Seen", "normalised", "on_range", "product"]

Array = np.ndarray

_BY_NUMPY = 8192
_MOST_STEPS = 25
_INDEPENDENT = 1e-9
_ROUNDING = 8 * float(np.finfo(float).eps)


@attrs.frozen(eq=False)
class Seen:
    """A policy after a pass: log-probabilities z, p, payoffs u = P p, residual r and max |r|; (Y,) each."""

    z: Array
    p: Array
    u: Array
    r: Array
    size: float


def normalised(z: Array) -> Array:
    """(Y,) log-softmax."""
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def product(a: Array, b: Array) -> Array:
    """a @ b, by torch where that is work: numpy's own threads would fight with torch's."""
    if max(a.size, b.size) <= _BY_NUMPY:
        return a @ b
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


class Passes:
    """A single game; each `look` is one matrix-vector product, done by torch wherever the matrix is."""

    def __init__(self, payoffs: Payoffs) -> None:
        self.payoffs = payoffs
        self.beta = payoffs.beta
        self._device = payoffs.log_reference.device
        self.log_reference: Array = payoffs.log_reference.cpu().numpy()

    def look(self, logits: Array) -> Seen:
        """What a pass says of the policy with these logits."""
        z = logits - np.maximum.reduce(logits)
        p = np.exp(z)
        total = np.add.reduce(p)
        z -= np.log(total)
        p /= total
        u = self.payoffs.of(torch.from_numpy(p).to(self._device)).cpu().numpy()
        r = z - self.log_reference - u / self.beta
        r -= p @ r
        return Seen(z, p, u, r, float(np.maximum.reduce(np.abs(r))))

    def settled(self, seen: Seen, enough: float) -> bool:
        """Whether |r| <= `enough`, or no larger than rounding leaves it."""
        if seen.size <= enough:
            return True
        # Twice what `Payoffs.rounding` allows: z may be a sum of many payoffs here.
        return seen.size <= _ROUNDING * (1 / self.beta - float(np.minimum.reduce(seen.z)))

    def fixed_points(self, seen: Seen, enough: float) -> tuple[Seen, bool]:
        """Steps z <- log pi_ref + u / beta for as long as each gains a digit; and whether that was `enough`."""
        while seen.size <= 1:
            if self.settled(seen, enough):
                return seen, True
            trial = self.look(seen.z - seen.r)
            gained = 10 * trial.size <= seen.size
            seen = trial if trial.size < seen.size else seen
            if not gained:
                break
        return seen, self.settled(seen, enough)

    def point(self, seen: Seen) -> Point:
        return Point(*(torch.from_numpy(x).to(self._device) for x in (seen.z, seen.p, seen.u, seen.r)))

    def seen(self, point: Point) -> Seen:
        z, p, u, r = (x.cpu().numpy() for x in (point.z, point.p, point.u, point.r))
        return Seen(z, p, u, r, float(point.size))


def on_range(passes: Passes, x: Array, u: Array) -> Array | None:
    """(Y,) z of the equilibrium if the range of P - 1/2 is spanned by its images of x; `None` if that is not seen.

    Args:
        passes: the game.
        x: (m, Y) directions.
        u: (m, Y) their images (P - 1/2) x.

    With rows W an orthonormal basis of the u, z(c) = log pi_ref + W^T c / beta and P - 1/2 = W^T B W, the policy
    p(c) = softmax z(c) is the equilibrium if W p(c) - B^-1 c = 0: the gradient of a convex function plus a skew
    matrix, which Newton's method solves in k dimensions, along falling betas where it does not at once. An image
    that depends on the others is what shows that the range may be spanned; the next pass shows whether it is.
    """
    try:
        left, singular, basis = np.linalg.svd(u, full_matrices=False)
        rank = int((singular > _INDEPENDENT * singular[0]).sum())
        if rank == len(u) or rank == 0:
            return None
        basis = basis[:rank]
        skew, start = (left[:, :rank] / singular[:rank]).T @ x @ basis.T, basis @ u[0]
        z = _falling(passes, basis, skew, start, passes.beta)
        return _falling(passes, basis, skew, start, max(1.0, passes.beta)) if z is None else z
    except np.linalg.LinAlgError:  # not finite, or singular
        return None


class Independence:
    """Says of vectors, one after the other, whether they depend on those before."""

    def __init__(self, size: int) -> None:
        self._basis = np.empty((0, size))

    def adds(self, vector: Array) -> bool:
        """Whether the vector is independent of all before; it counts from now on."""
        rest = vector
        for _ in range(2):
            rest = rest - product(product(self._basis, rest), self._basis)
        norm = np.sqrt(rest @ rest)
        if not norm > _INDEPENDENT * np.sqrt(vector @ vector):
            return False
        self._basis = np.vstack([self._basis, rest / norm])
        return True


def _falling(passes: Passes, basis: Array, skew: Array, c: Array, beta: float) -> Array | None:
    while True:
        found = _solved(passes.log_reference, basis, skew, c, beta)
        if found is None:
            return None
        c, z = found
        if beta <= passes.beta:
            return z
        beta = max(passes.beta, beta / 8)


def _solved(log_reference: Array, basis: Array, skew: Array, c: Array, beta: float) -> tuple[Array, Array] | None:
    z = normalised(log_reference + (c @ basis) / beta)
    p = np.exp(z)
    g = basis @ p + skew @ c
    value = g @ g
    for _ in range(_MOST_STEPS):
        weighted = basis * p
        mean = weighted.sum(1)
        step = np.linalg.solve((weighted @ basis.T - np.outer(mean, mean)) / beta + skew, -g)
        last, length = bool(np.abs(step).max() <= 1e-7 * beta), 1.0
        while True:
            trial = c + length * step
            z = normalised(log_reference + (trial @ basis) / beta)
            p = np.exp(z)
            g_trial = basis @ p + skew @ trial
            value_trial = g_trial @ g_trial
            if last or value_trial <= (1 - 0.2 * length) * value:
                break
            length /= 2
            if length < 1e-3:
                return None
        c, g, value = trial, g_trial, value_trial
        if last:
            return c, z
    return None
