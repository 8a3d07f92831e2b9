"""Properties of symmetry: what may be renamed, split, stacked or rescaled without changing the answer."""

from __future__ import annotations

import math
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from nlhf_zoo.interfaces import Game, Solver
from nlhf_zoo.metrics import span
from nlhf_zoo.oracles import MatrixOracle
from nlhf_zoo.tabular import TabularPolicy
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip, Violation
from nlhf_zoo.testing.catalogue import named
from nlhf_zoo.testing.runs import agree, walk, walk_with_rounding

__all__ = [
    "large_beta_gives_the_reference",
    "payoffs_and_beta_scale_together",
    "permuting_responses_permutes_the_result",
    "plays_a_batch_as_its_games",
    "stays_where_nobody_is_preferred",
    "twins_share_their_mass",
]


@st.composite
def _permuted(draw: DrawFn) -> dict[str, Any]:
    case = draw(strategies.cases(sizes=(2, 3, 4, 5), steps=4, elsewhere=True))
    return {"case": case, "order": draw(strategies.orders(case.size))}


@named(_permuted)
def permuting_responses_permutes_the_result(solver: Solver, case: Case, order: list[int]) -> None:
    """With a permutation s, P'(i, j) = P(s_i, s_j) and ref'(i) = ref(s_i): pi_k'(i) = pi_k(s_i) at every step."""
    run, limits = walk_with_rounding(solver, case)
    renamed = attrs.evolve(
        case,
        matrix=[[case.matrix[i][j] for j in order] for i in order],
        reference=[case.reference[i] for i in order],
        start=None if case.start is None else [case.start[i] for i in order],
    )
    for step, (plain, permuted, limit) in enumerate(zip(run, walk(solver, renamed), limits, strict=True)):
        if not agree(plain[order], permuted, limit):
            raise Violation(
                f"step {step}: permuted by {order}, {plain.exp().tolist()} became {permuted.exp().tolist()}"
            )


@st.composite
def _split(draw: DrawFn) -> dict[str, Any]:
    case = draw(strategies.cases(sizes=(2, 3, 1, 4, 5), steps=4, elsewhere=True))
    share = draw(st.sampled_from([0.5, 0.25, 0.75, 0.9, 0.01]))
    return {"case": case, "response": draw(st.integers(0, case.size - 1)), "share": share}


@named(_split)
def twins_share_their_mass(solver: Solver, case: Case, response: int, share: float) -> None:
    """Split a response into two that nobody can tell apart: they split its mass as the reference does.

    With P(y', .) = P(y, .), P(y, y') = 1/2, ref'(y) = share ref(y) and ref'(y') = (1 - share) ref(y), the first
    policy likewise: pi_k'(y) = share pi_k(y), pi_k'(y') = (1 - share) pi_k(y), all others as they were.
    """
    run, limits = walk_with_rounding(solver, case)

    def halved(weights: tuple[float, ...]) -> list[float]:
        value = weights[response]
        rest = [w + math.log(share) if i == response else w for i, w in enumerate(weights)]
        return [*rest, value + math.log(1 - share)]

    rows = [[*row, row[response]] for row in case.matrix]
    twin = attrs.evolve(
        case,
        matrix=[*rows, rows[response]],
        reference=halved(case.reference),
        start=None if case.start is None else halved(case.start),
    )
    for step, (plain, split, limit) in enumerate(zip(run, walk(solver, twin), limits, strict=True)):
        expected = torch.tensor(halved(tuple(plain.tolist())), dtype=torch.float64)
        if not agree(expected, split, limit):
            raise Violation(
                f"step {step}: response {response} split {share:g} to {1 - share:g} gives"
                f" {split.exp().tolist()} instead of {expected.exp().tolist()}"
            )


def _batches() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"games": strategies.batches(steps=4)})


@named(_batches, share=0.5)
def plays_a_batch_as_its_games(solver: Solver, games: list[Case]) -> None:
    """A batch (G, Y, Y) of games gives, row by row, the iterates of its games played one by one."""
    singles = [walk_with_rounding(solver, case) for case in games]
    matrix = torch.tensor([case.matrix for case in games], dtype=torch.float64)
    reference = TabularPolicy(torch.tensor([case.reference for case in games], dtype=torch.float64))
    batch = Game(MatrixOracle(matrix), reference, games[0].beta)
    together = walk(solver, games[0], batch, reference)
    for step, stacked in enumerate(together):
        if stacked.shape != reference.log_probs.shape:
            raise Violation(f"step {step}: a batch of shape {tuple(reference.log_probs.shape)} became {stacked.shape}")
        for index, (single, limits) in enumerate(singles):
            if not agree(single[step], stacked[index], 10 * limits[step]):
                raise Violation(
                    f"step {step}: game {index} of the batch is at {stacked[index].exp().tolist()},"
                    f" alone at {single[step].exp().tolist()}"
                )


@st.composite
def _indifferent(draw: DrawFn) -> dict[str, Any]:
    case = draw(strategies.cases(steps=4))
    return {"case": attrs.evolve(case, matrix=[[0.5] * case.size] * case.size)}


@named(_indifferent, share=0.3)
def stays_where_nobody_is_preferred(solver: Solver, case: Case) -> None:
    """Where P = 1/2 throughout, the reference is the equilibrium at any beta: a run from it does not move."""
    for step, (log_probs, limit) in enumerate(zip(*walk_with_rounding(solver, case), strict=True)):
        reference = torch.tensor(case.reference, dtype=torch.float64).log_softmax(-1)
        if not agree(log_probs, reference, limit):
            raise Violation(f"step {step}: no response beats another, and yet it moved to {log_probs.exp().tolist()}")


def _regularised(solver: Solver) -> str | None:
    if any(g.metric != "unregularised_gap" and g.certainty == "sure" for g in solver.guarantees):
        return None
    return "no guarantee speaks of a regularised game"


def _strong() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.cases(low=1e2, high=1e3, steps=5)})


@named(_strong, applies=_regularised, share=0.5)
def large_beta_gives_the_reference(solver: Solver, case: Case) -> None:
    """As beta grows every iterate tends to the reference: span(log pi_k - log ref) <= 10 / beta for k <= 5.

    The equilibrium itself is within span 1 / beta, since payoffs lie in [0, 1].
    """
    game = case.game()
    if not any(g.certainty == "sure" and g.holds(game) for g in solver.guarantees):
        raise Skip("no guarantee holds for this game")
    reference = torch.tensor(case.reference, dtype=torch.float64).log_softmax(-1)
    limit = 10 / case.beta + 1e-11 * (1 + float(reference.abs().amax()))
    for step, log_probs in enumerate(walk(solver, case)):
        if not agree(log_probs, reference, limit):
            raise Violation(
                f"step {step}: beta = {case.beta:g}, and yet log pi - log ref has span"
                f" {float(span(log_probs, reference)):.3g} > 10 / beta"
            )


def _scalable(solver: Solver) -> str | None:
    return None if hasattr(solver, "scaled") else "the solver has no method scaled(factor, game)"


def _scales() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "case": strategies.cases(steps=4, elsewhere=True),
            "factor": st.sampled_from([0.5, 0.25, 0.1, 0.01]),
        }
    )


@named(_scales, applies=_scalable)
def payoffs_and_beta_scale_together(solver: Solver, case: Case, factor: float) -> None:
    """P - 1/2 and beta multiplied by a factor c, and hyperparameters as their units ask, leave every iterate alone.

    The game P' = 1/2 + c (P - 1/2), beta' = c beta has the same equilibrium. `solver.scaled(c, game)` is the
    solver that walks the same path in it: a step size of unit 1 / payoff becomes eta / c, a pure number stays.
    """
    scaled = attrs.evolve(
        case, matrix=[[0.5 + factor * (p - 0.5) for p in row] for row in case.matrix], beta=factor * case.beta
    )
    other = solver.scaled(factor, case.game())  # type: ignore[attr-defined]  # see _scalable
    plain = solver.scaled(1.0, case.game())  # type: ignore[attr-defined]
    run, limits = walk_with_rounding(plain, case)
    for step, (one, two, limit) in enumerate(zip(run, walk(other, scaled), limits, strict=True)):
        if not agree(one, two, 10 * limit / factor):
            raise Violation(
                f"step {step}: with payoffs and beta times {factor:g}, {one.exp().tolist()} became {two.exp().tolist()}"
            )
