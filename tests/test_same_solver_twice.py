"""The same solver object on a table and on a causal language model whose responses can be enumerated.

What "the same" means: (a) the same gradient with respect to the response log-probabilities, exact or sampled;
(b) the inner loop, run to convergence, ends at the table's closed form; (c) the same sequence of policies.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from nlhf_zoo import Game, Itself, MatrixOracle, State, TabularPolicy, Update
from nlhf_zoo.drive import advance, configure
from nlhf_zoo.llm import (
    CausalLMPolicy,
    Decoding,
    InnerLoop,
    all_responses,
    exact_objective,
    exact_payoff,
    sampled_objective,
    to_convergence,
)
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.metrics import kl_divergence, span
from nlhf_zoo.tabular.policy import anchor_tables

PROMPTS = ("is it so?", "and then")
SOLVERS = {
    "nash_mp": {"eta": 0.6},
    "nash_mp practical": {"eta": 0.6, "kappa": 0.3},
    "exact_prox": {"eta": 0.6},
    "nash_md": {"eta": 0.7},
    "online_ipo": {"eta": 0.5},
    "online_dpo": {"eta": 0.8},
}
SIZES = [(5, 1, False), (3, 2, False), (3, 3, True)]
BETA = 0.3


@attrs.frozen
class Pair:
    """One game, once on tables and once on a language model."""

    table: Game
    model: Game
    policy: CausalLMPolicy

    def tables(self, policy) -> Tensor:
        return policy.table(PROMPTS, self.policy.inner.responses).detach()


def network(seed: int):
    """A small float64 Llama with weights large enough that its answers are far from uniform."""
    model = small_llama(byte_tokenizer(), hidden=32, layers=1, heads=2, seed=seed).double().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(4)
    return model


@functools.cache
def pair(letters: int, length: int, ends: bool) -> Pair:
    tokenizer = byte_tokenizer()
    allowed = tuple(tokenizer.convert_tokens_to_ids(letter) for letter in "abcde"[: letters - ends])
    allowed += (tokenizer.eos_token_id,) if ends else ()
    decoding = Decoding(max_new_tokens=length, allowed_tokens=allowed)
    reference, start = (CausalLMPolicy(network(seed), tokenizer, decoding) for seed in (1, 2))
    responses = all_responses(start, len(PROMPTS))
    count = responses.num_samples
    generator = torch.Generator().manual_seed(letters * 10 + length)
    upper = torch.rand(2, count, count, generator=generator, dtype=torch.float64).triu(1)
    matrix = upper + (1 - upper).transpose(-1, -2).tril(-1) + 0.5 * torch.eye(count)
    oracle = MatrixOracle(matrix, labels=responses.texts[0], prompts=PROMPTS)
    inner = InnerLoop(
        PROMPTS,
        steps=40,
        responses=responses,
        tolerance=1e-6,
        optimizer=to_convergence,
    )
    policy = attrs.evolve(start, inner=inner)
    return Pair(
        Game(oracle, TabularPolicy(reference.table(PROMPTS, responses)), BETA),
        Game(oracle, reference, BETA),
        policy,
    )


def propose(name: str, case: Pair) -> tuple[Update, Update]:
    """The second update of a run (the first has all slots at one policy), on the table and on the model."""
    solver = configure(name.split()[0], **SOLVERS[name])
    mine = solver.init(case.table, TabularPolicy(case.tables(case.policy)))
    other = solver.init(case.model, case.policy)
    moved = attrs.evolve(case.policy, network=network(5))
    table = TabularPolicy(case.tables(moved))
    if name == "nash_mp":
        mine, other = mine.middle(half=table), other.middle(half=moved)
    else:
        mine = State({**mine.policies, "current": table}, step=1)
        other = State({**other.policies, "current": moved}, step=1)
    return solver.propose(case.table, mine), solver.propose(case.model, other)


def closed_form_gradient(update: Update, game: Game, log_policy: Tensor) -> Tensor:
    """(B, Y) gradient of the improvement objective in the normalised response log-probabilities, by hand."""
    if isinstance(update.opponent, Itself):
        payoff = game.oracle.payoff(log_policy.exp())
    else:
        payoff = update.start.payoff(update, game, None)
    gain = payoff - sum(w * (log_policy - rho) for rho, w in anchor_tables(update))
    policy = log_policy.exp()
    return policy * (gain - (policy * gain).sum(-1, keepdim=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_exact_gradient_is_the_tables_pulled_back(name: str, size: tuple[int, int, bool]) -> None:
    case = pair(*size)
    mine, other = propose(name, case)
    student = attrs.evolve(case.policy, network=_copy(case.policy.network, seed=7))
    responses, prompts = case.policy.inner.responses, case.policy.encode(PROMPTS)
    payoff = exact_payoff(student, other, case.model, prompts, responses)
    objective = exact_objective(student, other, case.model, prompts, responses, payoff)
    parameters = list(student.network.parameters())
    got = torch.autograd.grad(objective.loss, parameters, allow_unused=True)

    log_policy = student.table(PROMPTS, responses)
    wanted_table = closed_form_gradient(mine, case.table, log_policy.detach())
    pulled = torch.autograd.grad(log_policy, parameters, grad_outputs=-wanted_table / len(PROMPTS), allow_unused=True)
    worst = max(float((g - w).abs().max()) for g, w in zip(got, pulled, strict=True) if g is not None)
    assert worst <= 1e-6 * max(1.0, max(float(g.abs().max()) for g in pulled if g is not None))
    assert max(float(g.abs().max()) for g in pulled if g is not None) > 1e-4


def _copy(network, seed: int):
    """Another model of the same shape, near `network`: a student on its way."""
    import copy

    student = copy.deepcopy(network).requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return student


def sampled() -> Iterator[Any]:
    """Solver, size, and whether the batch is the first of an update: the student is its start then.

    One token is enough for the short cuts of the first batch, which self-play and dropped anchors take; what is not
    quick has them with two tokens, and later batches with one.
    """
    for name, size, first in itertools.product(SOLVERS, SIZES[:2], (True, False)):
        tokens = size[1]
        if name == "nash_md" and tokens > 1:
            continue  # its mixture is sampled token by token, which is the sequence-level one for one token only
        quick = (tokens == 1) == first or name == "nash_md"
        named = f"{name}-{size}-{'first' if first else 'later'} batch"
        yield pytest.param(name, size, first, id=named, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "size", "first"), list(sampled()))
def test_sampled_gradient_is_unbiased(name: str, size: tuple[int, int, bool], first: bool) -> None:
    """Mean of 20 sampled gradients along 4 fixed directions, within 6 standard errors of the exact one.

    Each is of a batch with every prompt eight times, which costs little more than once. Student's law puts a false
    alarm at 9e-6 a direction, 8e-4 over all cases of this test.
    """
    case = pair(*size)
    _, update = propose(name, case)
    if first:
        student = update.start
        student.network.requires_grad_(True)
    else:
        student = attrs.evolve(case.policy, network=_copy(case.policy.network, seed=7))
    parameters = list(student.network.parameters())
    responses, prompts = case.policy.inner.responses, case.policy.encode(PROMPTS)
    generator = torch.Generator().manual_seed(3)
    directions = [[torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters] for _ in range(4)]

    def along(loss: Tensor) -> Tensor:
        gradient = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.stack(
            [
                sum(
                    ((g * d).sum() for g, d in zip(gradient, way, strict=True) if g is not None),
                    torch.tensor(0.0).double(),
                )
                for way in directions
            ]
        )

    payoff = exact_payoff(student, update, case.model, prompts, responses)
    exact = along(exact_objective(student, update, case.model, prompts, responses, payoff).loss)
    batch = case.policy.encode(PROMPTS * 8)
    samples = torch.stack(
        [along(sampled_objective(student, update, case.model, batch, 24, generator).loss) for _ in range(20)]
    )
    error = (samples.mean(0) - exact).abs()
    standard_error = samples.std(0) / math.sqrt(len(samples))
    assert bool((error <= 6 * standard_error).all()), (samples.mean(0), exact, standard_error)
    assert bool((exact.abs() > 3 * standard_error).any()), "the test is blind: noise drowns the gradient"


def converged() -> Iterator[Any]:
    """Solver and size. Two tokens are enough for unlike lengths; an implicit step takes long with more than one."""
    for name, size in itertools.product(SOLVERS, [*SIZES, (3, 2, True)]):
        quick = size == SIZES[0] or (size == (3, 2, True) and name != "exact_prox")
        yield pytest.param(name, size, id=f"{name}-{size}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "size"), list(converged()))
def test_inner_loop_ends_at_the_closed_form(name: str, size: tuple[int, int, bool]) -> None:
    case = pair(*size)
    mine, other = propose(name, case)
    exact = mine.start.improve(mine, case.table).policy
    got = case.policy.improve(attrs.evolve(other, steps=None), case.model).policy
    assert float(kl_divergence(exact.log_probs, case.tables(got)).max()) <= 1e-7
    assert float(span(exact.log_probs, case.tables(got)).max()) <= 3e-3


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "nash_mp practical"])
def test_same_sequence_of_policies(name: str, size: tuple[int, int, bool]) -> None:
    case = pair(*size)
    solver = configure(name, **SOLVERS[name])
    mine = solver.init(case.table, TabularPolicy(case.tables(case.policy)))
    other = solver.init(case.model, case.policy)
    while mine.step < 3:
        mine, other = advance(case.table, solver, mine), advance(case.model, solver, other)
        assert (mine.step, mine.phase) == (other.step, other.phase)
        assert float(kl_divergence(mine.current.log_probs, case.tables(other.current)).max()) <= 1e-6
    if name != "exact_prox":  # implicit updates spend as many queries as their inner loop needs
        assert mine.queries == other.queries
