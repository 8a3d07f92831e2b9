"""`check_solver`: every property that applies, tried; the smallest counterexample of each that fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal

import attrs
import hypothesis
from hypothesis import HealthCheck, Phase

import nlhf_zoo.testing.properties  # noqa: F401  # registers them
from nlhf_zoo.drive import configure
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Solver
from nlhf_zoo.tabular.threads import one_thread
from nlhf_zoo.testing.case import Case, Endless, Skip, Violation
from nlhf_zoo.testing.catalogue import PROPERTIES, Property
from nlhf_zoo.testing.snippet import snippet

__all__ = ["DEFAULT_EXAMPLES", "Report", "Result", "check_property", "check_solver"]

DEFAULT_EXAMPLES = 100
FIRST = "declares-itself"
"""The property without which no other makes sense."""

UNHURRIED = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
)
"""Hypothesis' complaints that say nothing of a solver: drawing a game may take long."""

Status = Literal["passed", "failed", "not applicable"]


@attrs.frozen
class Result:
    """What became of one property.

    Attributes:
        name: of the property.
        status: "passed", "failed" or "not applicable".
        detail: how many games were tried; or what was measured; or why the property does not apply.
        counterexample: where it failed, a program that shows it.
        seed: of the examples: the same seed finds the same.
    """

    name: str
    status: Status
    detail: str
    counterexample: str | None = None
    seed: int = 0


@attrs.frozen
class Report:
    """What `check_solver` found: one result a property, in the order in which they were tried."""

    solver: str
    results: tuple[Result, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no property failed."""
        return all(result.status != "failed" for result in self.results)

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)


def check_solver(
    solver: Solver | str,
    *,
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    properties: Iterable[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    decided: Callable[[Result], None] | None = None,
    shrink: bool = True,
) -> Report:
    """Try every named property on a solver, on games that hypothesis draws and on the known hardest.

    Where the solver does not even complete three steps of a plain game (`declares-itself`), nothing after it is tried.

    Args:
        solver: an object, or a registered name with its default hyperparameters.
        examples: games a property, on average; the effort scales with it.
        seed: of the games. The same seed gives the same report, seconds aside.
        properties: names of those to try; all, unless given.
        progress: called before each property with its name, how many are done, and how many there are.
        decided: called with each result as soon as it is known.
        shrink: whether to make counterexamples small, which may take seconds each.

    Raises:
        BadInput: no such solver or property, or no examples.
    """
    if examples < 1:
        raise BadInput(f"a check needs at least 1 example, got {examples}")
    solver = configure(solver)
    names = list(PROPERTIES if properties is None else properties)
    unknown = [name for name in names if name not in PROPERTIES]
    if unknown:
        raise BadInput(f"no property named {unknown[0]!r}; known are {', '.join(PROPERTIES)}")
    begun = time.perf_counter()
    results: list[Result] = []
    for done, name in enumerate(names):
        if progress is not None:
            progress(name, done, len(names))
        misfit = next((r for r in results if r.name == FIRST and r.status == "failed"), None)
        if misfit is None:
            results.append(check_property(solver, name, examples=examples, seed=seed, shrink=shrink))
        else:
            results.append(Result(name, "not applicable", f"not tried, because {FIRST} failed", seed=seed))
        if decided is not None:
            decided(results[-1])
    return Report(getattr(solver, "name", type(solver).__name__), tuple(results), time.perf_counter() - begun)


def check_property(
    solver: Solver, name: str, *, examples: int = DEFAULT_EXAMPLES, seed: int = 0, shrink: bool = True
) -> Result:
    """Try one named property on a solver."""
    prop = PROPERTIES[name]
    exempt = getattr(solver, "exempt", {}).get(name)
    if exempt:
        return Result(name, "not applicable", f"exempt, in the solver's own words: {exempt}", seed=seed)
    try:
        reason = prop.applies(solver)
        if reason is not None:
            return Result(name, "not applicable", reason, seed=seed)
        if prop.inputs is None:
            prop.holds(solver)
            return Result(name, "passed", "declaration", seed=seed)
    except Exception as error:
        return Result(name, "failed", _words(error), snippet(solver, prop, {}), seed=seed)
    search = _Search(solver, prop, max(1, round(examples * prop.share)), seed, shrink)
    with one_thread():
        return search.run()


def _words(error: Exception) -> str:
    if isinstance(error, Violation):
        return str(error)
    # attrs' validators put the whole field into further arguments.
    said = str(error.args[0] if len(error.args) > 1 else error)
    return f"it raised {type(error).__name__}: {(said.splitlines() or [''])[0]}"


class _NoSmaller(BaseException):  # no Exception, so that hypothesis lets it through and does not shrink
    """The failure at hand will do."""


class _Search:
    """One property on one solver: the examples, what was skipped, and the last failure, which is the smallest."""

    def __init__(self, solver: Solver, prop: Property, examples: int, seed: int, shrink: bool) -> None:
        self.solver, self.prop, self.examples, self.seed, self.shrink = solver, prop, examples, seed, shrink
        self.tried = 0
        self.skipped: Counter[str] = Counter()
        self.failure: tuple[dict[str, Any], str] | None = None

    def run(self) -> Result:
        assert self.prop.inputs is not None
        phases = [Phase.generate, Phase.target] + ([Phase.shrink] if self.shrink else [])
        settings = hypothesis.settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=phases,
            suppress_health_check=UNHURRIED,
            report_multiple_bugs=False,
            print_blob=False,
        )
        name, seed = self.prop.name, self.seed
        trial = hypothesis.seed(seed)(settings(hypothesis.given(self.prop.inputs())(self._trial)))
        try:
            trial()
            for inputs in self.prop.fixed():
                self._trial(inputs)
        except (Violation, _NoSmaller) as stop:
            assert self.failure is not None
            inputs, words = self.failure if isinstance(stop, _NoSmaller) else self._cut(*self.failure)
            return Result(name, "failed", words, snippet(self.solver, self.prop, inputs), seed)
        if not self.tried:
            reason = self.skipped.most_common(1)[0][0]
            return Result(name, "not applicable", f"in no game of {sum(self.skipped.values())}: {reason}", seed=seed)
        skipped = sum(self.skipped.values())
        detail = f"{self.tried} games" + (f", and {skipped} that it says nothing about" if skipped else "")
        return Result(name, "passed", detail, seed=seed)

    def _cut(self, inputs: dict[str, Any], words: str) -> tuple[dict[str, Any], str]:
        """The failure, begun at step 1 if it shows there too, and run no further than to the step that shows it."""
        if inputs.get("first_step", 1) > 1:
            inputs, words = self._instead({**inputs, "first_step": 1}, inputs, words)
        case, step = inputs.get("case"), Violation(words).step
        steps = step - inputs.get("first_step", 1) + 1 if step else 0
        if isinstance(case, Case) and 1 <= steps < case.steps:
            inputs, words = self._instead({**inputs, "case": attrs.evolve(case, steps=steps)}, inputs, words)
        return inputs, words

    def _instead(self, simpler: dict[str, Any], inputs: dict[str, Any], words: str) -> tuple[dict[str, Any], str]:
        try:
            self.prop.holds(self.solver, **simpler)
        except Violation as violation:
            return simpler, str(violation)
        except Exception:  # another failure than the one at hand
            pass
        return inputs, words

    def _trial(self, inputs: dict[str, Any]) -> None:
        try:
            self.prop.holds(self.solver, **inputs)
            self.tried += 1
        except Skip as skip:
            self.skipped[str(skip)] += 1
        except Exception as error:
            # One kind of failure, raised in one place: hypothesis then shrinks across causes.
            self.failure = inputs, _words(error)
            if isinstance(error, Endless):
                raise _NoSmaller from None
            failure = Violation(self.failure[1])
        else:
            return
        if self.failure is not None and self.failure[0] is inputs:
            raise failure from None  # type: ignore[possibly-undefined]
