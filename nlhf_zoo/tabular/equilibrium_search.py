"""The search for one game's equilibrium, or a batch's: what is tried, and when it is given up for the next."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_interior import interior
from nlhf_zoo.tabular.equilibrium_newton import LARGE, newton, proximal, systems_of
from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point
from nlhf_zoo.tabular.equilibrium_small import near_reference, polished
from nlhf_zoo.tabular.equilibrium_subspace import subspace

__all__ = ["METHODS", "Effort", "Found", "search"]

_BATCH_ENTRIES = 2**22
_FINEST = 1e-12
_NEAR = 20.0


@attrs.define
class Effort:
    """What a search has cost so far, and the furthest means it has come to."""

    systems: int = 0
    rescues: int = 0
    rank: int = 0

    def reached(self, method: str) -> None:
        self.rank = max(self.rank, METHODS.index(method))


METHODS = ("fixed point", "subspace", "newton", "interior point", "proximal point")


@attrs.frozen(eq=False)
class Found:
    """Where a search ended.

    Attributes:
        log_probs: (..., Y).
        duality_gap: (...).
        residual: (...) how far the log-probabilities are from those of their own best response, at most.
    """

    log_probs: Tensor
    duality_gap: Tensor
    residual: Tensor


def search(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    """All games of a batch (..., Y, Y), small ones some at a time, large ones one by one.

    `tol` is the duality gap to be reached; 0 goes as far as rounding lets it.
    """
    size = matrix.shape[-1]
    if matrix.ndim == 2 and log_reference.ndim == 1:
        shape: tuple[int, ...] = ()
        parts = [_solved(matrix, log_reference, beta, tol, effort)]
    else:
        shape = torch.broadcast_shapes(matrix.shape[:-2], log_reference.shape[:-1])
        matrices = matrix.expand(*shape, size, size).reshape(-1, size, size)
        references = log_reference.expand(*shape, size).reshape(-1, size)
        if size > LARGE:
            parts = [_solved(*one, beta, tol, effort) for one in zip(matrices, references, strict=True)]
        else:
            count = max(1, _BATCH_ENTRIES // size**2)
            batches = zip(matrices.split(count), references.split(count), strict=True)
            parts = [_solved(*batch, beta, tol, effort) for batch in batches]
    z = torch.cat([point.z.reshape(-1, size) for point, _ in parts]).reshape(*shape, size)
    gap = torch.cat([gap.reshape(-1) for _, gap in parts]).reshape(shape)
    residual = torch.cat([point.size.reshape(-1) for point, _ in parts]).reshape(shape)
    return Found(z, gap, residual)


def _solved(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> tuple[Point, Tensor]:
    """The point found, and (...) its duality gaps; one large game, or one or more small ones."""
    enough, large = 0.1 * max(tol, 0.0) ** 0.5, matrix.shape[-1] > LARGE
    payoffs = Payoffs(matrix if large else matrix.double(), log_reference, beta)
    enough = enough if large else min(enough, _FINEST)
    if matrix.ndim > 2:
        point = _pursued(payoffs, payoffs.at(log_reference.log_softmax(-1)), enough, effort)
    else:
        passes = Passes(payoffs)
        with np.errstate(all="ignore"):  # what overflows is not taken
            seen, done = _first(passes, enough, large, effort)
        point = passes.point(seen)
        point = point if done else _pursued(payoffs, point, enough, effort)
    return point, payoffs.gap(point)


def _first(passes: Passes, enough: float, large: bool, effort: Effort) -> tuple[Seen, bool]:
    """What is tried first on a single game, and whether it was enough."""
    if large:
        effort.reached("subspace")
        return subspace(passes, enough)
    seen, done, steps = near_reference(passes, enough)
    effort.systems += steps
    effort.reached("newton" if steps else "fixed point")
    return seen, done


def _pursued(payoffs: Payoffs, start: Point, enough: float, effort: Effort) -> Point:
    """Newton from `start` where that is near, otherwise from where an interior point method leads."""
    point, done = start, torch.zeros_like(start.size, dtype=torch.bool)
    near = start.size <= _NEAR
    if bool(near.any()) and (point.z.ndim > 1 or payoffs.size > LARGE):
        point, done = _attempt(payoffs, point, near, None, enough, effort)
    for level in (1.0, 1e-2, 1e-4):
        if bool(done.all()):
            return point
        effort.reached("interior point")
        point, again = _attempt(payoffs, point, ~done, level, enough, effort)
        done = done | again
    for game in torch.nonzero(~done) if done.ndim else ([None] if not bool(done) else []):
        mask = torch.zeros_like(done).index_fill_(0, game, True) if game is not None else ~done
        found, systems, rescues = proximal(payoffs.select(mask), enough)
        effort.systems, effort.rescues = effort.systems + systems, effort.rescues + rescues
        effort.reached("proximal point")
        point = point.put(mask, found)
    return point


def _attempt(
    payoffs: Payoffs, point: Point, games: Tensor, level: float | None, enough: float, effort: Effort
) -> tuple[Point, Tensor]:
    """Newton in these games, from `point` or from where the interior point method has come down to `level`."""
    some, start = payoffs.select(games), point.select(games)
    systems = systems_of(some)
    if level is not None:
        start, _ = interior(some, systems, level)
    if start.z.ndim == 1 and some.size <= LARGE:
        passes = Passes(some)
        with np.errstate(all="ignore"):
            seen, good, steps = polished(passes, passes.seen(start), enough)
        found, done = passes.point(seen), torch.full_like(games, good)
        effort.systems += steps
    else:
        found, done = newton(some, systems, start, enough)
    effort.systems += systems.solved
    effort.reached("newton" if systems.solved else "fixed point")
    return point.put(games, found), torch.zeros_like(games).masked_scatter(games, done)
