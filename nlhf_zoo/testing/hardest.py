"""The games on which a step that is too long shows first, and where to start in them.

Close to the equilibrium a step is a linear map of log pi - log pi*. A skew payoff gives it eigenvalues on the
imaginary axis, of size up to Y / pi for strong odd cycles, the largest that preferences in [0, 1] can have; there a
scheme that is merely too bold turns outwards, while far away, or at large beta, it seems to keep its promise.
"""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from nlhf_zoo.testing.case import Case
from nlhf_zoo.testing.strategies import MODERATE, betas, matrices, references

__all__ = ["CYCLES", "cycle", "hard_cases", "near_equilibrium", "ripple"]

CYCLES = (3, 5, 7, 15)
"""Sizes of the cycles: from 15 on, more responses make them no harder by more than a percent."""
_BETAS = (0.05, 1e-3)


def cycle(size: int, strength: float = 0.5) -> list[list[float]]:
    """`size` responses in a circle, `size` odd: each beats the next (size - 1) / 2 by 1/2 + strength; 3 is
    rock-paper-scissors at strength 1/2."""

    def margin(ahead: int) -> float:
        return 0.0 if not ahead else strength if 2 * ahead <= size else -strength

    return [[0.5 + margin((j - i) % size) for j in range(size)] for i in range(size)]


def ripple(size: int, amplitude: float = 0.01, turn: float = 0.0) -> list[float]:
    """amplitude cos(2 pi i / size - turn) for the responses i: the slowest direction of a cycle, to four digits."""
    digits = 3 - math.floor(math.log10(amplitude))
    return [round(amplitude * math.cos(2 * math.pi * i / size - turn), digits) + 0.0 for i in range(size)]


def hard_cases(steps: int) -> list[Case]:
    """The known hardest, always tried, the smallest first: strong cycles, near their uniform equilibrium."""
    return [
        Case(matrix=cycle(size), reference=[0.0] * size, beta=beta, steps=steps, start=ripple(size))
        for size in CYCLES
        for beta in _BETAS
    ]


@st.composite
def near_equilibrium(
    draw: DrawFn, *, low: float = 1e-4, high: float = 10.0, steps: tuple[int, ...] = (2, 1, 5, 20)
) -> Case:
    """Starts close to the equilibrium: of strong odd cycles, mostly, and of games of every moderate kind."""
    beta, steps_taken = draw(betas(low, high)), draw(st.sampled_from(steps))
    amplitude = draw(st.sampled_from([0.01, 0.1, 0.001, 1.0]))
    # The equilibrium of a cycle under the uniform reference is uniform, and starts near it are plain numbers.
    uniform = draw(st.sampled_from([True, True, False]))
    if uniform:
        size = draw(st.sampled_from(CYCLES))
        matrix = cycle(size, draw(st.sampled_from([0.5, 0.5, 0.4, 0.25])))
        reference = [0.0] * size
    else:
        matrix = draw(matrices((3, 4, 5, 6), MODERATE))
        size = len(matrix)
        reference = draw(references(size, deepest=2))
    if draw(st.booleans()):
        start = [level * amplitude / 10 for level in draw(st.lists(st.integers(-10, 10), min_size=size, max_size=size))]
        start = [round(x, 6) + 0.0 for x in start]
    else:
        start = ripple(size, amplitude, draw(st.sampled_from([0.0, math.pi / 2])))
    return Case(matrix, reference, beta, steps_taken, start, nearby=not uniform)
