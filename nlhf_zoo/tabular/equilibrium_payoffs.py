"""The payoffs of a game of the reverse KL, and the residual whose zero is its equilibrium."""

from __future__ import annotations

import copy
import functools
import math
import mmap

import attrs
import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.metrics import duality_gap

__all__ = ["Array", "Payoffs", "Point", "here", "roomy", "there"]

Array = np.ndarray

_ROWS = 32
_BY_NUMPY = 1024
_BLOCK = 8192
_OWN_PAGES = 2**24
_NARROW = 512
_NEGLIGIBLE = 1e-20


def here(x: Tensor) -> Array:
    """The tensor as numpy sees it; without the calls of torch that can be spared, each a tenth of a small pass."""
    return x.numpy() if x.is_cpu else x.cpu().numpy()


def there(x: Array, like: Tensor) -> Tensor:
    """The array as a tensor on the device of that one."""
    return torch.from_numpy(x) if like.is_cpu else torch.from_numpy(x).to(like.device)


def roomy(size: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """(size, size) not initialised, on the device of that tensor.

    In the host's memory in huge pages, which saves half of the time of filling it (numpy asks for them, torch does
    not). What is large has pages of its own, given back to the system when it is freed: malloc leaves that to chance.
    """
    if not like.is_cpu:
        return torch.empty(size, size, dtype=dtype, device=like.device)
    count = size * size * dtype.itemsize
    if count < _OWN_PAGES:
        return torch.from_numpy(np.empty(count, np.uint8)).view(dtype).view(size, size)
    # Private: pages that are shared, as they are unless said otherwise, are never huge, and a fork would write to them.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, count, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(size, size)


@attrs.frozen(eq=False)
class Point:
    """A policy of each game, with what one matrix-vector product says of it.

    Attributes:
        z: (..., Y) its log-probabilities.
        p: (..., Y) the same, exponentiated.
        u: (..., Y) its payoffs P p.
        r: (..., Y) its residual z - log pi_ref - u / beta, with mean zero under p.
    """

    z: Tensor
    p: Tensor
    u: Tensor
    r: Tensor

    @functools.cached_property
    def size(self) -> Tensor:
        """(...) max |r|."""
        return self.r.abs().amax(-1)

    def select(self, games: Tensor) -> Point:
        """The point in the games that the mask (...) names, flattened where there is a batch."""
        if bool(games.all()):
            return self
        return Point(*(getattr(self, f)[games] for f in ("z", "p", "u", "r")))

    def put(self, games: Tensor, other: Point) -> Point:
        """This point with `other` in the games that the mask (...) names."""
        if bool(games.all()):
            return other
        pairs = ((getattr(self, f), getattr(other, f)) for f in ("z", "p", "u", "r"))
        return Point(*(mine.masked_scatter(games.unsqueeze(-1), theirs) for mine, theirs in pairs))

    def where(self, mask: Tensor, other: Point) -> Point:
        """This point in the games where `mask` (...) says so, `other` elsewhere."""
        if bool(mask.all()):
            return self
        m = mask.unsqueeze(-1)
        return Point(*(torch.where(m, getattr(self, f), getattr(other, f)) for f in ("z", "p", "u", "r")))


class Payoffs:
    """The matrix P, the reference and beta of one game or a batch of games; computes in float64.

    Args:
        matrix: (..., Y, Y), float64; a single matrix may be of a smaller dtype, and is converted a few rows at a
            time, never as a whole.
        log_reference: (..., Y) float64, of the same leading dimensions.
        beta: > 0.
    """

    def __init__(self, matrix: Tensor, log_reference: Tensor, beta: float) -> None:
        self.matrix = matrix
        self.log_reference = log_reference
        self.beta = beta

    @property
    def size(self) -> int:
        """Y."""
        return self.matrix.shape[-1]

    def of(self, p: Tensor) -> Tensor:
        """(..., Y) P p."""
        if self.matrix.ndim > 2:
            return (self.matrix @ p.unsqueeze(-1)).squeeze(-1)
        if self.matrix.dtype == p.dtype:
            return self.matrix @ p
        u = torch.empty_like(p)
        rows = torch.empty(_ROWS, self.size, dtype=p.dtype, device=p.device)
        for start in range(0, len(p), _ROWS):
            some = self.matrix[start : start + _ROWS]
            torch.mv(rows[: len(some)].copy_(some), p, out=u[start : start + _ROWS])
        return u

    @functools.cached_property
    def _whole(self) -> Array | None:
        return self.matrix.numpy() if self.matrix.dtype == torch.float64 and self.matrix.is_cpu else None

    @functools.cached_property
    def _blocks(self) -> tuple[Array, Array] | None:
        """(B, b, Y) rows of a matrix that is not large, and those left over.

        A product with one block is too small a task for numpy's own threads, which would fight with torch's.
        """
        whole = self._whole
        if whole is None or whole.ndim > 2 or self.size > _BY_NUMPY or not whole.flags.c_contiguous:
            return None
        rows = -(-self.size // -(-whole.size // _BLOCK))
        end = self.size // rows * rows
        return whole[:end].reshape(-1, rows, self.size), whole[end:]

    def product(self, p: Array) -> Array:
        """(..., Y) P p, of arrays: numpy's calls cost a third of torch's, which is felt up to a thousand responses."""
        if self._blocks is None:
            return here(self.of(there(p, self.matrix)))
        blocks, rest = self._blocks
        u, end = np.empty_like(p), len(p) - len(rest)
        np.matmul(blocks, p, out=u[:end].reshape(blocks.shape[:2]))
        if len(rest):
            np.matmul(rest, p, out=u[end:])
        return u

    def block(self, rows: slice, columns: slice) -> Array:
        """(m, n) those rows and columns of P - 1/2; a single game's."""
        if self._whole is not None:
            return self._whole[rows, columns] - 0.5
        return here(self.matrix[rows, columns].double()) - 0.5

    def change(self, x: Tensor) -> Tensor:
        """(..., Y) (P - 1/2) x, what a change x of the policy does to its payoffs."""
        return self.of(x) - 0.5 * x.sum(-1, keepdim=True)

    @functools.cached_property
    def _narrow(self) -> Tensor:
        """The matrix in float32."""
        if self.matrix.dtype == torch.float32:
            return self.matrix
        return roomy(self.size, self.matrix, torch.float32).copy_(self.matrix)

    @property
    def narrowing_pays(self) -> bool:
        """Whether a product in float32 is much faster than one in float64: if memory is what it waits for."""
        return self.matrix.ndim == 2 and self.size > _NARROW

    def narrow_change(self, x: np.ndarray) -> np.ndarray:
        """(Y,) (P - 1/2) x to single precision, relative to the largest entry; a single game's."""
        scale = float(np.maximum.reduce(np.abs(x)))
        if not 0 < scale < math.inf:
            return x * 0.0
        part = (x / scale).astype(np.float32)
        part[np.abs(part) < _NEGLIGIBLE] = 0  # arithmetic on denormal numbers is slow
        narrow = self._narrow
        u = torch.mv(narrow, torch.from_numpy(part).to(narrow.device)).cpu().numpy()
        return (u - 0.5 * np.add.reduce(part, dtype=np.float64)) * scale

    def at(self, z: Tensor) -> Point:
        """The point with log-probabilities z, which must be normalised."""
        p = z.exp()
        u = self.of(p)
        r = z - self.log_reference - u / self.beta
        # Constants are no part of the problem; their mean under p is, to rounding, the cleanest to remove.
        return Point(z, p, u, r - (p * r).sum(-1, keepdim=True))

    def gap(self, point: Point) -> Tensor:
        """(...) the duality gap of a point."""
        return duality_gap(point.u, point.z, self.log_reference, self.beta)

    def rounding(self, z: Tensor) -> Tensor:
        """(...) the residual that rounding alone leaves at log-probabilities z."""
        return (z.amin(-1) - 1 / self.beta) * (-4 * torch.finfo(z.dtype).eps)

    def held_at(self, log_reference: Tensor, beta: float) -> Payoffs:
        """The same payoffs with another reference and beta."""
        other = copy.copy(self)  # with what is cached of the matrix
        other.log_reference, other.beta = log_reference, beta
        return other

    def select(self, games: Tensor) -> Payoffs:
        """The games of a batch (B,) that the mask names; a single game as it is."""
        if bool(games.all()):
            return self
        return Payoffs(self.matrix[games], self.log_reference[games], self.beta)
