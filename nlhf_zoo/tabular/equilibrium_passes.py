"""One game as numpy sees it: passes over its matrix, and what each says of a policy.

Small games are a matter of microseconds here, hence the vectors are numpy arrays, whose calls cost a third of torch's.
"""

from __future__ import annotations

import math

import attrs
import numpy as np

from nlhf_zoo.tabular.equilibrium_payoffs import Array, Payoffs, here

__all__ = ["Passes", "Seen", "normalised"]

_ROUNDING = 8 * float(np.finfo(float).eps)


@attrs.define(eq=False)
class Seen:
    """A policy after a pass: log-probabilities z, p, payoffs u = P p, residual r and max |r|; (Y,) each.

    Where it is not `exact`, the payoffs have the error of a product in float32. `both` (2 Y,) holds u and then r.
    """

    z: Array
    p: Array
    both: Array
    size: float
    exact: bool = True

    @property
    def u(self) -> Array:
        return self.both[: len(self.p)]

    @property
    def r(self) -> Array:
        return self.both[len(self.p) :]


def normalised(logits: Array) -> tuple[Array, Array]:
    """(Y,) log-probabilities and (Y,) probabilities."""
    z = logits - np.maximum.reduce(logits)
    p = np.exp(z)
    total = float(np.add.reduce(p))
    z -= math.log(total)
    p /= total
    return z, p


class Passes:
    """A single game; each `look` is one matrix-vector product, by torch unless the matrix is small and here."""

    def __init__(self, payoffs: Payoffs) -> None:
        self.payoffs = payoffs
        self.beta = payoffs.beta
        self.log_reference = here(payoffs.log_reference)
        # z is log pi_ref + u / beta less at most max u / beta. Twice what `Payoffs.rounding` allows: it may be a sum
        # of many payoffs here.
        self._rounding = _ROUNDING * (2 / self.beta - float(np.minimum.reduce(self.log_reference)))

    def look(self, logits: Array, near: Seen | None = None) -> Seen:
        """What a pass says of the policy with these logits; with `near` a cheaper pass over the difference will do."""
        z, p = normalised(logits)
        both = np.empty(2 * len(p))
        u, r = both[: len(p)], both[len(p) :]
        if near is None:
            u[:] = self.payoffs.product(p)
        else:
            np.add(near.u, self.payoffs.narrow_change(p - near.p), out=u)
        np.subtract(z, self.log_reference, out=r)
        r -= u / self.beta
        r -= p @ r
        return Seen(z, p, both, float(np.maximum.reduce(np.abs(r))), near is None)

    def settled(self, seen: Seen, enough: float) -> bool:
        """Whether |r| <= `enough`, or no larger than rounding leaves it."""
        return seen.size <= (max(enough, self._rounding) if seen.exact else enough)

    def gap(self, seen: Seen) -> float:
        """The duality gap 2 beta KL(p || best response), the best response being proportional to p exp(-r)."""
        log_ratio = seen.r + math.log1p(float(seen.p @ np.expm1(-seen.r)))
        return 2 * self.beta * float(seen.p @ (np.expm1(-log_ratio) + log_ratio))
