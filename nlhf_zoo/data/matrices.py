"""The preference matrix: read from a file, made of counts, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from nlhf_zoo.data.matrix_formats import Table, read_table
from nlhf_zoo.errors import BadInput

__all__ = ["TOLERANCE", "PreferenceMatrix", "check_probabilities", "counts_to_probabilities", "read_matrix"]

TOLERANCE = 1e-6
"""How far rounding may take an entry out of [0, 1], a diagonal off 1/2 and a sum P + P^T off 1."""


@attrs.frozen(eq=False)
class PreferenceMatrix:
    """P(i > j) for Y responses, and what it was made of.

    Attributes:
        probabilities: (Y, Y) float64 in [0, 1]; P + P^T = 1 and the diagonal 1/2, exactly.
        labels: Y distinct names, or `None`.
        wins: (Y, Y) float64 times that i won over j, a tie counted half to each; `None` where the
            probabilities were given as such.
    """

    probabilities: Tensor
    labels: tuple[str, ...] | None = None
    wins: Tensor | None = None


def read_matrix(
    path: str | PathLike[str],
    *,
    smoothing: float = 0.5,
    kind: Literal["auto", "probabilities", "counts"] = "auto",
) -> PreferenceMatrix:
    """Read a preference matrix from csv, json (both also gzipped), npz, npy or parquet, told by the suffix.

    A csv holds a square of numbers, with or without a header of labels, with or without a first column that
    repeats them; or the long form, one row a compared pair, with columns `i, j, wins_i, wins_j` and
    optionally `name_i, name_j, ties`, where i and j count from 0. A parquet file holds either of the two
    (columns named "0" to "Y-1" mean no labels). An npz holds one array, called `probabilities` or `wins` or
    `counts` (under any other name, as in an npy, its kind is found out), and optionally `labels`. A json
    holds a nested list, or an object with the same keys.

    Args:
        path: the file.
        smoothing: s >= 0 in P = (W + s) / (W + W^T + 2 s), for counts only.
        kind: what a square of numbers is, where the file does not say so itself. "auto" takes it for counts
            if some entry is above 1, all are non-negative multiples of 1/2 and the diagonal is not 1/2
            throughout; otherwise for probabilities.

    Raises:
        BadInput: unreadable, not square, not numbers, not a preference matrix, labels that do not fit.
    """
    file = Path(path)
    if kind not in ("auto", "probabilities", "counts"):
        raise BadInput(f"kind must be auto, probabilities or counts, got {kind!r}")
    table = read_table(file)
    where = str(path)
    values = torch.from_numpy(table.values)
    _check_shape(values, where, table.labels)
    if _is_counts(table, values, kind, where):
        wins = _check_counts(values, where, table.labels)
        probabilities = counts_to_probabilities(wins, smoothing)
    else:
        wins, probabilities = None, values
        if bool(((values > 1 + TOLERANCE) & values.isfinite()).any()):
            where = f"{where} (read as probabilities; for win counts say kind=counts)"
    return PreferenceMatrix(check_probabilities(probabilities, where=where, labels=table.labels), table.labels, wins)


def counts_to_probabilities(wins: Tensor, smoothing: float = 0.5) -> Tensor:
    """P = (W + s) / (W + W^T + 2 s); a pair that was never compared is 1/2, the diagonal too.

    Args:
        wins: (..., Y, Y) non-negative counts, a tie counted half to each.
        smoothing: s, finite and >= 0; at 0 the plain share of wins.

    Returns:
        (..., Y, Y) float64.

    Raises:
        BadInput: a smoothing that is negative or not finite.
    """
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise BadInput(f"smoothing must be a finite number >= 0, got {smoothing}")
    wins = wins.to(torch.float64)
    total = wins + wins.mT + 2 * smoothing
    probabilities = torch.where(total > 0, (wins + smoothing) / total, 0.5)
    probabilities.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    return probabilities


def check_probabilities(
    matrix: Any, *, where: str = "preference matrix", labels: Sequence[str] | None = None
) -> Tensor:
    """The matrix as float64 with P + P^T = 1 and the diagonal 1/2 exactly, if it is so within `TOLERANCE`.

    Pairs that add up to exactly 1 in floating point keep their value to the last bit. Numbers of 16 bits (a model's
    scores) cannot be that near: of them what is allowed is the rounding of their type.

    Args:
        matrix: (..., Y, Y) tensor, array or nested list; one game or a batch.
        where: what to call it in an error (a file name).
        labels: Y distinct names.

    Returns:
        (..., Y, Y) float64 on the device of `matrix`, in [0, 1].

    Raises:
        BadInput: not numbers, not square, empty, not finite, outside [0, 1], diagonal not 1/2,
            P + P^T not 1, duplicate or miscounted labels; the first offending cell is named.
    """
    given = _as_tensor(matrix, where)
    p = given.to(torch.float64)
    near = max(TOLERANCE, torch.finfo(given.dtype).eps if given.dtype in (torch.float16, torch.bfloat16) else 0.0)
    _check_shape(p, where, labels)
    _refuse(p, ~p.isfinite(), where, labels, "is not a finite number; every pair needs a probability (1/2 if unknown)")
    outside = (
        "is outside [0, 1]; give probabilities of winning, which nlhf_zoo.data.counts_to_probabilities makes of counts"
    )
    _refuse(p, (p < -near) | (p > 1 + near), where, labels, outside)
    diagonal = p.diagonal(dim1=-2, dim2=-1)
    _refuse(p, torch.diag_embed((diagonal - 0.5).abs() > near), where, labels, "on the diagonal must be 0.5; set it so")
    total = p + p.mT
    _refuse(p, (total - 1).abs() > near, where, labels, "and its mirror must add up to 1", mirror=True)
    # With the lower triangle 1 - upper, the two add up to 1 exactly in float64 for every upper in [0, 1].
    upper = ((p + 1 - p.mT) / 2).clamp(0, 1).triu(1)
    mirrored = upper + (1 - upper).mT.tril(-1)
    kept = (total == 1) & (p >= 0) & (p <= 1)
    result = torch.where(kept, p, mirrored)
    result.diagonal(dim1=-2, dim2=-1).fill_(0.5)
    return result


def _as_tensor(matrix: Any, where: str) -> Tensor:
    if hasattr(matrix, "to_numpy"):  # names in it would be lost, and may be in two orders
        kind = type(matrix).__name__
        raise BadInput(f"{where}: a {kind}; give its .to_numpy(), and labels= as a list, in the order of its rows")
    try:
        # Nested lists hold Python's doubles; torch alone would round them to float32.
        tensor = torch.as_tensor(matrix, dtype=None if hasattr(matrix, "dtype") else torch.float64)
        if tensor.is_complex():
            raise TypeError("complex numbers")
        if tensor.layout != torch.strided:
            raise TypeError("a sparse tensor, which .to_dense() makes one of")
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInput(f"{where}: not a matrix of numbers ({reason}); give equally long rows of numbers") from None
    return tensor


def _check_shape(p: Tensor, where: str, labels: Sequence[str] | None) -> None:
    shape = " x ".join(map(str, p.shape))
    if p.ndim < 2:
        raise BadInput(f"{where}: a matrix has rows and columns, got {p.ndim} dimension(s); give a square")
    if p.numel() == 0:
        raise BadInput(f"{where}: the matrix is empty ({shape}); give at least one response")
    if p.shape[-1] != p.shape[-2]:
        raise BadInput(f"{where}: the matrix is not square ({shape}); give one row and one column a response")
    if labels is None:
        return
    if len(labels) != p.shape[-1]:
        raise BadInput(f"{where}: {len(labels)} labels for {p.shape[-1]} responses; give one a response")
    seen: dict[str, int] = {}
    for index, label in enumerate(labels):
        if label in seen:
            raise BadInput(
                f"{where}: the label {label!r} stands twice, at {seen[label] + 1} and {index + 1}; make labels distinct"
            )
        seen[label] = index


def _refuse(
    p: Tensor, bad: Tensor, where: str, labels: Sequence[str] | None, fault: str, *, mirror: bool = False
) -> None:
    if not bool(bad.any()):
        return
    *game, i, j = bad.nonzero()[0].tolist()
    pair = f"row {i + 1}, column {j + 1}" if labels is None else f"{labels[i]!r} > {labels[j]!r}"
    cell = f"game {tuple(game)}, {pair}" if game else pair
    value = f"{p[(*game, i, j)].item():.10g}"
    if mirror:
        other = p[(*game, j, i)].item()
        fault = f"{fault}, but the mirror is {other:.10g}; put 1 - {value} there, or mend {value}"
    raise BadInput(f"{where}: entry {value} at {cell} {fault}")


def _is_counts(table: Table, values: Tensor, kind: str, where: str) -> bool:
    if table.kind is not None:
        if kind not in ("auto", table.kind):
            raise BadInput(f"{where}: the file itself says that it holds {table.kind}, not {kind}; leave kind out")
        return table.kind == "counts"
    if kind != "auto":
        return kind == "counts"
    halves = bool((values >= 0).all()) and bool((2 * values == (2 * values).round()).all())
    if not halves or not bool((values > 1).any()) or bool((values.diagonal() == 0.5).all()):
        return False
    total = values + values.mT
    if bool((total == total[0, 0]).all()) and float(total[0, 0]) > 1:
        raise BadInput(
            f"{where}: every pair, and a response with itself, adds up to {float(total[0, 0]):g}: if these are"
            f" percentages, divide by {float(total[0, 0]):g}; if they are win counts, say kind=counts"
        )
    return True


def _check_counts(wins: Tensor, where: str, labels: Sequence[str] | None) -> Tensor:
    _refuse(wins, ~wins.isfinite(), where, labels, "is not a finite number; a win count is, 0 if never compared")
    _refuse(wins, wins < 0, where, labels, "is negative; a win count is not")
    # Comparisons of a response with itself say nothing about the game.
    return wins - torch.diag(wins.diagonal())
