"""What a table computes on a CUDA device, where Triton is there: one kernel a payoff, one an improvement, one to carry.

Without Triton, without a compiler for it, or for a type that it is not written for, `None` comes back, and the caller
does the same in torch. Equal to it up to rounding.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["carried", "loaded", "matrix_times_vector", "reverse_kl_improvement"]

_TYPES = (torch.float64, torch.float32)
_LONGEST = 16_384
"""Responses whose row one program of the improvement holds in its registers."""
_MOST_ANCHORS = 3
_BYTES = 16_384
"""Of P that a program of the payoff reads at once: two or three of them fill a multiprocessor's queue of loads."""
_BLOCK_COLUMNS = 1024
_LONGEST_VECTOR = 65_536
"""Bytes that stay beside a multiprocessor while P goes by; with more, cuBLAS is the faster (an H200: 95 to 76 %)."""

_turns = itertools.cycle((0, 1))


def matrix_times_vector(matrix: Tensor, vector: Tensor) -> Tensor | None:
    """(..., M) of a matrix (..., M, N) and a vector (..., N) of the same leading dimensions, or `None`.

    Every other call begins at the end, where the last one stopped: as much of P as fits the cache is read from there.
    """
    if not _fit(matrix, vector) or not matrix.is_contiguous():
        return None
    if matrix.shape[-1] * matrix.element_size() > _LONGEST_VECTOR:
        return None
    kernels = loaded(matrix.device)
    if kernels is None:
        return None
    with torch.cuda.device(matrix.device):
        return launch_product(kernels, matrix, vector.contiguous(), next(_turns))


def launch_product(
    kernels: Any,
    matrix: Tensor,
    vector: Tensor,
    backwards: int,
    nbytes: int = _BYTES,
    most_columns: int = _BLOCK_COLUMNS,
    warps: int = 4,
) -> Tensor:
    """The product by the kernel itself; contiguous tensors. The other arguments change its speed alone."""
    rows, columns = matrix.shape[-2:]
    out = torch.empty(matrix.shape[:-1], dtype=matrix.dtype, device=matrix.device)
    block_columns = min(_power_of_two(columns), most_columns)
    most_rows = max(1, nbytes // (block_columns * matrix.element_size()))
    block_rows = min(_power_of_two(rows), most_rows)
    blocks = -(-rows // block_rows)
    programs = blocks * (out.numel() // rows)
    align = columns & -columns if columns % 16 else 16
    kernels.matrix_times_vector[(programs,)](
        matrix,
        vector,
        out,
        rows,
        columns // align,
        blocks,
        programs,
        backwards,
        ALIGN=align,
        BLOCK_ROWS=block_rows,
        BLOCK_COLUMNS=block_columns,
        PARTS=-(-columns // block_columns),
        num_warps=warps,
    )
    return out


def reverse_kl_improvement(payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]) -> Tensor | None:
    """(2, ..., Y) the exact improvement under the reverse KL, see `Divergence.improve`, and its exp; or `None`."""
    tables = [table for table, _ in anchors]
    if len(anchors) > _MOST_ANCHORS or payoff.shape[-1] > _LONGEST or not _fit(payoff, *tables):
        return None
    kernels = loaded(payoff.device)
    if kernels is None or not all(_is_row_or_whole(table, payoff) for table in tables):
        return None
    with torch.cuda.device(payoff.device):
        return launch_improvement(kernels, payoff.contiguous(), anchors)


def launch_improvement(
    kernels: Any, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]], entries_a_warp: int = 256
) -> Tensor:
    """The improvement, and its exponential, by the kernel itself; contiguous, anchors of the payoff's shape or (Y,)."""
    size = payoff.shape[-1]
    games = payoff.numel() // size
    total = sum(weight for _, weight in anchors)
    unused = _MOST_ANCHORS - len(anchors)
    tables = [*(table.contiguous() for table, _ in anchors), *[payoff] * unused]
    strides = [size if table.ndim == payoff.ndim else 0 for table in tables]
    shares = [*(_bits(weight / total) for _, weight in anchors), *[_bits(1.0)] * unused]
    out = payoff.new_empty((2, *payoff.shape))
    block = _power_of_two(size)
    block_games = max(1, 512 // block)
    kernels.reverse_kl[(-(-games // block_games),)](
        payoff,
        *tables,
        out,
        games,
        size,
        *strides,
        _bits(1 / total),
        *shares,
        ANCHORS=len(anchors),
        BLOCK_GAMES=block_games,
        BLOCK=block,
        num_warps=max(1, min(16, block * block_games // entries_a_warp)),
    )
    return out


def carried(target: Tensor, source: Tensor, seen: Tensor) -> None:
    """Copy, and make `seen` NaN in the games whose log-probabilities are no numbers; it keeps what it has seen before.

    Args:
        target: (..., Y) log-probabilities, or (2, ..., Y) these and the probabilities; so is `source`.
        seen: (...) of the same type.
    """
    fit = _fit(target, source, seen) and target.is_contiguous() and source.is_contiguous()
    kernels = loaded(target.device) if fit and source.numel() < 2**31 - 1024 else None  # it counts in 32 bits
    if kernels is not None:
        with torch.cuda.device(target.device):
            launch_carry(kernels, target, source, seen)
        return
    target.copy_(source)
    column = (source if source.ndim == seen.ndim + 1 else source[0])[..., 0]
    seen.masked_fill_(~(column < torch.inf), torch.nan)


def launch_carry(kernels: Any, target: Tensor, source: Tensor, seen: Tensor) -> None:
    """The same by the kernel itself; contiguous tensors."""
    count, block = source.numel(), 1024
    grid = (-(-count // block),)
    kernels.carry[grid](target, source, seen, count, source.shape[-1], seen.numel(), BLOCK=block, num_warps=4)


def _fit(*tensors: Tensor) -> bool:
    """Whether the kernels are written for these: floats of one type on one CUDA device, and no gradient to keep."""
    first = tensors[0]
    return (
        first.is_cuda
        and first.numel() > 0
        and first.dtype in _TYPES
        and all(t.dtype == first.dtype and t.device == first.device and not t.requires_grad for t in tensors)
    )


def _is_row_or_whole(table: Tensor, payoff: Tensor) -> bool:
    return table.shape in (payoff.shape, payoff.shape[-1:])


@functools.lru_cache(maxsize=8)
def loaded(device: torch.device) -> Any:
    """The module of the kernels, once all have run on this device; `None` where they cannot."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        from nlhf_zoo.tabular import triton_kernels

        row = torch.zeros(1, 2, dtype=torch.float64, device=device)
        with torch.cuda.device(device):
            launch_product(triton_kernels, row.new_zeros(1, 2, 2), row, 0)
            launch_improvement(triton_kernels, row, [(row, 1.0)])
            launch_carry(triton_kernels, torch.empty_like(row), row, row.new_zeros(1))
    except Exception:  # no C compiler for its launcher, a device or a driver it does not know: torch serves
        return None
    return triton_kernels


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _bits(number: float) -> int:
    return struct.unpack("<q", struct.pack("<d", number))[0]
