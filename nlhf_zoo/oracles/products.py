"""Matrix times vector, batched, at the speed of the memory.

A payoff reads each entry of P once and multiplies it once, so nothing but the read counts. What was measured
(2 cores of an AMD EPYC, torch 2.13, numpy 2.4; `python -m benchmarks payoffs` repeats it):

- `torch.bmm` on a batch of matrix-vector products, which is what `matmul` and `einsum` come to, reads 2 to 5 GB/s
  where one core can read about 18; `(P * v).sum(-1)` writes a second P and reads 1 GB/s;
- `numpy.vecdot`, one BLAS dot product a row, reads what a core can read once rows have about 32 entries;
  `numpy.einsum` does on shorter rows, where a call a row costs too much;
- both let go of the interpreter lock, so as many threads as torch itself would use share the work;
- for one small game all of this is overhead, and `torch.mv` (1.3 microseconds) is not.

On a CUDA device the read is a kernel of our own, `nlhf_zoo/tabular/triton_kernels.py`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from nlhf_zoo.tabular.kernels import matrix_times_vector

__all__ = ["matrix_vector"]

_SHORT_ROW = 32
"""Entries of a row, below which einsum is the faster."""
_SMALL_MATRIX = 250_000
"""Entries of a single matrix, below which torch.mv is the faster."""
_WORTH_THREADS = 1 << 21
"""Bytes, below which handing work to another thread costs more than it saves."""
_PARTS_A_THREAD = 4
"""Small parts, so that a thread that is held up leaves little to wait for."""


def matrix_vector(matrix: Tensor, vector: Tensor) -> Tensor:
    """(..., M) matrix @ vector, equal to `matmul` up to rounding, and not dependent on the number of threads.

    Args:
        matrix: (..., M, N), any floating-point type and device.
        vector: (..., N) of the same type and device; leading dimensions broadcast against the matrix's.
    """
    if matrix.is_cuda and matrix.shape[:-2] == vector.shape[:-1]:
        product = matrix_times_vector(matrix, vector)
        if product is not None:
            return product
    if vector.ndim == 1 and matrix.ndim == 2 and (matrix.numel() < _SMALL_MATRIX or not _plain(matrix, vector)):
        return torch.mv(matrix, vector)
    if matrix.ndim == 2 and vector.ndim > 1:  # many vectors against one matrix: read once, a true matrix product
        return vector @ matrix.mT
    if not _plain(matrix, vector) or not _each_its_own(matrix, vector):
        return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
    return torch.from_numpy(_rows_times(matrix.numpy(), vector.numpy()))


def _plain(matrix: Tensor, vector: Tensor) -> bool:
    """Whether numpy may look at the same memory: on the CPU, of a type it has, and with no gradient to keep."""
    return (
        matrix.dtype == vector.dtype
        and matrix.dtype in (torch.float64, torch.float32)
        and matrix.device.type == vector.device.type == "cpu"
        and not (matrix.requires_grad or vector.requires_grad)
    )


def _each_its_own(matrix: Tensor, vector: Tensor) -> bool:
    """Whether every matrix meets one vector; where it meets several, reading it several times would be slower."""
    return torch.broadcast_shapes(matrix.shape[:-2], vector.shape[:-1]) == matrix.shape[:-2]


def _rows_times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    multiply = _by_einsum if matrix.shape[-1] < _SHORT_ROW else _by_dot_products
    vector = np.broadcast_to(vector, (*matrix.shape[:-2], matrix.shape[-1]))
    out = np.empty(matrix.shape[:-1], matrix.dtype)
    threads = torch.get_num_threads()
    if threads == 1 or matrix.nbytes < _WORTH_THREADS:
        multiply(matrix, vector, out)
        return out
    parts = collections.deque(_parts(threads * _PARTS_A_THREAD, matrix, vector, out))

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                multiply(*parts.popleft())

    helpers = [_pool(os.getpid(), threads).submit(work) for _ in range(threads - 1)]
    work()
    # A helper that never got a core (they are busy, or spinning in torch's own pool) is not waited for.
    for helper in helpers:
        if not helper.cancel():
            helper.result()
    return out


def _parts(count: int, matrix: np.ndarray, vector: np.ndarray, out: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """At most `count` equal parts: of the games, or of the rows where there are fewer games than parts."""
    by_game = matrix.ndim > 2 and len(matrix) >= count
    size = len(matrix) if by_game else matrix.shape[-2]
    edges = [size * i // count for i in range(count + 1)]
    cuts = [slice(a, b) for a, b in itertools.pairwise(edges) if a < b]
    if by_game:
        return [(matrix[cut], vector[cut], out[cut]) for cut in cuts]
    return [(matrix[..., cut, :], vector, out[..., cut]) for cut in cuts]


def _by_einsum(matrix: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    np.einsum("...ij,...j->...i", matrix, vector, out=out)


def _by_dot_products(matrix: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    np.vecdot(matrix, vector[..., None, :], out=out)


@functools.lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # Keyed by the process, because threads do not survive a fork and a pool without them waits for ever.
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="nlhf_zoo-payoff")
