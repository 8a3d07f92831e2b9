"""Parametric policies over a listed response set: gradient steps on few parameters, with exact expectations.

Between the table, which is exact, and the language model, which is sampled: the updates, moving averages and
inner loops are those of a language model, and every number can be computed. The setting that the second version
of arXiv 2505.19731 analyses.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self, get_args

import attrs
import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Game, Itself, Outcome, Policy, Update
from nlhf_zoo.tabular.ascent import Ascent, Optimizer, adam_step
from nlhf_zoo.tabular.policy import TabularPolicy, anchor_tables, distances, enumerable, update_value

__all__ = ["LogLinearPolicy", "MLPPolicy", "ParametricMixture", "ParametricPolicy"]

_OPTIONS = ("optimizer", "learning_rate", "steps", "damping", "tolerance")


def _numbers(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach()


def _finite(policy: Any, attribute: attrs.Attribute[Any], value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise BadInput(f"{type(policy).__name__}: {attribute.name} must be finite numbers")


@attrs.frozen(eq=False)
class ParametricPolicy(TabularPolicy):
    """log pi(y) = base(y) + score(features(y); theta) - log Z, improved by gradient steps on theta.

    A step climbs J(theta) = E_{y~pi} v(y) - sum_j w_j D(pi || rho_j) of the update, D the game's divergence, or
    descends the loss of its fit. Where one parameter vector serves several games, J is their mean, as it is over
    the prompts of a language model. All of it is kept in float64.

    Queries are those of `SoftmaxPolicy`: one payoff an update against a fixed opponent, pairwise losses included
    (their log-ratios are those of the start), however many gradient steps are taken; one payoff a step, each
    against the policy of that moment, where the opponent is `ITSELF` (and one more that ends a `tolerance`).

    Attributes:
        features: (..., Y, d) of the responses, finite; leading dimensions are a batch of games.
        theta: (..., n) parameters. Leading dimensions that are missing, or 1, share them between games.
        base: (..., Y) finite logits that the scores are added to (the reference's log-probabilities, say), or
            `None` for zeros; never trained.
        optimizer: "sgd", theta + learning_rate * gradient; "adam", whose moments go with the policy from update to
            update; "natural", the gradient divided by the Fisher information; "lbfgs", quasi-Newton with a line
            search of its own, each step up to 100 iterations against a fixed payoff (`learning_rate` is not read).
        learning_rate: > 0.
        steps: gradient steps an update, where the update does not say.
        damping: d >= 0 of the natural gradient (F + d I)^+ g, F = E_pi (J - E_pi J)^T (J - E_pi J), J = dscore/dtheta;
            0 is the pseudo-inverse. Singular values of F^(1/2) below rounding of the largest count as 0.
        tolerance: stop an update where no entry of the gradient exceeds this; 0 takes all steps.
        moments: Adam's, kept by `improve`.
        log_probs: (..., Y), computed from all this.

    Raises:
        BadInput: shapes that do not fit, or numbers that are not finite.
    """

    features: Tensor = attrs.field(converter=_numbers, validator=_finite)
    theta: Tensor = attrs.field(converter=_numbers, validator=_finite)
    base: Tensor | None = attrs.field(
        default=None,
        converter=attrs.converters.optional(_numbers),
        validator=attrs.validators.optional(_finite),
    )
    optimizer: Optimizer = attrs.field(default="sgd", kw_only=True, validator=attrs.validators.in_(get_args(Optimizer)))
    learning_rate: float = attrs.field(default=1.0, kw_only=True, validator=attrs.validators.gt(0))
    steps: int = attrs.field(default=1, kw_only=True, validator=attrs.validators.ge(1))
    damping: float = attrs.field(default=0.0, kw_only=True, validator=attrs.validators.ge(0))
    tolerance: float = attrs.field(default=0.0, kw_only=True, validator=attrs.validators.ge(0))
    moments: Mapping[str, Tensor] | None = attrs.field(default=None, kw_only=True, repr=False)
    log_probs: Tensor = attrs.field(init=False)  # type: ignore[override]  # computed, where a table is given it

    def __attrs_post_init__(self) -> None:
        if self.features.ndim < 2 or 0 in self.features.shape:
            raise BadInput(f"features must have shape (..., Y, d) with Y, d >= 1, got {tuple(self.features.shape)}")
        if self.theta.ndim == 0 or not self._fits(self.theta.shape[-1]):
            raise BadInput(
                f"{type(self).__name__}: theta of shape {tuple(self.theta.shape)} does not fit"
                f" d = {self.features.shape[-1]} features"
            )
        try:
            log_probs = self.log_probs_at(self.theta)
        except RuntimeError as error:  # torch: shapes that do not broadcast, tensors on several devices
            raise BadInput(f"{type(self).__name__}: features, theta and base do not go together ({error})") from None
        if not bool(torch.isfinite(log_probs).all()):
            raise BadInput(f"{type(self).__name__}: the scores overflow; scale the features or theta down")
        object.__setattr__(self, "log_probs", log_probs)

    @classmethod
    def uniform(cls, *shape: int) -> Self:
        """Raises `BadInput`: without features there are no parameters; see `initial`."""
        raise BadInput(f"a {cls.__name__} needs features; make it by {cls.__name__}.initial(features)")

    @abstractmethod
    def _fits(self, parameters: int) -> bool:
        """Whether a vector of so many parameters goes with the features."""

    @abstractmethod
    def _scores(self, theta: Tensor) -> Tensor:
        """(..., Y), differentiable in theta (..., n)."""

    @abstractmethod
    def _tangent(self, theta: Tensor) -> Tensor:
        """(..., Y, n) the derivative of the scores."""

    def log_probs_at(self, theta: Tensor) -> Tensor:
        """(..., Y) log-probabilities with other parameters (..., n), differentiable in them."""
        scores = self._scores(theta)
        return (scores if self.base is None else self.base + scores).log_softmax(-1)

    def gradient(self, update: Update, game: Game, payoff: Tensor) -> Tensor:
        """(..., n) the gradient of J at theta, given v (..., Y); asks the oracle nothing."""
        return self._ascent(update, game, payoff).gradient(self.theta)

    def _ascent(self, update: Update, game: Game, payoff: Tensor) -> Ascent:
        v = payoff.to(self.theta.dtype)
        return Ascent(self.log_probs_at, self._tangent, lambda log_probs: update_value(log_probs, v, update, game))

    def mixture(self, other: Policy, weight: float) -> TabularPolicy:
        """The geometric mixture: as a table that can be met and held to, but has no parameters to train."""
        if weight == 0.0:
            return self
        table = super().mixture(other, weight)
        return other if weight == 1.0 and isinstance(other, TabularPolicy) else ParametricMixture(table.log_probs)

    def average(self, other: Policy, weight: float) -> Self:
        """The policy with parameters (1 - weight) * self + weight * other; bases are averaged as well.

        Raises:
            BadInput: `other` is no policy of this class on the same features.
        """
        if not isinstance(other, type(self)):
            raise BadInput(f"parameters of a {type(self).__name__} cannot be averaged with a {type(other).__name__}")
        if not _same(self.features, other.features) or self.theta.shape[-1] != other.theta.shape[-1]:
            raise BadInput("parameters can be averaged between policies on the same features only")
        mine, theirs = torch.broadcast_tensors(self.theta, other.theta)
        base = self.base
        if not _same(self.base, other.base):
            zeros = torch.zeros_like(self.features[..., 0])
            bases = [zeros if b is None else b for b in (self.base, other.base)]
            first, second = torch.broadcast_tensors(*bases)
            base = torch.lerp(first, second, weight)
        return attrs.evolve(self, theta=torch.lerp(mine, theirs, weight), base=base, moments=None)

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        """Gradient steps from the update's start, as the options of this policy say.

        Raises:
            BadInput: the start is of another class, an anchor leaves a response out, or L-BFGS is to follow a fit
                that is no loss.
            ArithmeticError: the steps ran away.
        """
        oracle = enumerable(game)
        before = oracle.queries
        policy = self._begun(update)
        fixed = None if isinstance(update.opponent, Itself) else self.payoff(update, game, generator)
        taken, steepest = 0, math.inf
        for _ in range(update.steps or self.steps):
            payoff = fixed if fixed is not None else oracle.payoff(policy.probs, generator=generator)
            ascent = policy._ascent(update, game, payoff)
            gradient = ascent.gradient(policy.theta)
            steepest = float(gradient.abs().amax())
            if steepest <= self.tolerance and self.tolerance > 0:
                break
            policy = policy._stepped(ascent, gradient)
            taken += 1
        measured = {"inner_iterations": float(taken), "gradient": steepest} | distances(update, policy)
        return Outcome(policy, oracle.queries - before, measured)

    def _begun(self, update: Update) -> Self:
        start = update.start
        if not isinstance(start, type(self)):
            raise BadInput(f"gradient steps of a {type(self).__name__} cannot begin at a {type(start).__name__}")
        if any(not bool(torch.isfinite(table).all()) for table, _ in anchor_tables(update)):
            raise BadInput("an anchor gives a response probability zero, where gradient steps cannot follow")
        if self.optimizer == "lbfgs" and update.fit is not None and update.fit.on_policy:
            raise BadInput(f"lbfgs needs a loss to minimise, and {type(update.fit).__name__} is a gradient only")
        return attrs.evolve(start, **{name: getattr(self, name) for name in _OPTIONS})

    def _stepped(self, ascent: Ascent, gradient: Tensor) -> Self:
        moments = self.moments
        if self.optimizer == "sgd":
            theta = self.theta + self.learning_rate * gradient
        elif self.optimizer == "natural":
            theta = self.theta + self.learning_rate * ascent.natural_gradient(self.theta, self.damping)
        elif self.optimizer == "lbfgs":
            theta = ascent.maximum(self.theta)
        else:
            theta, moments = adam_step(self.theta, gradient, self.learning_rate, moments)
        try:
            return attrs.evolve(self, theta=theta, moments=moments)
        except BadInput:  # no longer finite
            raise ArithmeticError(
                f"gradient steps ran away with learning_rate {self.learning_rate:g}; take a smaller one"
            ) from None


@attrs.frozen(eq=False)
class LogLinearPolicy(ParametricPolicy):
    """log pi(y) = base(y) + <features(y), theta> - log Z, theta (..., d).

    With the identity for features it is a softmax table. Its mixtures are averages of parameters.
    """

    @classmethod
    def initial(
        cls, features: Any, base: Any = None, *, batch: tuple[int, ...] = (), **options: Any
    ) -> LogLinearPolicy:
        """theta = 0: the base policy itself.

        Args:
            batch: leading dimensions of theta; `()` shares one vector between all games.
            options: further attributes, by name.
        """
        features = _numbers(features)
        theta = torch.zeros((*batch, features.shape[-1]), dtype=torch.float64, device=features.device)
        return cls(features, theta, base, **options)

    def _fits(self, parameters: int) -> bool:
        return parameters == self.features.shape[-1]

    def _scores(self, theta: Tensor) -> Tensor:
        return (self.features @ theta.unsqueeze(-1)).squeeze(-1)

    def _tangent(self, theta: Tensor) -> Tensor:
        return self.features

    def mixture(self, other: Policy, weight: float) -> TabularPolicy:
        """The geometric mixture; with a policy of the same features and base it stays in the class."""
        if (
            isinstance(other, LogLinearPolicy)
            and _same(self.features, other.features)
            and _same(self.base, other.base)
            and 0.0 < weight < 1.0
        ):
            return self.average(other, weight)
        return super().mixture(other, weight)


@attrs.frozen(eq=False)
class MLPPolicy(ParametricPolicy):
    """score(x) = <c, tanh(A x + b)>: one hidden layer of h units; theta = (A, b, c), n = h (d + 2), A row by row."""

    @classmethod
    def initial(
        cls,
        features: Any,
        base: Any = None,
        *,
        generator: torch.Generator,
        hidden: int = 16,
        batch: tuple[int, ...] = (),
        **options: Any,
    ) -> MLPPolicy:
        """A and b normal with deviation d^(-1/2), c = 0: the base policy itself.

        Args:
            generator: on the CPU; the only source of randomness.
            hidden: h >= 1.
            batch: leading dimensions of theta; `()` shares one network between all games.
            options: further attributes, by name.
        """
        if hidden < 1:
            raise BadInput(f"an MLP needs at least one hidden unit, got {hidden}")
        features = _numbers(features)
        width = features.shape[-1]
        first = torch.randn((*batch, hidden * (width + 1)), generator=generator, dtype=torch.float64) / width**0.5
        theta = torch.cat([first, torch.zeros((*batch, hidden), dtype=torch.float64)], -1)
        return cls(features, theta.to(features.device), base, **options)

    def _fits(self, parameters: int) -> bool:
        return parameters > 0 and parameters % (self.features.shape[-1] + 2) == 0

    def _layers(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """tanh(A x + b) (..., Y, h) and c (..., h)."""
        width = self.features.shape[-1]
        units = theta.shape[-1] // (width + 2)
        matrix, bias, last = theta.split([units * width, units, units], -1)
        inner = torch.tanh(self.features @ matrix.unflatten(-1, (units, width)).mT + bias.unsqueeze(-2))
        return inner, last

    def _scores(self, theta: Tensor) -> Tensor:
        inner, last = self._layers(theta)
        return (inner @ last.unsqueeze(-1)).squeeze(-1)

    def _tangent(self, theta: Tensor) -> Tensor:
        inner, last = self._layers(theta)
        slope = (1 - inner.square()) * last.unsqueeze(-2)
        return torch.cat([(slope.unsqueeze(-1) * self.features.unsqueeze(-2)).flatten(-2), slope, inner], -1)


@attrs.frozen(eq=False)
class ParametricMixture(TabularPolicy):
    """A geometric mixture with a parametric policy in it: sampled, met and held to, but not trained."""

    def mixture(self, other: Policy, weight: float) -> TabularPolicy:
        return self if weight == 0.0 else ParametricMixture(super().mixture(other, weight).log_probs)

    def average(self, other: Policy, weight: float) -> Policy:
        raise BadInput("a mixture of parametric policies has no parameters of its own to average")

    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        raise BadInput("a mixture of parametric policies cannot be trained; start the update from one of its parts")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)
