"""Preferences linear in factors: P = 1/2 + U S U^T, without the matrix."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.operators import OperatorOracle, read_arrays, real_tensor

__all__ = ["FactorOracle"]

_TOLERANCE = 1e-9
_EXACT = 16_384
"""Y up to which every pair is looked at where the bound on norms does not settle it."""
_SAMPLED_ROWS = 256
_BLOCK = 1 << 20


class FactorOracle(OperatorOracle):
    """P(i > j) = 1/2 + u_i . S u_j, S skew: intransitive preferences of rank r in O(Y r) time and memory a payoff.

    That |u_i . S u_j| <= 1/2 is checked on construction: at once where max |u_i| max |S u_j| <= 1/2, pair by pair
    otherwise; with more than 16,384 responses only the pairs of the 256 responses with the largest |u_i| are.

    Args:
        factors: (..., Y, r) U, one row a response.
        skew: (..., r, r) S = -S^T (to 1e-9); leading dimensions broadcast against those of `factors`.
        labels: Y distinct names.
        dtype: what to compute in; float64, unless asked otherwise.
        device: where; that of `factors`, unless asked otherwise.

    Raises:
        BadInput: shapes that do not fit, S not skew, or a preference outside [0, 1] (the pair is named).
    """

    def __init__(
        self,
        factors: Any,
        skew: Any,
        labels: Sequence[str] | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        u = real_tensor(factors, "factors U", device)
        s = real_tensor(skew, "skew matrix S", u.device)
        _check_shapes(u, s)
        s = (s - s.mT) / 2
        self.batch_shape = tuple(torch.broadcast_shapes(u.shape[:-2], s.shape[:-2]))
        self.num_responses = u.shape[-2]
        self.labels = self._checked_labels(labels)
        self.dtype, self.device = dtype, u.device
        u, s = u.expand(*self.batch_shape, *u.shape[-2:]), s.expand(*self.batch_shape, *s.shape[-2:])
        _check_range(u, s)
        self._factors, self._skew = u.to(dtype), s.to(dtype)

    @classmethod
    def load(cls, path: str | PathLike[str], **options: Any) -> Self:
        """From an npz file with the arrays U, S and, where there are, labels; options as above.

        Raises:
            BadInput: not such a file.
        """
        arrays, labels = read_arrays(path, "U", "S")
        return cls(arrays["U"], arrays["S"], labels, **options)

    def _product(self, opponent: Tensor) -> Tensor:
        moments = (opponent.unsqueeze(-2) @ self._factors).mT  # (..., r, 1)
        advantage = (self._factors @ (self._skew @ moments)).squeeze(-1)
        return advantage + opponent.sum(-1, keepdim=True) / 2

    def _block(self, game: int, rows: Tensor) -> Tensor:
        u, s = self._game(game)
        return (0.5 + u[rows] @ s @ u.mT).clamp(0, 1)

    def _pairs(self, game: Tensor, first: Tensor, second: Tensor) -> Tensor:
        rank = self._skew.shape[-1]
        u = self._factors.reshape(-1, self.num_responses, rank)
        s = self._skew.reshape(-1, rank, rank)
        ahead = (u[game, first].unsqueeze(-2) @ s[game] @ u[game, second].unsqueeze(-1)).flatten()
        return (0.5 + ahead).clamp(0, 1)

    def _game(self, game: int) -> tuple[Tensor, Tensor]:
        rank = self._skew.shape[-1]
        return self._factors.reshape(-1, self.num_responses, rank)[game], self._skew.reshape(-1, rank, rank)[game]


def _check_shapes(u: Tensor, s: Tensor) -> None:
    if u.ndim < 2 or u.shape[-2] == 0:
        raise BadInput(f"factors U have shape (..., Y, r) with Y >= 1, got {tuple(u.shape)}")
    rank = u.shape[-1]
    if s.ndim < 2 or s.shape[-2:] != (rank, rank):
        raise BadInput(f"S must be (..., {rank}, {rank}) to go with factors of rank {rank}, got {tuple(s.shape)}")
    try:
        torch.broadcast_shapes(u.shape[:-2], s.shape[:-2])
    except RuntimeError:
        raise BadInput(f"U is for games {tuple(u.shape[:-2])}, S for {tuple(s.shape[:-2])}; give both one") from None
    if bool(((s + s.mT).abs() > _TOLERANCE * s.abs().amax().clamp_min(1)).any()):
        raise BadInput("S must be skew, S = -S^T, or P(i > j) + P(j > i) is not 1; give (S - S^T) / 2")


def _check_range(u: Tensor, s: Tensor) -> None:
    reach = u.norm(dim=-1)
    bound = reach.amax(-1) * (u @ s).norm(dim=-1).amax(-1)
    flat_u, flat_s = u.reshape(-1, *u.shape[-2:]), s.reshape(-1, *s.shape[-2:])
    for game in torch.nonzero(bound.flatten() > 0.5 + _TOLERANCE).flatten().tolist():
        size = u.shape[-2]
        rows = torch.arange(size, device=u.device)
        if size > _EXACT:
            rows = reach.reshape(-1, size)[game].topk(_SAMPLED_ROWS).indices
        _check_pairs(flat_u[game], flat_s[game], rows)


def _check_pairs(u: Tensor, s: Tensor, rows: Tensor) -> None:
    for block in rows.split(max(1, _BLOCK // len(u))):
        ahead = u[block] @ s @ u.mT
        worst = int(ahead.abs().argmax())
        value = float(ahead.flatten()[worst])
        if abs(value) > 0.5 + _TOLERANCE:
            i, j = int(block[worst // len(u)]), worst % len(u)
            seen = "" if len(rows) == len(u) else f" (seen among the {len(rows)} responses with the largest |u_i| only)"
            raise BadInput(
                f"P({i} > {j}) = 1/2 + {value:.6g} is outside [0, 1]{seen}; scale S by {0.5 / abs(value):.4g} or less"
            )
