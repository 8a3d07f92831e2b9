"""The conformance kit itself: what it finds, how small, how repeatably, and what it says where it cannot."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_zoo import BadInput, Guarantee, Solver, Update, linear_rate
from nlhf_zoo.drive import configure
from nlhf_zoo.metrics import span
from nlhf_zoo.registry import load, solvers
from nlhf_zoo.tabular import EXACT, find_equilibrium
from nlhf_zoo.testing import (
    PROPERTIES,
    Case,
    Skip,
    Violation,
    check_property,
    check_solver,
    conformance_test,
    cycle,
    falsify,
    measured,
    properties,
    strategies,
)
from nlhf_zoo.testing.hardest import near_equilibrium, ripple
from nlhf_zoo.testing.measure import Reading, readings
from nlhf_zoo.testing.play import Play
from nlhf_zoo.testing.shrinking import shrunk
from nlhf_zoo.testing.snippet import snippet
from nlhf_zoo.testing.statistics import FALSE_ALARM, expectation_refuted, probability_refuted
from tests.mutants import MP, MUTANTS, ClaimsALargerStepThanIsTrue, UniformInsteadOfReference

pytest_plugins = ["pytester"]

FIRST_PARTY = [name for name, entry in load().solvers.items() if entry.distribution == "nlhf-zoo"]
RPS = Case(matrix=[[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], reference=[0.0, -1.0, -2.0], steps=4)


# The known hardest games are tried whatever the number of examples.
@pytest.mark.parametrize("examples", [4, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FIRST_PARTY)
def test_first_party_solvers_pass(name: str, examples: int) -> None:
    report = check_solver(name, examples=examples)
    assert report.passed, [(r.name, r.detail) for r in report.results if r.status == "failed"]
    assert [r.name for r in report.results] == list(PROPERTIES)
    on_tables = "table" in solvers()[name].backends
    assert (report["stays-normalised-and-finite"].status == "passed") == on_tables


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hyperparameters"),
    [
        ("nash_mp", {"kappa": 0.3, "eta": 0.5}),
        ("nash_mp", {"eta": 0.01}),
        ("nash_md", {"eta": 0.09}),
        ("nash_md", {"eta": 0.05}),
        ("online_ipo", {"eta": 0.05}),
        ("exact_prox", {"eta": 1.0}),
    ],
)
def test_first_party_solvers_pass_at_other_hyperparameters(name: str, hyperparameters: dict[str, float]) -> None:
    report = check_solver(configure(name, **hyperparameters), examples=40)
    assert report.passed, [(r.name, r.detail) for r in report.results if r.status == "failed"]


def test_a_counterexample_is_small_and_round() -> None:
    result = check_property(UniformInsteadOfReference(), "target-is-a-fixed-point")
    assert result.status == "failed"
    assert result.counterexample is not None
    found = _inputs(result.counterexample)["case"]
    assert found.size == 2
    assert found.beta == 1.0
    assert found.steps == 1
    assert all(round(x, 2) == x for row in found.matrix for x in row)


def _inputs(program: str) -> dict[str, Any]:
    # The last line raises; all before it makes the inputs.
    scope: dict[str, Any] = {}
    exec(program.rpartition("properties.")[0], scope)
    return scope


@pytest.mark.parametrize(
    "name", ["BetaHalved", "FavoursTheFirstResponse", "BatchUsesTheFirstReference", "HalfForgotten"]
)
def test_a_counterexample_is_a_program_that_raises(name: str) -> None:
    solver, prop = MUTANTS[name]
    result = check_property(solver, prop, examples=30)
    assert result.counterexample is not None
    with pytest.raises(Violation) as raised:
        exec(result.counterexample, {})
    assert str(raised.value) == result.detail


def test_a_report_is_the_same_for_the_same_seed() -> None:
    names = ["each-step-meets-its-recursion", "counts-every-query", "twins-share-their-mass"]
    one, two = (check_solver(MP(), examples=15, seed=7, properties=names) for _ in range(2))
    assert one.results == two.results
    broken = [check_property(MUTANTS["BetaFixed"][0], MUTANTS["BetaFixed"][1], seed=3) for _ in range(2)]
    assert broken[0] == broken[1]


def test_progress_is_told_for_each_property() -> None:
    told: list[tuple[str, int, int]] = []
    names = list(PROPERTIES)[:3]
    check_solver(MP(), examples=2, properties=names, progress=lambda *step: told.append(step))
    assert told == [(name, i, 3) for i, name in enumerate(names)]


def test_bad_input_is_one_line() -> None:
    calls: list[Callable[[], object]] = [
        lambda: check_solver("nash_pm"),
        lambda: check_solver("nash_mp", examples=0),
        lambda: check_solver("nash_mp", properties=["is-nice"]),
        lambda: falsify("nash_mp", examples=0),
        lambda: Guarantee(metric="kl", bound=None, certainty="probability", source="x"),
    ]
    for call in calls:
        with pytest.raises(BadInput) as raised:
            call()
        assert len(str(raised.value).splitlines()) == 1


def test_a_class_that_is_not_decorated_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgot(Solver):
        name = "forgot"

        def propose(self, game: Any, state: Any) -> Any: ...

        def accept(self, game: Any, state: Any, outcome: Any) -> Any: ...

    monkeypatch.setattr("nlhf_zoo.drive.lookup", lambda kind, name: Forgot)
    with pytest.raises(BadInput, match=r"forgot: its class Forgot .* decorate it with @attrs.frozen"):
        configure("forgot")


def test_a_value_out_of_range_is_told_in_short() -> None:
    @attrs.frozen
    class Misspelt(MP):
        @property
        def guarantees(self) -> tuple[Guarantee, ...]:
            return (Guarantee(metric="klx", bound=None, source="a test"),)  # type: ignore[arg-type]

    result = check_property(Misspelt(), "declares-itself")
    assert "'metric' must be in" in result.detail
    assert "Attribute(" not in result.detail


def test_what_does_not_apply_says_why() -> None:
    report = check_solver(
        configure("nash_mp", kappa=0.3),
        examples=2,
        properties=["last-iterate-meets-its-bound", "loss-is-antisymmetric", "follows-its-formula"],
    )
    assert [r.status for r in report.results] == ["not applicable"] * 3
    assert report["last-iterate-meets-its-bound"].detail.startswith("the solver declares no guarantee: with kappa")


@attrs.frozen
class Picky(MP):
    """Refuses all games but those with beta = 0.1, and is exempt, in writing, from one property."""

    exempt: ClassVar[dict[str, str]] = {"twins-share-their-mass": "its partners are drawn uniformly, twins count twice"}

    def init(self, game, policy):
        if game.beta != 0.1:
            raise BadInput("beta must be 0.1")
        return super().init(game, policy)


def test_a_refused_game_is_no_failure_and_an_exemption_is_shown() -> None:
    assert check_property(Picky(), "stays-normalised-and-finite", examples=40).status == "passed"
    refused = check_property(Picky(), "large-beta-gives-the-reference", examples=5)
    assert refused.status == "not applicable"
    assert "beta must be 0.1" in refused.detail
    assert "twins count twice" in check_property(Picky(), "twins-share-their-mass").detail


@attrs.frozen
class Noisy(Solver):
    """Mirror steps of 1/k on sampled payoffs, with a claim about their distance at the end."""

    name = "noisy"
    summary = "sampled self-play with a decaying step"
    allowed: float = 1.0
    certainty: str = "expectation"

    @property
    def guarantees(self):
        delta = 0.1 if self.certainty == "probability" else 0.0

        def bound(n, game, initial=None):
            return torch.tensor(self.allowed, dtype=torch.float64)

        return (
            Guarantee(metric="kl", bound=bound, certainty=self.certainty, delta=delta, source="made up"),  # type: ignore[arg-type]
        )

    def propose(self, game, state):
        weight = game.beta * (state.step + 1)
        return Update(
            start=state.current, opponent=state.current, anchors=[(game.reference, game.beta), (state.current, weight)]
        )

    def accept(self, game, state, outcome):
        return state.next(current=outcome.policy)


@pytest.mark.parametrize("certainty", ["expectation", "probability"])
def test_a_claim_under_sampling_is_refuted_or_stands(certainty: str) -> None:
    wide, tight = Noisy(50.0, certainty), Noisy(1e-7, certainty)
    assert check_property(wide, "sampled-runs-meet-their-bound", examples=20).status == "passed"
    refuted = check_property(tight, "sampled-runs-meet-their-bound", examples=20, shrink=False)
    assert refuted.status == "failed"
    assert "the chance of this is" in refuted.detail
    assert check_property(tight, "last-iterate-meets-its-bound").status == "not applicable"


def test_statistical_tests_hold_their_level() -> None:
    """2,000 samples under a true claim, at a level of 5%: between 2% and 8% alarms (4 standard errors)."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 40, generator=generator, dtype=torch.float64) + 1
    rate = sum(expectation_refuted(row.tolist(), 1.0) < 0.05 for row in normal) / 2000
    assert 0.02 < rate < 0.08
    skewed = torch.randn(2000, 40, generator=generator, dtype=torch.float64).square()
    assert sum(expectation_refuted(row.tolist(), 1.0) < 0.05 for row in skewed) / 2000 < 0.05
    assert probability_refuted(0, 40, 0.1) == 1.0
    assert probability_refuted(4, 40, 0.1) > 0.4
    assert probability_refuted(25, 40, 0.1) < FALSE_ALARM


@attrs.frozen
class Averaging(MP):
    """Claims of the average iterate what holds of the last one."""

    @property
    def guarantees(self):
        return tuple(attrs.evolve(g, iterate="average", recursion=None) for g in super().guarantees)


def test_average_and_last_iterate_are_told_apart() -> None:
    assert check_property(Averaging(), "last-iterate-meets-its-bound").status == "not applicable"
    assert check_property(Averaging(), "average-iterate-meets-its-bound").status == "failed"


def test_a_bound_per_query_counts_queries() -> None:
    per_query = attrs.evolve(
        MP().guarantees[0], per="query", bound=lambda n, game, initial=None: torch.tensor(float(n))
    )
    found = readings(Play(MP(), attrs.evolve(RPS, start=[0.0, 0.0, 0.0])), per_query)
    assert [reading.bound for reading in found] == [2.0, 4.0, 6.0, 8.0]


def test_a_guarantee_from_the_reference_is_not_tried_elsewhere() -> None:
    at_home = attrs.evolve(MP().guarantees[0], start="reference")
    assert readings(Play(MP(), RPS), at_home)
    with pytest.raises(Skip):
        readings(Play(MP(), attrs.evolve(RPS, start=[0.0, 0.0, 0.0])), at_home)


def test_falsify_refutes_a_false_claim_and_measures_a_true_one() -> None:
    true, step, _ = falsify("nash_mp", examples=60, seed=1)
    assert not true.violated
    assert 0.8 < true.ratio <= 1
    assert step.claim == "kl, each step"
    (false,) = falsify(MUTANTS["ClaimsTwiceTheRate"][0], examples=60)
    assert false.violated
    assert false.ratio > 1
    assert falsify("f_dpo", examples=5) == ()


@pytest.mark.parametrize("name", ["online_dpo", "spo"])  # of Bradley-Terry games alone; of runs from the reference
def test_the_search_counts_games_that_the_claim_speaks_of(name: str) -> None:
    assert all(claim.games >= 24 for claim in falsify(name, examples=24))


def test_a_claim_about_no_game_that_is_drawn_is_tried_on_none() -> None:
    @attrs.frozen
    class OfNoGame(MP):
        @property
        def guarantees(self) -> tuple[Guarantee, ...]:
            return (attrs.evolve(MP().guarantees[0], recursion=None, holds=lambda game: False),)

    (claim,) = falsify(OfNoGame(), examples=4)  # type: ignore[abstract]
    assert (claim.games, claim.violated, claim.instance) == (0, False, None)


@pytest.mark.parametrize("seed", [0, 3])
def test_falsify_refutes_a_step_that_is_a_little_too_long(seed: int) -> None:
    claims = falsify(MUTANTS["ClaimsALargerStepThanIsTrue"][0], examples=20, seed=seed)
    assert [claim.violated for claim in claims] == [True, True]
    for claim in claims:
        assert claim.share is not None
        assert claim.share < 1
        assert claim.instance is not None
        with pytest.raises(Violation) as raised:
            exec(claim.instance, {})
        assert str(raised.value).startswith(f"step {claim.step}:")


def test_the_search_alone_refutes_it_without_the_known_hardest_games(monkeypatch: pytest.MonkeyPatch) -> None:
    @attrs.frozen
    class OfStepsAlone(ClaimsALargerStepThanIsTrue):
        @property
        def guarantees(self) -> tuple[Guarantee, ...]:
            return tuple(
                attrs.evolve(claim, bound=None, limit="open") for claim in ClaimsALargerStepThanIsTrue().guarantees
            )

    monkeypatch.setattr("nlhf_zoo.testing.tightness.hard_cases", lambda steps: [])
    (claim,) = falsify(OfStepsAlone(), examples=1000)  # type: ignore[abstract]
    assert claim.violated


def test_nothing_is_gained_where_nothing_is_claimed_to_move() -> None:
    """As beta -> 0 measured / bound tends to 1 by itself; the share of the claimed rate does not."""
    case = attrs.evolve(RPS, reference=[0.0] * 3, beta=1e-4, steps=1, start=[0.0, -0.1, -0.3])
    (reading,) = measured(MP(), case)
    assert 0.5 < reading.ratio < 1
    assert reading.share is not None
    assert reading.before is not None
    assert reading.share > 100
    shrunk, allowed = reading.measured / reading.before, reading.bound / reading.before
    assert reading.share == pytest.approx(math.log(shrunk) / math.log(allowed), rel=1e-6)


def test_the_closest_instance_prints_its_readings(capsys: pytest.CaptureFixture[str]) -> None:
    for claim in falsify("nash_mp", examples=20):
        assert claim.instance is not None
        exec(claim.instance, {})
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"step {claim.step}: ")]
        assert any(f"{claim.share:.6g} of the claimed rate" in line for line in lines)


def test_one_numbering_of_steps_and_no_step_after_the_failure() -> None:
    result = check_property(MUTANTS["StopsAfterTwentySteps"][0], "each-step-meets-its-recursion")
    assert result.counterexample is not None
    inputs = _inputs(result.counterexample)
    assert result.detail.startswith(f"step {inputs['first_step'] + inputs['case'].steps - 1}:")
    assert inputs["first_step"] > 20
    late = check_property(MUTANTS["StopsAfterTwentySteps"][0], "last-iterate-meets-its-bound")
    assert late.counterexample is not None
    assert late.detail.startswith(f"step {_inputs(late.counterexample)['case'].steps}:")


def test_beta_is_printed_whatever_it_is() -> None:
    solver, _ = MUTANTS["BetaHalved"]
    for beta in (0.1, 1.0):
        program = snippet(solver, PROPERTIES["target-is-a-fixed-point"], {"case": attrs.evolve(RPS, beta=beta)})
        assert f"beta={beta}" in program


def test_cycles_are_printed_by_name_and_read_back() -> None:
    case = Case(matrix=cycle(7, 0.4), reference=[0.0] * 7, start=ripple(7), nearby=True)
    program = snippet(MP(), PROPERTIES["counts-every-query"], {"case": case})
    assert "matrix=cycle(7, 0.4)" in program
    assert _inputs(program)["case"] == case


def test_a_start_counted_from_the_equilibrium() -> None:
    case = attrs.evolve(RPS, start=[0.01, 0.0, -0.01], nearby=True)
    goal = find_equilibrium(case.game(), EXACT).policy.log_probs
    moved = case.first().log_probs - goal
    assert (moved - moved.mean()).tolist() == pytest.approx([0.01, 0.0, -0.01], abs=1e-12)


@settings(max_examples=60, database=None, deadline=None)
@given(near_equilibrium())
def test_near_starts_are_near(case: Case) -> None:
    goal = find_equilibrium(case.game(), EXACT).policy.log_probs
    assert float(span(case.first().log_probs, goal)) <= 2 * max(map(abs, case.start or (0.0,))) + 1e-9


def test_a_solver_that_cannot_make_a_step_is_told_so_once() -> None:
    said = {
        "ForgetsToReturn": "accept() returned None; it must return state.next(...) or state.middle(...)",
        "ImplicitStepNeverEnds": "step 1 has not ended after 64 updates",
        "ClaimsARateThatGrows": "in (0, 1]",
    }
    for name, words in said.items():
        decided: list[str] = []
        report = check_solver(MUTANTS[name][0], decided=lambda result: decided.append(result.name))  # noqa: B023
        assert decided == list(PROPERTIES)
        assert words in report["declares-itself"].detail
        assert {r.status for r in report.results[1:]} == {"not applicable"}
        assert "declares-itself failed" in report.results[-1].detail


@attrs.frozen
class Tires(MP):
    """Its sixth step never ends."""

    def accept(self, game, state, outcome):
        return super().accept(game, state, outcome) if state.step < 5 else state.middle(half=outcome.policy)


def test_a_late_step_that_never_ends_is_found_and_not_shrunk() -> None:
    result = check_property(Tires(), "last-iterate-meets-its-bound")
    assert result.status == "failed"
    assert result.detail == "step 6 has not ended after 64 updates: accept() must call next()"


def test_a_linear_rate_is_a_number_or_a_function_in_the_unit_interval() -> None:
    plain = linear_rate(0.5, assumptions="none", source="made up")
    assert plain.bound is not None
    assert plain.recursion is not None
    one = torch.ones((), dtype=torch.float64)
    assert float(plain.bound(2, RPS.game(), one)) == 0.25
    assert float(plain.recursion(0, RPS.game(), one)) == 0.5
    growing = linear_rate(lambda game: 1 + game.beta, assumptions="none", source="made up")
    assert growing.bound is not None
    bound = growing.bound
    for call in (lambda: linear_rate(1.5, assumptions="", source="x"), lambda: bound(1, RPS.game(), one)):
        with pytest.raises(BadInput, match=r"in \(0, 1\]"):
            call()


@settings(max_examples=100, database=None, deadline=None)
@given(strategies.cases(elsewhere=True))
def test_cases_are_games(case: Case) -> None:
    game = case.game()
    assert case.first().log_probs.shape == (case.size,)
    assert 1e-4 <= game.beta <= 10
    assert bool(torch.isfinite(case.first().log_probs).all())


@settings(max_examples=50, database=None, deadline=None)
@given(st.data())
def test_every_kind_is_a_preference_matrix(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(strategies.KINDS)))
    matrix = torch.tensor(data.draw(strategies.matrices(kinds=[kind])), dtype=torch.float64)
    assert bool(((matrix >= 0) & (matrix <= 1)).all())
    assert float((matrix + matrix.T - 1).abs().max()) < 1e-9


def test_importing_the_library_or_its_pytest_plugin_brings_in_no_hypothesis() -> None:
    program = "import sys, nlhf_zoo, nlhf_zoo.testing.pytest_plugin; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


test_three_lines = conformance_test("nash_md", properties=["starts-at-the-given-policy", "counts-every-query"])


def test_the_pytest_plugin_names_the_property(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from nlhf_zoo_plugins.nash_mp import NashMP
        from nlhf_zoo.testing import conformance_test

        class Ahead(NashMP):
            def init(self, game, policy):
                return super().init(game, game.reference)

        names = ["starts-at-the-given-policy", "loss-is-antisymmetric", "counts-every-query"]
        test_conformance = conformance_test(Ahead(), properties=names)
        """
    )
    ran = pytester.runpytest("-rA", "--nlhf-examples", "20", "--nlhf-seed", "3")
    ran.assert_outcomes(passed=1, failed=1, skipped=1)
    ran.stdout.fnmatch_lines(["*test_conformance?starts-at-the-given-policy?*", "*pi_0 = policy*", "*(seed 3)*"])


def test_properties_can_be_called_by_hand() -> None:
    properties.permuting_responses_permutes_the_result(MP(), RPS, order=[2, 0, 1])
    with pytest.raises(Violation, match="step 1"):
        properties.permuting_responses_permutes_the_result(MUTANTS["FavoursTheFirstResponse"][0], RPS, order=[2, 0, 1])


@attrs.frozen
class Hopes(MP):
    """Nash-MP with the square of its factor claimed."""

    @property
    def guarantees(self):
        claimed = linear_rate(lambda game: (1 + 2 * game.beta) ** -2, assumptions="none", source="hope")
        return (attrs.evolve(claimed, bound=None, limit="open"),)


def test_what_refutes_a_claim_is_made_small() -> None:
    (found,) = falsify(Hopes(), examples=20)
    assert found.violated
    assert found.instance is not None
    program: dict[str, Any] = {}
    with pytest.raises(Violation, match=f"step {found.step}: "):
        exec(found.instance, program)
    matrix = program["case"].matrix
    assert len(matrix) <= 3
    assert all(round(x, 3) == x for row in matrix for x in row)


def test_a_small_case_is_found_by_what_it_still_shows() -> None:
    rows = [[0.5, 0.123456, 0.9], [0.876544, 0.5, 0.3], [0.1, 0.7, 0.5]]
    case = Case(matrix=rows, reference=[-1.25, 0.0, -3.5], beta=0.3, start=[0.1, 0.2, 0.3])

    def show(one: Case) -> Case | None:
        return one if any(x > 0.85 for row in one.matrix for x in row) else None

    small = shrunk(case, case, show)
    assert (small.size, small.start, small.beta) == (2, None, 0.3)
    assert show(small) is small
    assert all(x in (0.0, 0.5, 1.0) for row in small.matrix for x in row)


def test_a_violation_shows_as_many_digits_as_tell_it_from_its_bound() -> None:
    assert Reading(1, 1.00000001, 1.0, 0.0, True).shown == ("1.00000001", "1")
    assert Reading(1, 0.25, 1.0, 0.0, True).shown == ("0.25", "1")
    assert Reading(1, 0.25, 0.25, 0.0, True).shown == ("0.25", "0.25")
