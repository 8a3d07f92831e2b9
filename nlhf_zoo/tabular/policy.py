"""Policies over a finite response set: the exact table, and the softmax table that takes gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import (
    EnumerableOracle,
    Game,
    Itself,
    Outcome,
    Policy,
    Responses,
    Update,
)
from nlhf_zoo.tabular.implicit import solve_implicit

__all__ = ["SoftmaxPolicy", "TabularPolicy", "TabularResponses", "enumerable"]


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
    if not bool((logits < torch.inf).all()):  # NaN fails too
        raise BadInput("log-probabilities must be numbers below infinity (-inf is a zero probability)")
    if bool(torch.isneginf(logits).all(-1).any()):
        raise BadInput("a tabular policy gives every response probability zero")
    return logits.log_softmax(-1)


@attrs.frozen(eq=False)
class TabularPolicy(Policy):
    """A table of log-probabilities; improvements are exact, by formula.

    Attributes:
        log_probs: (..., Y), normalised on construction (so any logits will do); -inf is a zero probability.
            Leading dimensions are a batch of games. Prompts are indices into that batch, flattened, or
            `None` where there is a single game.
    """

    log_probs: Tensor = attrs.field(converter=_log_probabilities)

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
        """(..., Y) v of the update, one query of the oracle; the opponent must not be `ITSELF`."""
        assert not isinstance(update.opponent, Itself)
        weights = torch.stack([weight * _table(policy).exp() for policy, weight in update.opponent.terms]).sum(0)
        ratio = None if update.loss is None else _table(update.start) - _table(game.reference)
        return enumerable(game).payoff(weights, loss=update.loss, log_ratio=ratio, generator=generator)

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        oracle = enumerable(game)
        before = oracle.queries
        anchors = anchor_tables(update)
        if isinstance(update.opponent, Itself):
            if update.loss is not None:
                raise BadInput("an implicit update (opponent ITSELF) takes no pairwise loss on a table")
            log_probs, measured = solve_implicit(oracle, anchors, game.divergence, self.log_probs, generator)
        else:
            log_probs = game.divergence.improve(self.payoff(update, game, generator), anchors)
            measured = {}
        return Outcome(TabularPolicy(log_probs), oracle.queries - before, measured)


def anchor_tables(update: Update) -> Sequence[tuple[Tensor, float]]:
    """The update's anchors as pairs of (..., Y) log-probabilities and weight."""
    return [(_table(anchor.policy), anchor.weight) for anchor in update.anchors]


def _table(policy: Policy) -> Tensor:
    if not isinstance(policy, TabularPolicy):
        raise BadInput(f"a table cannot play with a {type(policy).__name__}; give both the same backend")
    return policy.log_probs


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
        anchors = anchor_tables(update)
        log_probs = _table(update.start)
        payoff = None if isinstance(update.opponent, Itself) else self.payoff(update, game, generator)
        for _ in range(update.steps or self.steps):
            v = payoff if payoff is not None else oracle.payoff(log_probs.exp(), generator=generator)
            log_probs = self._step(log_probs, v, anchors, game)
        return Outcome(attrs.evolve(self, log_probs=log_probs), oracle.queries - before)

    def _step(self, log_probs: Tensor, payoff: Tensor, anchors: Sequence[tuple[Tensor, float]], game: Game) -> Tensor:
        from nlhf_zoo.metrics import improvement_value

        with torch.enable_grad():
            logits = log_probs.detach().requires_grad_()
            value = improvement_value(logits.log_softmax(-1), payoff, anchors, game.divergence)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
        return (log_probs + self.learning_rate * gradient).log_softmax(-1)
