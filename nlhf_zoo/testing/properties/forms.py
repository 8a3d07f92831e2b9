"""Properties of form: the same solver in losses, in gradients, and in precision."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo.drive import advance
from nlhf_zoo.interfaces import Itself, Solver
from nlhf_zoo.metrics import kl_divergence
from nlhf_zoo.tabular import SoftmaxPolicy
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case, Skip, Violation, table
from nlhf_zoo.testing.catalogue import named
from nlhf_zoo.testing.formulas import formula_of
from nlhf_zoo.testing.runs import Watch, agree, begin, spied, tables, walk, walk_with_rounding

__all__ = [
    "follows_its_formula",
    "gradient_form_agrees_with_exact_form",
    "loss_is_antisymmetric",
    "works_in_double_precision",
]


def _pairwise(solver: Solver) -> str | None:
    game = Case(matrix=[[0.5, 0.75], [0.25, 0.5]], reference=[0.0, 0.0], beta=0.1).game()
    try:
        update = solver.propose(game, solver.init(game, game.reference))
    except Exception:  # a solver that cannot even begin fails elsewhere, by another name
        return "the solver does not begin"
    return None if update.loss is not None else "the solver proposes no pairwise loss"


def _pairs() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "beta": strategies.betas(1e-3),
            "preference": st.integers(0, 20).map(lambda k: k / 20),
            "log_ratio": st.integers(-40, 40).map(lambda k: k / 4),
        }
    )


@named(_pairs, applies=_pairwise, share=0.5)
def loss_is_antisymmetric(solver: Solver, beta: float, preference: float, log_ratio: float) -> None:
    """signal(1 - P, -h) = -signal(P, h), and signal = -scale dl/dh: who is named first does not matter.

    A pairwise loss sees the pair (y, y') as P and h, and the pair (y', y) as 1 - P and -h.
    """
    game = Case(matrix=[[0.5, 0.75], [0.25, 0.5]], reference=[0.0, 0.0], beta=beta).game()
    loss = solver.propose(game, begin(solver, game, game.reference)).loss
    assert loss is not None
    p = torch.tensor([preference, 1 - preference], dtype=torch.float64)
    h = torch.tensor([log_ratio, -log_ratio], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(loss.loss(p, h).sum(), h)
    signal = loss.signal(p, h.detach())
    size = 1e-9 * (1 + float(signal.abs().amax()))
    if float(signal.sum().abs()) > size:
        raise Violation(f"signal(P, h) = {float(signal[0]):.6g}, but signal(1 - P, -h) = {float(signal[1]):.6g}")
    if float((signal + loss.scale * slope).abs().amax()) > size:
        raise Violation(
            f"signal(P, h) = {float(signal[0]):.6g}, but -scale dl/dh = {-loss.scale * float(slope[0]):.6g}"
        )


def _written(solver: Solver) -> str | None:
    if formula_of(solver) is None:
        return "no formula: the solver has no method formula(matrix, log_reference, beta, log_policy, step)"
    return None


def _stepped() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"case": strategies.cases(steps=4, elsewhere=True)})


@named(_stepped, applies=_written)
def follows_its_formula(solver: Solver, case: Case) -> None:
    """log pi_{k+1} = formula(P, log ref, beta, log pi_k, k) + constant, the paper's update written a second time."""
    formula = formula_of(solver)
    assert formula is not None
    run, limits = walk_with_rounding(solver, case)
    matrix, reference = torch.tensor(case.matrix, dtype=torch.float64), table(case.reference).log_probs
    for step, (now, after, limit) in enumerate(zip(run, run[1:], limits[1:], strict=False)):
        due = formula(matrix, reference, case.beta, now, step).log_softmax(-1)
        # The formula's own rounding is of the size of what it adds up: log-probabilities, and payoffs / beta.
        if not agree(after, due, limit + 1e-11 / case.beta):
            raise Violation(
                f"step {step + 1}: from {now.exp().tolist()} it went to {after.exp().tolist()},"
                f" and the formula to {due.exp().tolist()}"
            )


def _smooth() -> st.SearchStrategy[dict[str, Any]]:
    case = strategies.cases(
        sizes=(3, 2, 4), kinds=strategies.MODERATE, low=0.5, high=10, deepest=2, steps=1, elsewhere=True
    )
    return st.fixed_dictionaries({"case": case})


@named(_smooth, share=0.3)
def works_in_double_precision(solver: Solver, case: Case) -> None:
    """A step F is a smooth map of log-probabilities: F(x + d) - 2 F(x) + F(x - d) = O(|d|^2) down to 1e-16.

    At |d| = 1e-5 this is 1e-10; single precision inside leaves 1e-7. Asked at several points, of which the
    best counts, so that a solver may choose its step size by cases.
    """
    first = case.first().log_probs
    direction = torch.tensor([1e-5 * (1 if i % 2 else -1) for i in range(case.size)], dtype=torch.float64)

    def after(start: Tensor) -> Tensor:
        log_probs = walk(solver, case, policy=table(start.tolist()))[-1]
        return log_probs - log_probs.mean()

    bends = []
    for shift in (0.0, 1 / 7, 2 / 7):
        point = first + shift * torch.arange(case.size)
        bend = after(point + direction) - 2 * after(point) + after(point - direction)
        bends.append(float(bend.abs().amax()))
    if min(bends) > 1e-8:
        raise Violation(
            f"moved by 1e-5, a step bends by {min(bends):.1e}, a smooth map by about 1e-10: single precision inside?"
        )


def _gentle() -> st.SearchStrategy[dict[str, Any]]:
    case = strategies.cases(
        sizes=(2, 3), kinds=strategies.MODERATE, low=0.5, high=5, deepest=1, steps=2, elsewhere=True
    )
    return st.fixed_dictionaries({"case": case})


@named(_gentle, share=0.06)
def gradient_form_agrees_with_exact_form(solver: Solver, case: Case) -> None:
    """argmax by formula = argmax by gradient: softmax logits that climb the update's own objective arrive there.

    Each update of the run is carried out by 300 plain gradient steps of size 1 / sum_j w_j; after each, the
    two policies agree to KL <= 1e-8.
    """
    game, _ = spied(case.game())
    exact = begin(solver, game, case.first())
    soft_game = attrs.evolve(game, reference=_soft(tables(game.reference)))
    climbed = begin(solver, soft_game, _soft(case.first().log_probs))
    watch = Watch(game)
    while exact.step < case.steps:
        watch(exact)
        exact = advance(game, solver, exact)
        update = solver.propose(soft_game, climbed)
        if isinstance(update.opponent, Itself) and update.weight < 0.5:
            raise Skip("self-play by gradient is a contraction only for anchors of total weight 1/2 and more")
        if float(tables(exact.current).amin()) < -3.2:
            raise Skip("plain gradient steps are slow where a response is nearly impossible")
        climber = attrs.evolve(update.start, learning_rate=1 / update.weight)  # type: ignore[arg-type]
        outcome = climber.improve(attrs.evolve(update, start=climber, steps=300), soft_game)
        climbed = solver.accept(soft_game, climbed, outcome)
        for slot, policy in exact.policies.items():
            apart = float(kl_divergence(tables(policy), tables(climbed[slot])))
            if not apart <= 1e-8:
                raise Violation(
                    f"step {exact.step}, phase {exact.phase}: by formula {slot!r} is"
                    f" {tables(policy).exp().tolist()}, by gradient {tables(climbed[slot]).exp().tolist()}"
                )


def _soft(log_probs: Tensor) -> SoftmaxPolicy:
    return SoftmaxPolicy(log_probs)
