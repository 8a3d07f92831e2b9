"""The sums u_i = sum over j of w_j sigmoid(s_i - s_j), for all i, in O(Y) by interpolation on panels."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from nlhf_zoo.oracles.products import matrix_vector

__all__ = ["SigmoidSum"]

_WIDTH = 0.5
"""Of a panel; a power of two, so that dividing a score by it is exact."""
_ORDER = 10
"""Chebyshev nodes a panel. The sigmoid's poles lie pi off the line: the error falls by 25 with each node."""
_SATURATED = 40.0
"""A distance at which the sigmoid is 0 or 1 to 4e-18."""
_ROW = 1024
"""Points in a full row of interpolation weights."""
_NODE_BLOCK = 256
_KEPT = 1 << 23
"""Entries of the kernel between nodes that are kept (64 MB); further ones are computed anew in each sum."""


class SigmoidSum:
    """Everything about the scores that does not depend on the weights.

    The line of scores is cut into panels. A panel with more than 10 scores is represented by 10 Chebyshev nodes:
    weights move onto them by the transposed interpolation and sums come back by the interpolation itself; a
    panel with fewer is represented by its scores. Between nodes the kernel is summed directly up to a distance
    of 40, and is 1 or 0 beyond. Panels without a score cost nothing, so the range of the scores does not matter.

    Args:
        scores: (Y,) finite float64.
        dtype: of weights, sums and all that is kept, which is about 12 numbers a score.
    """

    def __init__(self, scores: Tensor, dtype: torch.dtype = torch.float64) -> None:
        ordered, order = scores.sort()
        edge = _panel_edge(ordered)
        edges, counts = edge.unique_consecutive(return_counts=True)
        dense = counts > _ORDER
        nodes = torch.where(dense, _ORDER, counts)
        first_node = nodes.cumsum(0) - nodes
        few = torch.nonzero(~dense.repeat_interleave(counts)).flatten()

        self._size = len(scores)
        self._count = int(nodes.sum())
        # The place of each score among the nodes, for those that are nodes themselves.
        starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
        place = first_node.repeat_interleave(counts) + torch.arange(self._size, device=scores.device) - starts
        self._own_node = place[few]
        self._own_score = order[few]
        self._dense_node = (first_node[dense].unsqueeze(-1) + torch.arange(_ORDER, device=scores.device)).flatten()
        inside = torch.empty(self._count, dtype=torch.float64, device=scores.device)
        inside[self._own_node] = (ordered - edge)[few]
        inside[self._dense_node] = ((_chebyshev(scores) + 1) / 2 * _WIDTH).repeat(int(dense.sum()))

        self._rows = _Rows.of(ordered - edge, order, counts, dense, dtype)
        position = torch.empty_like(order)
        position[self._rows.score.flatten()[self._rows.real]] = self._rows.real
        position[self._own_score] = self._rows.score.numel() + torch.arange(len(few), device=scores.device)
        self._position = position
        self._kernel = _Kernel(edges.repeat_interleave(nodes), inside, dtype)

    def of(self, weights: Tensor) -> Tensor:
        """(Y,) the sums for these (Y,) weights, of any sign."""
        rows = self._rows
        at_nodes = weights.new_zeros(self._count)
        if len(rows.panel):
            spread = matrix_vector(rows.basis, weights.index_select(0, rows.score.flatten()).view_as(rows.score))
            panels = weights.new_zeros(len(self._dense_node) // _ORDER, _ORDER).index_add_(0, rows.panel, spread)
            at_nodes[self._dense_node] = panels.flatten()
        at_nodes[self._own_node] = weights.index_select(0, self._own_score)
        sums = self._kernel.times(at_nodes)
        here = sums.index_select(0, self._own_node)
        if not len(rows.panel):
            return here.index_select(0, self._position)
        values = sums.index_select(0, self._dense_node).view(-1, _ORDER).index_select(0, rows.panel)
        there = (values.unsqueeze(-2) @ rows.basis).flatten()
        return torch.cat([there, here]).index_select(0, self._position)


@attrs.frozen(eq=False)
class _Rows:
    """The scores of crowded panels in rows of equal length, each row within one panel.

    Attributes:
        score: (K, L) which score stands there; where `basis` is 0 it is padding, and any will do.
        basis: (K, n, L) the n Lagrange polynomials of the row's panel at the score.
        panel: (K,) the row's panel, counted among the crowded ones.
        real: flat positions in `score` that are no padding.
    """

    score: Tensor
    basis: Tensor
    panel: Tensor
    real: Tensor

    @classmethod
    def of(cls, inside: Tensor, order: Tensor, counts: Tensor, dense: Tensor, dtype: torch.dtype) -> _Rows:
        """From the (Y,) places of the sorted scores in their panels, in [0, width), and the panels' sizes."""
        starts = (counts.cumsum(0) - counts)[dense]
        sizes = counts[dense]
        length = _row_length(sizes)
        rows_each = (sizes + length - 1) // length
        panel = torch.arange(len(sizes), device=order.device).repeat_interleave(rows_each)
        nth = torch.arange(len(panel), device=order.device) - (rows_each.cumsum(0) - rows_each)[panel]
        offset = nth.unsqueeze(-1) * length + torch.arange(length, device=order.device)
        real = offset < sizes[panel].unsqueeze(-1)
        index = torch.where(real, starts[panel].unsqueeze(-1) + offset, 0)
        basis = torch.empty(len(panel), _ORDER, length, dtype=dtype, device=order.device)
        for some in torch.arange(len(panel), device=order.device).split(max(1, 65_536 // length)):
            basis[some] = (_lagrange(inside[index[some]] * (2 / _WIDTH) - 1) * real[some].unsqueeze(-2)).to(dtype)
        return cls(order[index], basis, panel, torch.nonzero(real.flatten()).flatten())


def _panel_edge(scores: Tensor) -> Tensor:
    """The lower edge of the panel of each score; from 2^52 on every score is a panel of its own."""
    return torch.where(scores.abs() < 2**52, (scores / _WIDTH).floor() * _WIDTH, scores)


def _row_length(sizes: Tensor) -> int:
    """A power of two, about the mean size of a crowded panel: padding then is at most about what there is."""
    if not len(sizes):
        return 1
    mean = int(sizes.sum()) // len(sizes)
    return min(_ROW, 1 << max(mean - 1, 1).bit_length() - 1)


def _chebyshev(like: Tensor) -> Tensor:
    """(n,) the zeros of the Chebyshev polynomial, ascending in (-1, 1)."""
    k = torch.arange(_ORDER, dtype=torch.float64, device=like.device)
    return -((2 * k + 1) * math.pi / (2 * _ORDER)).cos()


def _lagrange(t: Tensor) -> Tensor:
    """(..., n, L) the Lagrange polynomials of the Chebyshev nodes at t (..., L) in [-1, 1], float64."""
    nodes = _chebyshev(t)
    k = torch.arange(_ORDER, dtype=torch.float64, device=t.device)
    # Through Chebyshev polynomials: no division by a distance that may be zero.
    at_nodes = (k.unsqueeze(-1) * nodes.clamp(-1, 1).acos()).cos()
    at_nodes[0] /= 2
    at_t = (k.unsqueeze(-1) * t.clamp(-1, 1).acos().unsqueeze(-2)).cos()
    return (2 / _ORDER) * (at_nodes.mT @ at_t)


class _Kernel:
    """Sums of the sigmoid between sorted points edge + inside, block of rows by block, within reach of it.

    Edges are multiples of the panels' width and subtract without rounding, so that scores around 1e6 lose no digits.
    """

    def __init__(self, edge: Tensor, inside: Tensor, dtype: torch.dtype) -> None:
        self._edge, self._inside, self._dtype = edge, inside, dtype
        x = edge + inside
        starts = torch.arange(0, len(x), _NODE_BLOCK, device=x.device)
        ends = (starts + _NODE_BLOCK).clamp_max(len(x))
        low = torch.searchsorted(x, x[starts] - _SATURATED)
        high = torch.searchsorted(x, x[ends - 1] + _SATURATED, right=True)
        self._blocks = torch.stack([starts, ends, low, high], dim=-1).tolist()
        self._kept: list[Tensor] = []
        room = _KEPT
        for block in self._blocks:
            room -= (block[1] - block[0]) * (block[3] - block[2])
            if room < 0:
                break
            self._kept.append(self._values(block))

    def times(self, weights: Tensor) -> Tensor:
        """(N,) the sums over all points, those far below counting 1 and those far above 0."""
        below = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
        sums = torch.empty_like(weights)
        for number, block in enumerate(self._blocks):
            start, end, low, high = block
            values = self._kept[number] if number < len(self._kept) else self._values(block)
            sums[start:end] = values @ weights[low:high] + below[low]
        return sums

    def _values(self, block: list[int]) -> Tensor:
        start, end, low, high = block
        far = self._edge[start:end].unsqueeze(-1) - self._edge[low:high]
        near = self._inside[start:end].unsqueeze(-1) - self._inside[low:high]
        return (far + near).sigmoid().to(self._dtype)
