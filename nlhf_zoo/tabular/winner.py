"""The von Neumann winner: an optimal mixed strategy of the unregularised game, exact, and chosen where not unique."""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle
from nlhf_zoo.tabular.policy import TabularPolicy
from nlhf_zoo.tabular.winner_face import CLEAR, Winner, any_winner, only_winner, winner_of_many
from nlhf_zoo.tabular.winner_path import Floats, PathPoint, central_path

__all__ = ["WinnerReport", "find_winner", "von_neumann_winner"]

_TOLERANCE = 1e-12
_LOOK_FOR_ONE = 1e-4
_LOOK_FOR_MANY = 1e-6
_ROWS_AT_A_TIME = 32


@attrs.frozen(eq=False)
class WinnerReport:
    """The von Neumann winners of a batch of games, and what is known of each.

    Attributes:
        policy: (..., Y); responses off the support have -inf.
        duality_gap: (...) float64, 2 (max_y P(y > pi) - 1/2), at most 1e-12.
        support: (..., Y) bool, the responses of positive probability. It is the largest support that a winner
            has, except where `dimension` is -1.
        unique: (...) bool, whether no other policy is a winner.
        dimension: (...) int64, of the set of all winners: 0 where unique, -1 where double precision does not tell.
        margin: (...) float64, the least probability on the support or shortfall of a payoff below 1/2 off it, at a
            winner inside that set (0 where `dimension` is -1). It proves the support; how far it is above 1e-16
            says how safely.
        choices: one sentence a game, in row-major order: why this winner.
        methods: one a game, likewise.
    """

    policy: TabularPolicy
    duality_gap: Tensor
    support: Tensor
    unique: Tensor
    dimension: Tensor
    margin: Tensor
    choices: tuple[str, ...]
    methods: tuple[str, ...]


def von_neumann_winner(oracle: EnumerableOracle, reference: TabularPolicy | None = None) -> TabularPolicy:
    """A policy that no response beats: max_y P(y > pi) <= 1/2 + 5e-13. Responses outside its support have -inf.

    Where several policies are, it is the one closest to the reference, in KL(pi || reference); without one, the
    one of the largest entropy. That is also the limit of the regularised equilibria as beta goes to 0. Batched
    games are solved one by one, in float64 on the CPU.

    Args:
        oracle: one that has a matrix (..., Y, Y).
        reference: (Y,) or (..., Y), every probability positive.

    Raises:
        BadInput: no matrix, or a reference that does not fit.
        ArithmeticError: a gap of 1e-12 was not reached; the message says what was.
    """
    return find_winner(oracle, reference).policy


def find_winner(oracle: EnumerableOracle, reference: TabularPolicy | None = None) -> WinnerReport:
    """As `von_neumann_winner`, with what is known of the set of winners.

    An interior-point method leads to the inside of that set and shows the largest support; the indifference
    equations on it are then solved exactly, and the answer proves itself: a winner that is positive on the
    support and leaves every other response a payoff below 1/2 exists for no other set of responses. Memory:
    one more matrix of the size of P, and LAPACK's own buffers.
    """
    matrix = oracle.matrix()
    shape = matrix.shape[:-1]
    games = matrix.detach().reshape(-1, *matrix.shape[-2:])
    references = _log_references(reference, shape, matrix.device).reshape(-1, shape[-1]).numpy()
    found = [_winner(_checked(one), log_ref) for one, log_ref in zip(games, references, strict=True)]

    def gathered(values: list[float] | list[int]) -> Tensor:
        return torch.tensor(values, device=matrix.device).reshape(shape[:-1])

    log_probs = torch.from_numpy(np.stack([one.log_probs for one in found])).to(matrix.device).reshape(shape)
    dimension = gathered([one.dimension for one in found])
    return WinnerReport(
        policy=TabularPolicy(log_probs),
        duality_gap=gathered([one.gap for one in found]).double(),
        support=log_probs > -torch.inf,
        unique=dimension == 0,
        dimension=dimension,
        margin=gathered([one.margin for one in found]).double(),
        choices=tuple(one.choice for one in found),
        methods=tuple(one.method for one in found),
    )


def _log_references(reference: TabularPolicy | None, shape: torch.Size, device: torch.device) -> Tensor:
    """(..., Y) on the CPU; zeros, the uniform one up to a constant, where none is given."""
    if reference is None:
        return torch.zeros(shape, dtype=torch.float64)
    log_probs = reference.log_probs.detach().double().cpu()
    if log_probs.shape[-1] != shape[-1]:
        raise BadInput(f"the reference has {log_probs.shape[-1]} responses, the oracle {shape[-1]}; give it as many")
    if not bool(torch.isfinite(log_probs).all()):
        raise BadInput("the reference gives a response probability zero; every response needs a positive one")
    if log_probs.ndim > len(shape) or torch.broadcast_shapes(log_probs.shape, shape) != shape:
        raise BadInput(f"the reference has shape {tuple(log_probs.shape)}, the oracle's games {tuple(shape)}")
    return log_probs.expand(shape).contiguous()


def _checked(matrix: Tensor) -> Floats:
    """(Y, Y) float64 in C order with P + P^T = 1: itself where it is so, without a copy."""
    values = matrix.double().cpu().contiguous().numpy()
    worst = 0.0
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        worst = max(worst, float(np.abs(values[rows] + values[:, rows].T - 1).max()))
    if worst <= 1e-15:
        return values
    if not worst <= 1e-5:  # NaN fails too
        raise BadInput(f"P + P^T is off 1 by {worst:.1e}; a winner needs a preference matrix")
    return (values - values.T) / 2 + 0.5


def _winner(matrix: Floats, log_reference: Floats) -> Winner:
    condorcet = _condorcet_winner(matrix)
    if condorcet is not None:
        return condorcet
    found = _follow_path(matrix, log_reference)
    if not found.gap <= _TOLERANCE:
        raise ArithmeticError(f"von Neumann winner: duality gap {found.gap:.1e} reached, {_TOLERANCE:.0e} needed")
    return found


def _condorcet_winner(matrix: Floats) -> Winner | None:
    """A response that beats all others is the only winner."""
    for index, row in enumerate(matrix):
        margin = float(np.delete(row, index).min(initial=1.0)) - 0.5
        if margin <= CLEAR:
            continue
        log_probs = np.full(len(matrix), -np.inf)
        log_probs[index] = 0
        return Winner(log_probs, 0.0, 0, margin, "the only winner", "Condorcet winner")
    return None


def _follow_path(matrix: Floats, log_reference: Floats) -> Winner:
    workspace = np.empty_like(matrix)
    last: PathPoint | None = None
    asked, several = np.zeros(len(matrix), dtype=np.bool_), False
    for point in central_path(matrix, workspace):
        last = point
        if point.t > _LOOK_FOR_ONE or not point.supported.any():
            continue
        if not bool((point.supported == asked).all()):
            answer = only_winner(matrix, point.supported, workspace)
            if isinstance(answer, Winner):
                return answer
            asked, several = point.supported, answer
        if several and point.t <= _LOOK_FOR_MANY:
            many = winner_of_many(matrix, point.supported, point.x, log_reference, workspace)
            if many is not None:
                return many
    if last is None:
        raise ArithmeticError("von Neumann winner: not a single step of the interior-point method succeeded")
    return any_winner(matrix, last.x, last.x > last.s)
