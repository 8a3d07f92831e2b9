"""How loose is the theory: the tightest instance of each guarantee, searched for."""

from __future__ import annotations

from typing import Any

import attrs
import hypothesis
from hypothesis import Phase
from hypothesis import strategies as st

from nlhf_zoo.drive import configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Guarantee, Solver
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip
from nlhf_zoo.testing.catalogue import PROPERTIES
from nlhf_zoo.testing.check import UNHURRIED
from nlhf_zoo.testing.measure import Reading, readings, recursion_readings
from nlhf_zoo.testing.snippet import snippet
from nlhf_zoo.testing.threads import one_thread

__all__ = ["Tightness", "falsify"]


@attrs.frozen
class Tightness:
    """The worst that was found of one claim.

    Attributes:
        claim: what it is about.
        source: whose claim it is.
        games: how many the claim was tried on.
        ratio: the largest measured / bound; above 1 the claim is refuted, far below it is loose.
        violated: whether rounding cannot explain a ratio above 1.
        step: where the largest ratio was measured.
        instance: a program that plays the tightest game.
        seed: of the search.
    """

    claim: str
    source: str
    games: int
    ratio: float
    violated: bool
    step: int
    instance: str | None
    seed: int


def falsify(solver: Solver | str, *, examples: int = 1000, seed: int = 0) -> tuple[Tightness, ...]:
    """Push each rated guarantee towards its worst ratio of measured to bound, by hill-climbing over games.

    Args:
        solver: an object, or a registered name with its default hyperparameters.
        examples: games a claim.
        seed: the same seed finds the same.

    Returns:
        For each guarantee with a bound one entry, and one more where it bounds a single step. Empty where
        nothing with a rate is claimed of exact runs.

    Raises:
        BadInput: no such solver, or no examples.
    """
    if examples < 1:
        raise BadInput(f"a search needs at least 1 example, got {examples}")
    solver = configure(solver)
    found: list[Tightness] = []
    with one_thread():
        for guarantee in solver.guarantees:
            if guarantee.certainty != "sure":
                continue
            if guarantee.bound is not None:
                found.append(_Climb(solver, guarantee, False, examples, seed).run())
            if guarantee.recursion is not None:
                found.append(_Climb(solver, guarantee, True, examples, seed).run())
    return tuple(found)


class _Climb:
    """One claim: whole runs against its bound, or single steps against its recursion."""

    def __init__(self, solver: Solver, guarantee: Guarantee, single: bool, examples: int, seed: int) -> None:
        self.solver, self.guarantee, self.single = solver, guarantee, single
        self.examples, self.seed = examples, seed
        self.games = 0
        self.worst: tuple[float, Reading | None, dict[str, Any]] = (0.0, None, {})
        self.violated = False

    def inputs(self) -> st.SearchStrategy[dict[str, Any]]:
        if self.single:
            case = strategies.cases(high=1000, steps=1, elsewhere=True)
            return st.fixed_dictionaries({"case": case, "step": st.sampled_from([0, 1, 2, 5, 20, 100])})
        return st.fixed_dictionaries({"case": strategies.cases(high=100, steps=(1, 2, 3, 5, 20), elsewhere=True)})

    def run(self) -> Tightness:
        settings = hypothesis.settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.target],
            suppress_health_check=UNHURRIED,
            print_blob=False,
        )
        hypothesis.seed(self.seed)(settings(hypothesis.given(self.inputs())(self._try)))()
        ratio, reading, inputs = self.worst
        claim = f"{self.guarantee.metric}, {'each step' if self.single else f'{self.guarantee.iterate} iterate'}"
        name = "each-step-meets-its-recursion" if self.single else f"{self.guarantee.iterate}-iterate-meets-its-bound"
        program = snippet(self.solver, PROPERTIES[name], inputs) if inputs else None
        step = 0 if reading is None else reading.step
        return Tightness(claim, self.guarantee.source, self.games, ratio, self.violated, step, program, self.seed)

    def _try(self, inputs: dict[str, Any]) -> None:
        case: Case = inputs["case"]
        try:
            if self.single:
                found = recursion_readings(self.solver, self.guarantee, case, inputs["step"])
            else:
                found = readings(self.solver, self.guarantee, case)
        except Skip:
            return
        self.games += 1
        self.violated = self.violated or any(reading.violated for reading in found)
        tightest = max(found, key=lambda reading: reading.ratio)
        if tightest.ratio > self.worst[0]:
            self.worst = tightest.ratio, tightest, inputs
        hypothesis.target(min(tightest.ratio, 1e6), label="measured / bound")
