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
from nlhf_zoo.tabular.equilibrium_payoffs import Array, Payoffs, Point, here, there
from nlhf_zoo.tabular.equilibrium_polish import polished
from nlhf_zoo.tabular.equilibrium_rank import on_range
from nlhf_zoo.tabular.equilibrium_systems import SparedSystems

__all__ = ["METHODS", "Effort", "Found", "search"]

_BATCH_ENTRIES = 2**22
_NEAR = 60.0
_NEAR_OF_MANY = 20.0
_MOST_PASSES = 60
_LEVELS = (1.0, 1e-2, 1e-4)


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
        log_probs: (..., Y), normalised.
        duality_gap: (...) float64.
        residual: (...) float64, how far the log-probabilities are from those of their own best response, at most.
    """

    log_probs: Tensor
    duality_gap: Array
    residual: Array


def search(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    """All games of a batch (..., Y, Y), small ones some at a time, large ones one by one.

    The references (..., Y) are normalised. `tol` is the duality gap to be reached; 0 goes as far as rounding lets it.
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
    gap = np.concatenate([part.duality_gap.reshape(-1) for part in parts]).reshape(shape)
    residual = np.concatenate([part.residual.reshape(-1) for part in parts]).reshape(shape)
    return Found(z, gap, residual)


def _enough(tol: float, beta: float) -> float:
    """The |r| to be reached: below it the gap is at most beta |r|^2, and the log-probabilities are good as well.

    KL(p || q) is at most an eighth of the squared range of log p / q (Hoeffding).
    """
    return (max(tol, 0.0) / max(1.0, beta)) ** 0.5


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.double()  # even a call for nothing is felt in a small game


def _batch(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    payoffs = Payoffs(_wide(matrix), _wide(log_reference), beta)
    start = payoffs.at(payoffs.log_reference.log_softmax(-1))
    point = _pursued(payoffs, start, _enough(tol, beta), effort)
    return Found(point.z, here(payoffs.gap(point)), here(point.size))


def _single(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: Effort) -> Found:
    enough = _enough(tol, beta)
    payoffs = Payoffs(matrix if len(matrix) > LARGE else _wide(matrix), _wide(log_reference), beta)
    with np.errstate(all="ignore"):  # what overflows is not taken
        passes = Passes(payoffs)
        seen, done = _first(passes, enough, effort)
        if not done:
            seen = _led(passes, seen, enough, effort)
        gap = passes.gap(seen)
    return Found(there(seen.z, matrix), np.asarray(gap), np.asarray(seen.size))


def _first(passes: Passes, enough: float, effort: Effort) -> tuple[Seen, bool]:
    """What is tried first on a single game, and whether it was enough."""
    logits = on_range(passes, enough)
    seen = passes.look(passes.log_reference if logits is None else logits)
    if logits is not None:
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


def _led(passes: Passes, seen: Seen, enough: float, effort: Effort) -> Seen:
    """Newton in a single game from where interior points lead; the proximal point method if all else fails."""
    payoffs = passes.payoffs
    effort.reached("interior point")
    for level in _LEVELS:
        systems = systems_of(payoffs)
        start = passes.look(interior(payoffs, systems, level))
        spared = systems if isinstance(systems, SparedSystems) else None
        seen, done, steps = polished(passes, start, enough, spared)
        effort.systems += systems.solved if spared else systems.solved + steps
        if done:
            return seen
    point, systems, rescues = proximal(payoffs, enough)
    effort.systems, effort.rescues = effort.systems + systems, effort.rescues + rescues
    effort.reached("proximal point")
    return passes.look(here(point.z))


def _pursued(payoffs: Payoffs, start: Point, enough: float, effort: Effort) -> Point:
    """Newton in those games of a batch (B,) that are near at `start`; in others from where interior points lead."""
    point, done = start, torch.zeros_like(start.size, dtype=torch.bool)
    near = start.size <= _NEAR_OF_MANY
    if bool(near.any()):
        point, done = _attempt(payoffs, point, near, None, enough, effort)
    for level in _LEVELS:
        if bool(done.all()):
            return point
        effort.reached("interior point")
        point, again = _attempt(payoffs, point, ~done, level, enough, effort)
        done = done | again
    for game in torch.nonzero(~done):
        mask = torch.zeros_like(done).index_fill_(0, game, True)
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
            start = some.at(there(interior(some, systems, level), start.z))
    found, done = newton(some, systems, start, enough)
    effort.systems += systems.solved
    effort.reached("newton" if systems.solved else "fixed point")
    return point.put(games, found), torch.zeros_like(games).masked_scatter(games, done)
