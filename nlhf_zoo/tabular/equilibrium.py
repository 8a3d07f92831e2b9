"""The regularised equilibrium, certified by its duality gap: the search is chosen by the game's size and beta."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game, ReverseKL
from nlhf_zoo.metrics import duality_gap
from nlhf_zoo.tabular.equilibrium_interior import interior
from nlhf_zoo.tabular.equilibrium_newton import LARGE, newton, proximal, systems_of
from nlhf_zoo.tabular.equilibrium_passes import Passes, Seen
from nlhf_zoo.tabular.equilibrium_payoffs import Payoffs, Point
from nlhf_zoo.tabular.equilibrium_small import near_reference, polished
from nlhf_zoo.tabular.equilibrium_subspace import subspace
from nlhf_zoo.tabular.general_equilibrium import general_equilibrium
from nlhf_zoo.tabular.policy import TabularPolicy, enumerable
from nlhf_zoo.tabular.winner import von_neumann_winner

__all__ = ["EquilibriumReport", "NotConverged", "equilibrium", "find_equilibrium"]

_BATCH_ENTRIES = 2**22
_FINEST = 1e-12
_NEAR = 20.0
_FARTHEST = 1e-2


class NotConverged(ArithmeticError):
    """The tolerance was not reached; the message says what was."""


@attrs.frozen(eq=False)
class EquilibriumReport:
    """What the search found.

    Attributes:
        policy: the equilibrium, (..., Y).
        duality_gap: (...) what it reaches.
        newton_steps: linear systems factored, by whichever method.
        rescues: proximal point steps taken, where all else failed.
        method: what it took, the last resort of a batch: "fixed point" (matrix-vector products only), "subspace",
            "newton", "interior point", "proximal point", or "von Neumann winner" at beta = 0.
    """

    policy: TabularPolicy
    duality_gap: Tensor
    newton_steps: int
    rescues: int
    method: str = ""


def equilibrium(game: Game, tol: float = 1e-10) -> TabularPolicy:
    """The symmetric equilibrium of the game, with a duality gap of at most `tol` (and usually far less).

    The log-probabilities of the answer differ by at most sqrt(tol) / 10 (1e-6 at the default), or what rounding
    allows, from those of its best response; up to Y = 512 by 1e-12. For beta = 0 it is a von Neumann winner.
    Batched over the leading dimensions; computed in float64, whatever the matrix is. A single large game takes
    up at most as much memory again as its matrix in float64.

    Raises:
        NotConverged: the tolerance was not reached.
        BadInput: the responses cannot be listed, or the reference leaves one out.
    """
    return find_equilibrium(game, tol).policy


def find_equilibrium(game: Game, tol: float = 1e-10) -> EquilibriumReport:
    """As `equilibrium`, with an account of the search.

    Solves r(z) = z - log pi_ref - P softmax(z) / beta = 0 modulo constants, for the log-probabilities z, and
    certifies the gap by the exact residual. What is tried, in this order:

    - fixed-point steps from the reference, while each gains a digit;
    - for one game of up to 512 responses: the range of P - 1/2, where its rank is at most 4 (`on_range`), then
      Newton's method, if the reference is near enough;
    - for one larger game: passes of a nonlinear Krylov method (`subspace`), unless beta turns out too small;
    - an interior point method (`interior`), and Newton's from where it leads: a dozen linear systems whatever beta
      and Y are. Large games solve them by GMRES, preconditioned by a few float32 factorisations;
    - the exact proximal point method, which converges from anywhere.
    """
    if game.beta > 0 and not isinstance(game.divergence, ReverseKL):
        found = general_equilibrium(game, tol)
        return EquilibriumReport(found.policy, found.duality_gap, found.newton_steps, found.rescues, "newton")
    oracle = enumerable(game)
    if not isinstance(game.reference, TabularPolicy):
        raise BadInput(f"equilibrium() needs a tabular reference, not a {type(game.reference).__name__}")
    if game.beta == 0:
        policy = von_neumann_winner(oracle)
        matrix = oracle.matrix()
        gap = duality_gap((matrix @ policy.probs.unsqueeze(-1)).squeeze(-1), policy.log_probs, policy.log_probs, 0)
        return EquilibriumReport(policy, gap, 0, 0, "von Neumann winner")
    log_reference = game.reference.log_probs.double()
    if not bool(torch.isfinite(log_reference).all()):
        raise BadInput("the reference gives a response probability zero; every response needs a positive one")
    report, residual = _assembled(oracle, log_reference, game.beta, tol)
    if not bool((report.duality_gap <= tol).all()):
        worst = float(report.duality_gap.amax())
        raise NotConverged(f"equilibrium: duality gap {worst:.1e} reached, {tol:.1e} asked for")
    # A beta near `tol` would let any policy pass: the log-probabilities have to be right as well.
    if residual > _FARTHEST:
        raise NotConverged(
            f"equilibrium: log-probabilities within {residual:.1e} of the best response's reached, {_FARTHEST:g} asked"
            f" for; beta = {game.beta:g} is too small for double precision"
        )
    return report


@attrs.define
class _Effort:
    """What a search has cost so far, and the furthest means it has come to."""

    systems: int = 0
    rescues: int = 0
    rank: int = 0

    def reached(self, method: str) -> None:
        self.rank = max(self.rank, _METHODS.index(method))


_METHODS = ("fixed point", "subspace", "newton", "interior point", "proximal point")


def _assembled(
    oracle: EnumerableOracle, log_reference: Tensor, beta: float, tol: float
) -> tuple[EquilibriumReport, float]:
    """All games of a batch, small ones some at a time, large ones one by one; and the largest residual."""
    matrix, effort = oracle.matrix(), _Effort()
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
    residual = max((float(point.size.amax()) for point, _ in parts), default=0.0)
    report = EquilibriumReport(TabularPolicy(z), gap, effort.systems, effort.rescues, _METHODS[effort.rank])
    return report, residual


def _solved(matrix: Tensor, log_reference: Tensor, beta: float, tol: float, effort: _Effort) -> tuple[Point, Tensor]:
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


def _first(passes: Passes, enough: float, large: bool, effort: _Effort) -> tuple[Seen, bool]:
    """What is tried first on a single game, and whether it was enough."""
    if large:
        effort.reached("subspace")
        return subspace(passes, enough)
    seen, done, steps = near_reference(passes, enough)
    effort.systems += steps
    effort.reached("newton" if steps else "fixed point")
    return seen, done


def _pursued(payoffs: Payoffs, start: Point, enough: float, effort: _Effort) -> Point:
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
    payoffs: Payoffs, point: Point, games: Tensor, level: float | None, enough: float, effort: _Effort
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
