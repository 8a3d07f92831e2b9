"""How loose is the theory: the tightest instance of each guarantee, searched for."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import attrs
import hypothesis
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from nlhf_zoo.drive import configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Guarantee, Solver
from nlhf_zoo.tabular.threads import one_thread
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip
from nlhf_zoo.testing.catalogue import PROPERTIES
from nlhf_zoo.testing.check import UNHURRIED
from nlhf_zoo.testing.hardest import hard_cases, near_equilibrium
from nlhf_zoo.testing.measure import Reading, heights, readings, recursion_readings
from nlhf_zoo.testing.play import Play
from nlhf_zoo.testing.shrinking import shrunk
from nlhf_zoo.testing.snippet import readings_snippet, snippet

__all__ = ["Tightness", "falsify"]


RESTARTS = 4
"""Searches a claim, each from a seed of its own: one that climbs the wrong hill does not decide."""


@attrs.frozen
class Tightness:
    """The worst that was found of one claim.

    Attributes:
        claim: what it is about.
        source: whose claim it is.
        games: how many the claim was tried on.
        ratio: the largest measured / bound. It tends to 1 by itself where little is claimed (a tiny beta) or
            little can move; `share` does not.
        share: the smallest log(measured / before) / log(bound / before), the rate achieved as a share of the rate
            claimed: 1 where some game attains the bound, below 1 where the claim is refuted, `None` where no rate
            is claimed.
        violated: whether rounding cannot explain what was measured above its bound: the claim is refuted.
        step: where the worst was measured: the violation, else the smallest share, else the largest ratio.
        instance: a program that plays that game, made small where the claim is refuted; it raises there, and prints
            the readings where it is not.
        seed: of the search.
    """

    claim: str
    source: str
    games: int
    ratio: float
    share: float | None
    violated: bool
    step: int
    instance: str | None
    seed: int


def falsify(solver: Solver | str, *, examples: int = 1000, seed: int = 0) -> tuple[Tightness, ...]:
    """Push each rated guarantee towards its worst game, by hill-climbing on the claimed rate that is missing.

    The known hardest games come first; then `RESTARTS` searches share the examples. A search that finds nothing
    proves nothing.

    Args:
        solver: an object, or a registered name with its default hyperparameters.
        examples: games a claim, not counting those that it says nothing about, unless nearly all are such.
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
        for claim, guarantee in enumerate(solver.guarantees):
            if guarantee.certainty != "sure":
                continue
            if guarantee.bound is not None:
                found.append(_Climb(solver, claim, False, examples, seed).run())
            if guarantee.recursion is not None:
                found.append(_Climb(solver, claim, True, examples, seed).run())
    return tuple(found)


@attrs.frozen
class _Worst:
    """One reading, the game that it comes from, and how bad it is: compared as a tuple, in this order."""

    violated: bool = False
    # Above 1e-12 nobody puts a violation down to rounding.
    plain: bool = False
    missing: float = -math.inf
    ratio: float = 0.0
    reading: Reading | None = attrs.field(default=None, eq=False)
    inputs: dict[str, Any] = attrs.field(factory=dict, eq=False)

    @property
    def rank(self) -> tuple[bool, bool, float, float]:
        return self.violated, self.violated and self.plain, self.missing, self.ratio


def _worst(reading: Reading, inputs: dict[str, Any]) -> _Worst:
    missing = -math.inf if reading.share is None else 1 - reading.share
    return _Worst(reading.violated, reading.measured > 1e-12, missing, reading.ratio, reading, inputs)


class _Climb:
    """One claim: whole runs against its bound, or single steps against its recursion."""

    def __init__(self, solver: Solver, claim: int, single: bool, examples: int, seed: int) -> None:
        self.solver, self.claim, self.single = solver, claim, single
        self.guarantee: Guarantee = solver.guarantees[claim]
        self.examples, self.seed = examples, seed
        self.games = 0
        self.ratio = 0.0
        self.share: float | None = None
        self.worst = _Worst()

    def inputs(self) -> st.SearchStrategy[dict[str, Any]]:
        if self.single:
            anywhere = strategies.cases(high=1000, steps=1, elsewhere=True)
            case = anywhere | near_equilibrium(high=1000, steps=(1, 2, 5, 20))
            return st.fixed_dictionaries({"case": case, "first_step": st.sampled_from([1, 2, 3, 6, 21, 101])})
        if self.guarantee.start == "reference":
            return st.fixed_dictionaries({"case": strategies.cases(high=100, steps=(1, 2, 3, 5, 20, 60))})
        anywhere = strategies.cases(high=100, steps=(1, 2, 3, 5, 20), elsewhere=True)
        return st.fixed_dictionaries({"case": anywhere | near_equilibrium(high=100, steps=(2, 1, 5, 20, 60))})

    def run(self) -> Tightness:
        for case in hard_cases(steps=20):
            if not self.worst.violated:  # the smallest that refutes is shown
                self._measure({"case": case, "first_step": 1} if self.single else {"case": case})
        each = max(1, self.examples // RESTARTS)
        for restart in range(RESTARTS if self.examples >= RESTARTS else 1):
            if not self.worst.violated and (self.games or not restart):
                self._search(each, self.seed + (restart << 32))
        if self.worst.violated:
            case = self.worst.inputs["case"]
            self.worst = shrunk(case, self._refuted_by(case) or self.worst, self._refuted_by)
        return Tightness(
            f"{self.guarantee.metric}, {self._of()}",
            self.guarantee.source,
            self.games,
            self.ratio,
            self.share,
            self.worst.violated,
            0 if self.worst.reading is None else self.worst.reading.step,
            self._program(),
            self.seed,
        )

    def _refuted_by(self, case: Case) -> _Worst | None:
        """The first step of this game that refutes the claim, as plainly as the worst does."""
        inputs = {**self.worst.inputs, "case": case}
        found = sorted(self._readings(inputs) or [], key=lambda reading: reading.measured <= 1e-12)
        first = next((reading for reading in found if reading.violated), None)
        one = None if first is None else _worst(first, inputs)
        return one if one is not None and (one.plain or not self.worst.plain) else None

    def _of(self) -> str:
        every = self.guarantee.every
        if self.single:
            return "each step" if every == 1 else f"each {every} steps"
        return f"{self.guarantee.iterate} iterate" + (f", every {every} steps" if every > 1 else "")

    def _search(self, examples: int, seed: int) -> None:
        settings = hypothesis.settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.target],
            suppress_health_check=UNHURRIED,
            print_blob=False,
        )

        def trial(inputs: dict[str, Any]) -> None:
            found = self._measure(inputs)
            if not found:
                hypothesis.reject()  # another game is drawn in its place
            for label, height in found.items():
                hypothesis.target(height, label=label)

        with contextlib.suppress(Unsatisfiable):  # a claim about games that are not drawn here
            hypothesis.seed(seed)(settings(hypothesis.given(self.inputs())(trial)))()

    def _program(self) -> str | None:
        worst = self.worst
        if worst.reading is None:
            return None
        begun = worst.inputs.get("first_step", 1)
        # A solver that remembers more than a policy begins at step 1, whatever it is asked.
        every = self.guarantee.every
        begun = begun if worst.reading.step >= begun and every == 1 else 1
        case = attrs.evolve(worst.inputs["case"], steps=(worst.reading.step - begun) // every + 1)
        inputs = {"case": case, "first_step": begun} if self.single else {"case": case}
        if not worst.violated:
            return readings_snippet(self.solver, self.claim, self.single, inputs)
        name = "each-step-meets-its-recursion" if self.single else f"{self.guarantee.iterate}-iterate-meets-its-bound"
        return snippet(self.solver, PROPERTIES[name], inputs)

    def _readings(self, inputs: dict[str, Any]) -> list[Reading] | None:
        """`None` where the claim says nothing of this game."""
        play = Play(self.solver, inputs["case"])
        try:
            if self.single:
                return recursion_readings(play, self.guarantee, inputs["first_step"])
            return readings(play, self.guarantee)
        except Skip:
            return None

    def _measure(self, inputs: dict[str, Any]) -> dict[str, float]:
        """Play one game, remember it if it is the worst, and say how high it stands."""
        found = self._readings(inputs)
        if found is None:
            return {}
        self.games += 1
        for reading in found:
            self.worst = max(self.worst, _worst(reading, inputs), key=lambda worst: worst.rank)
            self.ratio = max(self.ratio, reading.ratio)
            if reading.share is not None:
                self.share = reading.share if self.share is None else min(self.share, reading.share)
        return heights(found)
