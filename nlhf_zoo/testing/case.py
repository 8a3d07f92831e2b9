"""One game and how to play it, as plain numbers: small, printable, and the same tomorrow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import attrs
import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle, Game
from nlhf_zoo.oracles import MatrixOracle, SampledOracle
from nlhf_zoo.tabular import EXACT, NotConverged, TabularPolicy, find_equilibrium

__all__ = ["Case", "Skip", "Violation"]


class Violation(AssertionError):
    """A property does not hold; the message says what was measured against what was due."""

    @property
    def step(self) -> int | None:
        """The number of the step that the message begins with, as in "step 3: ..."; `None` where it names none."""
        named = re.match(r"step (\d+)\b", str(self))
        return int(named[1]) if named else None


class Endless(Violation):
    """A step that does not end; costly to run into, so that nothing looks for a smaller one."""


class Skip(Exception):  # not an error: the property says nothing about this case
    """The property says nothing about this case; the message is the reason."""


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in value)


def _rows(value: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(_numbers(row) for row in value)


@attrs.frozen
class Case:
    """A game, a start, and a number of steps.

    Attributes:
        matrix: Y rows of Y preferences P(i > j).
        reference: Y log-weights of the reference, up to a constant.
        beta: the regularisation.
        steps: how far to run.
        start: Y log-weights of the first policy, up to a constant; `None` is the reference.
        nearby: whether `start` is counted from the game's equilibrium, log pi_0 = log pi* + start: where a step
            that is too long shows first.
        seed: of all randomness.
        comparisons: of a sampled oracle, each response; 0 is the exact oracle.
    """

    matrix: tuple[tuple[float, ...], ...] = attrs.field(converter=_rows)
    reference: tuple[float, ...] = attrs.field(converter=_numbers)
    beta: float = 0.1
    steps: int = 1
    start: tuple[float, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(_numbers))
    seed: int = 0
    comparisons: int = 0
    nearby: bool = False

    @property
    def size(self) -> int:
        """Y, the number of responses."""
        return len(self.reference)

    def oracle(self) -> EnumerableOracle:
        """A fresh oracle, its count at zero."""
        oracle = MatrixOracle(torch.tensor(self.matrix, dtype=torch.float64))
        return SampledOracle(oracle, self.comparisons) if self.comparisons else oracle

    def game(self) -> Game:
        """A fresh game; nothing of it is shared with another call."""
        return Game(self.oracle(), table(self.reference), self.beta)

    def first(self) -> TabularPolicy:
        """The policy to start at.

        Raises:
            Skip: it is counted from the equilibrium, and none was found.
        """
        if self.start is None or not self.nearby:
            return table(self.reference if self.start is None else self.start)
        try:
            equilibrium = find_equilibrium(self.game(), EXACT).policy.log_probs
        except (NotConverged, BadInput) as failure:
            raise Skip(f"no equilibrium to start near: {failure}") from None
        return TabularPolicy(equilibrium + torch.tensor(self.start, dtype=torch.float64))


def table(log_weights: Sequence[float]) -> TabularPolicy:
    """The policy with these log-weights, in float64."""
    return TabularPolicy(torch.tensor(log_weights, dtype=torch.float64))
