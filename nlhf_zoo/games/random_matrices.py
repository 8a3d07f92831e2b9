"""Games without structure, and games of low rank."""

from __future__ import annotations

import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.games.parameters import batch, generator, whole
from nlhf_zoo.oracles.matrix import MatrixOracle

__all__ = ["low_rank", "random"]


def random(*, seed: int, responses: int = 100, games: int | None = None) -> MatrixOracle:
    """Every pair independent: P(i > j) uniform on [0, 1) for i < j, and P(j > i) = 1 - P(i > j).

    Args:
        seed: whole number >= 0.
        responses: Y >= 1.
        games: G independent games in one batch, `None` for a single one without batch dimension.

    Returns:
        An oracle with a (Y, Y) or (G, Y, Y) float64 matrix.

    Raises:
        BadInput: a parameter out of range.
    """
    y = whole("random", "responses", responses, 1)
    shape = (*batch("random", games), y, y)
    upper = torch.rand(shape, generator=generator("random", seed), dtype=torch.float64).triu(1)
    matrix = upper + (1 - upper).mT.tril(-1)
    matrix.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    return MatrixOracle(matrix)


def low_rank(*, seed: int, responses: int = 100, rank: int = 2, games: int | None = None) -> MatrixOracle:
    """P = 1/2 + A / (2 max|A|) with A = U S U^T antisymmetric of low rank, entries that fill [0, 1].

    U is (Y, 2h) standard normal and S has h blocks [[0, 1], [-1, 0]] on its diagonal, so A has rank 2h. An
    antisymmetric matrix has even rank: an odd `rank` r gives 2h = r + 1, an even one 2h = r. Rank 2 and
    Y = 100 is the first experiment of the Nash-MP paper (arXiv 2505.19731).

    Args:
        seed: whole number >= 0.
        responses: Y >= 2.
        rank: r >= 1, with 2 ceil(r / 2) <= Y.
        games: G independent games in one batch, `None` for a single one without batch dimension.

    Returns:
        An oracle with a (Y, Y) or (G, Y, Y) float64 matrix.

    Raises:
        BadInput: a parameter out of range.
    """
    y = whole("low_rank", "responses", responses, 2)
    half = (whole("low_rank", "rank", rank, 1) + 1) // 2
    if 2 * half > y:
        raise BadInput(f"game low_rank: rank {rank} needs at least {2 * half} responses, got {y}")
    shape = (*batch("low_rank", games), y, 2 * half)
    u = torch.randn(shape, generator=generator("low_rank", seed), dtype=torch.float64)
    product = u[..., 0::2] @ u[..., 1::2].mT
    skew = product - product.mT
    return MatrixOracle(0.5 + skew / (2 * skew.abs().amax((-2, -1), keepdim=True)))
