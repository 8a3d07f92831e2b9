"""Policies over a finite response set: the exact table, and the softmax table that takes gradient steps."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import (
    Divergence,
    EnumerableOracle,
    Game,
    Itself,
    Outcome,
    Policy,
    Responses,
    ReverseKL,
    Update,
)
from nlhf_zoo.interfaces.proximal import mixed_improvement
from nlhf_zoo.metrics import improvement_value, kl_divergence
from nlhf_zoo.tabular.implicit import solve_implicit
from nlhf_zoo.tabular.kernels import reverse_kl_improvement

__all__ = ["SoftmaxPolicy", "TabularPolicy", "TabularResponses", "enumerable", "of_both", "of_normalised", "unchecked"]

_unchecked = contextvars.ContextVar("unchecked", default=False)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside, no policy is looked at for NaN, for which the host waits for a device: whoever enters does it after."""
    token = _unchecked.set(True)
    try:
        yield
    finally:
        _unchecked.reset(token)


@attrs.frozen(eq=False)
class TabularResponses(Responses):
    """Response indices, (B, K) int64."""

    index: Tensor

    @property
    def num_samples(self) -> int:  # type: ignore[override]  # a property serves the attribute
        return self.index.shape[-1]


def enumerable(game: Game) -> EnumerableOracle:
    """The game's oracle, known to list its responses.

    Raises:
        BadInput: it cannot.
    """
    if not isinstance(game.oracle, EnumerableOracle):
        raise BadInput(f"a table needs an oracle over listed responses, not {type(game.oracle).__name__}")
    return game.oracle


def _log_probabilities(value: Any) -> Tensor:
    # Lists hold Python's doubles; torch alone would round them to float32.
    logits = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    logits = logits if logits.is_floating_point() else logits.double()
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise BadInput("a tabular policy needs log-probabilities of shape (..., Y) with Y >= 1")
    normalised = logits.log_softmax(-1)
    if _unchecked.get() or not bool(normalised.isnan().any()):
        return normalised
    if not bool((logits < torch.inf).all()):  # NaN fails too
        raise BadInput("log-probabilities must be numbers below infinity (-inf is a zero probability)")
    raise BadInput("a tabular policy gives every response probability zero")


@attrs.frozen(eq=False)
class TabularPolicy(Policy):
    """A table of log-probabilities; improvements are exact, by formula.

    Attributes:
        log_probs: (..., Y), normalised on construction (so any logits will do); -inf is a zero probability.
            Leading dimensions are a batch of games. Prompts are indices into that batch, flattened, or
            `None` where there is a single game.
    """

    log_probs: Tensor = attrs.field(converter=_log_probabilities)
    both: ClassVar[Tensor | None] = None  # (2, ..., Y) with the probabilities, of the policies that a kernel made

    @classmethod
    def uniform(cls, *shape: int) -> Self:
        """The uniform policy with log-probabilities of this shape (..., Y), float64."""
        return cls(torch.zeros(shape, dtype=torch.float64))

    @property
    def probs(self) -> Tensor:
        """(..., Y) probabilities."""
        return self.log_probs.exp()

    def _rows(self, prompts: Any) -> Tensor:
        rows = self.log_probs.reshape(-1, self.log_probs.shape[-1])
        if prompts is None:
            return rows
        return rows[torch.as_tensor(prompts, device=rows.device)]

    def sample(self, prompts: Any, num_samples: int, generator: torch.Generator | None) -> TabularResponses:
        index = torch.multinomial(self._rows(prompts).exp(), num_samples, replacement=True, generator=generator)
        return TabularResponses(index)

    def log_prob(self, prompts: Any, responses: TabularResponses) -> Tensor:
        return self._rows(prompts).gather(-1, responses.index)

    def mixture(self, other: Policy, weight: float) -> TabularPolicy:
        if weight in (0.0, 1.0):  # 0 * -inf is not a number
            return self if weight == 0.0 else TabularPolicy(_table(other))
        return TabularPolicy((1 - weight) * self.log_probs + weight * _table(other))

    def average(self, other: Policy, weight: float) -> Policy:
        return self.mixture(other, weight)

    def payoff(self, update: Update, game: Game, generator: torch.Generator | None) -> Tensor:
        """(..., Y) v of the update, one query of the oracle (none without an opponent); not for `ITSELF`."""
        assert not isinstance(update.opponent, Itself)
        if update.opponent is None:
            return torch.zeros_like(_table(update.start))
        weights = functools.reduce(torch.add, [_weighted(policy, w) for policy, w in update.opponent.terms])
        oracle = enumerable(game)
        if update.loss is None:
            return oracle.payoff(weights, generator=generator)
        ratio = _table(update.start) - _table(game.reference)
        linked, slope, point = update.loss.of_single(ratio)
        value = oracle.payoff(weights, loss=update.loss, log_ratio=linked, generator=generator)
        if update.loss.joins(update):
            start = _table(update.start)
            own = oracle.payoff(start.exp(), loss=update.loss, log_ratio=linked, generator=generator)
            value = (value + (weights.log() - start).clamp_max(700).exp() * own) / 2
        return slope * value + point

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        oracle = enumerable(game)
        before = oracle.queries
        anchors = anchor_tables(update)
        both: Tensor | None = None
        if isinstance(update.opponent, Itself):
            if update.loss is not None:
                raise BadInput("an implicit update (opponent ITSELF) takes no pairwise loss on a table")
            if not _alike(update, game):
                raise BadInput("an implicit update (opponent ITSELF) takes anchors of the game's own divergence only")
            log_probs, measured = solve_implicit(oracle, anchors, game.divergence, self.log_probs, generator)
        elif _alike(update, game):
            log_probs, both = _improved(game.divergence, self.payoff(update, game, generator), anchors)
            measured = {}
        else:
            log_probs = mixed_improvement(self.payoff(update, game, generator), _held(update, game, anchors))
            measured = {}
        _warn_of_lost(update, game)
        # Only the reverse KL is known to end in a log-softmax, with nothing left to normalise.
        answer = _normalised(log_probs, both) if type(game.divergence) is ReverseKL else TabularPolicy(log_probs)
        return Outcome(answer, oracle.queries - before, measured | distances(update, answer))


def _warn_of_lost(update: Update, game: Game) -> None:
    """Say once where an anchor other than the reference, at zero, keeps a response out that might have come back."""
    for anchor, kind in zip(update.anchors, update.divergences(game), strict=True):
        if anchor.policy is game.reference or math.isinf(kind.slope_at_zero):
            continue
        if bool((torch.isneginf(_table(anchor.policy)) & ~torch.isneginf(_table(game.reference))).any()):
            warnings.warn(
                f"{kind.name} to a policy with a zero keeps that response out for good, also where the equilibrium has"
                " it; take a divergence that covers mass (reverse_kl, forward_kl), a larger beta or a smaller step",
                stacklevel=2,
            )


def _weighted(policy: Policy, weight: float) -> Tensor:
    table = _table(policy)
    both = policy.both if type(policy) is TabularPolicy else None
    probs = table.exp() if both is None else both[1]
    return probs if weight == 1.0 else weight * probs


def _improved(
    divergence: Divergence, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]]
) -> tuple[Tensor, Tensor | None]:
    """(..., Y) `divergence.improve`; in one kernel where the device has one, and then (2, ..., Y) with its exp too."""
    both = reverse_kl_improvement(payoff, anchors) if type(divergence) is ReverseKL and payoff.is_cuda else None
    return (divergence.improve(payoff, anchors), None) if both is None else (both[0], both)


def _normalised(log_probs: Tensor, both: Tensor | None) -> TabularPolicy:
    """The policy of (..., Y) that a log-softmax returned: the constructor without its passes over the table."""
    # A log-softmax makes a row NaN from end to end if anything in it is wrong: one column tells.
    if not _unchecked.get() and not bool((log_probs[..., 0] < torch.inf).all()):
        raise BadInput(
            "the payoffs of an update are no finite numbers: the oracle's are not, or a pairwise loss's slope outgrows"
            " its step; for the latter take a smaller step size (eta) or a larger beta"
        )
    return of_normalised(log_probs) if both is None else of_both(both)


def of_normalised(log_probs: Tensor) -> TabularPolicy:
    """The policy of log-probabilities (..., Y) that are known to be normalised, and are not looked at."""
    policy = object.__new__(TabularPolicy)
    object.__setattr__(policy, "log_probs", log_probs)  # as attrs itself sets the field of a frozen class
    return policy


def of_both(both: Tensor) -> TabularPolicy:
    """The policy of log-probabilities that are known to be normalised, and their exponentials: (2, ..., Y)."""
    policy = of_normalised(both[0])
    object.__setattr__(policy, "both", both)
    return policy


def _alike(update: Update, game: Game) -> bool:
    """Whether all anchors hold by the game's own divergence."""
    return all(kind == game.divergence for kind in update.divergences(game))


def _held(
    update: Update, game: Game, anchors: Sequence[tuple[Tensor, float]]
) -> list[tuple[Tensor, float, Divergence]]:
    """The anchors' tables and weights, each with its divergence."""
    return [(*pair, kind) for pair, kind in zip(anchors, update.divergences(game), strict=True)]


def anchor_tables(update: Update) -> Sequence[tuple[Tensor, float]]:
    """The update's anchors as pairs of (..., Y) log-probabilities and weight."""
    return [(_table(anchor.policy), anchor.weight) for anchor in update.anchors]


def distances(update: Update, answer: TabularPolicy) -> dict[str, Any]:
    """The divergences KL(p || q) that the update asks for: a float for one game, a (...) tensor for a batch."""
    found: dict[str, Any] = {}
    for name, pair in update.distances.items():
        first, second = (answer.log_probs if isinstance(end, Itself) else _table(end) for end in pair)
        value = kl_divergence(first, second)
        found[name] = float(value) if value.ndim == 0 else value
    return found


def _table(policy: Policy) -> Tensor:
    if not isinstance(policy, TabularPolicy):
        raise BadInput(f"a table cannot play with a {type(policy).__name__}; give both the same backend")
    return policy.log_probs


def update_value(log_policy: Tensor, payoff: Tensor, update: Update, game: Game) -> Tensor:
    """(...) what gradient steps climb, with exact expectations: the objective itself, or minus the loss of its fit.

    Args:
        log_policy: (..., Y) normalised log-probabilities of the learning policy, differentiable.
        payoff: (..., Y) v of the update.
    """
    anchors = anchor_tables(update)
    if update.fit is None:
        return improvement_value(log_policy, payoff, _held(update, game, anchors))
    if not _alike(update, game) or not isinstance(game.divergence, ReverseKL):
        raise BadInput(f"{type(update.fit).__name__} knows the answer of an update under the reverse KL only")
    source = log_policy.detach() if update.fit.on_policy else _table(update.start)
    gap = torch.stack([weight * (log_policy - log_rho) for log_rho, weight in anchors]).sum(0)
    return -update.fit.loss(gap, payoff, update.weight, source.exp())


@attrs.frozen(eq=False)
class SoftmaxPolicy(TabularPolicy):
    """A table in gradient form: logits that take plain gradient steps with exact expectations.

    It does on a table what a parametric policy does on an LLM (few, inexact steps; EMA of parameters), so
    that the practical forms of the algorithms can be studied exactly.

    Attributes:
        log_probs: the logits' log-softmax; the logits themselves, up to a constant that no gradient sees.
        learning_rate: of each step on the logits, > 0.
        steps: gradient steps an update, where the update does not say.
    """

    learning_rate: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    steps: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    def mixture(self, other: Policy, weight: float) -> SoftmaxPolicy:
        return attrs.evolve(self, log_probs=super().mixture(other, weight).log_probs)

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        oracle = enumerable(game)
        before = oracle.queries
        log_probs = _table(update.start)
        payoff = None if isinstance(update.opponent, Itself) else self.payoff(update, game, generator)
        for _ in range(update.steps or self.steps):
            v = payoff if payoff is not None else oracle.payoff(log_probs.exp(), generator=generator)
            log_probs = self._step(log_probs, v, update, game)
        answer = attrs.evolve(self, log_probs=log_probs)
        return Outcome(answer, oracle.queries - before, distances(update, answer))

    def _step(self, log_probs: Tensor, payoff: Tensor, update: Update, game: Game) -> Tensor:
        with torch.enable_grad():
            logits = log_probs.detach().requires_grad_()
            value = update_value(logits.log_softmax(-1), payoff, update, game)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
        return (log_probs + self.learning_rate * gradient).log_softmax(-1)
