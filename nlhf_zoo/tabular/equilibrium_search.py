"""The search for one game's equilibrium, or a batch's: what is tried, and when it is given up for the next."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.tabular.equilibrium_interior import interior
from nlhf_zoo.tabular.equilibrium_mixing import mixed
from nlhf_zoo.tabular.equilibrium_newton import LARGE, newton, proximal, systems_of
from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point
from nlhf_zoo.tabular.equilibrium_polish import polished
from nlhf_zoo.tabular.equilibrium_rank import on_range
from nlhf_zoo.tabular.equilibrium_systems import SparedSystems

__all__ = ["METHODS", "Effort", "Found", "search"]

_BATCH_ENTRIES = 2**22
_NEAR = 60.0
_NEAR_OF_MANY = 20.0
_MOST_PASSES = 60


@attrs.define
class Effort:
    """What a search has cost so far, and the furthest means it has come to."""

    systems: int = 0
    rescues: int = 0
    rank: int = 0

    def reached(self, method: str) -> None:
        self.rank = max(self.rank, METHODS.index(method))


METHODS = ("fixed point", "low rank", "newton", "interior point", "proximal point")


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
        return _single(matrix, log_reference, beta, tol, effort)
    shape = torch.broadcast_shapes(matrix.shape[:-2], log_reference.shape[:-1])
    matrices = matrix.expand(*shape, size, size).reshape(-1, size, size)
    references = log_reference.expand(*shape, size).reshape(-1, size)
    if size > LARGE:
        parts = [_single(*one, beta, tol, effort) for one in zip(matrices, references, strict=True)]
    else:
        count = max(1, _BATCH_ENTRIES // size**2)
        batches = zip(matrices.split(count), references.split(count), strict=True)
        parts = [_batch(*batch, beta, tol, effort) for batch in batches]
    z = torch.cat([part.log_probs.reshape(-1, size) for part in parts]).reshape(*shape, size)
    gap = torch.cat([part.duality_gap.reshape(-1) for part in parts]).reshape(shape)
    residual = torch.cat([part.residual.reshape(-1) for part in parts]).reshape(shape)
    return Found(z, gap, residual)


def _enough(tol: float, beta: float) -> float:
    """The |r| to be reached: below it the gap is at most beta |r|^2, and the log-probabilities are good as well.

    KL(p || q) is at most an eighth of the squared range of log p / q (Hoeffding).
    """
    return (max(tol, 0.0) / max(1.0, beta)) ** 0.5


def _batch(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    payoffs = Payoffs(matrix.double(), log_reference, beta)
    start = payoffs.at(log_reference.log_softmax(-1))
    point = _pursued(payoffs, start, _enough(tol, beta), effort)
    return Found(point.z, payoffs.gap(point), point.size)


def _single(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    enough = _enough(tol, beta)
    payoffs = Payoffs(matrix if matrix.shape[-1] > LARGE else matrix.double(), log_reference, beta)
    passes = Passes(payoffs)
    with np.errstate(all="ignore"):  # what overflows is not taken
        seen, done = _first(passes, enough, effort)
        if not done:
            seen = passes.seen(_pursued(payoffs, passes.point(seen), enough, effort))
        found = np.array([passes.gap(seen), seen.size])
    gap, residual = torch.from_numpy(found).to(matrix.device)
    return Found(torch.from_numpy(seen.z).to(matrix.device), gap, residual)


def _first(passes: Passes, enough: float, effort: Effort) -> tuple[Seen, bool]:
    """What is tried first on a single game, and whether it was enough."""
    z = on_range(passes, enough)
    seen = passes.look(passes.log_reference if z is None else z)
    if z is not None:
        effort.reached("low rank")
        if passes.settled(seen, enough):
            return seen, True
        if not seen.size <= 1e-3:
            seen = passes.look(passes.log_reference)
    seen, done = mixed(passes, seen, enough, min(max(passes.payoffs.size // 8, 6), _MOST_PASSES))
    if not done and seen.size <= _NEAR:
        effort.reached("newton")
        systems = SparedSystems(passes.payoffs) if passes.payoffs.size > LARGE else None
        seen, done, solved = polished(passes, seen, enough, systems)
        effort.systems += solved
    return seen, done


def _pursued(payoffs: Payoffs, start: Point, enough: float, effort: Effort) -> Point:
    """Newton in those games of a batch that are near at `start`; others from where interior points lead."""
    point, done = start, torch.zeros_like(start.size, dtype=torch.bool)
    near = start.size <= _NEAR_OF_MANY
    if point.z.ndim > 1 and bool(near.any()):
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
        with np.errstate(all="ignore"):
            start, _ = interior(some, systems, level)
    if start.z.ndim == 1:
        passes = Passes(some)
        with np.errstate(all="ignore"):
            spared = systems if isinstance(systems, SparedSystems) else None
            seen, good, steps = polished(passes, passes.seen(start), enough, spared)
        found, done = passes.point(seen), torch.full_like(games, good)
        effort.systems += 0 if spared else steps
    else:
        found, done = newton(some, systems, start, enough)
    effort.systems += systems.solved
    effort.reached("newton" if systems.solved else "fixed point")
    return point.put(games, found), torch.zeros_like(games).masked_scatter(games, done)
