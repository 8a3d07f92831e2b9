"""What the five solvers' papers claim, on games of every kind, at every iterate."""

from __future__ import annotations

import itertools

import attrs
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from nlhf_zoo import (
    Affine,
    BadInput,
    Game,
    MatrixOracle,
    SampledOracle,
    SoftmaxPolicy,
    TabularPolicy,
    Update,
    duality_gap,
    equilibrium,
    solve,
    solvers,
)
from nlhf_zoo.comparison.claims import speaks_of
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.metrics import kl_divergence, span
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular import EXACT, find_equilibrium

KINDS = ("random", "low_rank", "bradley_terry")
GAMES = list(itertools.product(KINDS, (10, 50, 200), (0.1, 0.01)))
# Below this, KL is rounding: 1e-16 times the largest log-probabilities (some hundreds), squared terms aside.
ROUNDING = 1e-13


def game(kind: str, size: int, beta: float, seed: int = 0) -> Game:
    oracle = lookup("games", kind)(seed=seed, responses=size)
    generator = torch.Generator().manual_seed(seed + 1)
    logits = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    return Game(oracle, TabularPolicy(logits), beta)


def kl_history(played: Game, solver, steps: int) -> list[float]:
    target = equilibrium(played, EXACT)
    return [row["kl_to_equilibrium"] for row in solve(played, solver, steps=steps, target=target).history]


@pytest.mark.parametrize(("kind", "size", "beta"), GAMES)
def test_equilibrium_reaches_1e_12(kind: str, size: int, beta: float) -> None:
    for seed in range(3):
        played = game(kind, size, beta, seed)
        found = find_equilibrium(played, EXACT)
        assert float(duality_gap(played, found.policy)) <= 1e-12
        payoff = played.oracle.matrix() @ found.policy.probs
        fixed = (played.reference.log_probs + payoff / beta).log_softmax(-1)
        assert float(span(found.policy.log_probs, fixed)) <= 1e-9


@pytest.mark.parametrize("name", ["nash_mp", "exact_prox"])
@pytest.mark.parametrize(("kind", "size", "beta"), GAMES)
def test_kl_obeys_the_bound_at_every_iterate(kind: str, size: int, beta: float, name: str) -> None:
    played = game(kind, size, beta)
    solver = configure(name)
    history = kl_history(played, solver, 150)
    for n, kl in enumerate(history):
        # From the reference: beta KL(equilibrium || reference) <= 1/2, with N = 2 n queries of nash_mp.
        assert kl <= (1 + 2 * beta) ** -n / (2 * beta) + ROUNDING
        for guarantee in solver.guarantees:
            if guarantee.metric == "kl" and guarantee.bound is not None and guarantee.holds(played):
                assert (
                    kl
                    <= float(guarantee.bound(n, played, torch.tensor(history[0], dtype=torch.float64))) * (1 + 1e-9)
                    + ROUNDING
                )
    assert history[-1] < history[0] * 0.9


@pytest.mark.parametrize(("kind", "beta", "size"), [(k, b, s) for k, s, b in GAMES])
def test_nash_mp_reaches_the_equilibrium(kind: str, beta: float, size: int) -> None:
    played = game(kind, size, beta)
    target = equilibrium(played, EXACT)
    # (1 + 2 beta)^-n / (2 beta) <= 1e-12 needs n = 29.3 / log(1 + 2 beta) at beta = 0.1, half more at 0.01.
    result = solve(played, "nash_mp", steps=int(35 / beta), every=10_000, target=target)
    assert result.history[-1]["kl_to_equilibrium"] <= 1e-12
    assert float(duality_gap(played, result.policy)) <= 1e-12


@pytest.mark.parametrize(("kind", "size", "beta"), [(k, s, b) for k, s, b in GAMES if s <= 50])
@pytest.mark.parametrize("name", ["nash_md", "online_ipo"])
def test_slower_solvers_obey_theirs(kind: str, size: int, beta: float, name: str) -> None:
    played = game(kind, size, beta)
    solver = configure(name)
    history = kl_history(played, solver, 300)
    (guarantee,) = [g for g in solver.guarantees if g.metric == "kl"]
    assert guarantee.bound is not None
    assert guarantee.holds(played)
    for n, kl in enumerate(history[1:], start=1):
        assert (
            kl
            <= float(guarantee.bound(n, played, torch.tensor(history[0], dtype=torch.float64))) * (1 + 1e-9) + ROUNDING
        )


@pytest.mark.parametrize(("size", "beta"), [(s, b) for k, s, b in GAMES if k == "bradley_terry"])
def test_online_dpo_reaches_the_reward_optimum_on_bradley_terry(size: int, beta: float) -> None:
    """The optimum pi_ref exp(r / beta) of the reward: the game's equilibrium if payoffs were log-odds."""
    played = game("bradley_terry", size, beta)
    scores = torch.logit(played.oracle.matrix())[:, 0]
    optimum = TabularPolicy(played.reference.log_probs + scores / beta)
    result = solve(played, "online_dpo", steps=3000, every=10_000, target=optimum)
    assert result.history[-1]["kl_to_equilibrium"] <= 1e-10
    # Not the equilibrium of the game in probabilities, whose log-ratios are u / beta: at a small beta both
    # sit on the Condorcet winner and their KL is small, but the log-probabilities are far apart.
    assert float(span(equilibrium(played).log_probs, result.policy.log_probs)) > 1
    # The game whose payoffs are log-odds has it for its equilibrium: its payoff vector is r + constant there.
    log_odds = torch.logit(played.oracle.matrix()) @ optimum.probs
    assert float(span((played.reference.log_probs + log_odds / beta).log_softmax(-1), optimum.log_probs)) <= 1e-8


@pytest.mark.parametrize("beta", [0.1, 0.3])
def test_online_dpo_misses_the_equilibrium_of_a_cycle(beta: float) -> None:
    oracle = lookup("games", "rock_paper_scissors")(seed=0, strength=0.8)
    played = Game(oracle, TabularPolicy(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()), beta)
    nash = solve(played, "nash_mp", steps=2000, every=10_000)
    dpo = solve(played, "online_dpo", steps=20_000, every=1000)
    assert nash.history[-1]["kl_to_equilibrium"] <= 1e-12
    assert min(row["kl_to_equilibrium"] for row in dpo.history) > 1e-3
    assert min(row["duality_gap"] for row in dpo.history) > 1e-4


def claims_the_equilibrium(name: str) -> bool:
    claims = configure(name).guarantees
    return any(
        g.metric == "kl" and g.iterate == "last" and g.every == 1 and g.target is None and g.about is None
        for g in claims
    )


@pytest.mark.parametrize("name", [*filter(claims_the_equilibrium, solvers()), "online_dpo"])
def test_equilibrium_is_a_fixed_point_of_nash_solvers(name: str) -> None:
    played = game("random", 20, 0.1)
    goal = equilibrium(played, EXACT)
    states = iterates(played, configure(name), goal)
    next(states)
    moved = float(span(next(states).current.log_probs, goal.log_probs))
    if name == "online_dpo":
        assert moved > 1e-2
    elif name == "nash_md":  # its decaying step begins at mixing = 1, where it forgets the policy: fixed step below
        fixed = iterates(played, configure(name, eta=2.0), goal)
        next(fixed)
        # The mixture, not the policy, is the opponent: the equilibrium is approached, not kept.
        assert float(span(next(fixed).current.log_probs, goal.log_probs)) < 2
    else:
        assert moved <= 1e-9


def test_nash_mp_is_two_half_steps_by_hand() -> None:
    played = game("random", 7, 0.2)
    eta = 0.3
    matrix, log_ref = played.oracle.matrix(), played.reference.log_probs
    start = torch.randn(7, generator=torch.Generator().manual_seed(9), dtype=torch.float64).log_softmax(-1)
    weight = 0.2 + 0.2 / eta

    def half(opponent: Tensor) -> Tensor:
        return ((matrix @ opponent.exp() + 0.2 * log_ref + (0.2 / eta) * start) / weight).log_softmax(-1)

    expected = half(half(start))
    result = solve(played, configure("nash_mp", eta=eta), steps=1, policy=TabularPolicy(start))
    assert torch.allclose(result.policy.log_probs, expected, atol=1e-14)
    assert result.queries.exact == 2
    assert [row["step"] for row in result.history] == [0, 1]


def test_nash_mp_practical_form_by_hand() -> None:
    played = game("random", 6, 0.2)
    matrix, log_ref = played.oracle.matrix(), played.reference.log_probs
    current = target = log_ref
    for _ in range(3):
        weight = 0.2 + 0.2 / 0.5
        logits = matrix @ current.exp() + 0.2 * log_ref + 0.4 * target
        current = (logits / weight).log_softmax(-1)
        target = (0.7 * target + 0.3 * current).log_softmax(-1)
    result = solve(played, configure("nash_mp", eta=0.5, kappa=0.3), steps=3)
    assert torch.allclose(result.policy.log_probs, current, atol=1e-13)


def test_nash_md_by_hand() -> None:
    played = game("random", 6, 0.2)
    matrix, log_ref = played.oracle.matrix(), played.reference.log_probs
    start = torch.randn(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64).log_softmax(-1)
    eta = 0.8
    mixture = ((1 - eta * 0.2) * start + eta * 0.2 * log_ref).log_softmax(-1)
    expected = (mixture + eta * (matrix @ mixture.exp())).log_softmax(-1)
    result = solve(played, configure("nash_md", eta=eta), steps=1, policy=TabularPolicy(start))
    assert torch.allclose(result.policy.log_probs, expected, atol=1e-14)


@given(beta=st.floats(0.01, 2), seed=st.integers(0, 1000), name=st.sampled_from(["online_dpo", "online_ipo"]))
@settings(deadline=None, max_examples=50)
def test_signals_are_the_slope_of_the_loss(beta: float, seed: int, name: str) -> None:
    """The closed form equals automatic differentiation, and is odd under exchange of the pair."""
    generator = torch.Generator().manual_seed(seed)
    preference = torch.rand(8, generator=generator, dtype=torch.float64)
    log_ratio = 5 * torch.randn(8, generator=generator, dtype=torch.float64)
    played = game("random", 4, beta)
    solver = configure(name)
    loss = solver.propose(played, solver.init(played, played.reference)).loss
    generic = super(type(loss), loss).signal(preference, log_ratio)
    assert torch.allclose(loss.signal(preference, log_ratio), generic, atol=1e-12)
    even = loss.signal(torch.tensor(0.5), torch.tensor(0.0))
    swapped = loss.signal(1 - preference, -log_ratio)
    assert torch.allclose(loss.signal(preference, log_ratio) - even, even - swapped, atol=1e-12)


@given(seed=st.integers(0, 1000), beta=st.floats(0.05, 1))
@settings(deadline=None, max_examples=30)
def test_online_ipo_follows_the_self_play_policy_gradient(seed: int, beta: float) -> None:
    """The gradient of the expected loss in the logits is a positive multiple of the regularised payoff's."""
    played = game("random", 5, beta, seed)
    matrix, log_ref = played.oracle.matrix(), played.reference.log_probs
    logits = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    policy = logits.log_softmax(-1)
    weights = (policy.detach().exp()[:, None] * policy.detach().exp()).detach()
    h = (policy - log_ref)[:, None] - (policy - log_ref)
    loss = (weights * (h - (matrix - 0.5) / beta).square()).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    p = policy.detach().exp()
    s = matrix @ p - beta * (policy.detach() - log_ref)
    gradient = p * (s - (p * s).sum())
    factor = float(-slope @ gradient / (gradient @ gradient))
    assert factor > 0
    assert torch.allclose(-slope, factor * gradient, atol=1e-10)


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=8)
def test_softmax_policy_ascends_to_the_exact_improvement(seed: int) -> None:
    played = game("random", 5, 0.3, seed)
    start = TabularPolicy(torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    update = Update(start=start, opponent=start, anchors=[(played.reference, 0.3), (start, 0.5)])
    exact = start.improve(update, played).policy
    parametric = SoftmaxPolicy(start.log_probs, learning_rate=3.0, steps=1500)
    gradient = parametric.improve(update, played).policy
    assert float(kl_divergence(exact.log_probs, gradient.log_probs)) <= 1e-6
    (once,) = [parametric.improve(attrs.evolve(update, steps=1), played).policy]
    assert float(kl_divergence(exact.log_probs, once.log_probs)) < float(
        kl_divergence(exact.log_probs, start.log_probs)
    )


def test_comparisons_are_counted_however_they_are_asked() -> None:
    oracle = lookup("games", "random")(seed=0, responses=5)
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])
    by_keyword = oracle.probability(prompts=None, first=first, second=second)
    assert torch.equal(by_keyword, oracle.probability(None, first, second))
    assert oracle.queries.sampled == 6
    with oracle.uncounted():
        oracle.probability(None, first, second)
    assert (oracle.queries.sampled, oracle.queries.exact) == (6, 0)


def test_a_resumed_run_draws_what_it_would_have_drawn() -> None:
    def sampled() -> Game:
        return Game(SampledOracle(lookup("games", "random")(seed=0, responses=6), comparisons=3), beta=0.2)

    whole = solve(sampled(), "nash_mp", steps=10, seed=4)
    first = solve(sampled(), "nash_mp", steps=5, seed=4)
    second = solve(sampled(), "nash_mp", steps=10, seed=4, resume=first.state)
    assert torch.equal(whole.policy.log_probs, second.policy.log_probs)
    assert not torch.equal(whole.policy.log_probs, solve(sampled(), "nash_mp", steps=10, seed=5).policy.log_probs)
    assert second.queries == whole.queries


def test_sampled_oracle_is_unbiased_and_counted() -> None:
    base = lookup("games", "random")(seed=0, responses=6)
    oracle = SampledOracle(base, comparisons=5)
    opponent = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([oracle.payoff(opponent, generator=generator) for _ in range(4000)])
    error = (draws.mean(0) - base.matrix() @ opponent).abs()
    assert bool((error <= 5 * draws.std(0) / 4000**0.5).all())
    assert oracle.queries.sampled == 4000 * 6 * 5
    assert oracle.queries.exact == 0
    signed = torch.stack([oracle.payoff(2 * opponent - opponent.flip(0), generator=generator) for _ in range(4000)])
    truth = base.matrix() @ (2 * opponent - opponent.flip(0))
    assert bool(((signed.mean(0) - truth).abs() <= 5 * signed.std(0) / 4000**0.5).all())


def test_batch_equals_games_one_by_one() -> None:
    oracle = lookup("games", "random")(seed=3, responses=8, games=4)
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = Game(oracle, TabularPolicy(logits), 0.05)
    for name, solver in solvers().items():
        if "table" not in solver.backends:
            continue
        if name == "adaptive_nash_mp":  # each game has a step of its own
            with pytest.raises(BadInput, match="one by one"):
                solve(batch, name, steps=5)
            continue
        together = solve(batch, name, steps=5).policy.log_probs
        for i in range(4):
            one = Game(MatrixOracle(oracle.matrix()[i]), TabularPolicy(logits[i]), 0.05)
            assert torch.allclose(solve(one, name, steps=5).policy.log_probs, together[i], atol=1e-10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nash_mp", {"eta": -1.0}),
        ("nash_mp", {"kappa": 1.5}),
        ("nash_md", {"eta": 0.0}),
        ("exact_prox", {"eta": 0}),
        ("online_dpo", {"eta": "fast"}),
        ("online_ipo", {"step": 0.1}),
    ],
)
def test_bad_hyperparameters_are_refused(name: str, options: dict) -> None:
    with pytest.raises(BadInput) as caught:
        configure(name, **options)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "eta" in str(caught.value)


@pytest.mark.parametrize("name", solvers())
def test_a_game_without_regularisation_is_refused_or_played(name: str) -> None:
    played = Game(lookup("games", "random")(seed=0, responses=4), beta=0)
    if solvers()[name].needs_beta:
        start = SoftmaxPolicy(played.reference.log_probs)  # which those that play no exact table play, too
        with pytest.raises(BadInput, match="beta > 0"):
            solve(played, name, steps=1, policy=start)
    elif name in ("comal", "mpo"):
        with pytest.raises(BadInput, match="tau > 0"):
            solve(played, name, steps=1)
        assert solve(played, configure(name, tau=0.1), steps=4000, every=4000).history[-1]["duality_gap"] < 1e-5
    else:
        assert solve(played, name, steps=1).state.step == 1


def test_what_a_notebook_shows_of_a_result_is_short() -> None:
    played = Game(MatrixOracle([[0.5, 0.9], [0.1, 0.5]], labels=["a", "b"]), beta=0.1)
    shown = repr(solve(played, "nash_mp", steps=100))
    assert "MatrixOracle(2 responses)" in shown
    assert "[101 rows, the last {'step': 100," in shown
    assert len(shown) < 1000
    assert repr(MatrixOracle(torch.full((4, 3, 3), 0.5))) == "MatrixOracle(4 games of 3 responses)"


@given(beta=st.sampled_from([0.01, 0.1, 1.0]), initial=st.floats(1e-9, 1e3), counts=st.lists(st.integers(0, 2000)))
@settings(max_examples=20, deadline=None)
def test_every_bound_that_compare_draws_is_had_in_plain_numbers_and_the_same(
    beta: float, initial: float, counts: list[int]
) -> None:
    played = Game(MatrixOracle([[0.5, 0.9], [0.1, 0.5]]), beta=beta)
    start = torch.tensor(initial, dtype=torch.float64)
    drawn = 0
    for name, cls in solvers().items():
        for claim in configure(name).guarantees if "table" in cls.backends else ():
            if speaks_of(claim, played):
                assert isinstance(claim.bound, Affine), name
                one_by_one = [float(claim.bound(n, played, start)) for n in counts]
                assert claim.bound.course(played, counts, initial) == pytest.approx(one_by_one, rel=1e-14), name
                drawn += 1
    assert drawn > 10
