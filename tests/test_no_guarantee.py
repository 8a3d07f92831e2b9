"""Where a published claim is false, or false of a step that is published with it: the game that shows it."""

from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest
import torch

import nlhf_zoo as nz
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.registry import load, lookup
from nlhf_zoo.testing import Case, check_property, cycle

ROCK_PAPER_SCISSORS = Case(matrix=cycle(3), reference=[0.0] * 3, beta=0.01, start=[0.01, 0.0, -0.01])
HARDLY_PLAYED = Case(
    matrix=[[0.5, 1.0, 0.0, 1.0], [0.0, 0.5, 1.0, 1.0], [1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.5]],
    reference=[-5.0, -5.0, -5.0, 0.0],
    beta=0.1,
)
"""A cycle that the reference hardly plays, and a response that loses to all."""
SCORES = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
REWARD = Case(matrix=(SCORES[:, None] - SCORES).sigmoid().tolist(), reference=[0.0] * 3, beta=0.5)


def distances(solver: nz.Solver, case: Case, target: nz.TabularPolicy, steps: int) -> list[float]:
    """KL(target || policy) after 0, 1, ... steps."""
    run = iterates(case.game(), solver, case.first())
    found = [next(run).current for _ in range(steps + 1)]
    return [float(kl_divergence(target.log_probs, p.log_probs)) for p in found if isinstance(p, nz.TabularPolicy)]


def beside(case: Case, target: nz.TabularPolicy, by: float) -> Case:
    """The case, begun near the target."""
    nudge = torch.tensor([by, *[0.0] * (case.size - 2), -by], dtype=torch.float64)
    return attrs.evolve(case, start=(target.log_probs + nudge).tolist())


def first_party() -> dict[str, type[nz.Solver]]:
    return {name: entry.factory for name, entry in load().solvers.items() if entry.distribution == "nlhf-zoo"}


@pytest.mark.parametrize("name", first_party())
def test_a_solver_has_a_guarantee_or_a_reason(name: str) -> None:
    solver = configure(name)
    assert solver.guarantees or solver.no_guarantee


def test_a_missing_reason_is_asked_for_and_a_given_one_shown() -> None:
    mmd: Any = type(configure("mmd"))

    @attrs.frozen
    class Silent(mmd):
        @property
        def guarantees(self) -> tuple[nz.Guarantee, ...]:
            return ()

    @attrs.frozen
    class Outspoken(Silent):
        no_guarantee = "nobody has tried"

    name = "last-iterate-meets-its-bound"
    assert "no_guarantee = '...'" in check_property(Silent(), name).detail
    assert check_property(Outspoken(), name).detail.endswith("no guarantee: nobody has tried")


@pytest.mark.parametrize("claim", [{"limit": "open"}, {"every": 0}, {"limit": "sometimes"}])
def test_a_guarantee_that_claims_nothing_is_refused(claim: dict) -> None:
    with pytest.raises((nz.BadInput, ValueError)):
        nz.Guarantee(metric="kl", bound=None, source="a test", **claim)


def test_a_period_too_short_for_its_tau_leads_mpo_away_from_the_winner() -> None:
    winner = nz.von_neumann_winner(ROCK_PAPER_SCISSORS.game().oracle)  # type: ignore[arg-type]
    found = distances(configure("mpo"), ROCK_PAPER_SCISSORS, winner, 500)[::50]
    assert all(after > before for before, after in itertools.pairwise(found))
    # nash_mp inside arrives in the same 50 steps.
    found = distances(configure("comal", inner="nash_mp"), ROCK_PAPER_SCISSORS, winner, 100)[::50]
    assert found[2] < found[1] / 100 < found[0] / 1e4


def test_a_lagging_opponent_turns_mmds_step_outwards() -> None:
    case = attrs.evolve(ROCK_PAPER_SCISSORS, beta=0.1)
    target = nz.equilibrium(case.game())
    assert distances(configure("nash_ema", eta=0.4), case, target, 500)[-1] > 1e-2
    assert distances(configure("nash_ema"), case, target, 500)[-1] < 1e-5
    assert distances(configure("nash_ema", eta=0.4, kappa=1.0), case, target, 500)[-1] < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon"])
def test_a_pull_that_covers_mass_may_be_too_weak_for_the_step(divergence: str) -> None:
    other = attrs.evolve(HARDLY_PLAYED.game(), divergence=lookup("divergences", divergence)())
    target = nz.equilibrium(other)
    assert float(nz.duality_gap(other, target)) < 1e-12
    found = distances(configure("rspo", divergence=divergence), beside(HARDLY_PLAYED, target, 0.1), target, 100)
    # What the nudge leaves in other directions dies away first.
    assert found[100] > 1.2 * found[50]
    short = configure("rspo", divergence=divergence, eta=0.4 * float(other.reference.log_probs.exp().amin()))  # type: ignore[attr-defined]
    found = distances(short, beside(HARDLY_PLAYED, target, 0.1), target, 20)
    assert all(after < before for before, after in itertools.pairwise(found))


def test_forward_kl_throws_f_dpo_off_its_own_optimum() -> None:
    solver = configure("f_dpo", divergence="forward_kl")
    (claim,) = solver.guarantees
    assert claim.limit == "kept"
    assert claim.target is not None
    optimum = claim.target(REWARD.game())
    assert isinstance(optimum, nz.TabularPolicy)
    found = distances(solver, beside(REWARD, optimum, 0.001), optimum, 100)
    assert found[0] < 1e-6
    assert found[-1] > 1e-3


def test_f_dpo_says_where_its_loss_hardly_moves_a_response_and_where_it_moves_none() -> None:
    game = REWARD.game()
    run = iterates(game, configure("f_dpo", divergence="chi_squared"))
    with pytest.warns(UserWarning, match="finite at 0, where its paper asks for -inf"):
        begun = next(run)
    lowest = [float(state.current.log_probs[0]) for state in (begun, *itertools.islice(run, 400))]
    # Down like 1/k, towards the zero that the optimum has there.
    assert lowest[200] - lowest[400] == pytest.approx(0.69, abs=0.1)
    with pytest.raises(nz.BadInput, match="total_variation is not strictly convex, its loss has no gradient"):
        configure("f_dpo", divergence="total_variation").init(game, game.reference)


def test_xpos_bonus_moves_the_reward_optimum() -> None:
    game = REWARD.game()
    optimum = nz.SoftmaxPolicy(game.reference.log_probs + SCORES / game.beta)  # type: ignore[attr-defined]

    def moved(solver: nz.Solver) -> float:
        after = nz.solve(game, solver, steps=1, policy=optimum).policy
        assert isinstance(after, nz.SoftmaxPolicy)
        return float(kl_divergence(optimum.log_probs, after.log_probs))

    assert moved(configure("online_dpo")) < 1e-28
    assert moved(configure("xpo", bonus=0.1)) > 1e-6
