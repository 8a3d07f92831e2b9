"""What a solver claims of its own measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Guarantee, Solver
from nlhf_zoo.interfaces.guarantee import MEASURED, Affine, Bound
from nlhf_zoo.oracles.sampled import SampledOracle
from nlhf_zoo.tabular import TabularPolicy

__all__ = ["claimed", "speaks_of"]


def claimed(solver: Solver, game: Game, history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Measurement -> the bound at each row, where a guarantee of the last iterate speaks of this run.

    Of several guarantees of one metric the least bound counts. Exact runs are spoken of by what is sure, sampled
    ones by what is claimed of sampled ones; a claim is about exact tables, not about parametrised policies.

    Raises:
        BadInput: the guarantees raise, or a bound is no number.
    """
    try:
        return _claimed(solver, game, history)
    except Exception as error:  # a plugin is foreign code
        said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        raise BadInput(
            f"{solver.name}: its guarantees cannot be read: {said}; nlhf-zoo check {solver.name} shows where"
        ) from error


def _claimed(solver: Solver, game: Game, history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    if not isinstance(game.reference, TabularPolicy) or type(game.reference) is not TabularPolicy:
        return found
    for guarantee in solver.guarantees:
        if not speaks_of(guarantee, game):
            continue
        metric = MEASURED[guarantee.metric]
        if metric not in history[0]:
            continue
        assert guarantee.bound is not None
        counted = "step" if guarantee.per == "step" else "queries"
        counts = [row[counted] for row in history]
        values = _course(guarantee.bound, counts, game, float(history[0][metric]))
        if any(map(math.isnan, values)):
            raise BadInput(f"the bound by {guarantee.source!r} is no number in a game with beta = {game.beta:g}")
        found[metric] = list(map(min, values, found[metric])) if metric in found else values
    return found


def _course(bound: Bound, counts: Sequence[int], game: Game, initial: float) -> list[float]:
    if isinstance(bound, Affine):
        return bound.course(game, counts, initial)
    start = torch.tensor(initial, dtype=torch.float64)
    return [float(bound(n, game, start)) for n in counts]


def speaks_of(guarantee: Guarantee, game: Game) -> bool:
    """Whether a run of this game is measured by what the guarantee bounds."""
    sampled = isinstance(game.oracle, SampledOracle)
    return (
        guarantee.bound is not None
        and guarantee.target is None
        and guarantee.about is None
        and guarantee.every == 1
        and guarantee.iterate == "last"
        and guarantee.metric in MEASURED
        and (guarantee.certainty != "sure") == sampled
        and guarantee.holds(game)
    )
