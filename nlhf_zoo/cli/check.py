"""`nlhf-zoo check`: the conformance kit on one solver."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.cli.verb import Answer, Verb

if TYPE_CHECKING:
    from rich.console import Console

    from nlhf_zoo.interfaces import Solver
    from nlhf_zoo.testing import Report, Result, Tightness

__all__ = ["VERB"]


@attrs.frozen(kw_only=True)
class CheckOptions:
    """What to check, and how hard.

    Attributes:
        solver: registered name of a solver.
        solver_options: its hyperparameters, as `--set eta=0.2 kappa=0.1`.
        examples: games a property, on average.
        seed: of the games; the same seed gives the same report.
        only: names of the properties to try, separated by commas; all, unless given.
        falsify: push each declared bound towards its worst case instead, in four searches, and say how close
            they came to refuting it; ten times the examples a claim.
    """

    solver: str
    solver_options: Mapping[str, Any] = attrs.field(factory=dict)
    examples: int = 100
    seed: int = 0
    only: str | None = None
    falsify: bool = False


def run(options: CheckOptions) -> Answer:
    """Try every property that applies; the exit code is 1 where one failed."""
    from nlhf_zoo.cli.solvers import configured

    solver = configured(options.solver, options.solver_options)
    if options.falsify:
        return _falsified(solver, options)
    report = _checked(solver, options)
    document = {
        "solver": report.solver,
        "hyperparameters": attrs.asdict(solver),  # type: ignore[arg-type]  # every solver is an attrs class
        "passed": report.passed,
        "seed": options.seed,
        "examples": options.examples,
        "seconds": report.seconds,
        "results": [attrs.asdict(result) for result in report.results],
    }
    return Answer(document, lambda console: _show(report, console), code=0 if report.passed else 1)


def _checked(solver: Solver, options: CheckOptions) -> Report:
    from nlhf_zoo.cli.terminal import progress_bar
    from nlhf_zoo.testing import PROPERTIES, check_solver

    properties = None
    if options.only is not None:
        asked = [name.strip() for name in options.only.split(",")]
        properties = [dashed if (dashed := name.replace("_", "-")) in PROPERTIES else name for name in asked]
    with progress_bar(f"check {options.solver}", None) as move:

        def progress(name: str, done: int, total: int) -> None:
            if move is not None:
                move(done, total=total, title=name)

        def decided(result: Result) -> None:
            # Where nobody watches a bar, the lines come one by one; stdout gets the whole report in the end.
            if move is None:
                print(f"{result.name}: {result.status}", file=sys.stderr, flush=True)

        return check_solver(
            solver,
            examples=options.examples,
            seed=options.seed,
            properties=properties,
            progress=progress,
            decided=decided,
        )


def _falsified(solver: Solver, options: CheckOptions) -> Answer:
    from nlhf_zoo.testing import falsify

    claims = falsify(solver, examples=10 * options.examples, seed=options.seed)
    document = {
        "solver": solver.name,
        "hyperparameters": attrs.asdict(solver),  # type: ignore[arg-type]  # every solver is an attrs class
        "passed": not any(claim.violated for claim in claims),
        "seed": options.seed,
        "claims": [attrs.asdict(claim) for claim in claims],
    }
    return Answer(document, lambda console: _show_claims(claims, console), code=0 if document["passed"] else 1)


def _show_claims(claims: Sequence[Tightness], console: Console) -> None:
    from nlhf_zoo.cli.terminal import printable

    if not claims:
        console.print("the solver claims no rate of exact runs: nothing to push")
    for claim in claims:
        verdict = "REFUTED" if claim.violated else f"not refuted in {claim.games:,} games"
        rate = "" if claim.share is None else f"; smallest rate achieved {claim.share:.4f} of the claimed one"
        console.print(f"{claim.claim}: {verdict}; worst measured / bound {claim.ratio:.4f}{rate}")
        console.print(f"  claimed by {printable(claim.source)}")
        if claim.instance:
            which = "a game that refutes it" if claim.violated else "the game that comes closest"
            console.print(f"\n# {which} (step {claim.step}; search seed {claim.seed}):")
            console.print(printable(claim.instance))


def _show(report: Report, console: Console) -> None:
    from rich.text import Text

    from nlhf_zoo.cli.terminal import printable

    styles = {"passed": "green", "failed": "bold red", "not applicable": "dim"}
    width = max((len(result.name) for result in report.results), default=0)
    for result in report.results:
        detail = " ".join(result.detail.split())
        seed = f" (seed {result.seed})" if result.status == "failed" else ""
        line = Text(f"{result.name:<{width}}  ").append(f"{result.status:<14}", styles[result.status])
        console.print(line.append(f"  {printable(detail)}{seed}"))
    for result in report.results:
        if result.counterexample:
            console.print(f"\n# {result.name} fails on:\n{printable(result.counterexample)}")
    failed = sum(result.status == "failed" for result in report.results)
    passed = sum(result.status == "passed" for result in report.results)
    others = len(report.results) - failed - passed
    console.print(
        f"\n{report.solver}: {passed} passed, {failed} failed, {others} not applicable, {report.seconds:.1f} s"
    )


VERB = Verb(
    name="check",
    summary="test a solver: conduct, symmetries, and whether its bounds hold",
    description=(
        "One line a property: passed; failed, with the smallest counterexample as a program; or not applicable, with\n"
        "the reason. In a pipe stderr tells each as it is decided. Exit code 1 where one failed. Needs the extra\n"
        "nlhf-zoo[testing]."
    ),
    example="""\
  nlhf-zoo check nash_mp
  nlhf-zoo check nash_mp --only last-iterate-meets-its-bound --examples 1000
  nlhf-zoo check nash_md --set eta=0.5 --examples 20 --json
  nlhf-zoo check nash_mp --falsify
""",
    options=CheckOptions,
    run=run,
    flags={"solver_options": "--set"},
    positional="solver",
)
