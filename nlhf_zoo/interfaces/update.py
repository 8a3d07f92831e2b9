"""What a solver asks for: one proximal improvement, as data."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces.divergence import Divergence
from nlhf_zoo.interfaces.fit import Fit
from nlhf_zoo.interfaces.policy import Policy

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.interfaces.game import Game
    from nlhf_zoo.interfaces.oracle import QueryCount

__all__ = ["ITSELF", "Anchor", "Itself", "Opponent", "Outcome", "PairwiseLoss", "Update"]


class Itself:
    """The opponent of an implicit scheme: the very policy that the update is to find."""

    def __repr__(self) -> str:
        return "ITSELF"


ITSELF = Itself()


class PairwiseLoss(ABC):
    """A loss l(P, h) on one pair, P = P(y > y') and h = g(r(y)) - g(r(y')), r = log pi/pi_ref, g = `link`.

    Its minimisation over on-policy pairs is an improvement against the payoff
    v(y) = g'(r(y)) E_{y'} signal(P(y > y'), h(y, y')) + point(r(y)), signal = -scale * dl/dh: the expected
    gradient of the loss is, up to the factor `scale`, the policy gradient with that payoff. One formula therefore
    serves policy gradients and pairwise losses alike.

    Attributes:
        scale: what -dl/dh is multiplied by to be a payoff.
        both_learn: whether, in pairs (y, y') with y' from another opponent mu, y' learns too, as in losses on pairs of
            two authors. v is then the mean of E_{y'~mu} signal and (mu / pi)(y) E_{y'~pi} signal: two queries.
    """

    scale: float = 1.0
    both_learn: bool = False

    @abstractmethod
    def loss(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        """Elementwise l(P, h); any equal shapes, differentiable in `log_ratio`."""

    def signal(self, preference: Tensor, log_ratio: Tensor) -> Tensor:
        """-scale * dl/dh, elementwise; by automatic differentiation unless overridden.

        Must be odd under exchange of the two responses (P -> 1 - P, h -> -h), which every loss that does
        not care about the order of a pair satisfies.
        """
        import torch

        with torch.enable_grad():
            h = log_ratio.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(preference.detach(), h).sum(), h)
        return -self.scale * slope

    def link(self, log_ratio: Tensor) -> Tensor:
        """g, elementwise and differentiable: what of log pi/pi_ref the loss looks at; the log-ratio itself here."""
        return log_ratio

    def point(self, log_ratio: Tensor) -> Tensor | float:
        """What a single response adds to its payoff, whoever it is compared with; nothing here."""
        return 0.0

    def joins(self, update: Update) -> bool:
        """Whether the opponent's responses learn beside those of the update's start, being another's."""
        if not self.both_learn or not isinstance(update.opponent, Opponent):
            return False
        return not all(policy is update.start for policy, _ in update.opponent.terms)

    def of_single(self, log_ratio: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """(g(r), g'(r), point(r)) of log-ratios r, without gradients; g' by automatic differentiation."""
        import torch

        if type(self).link is PairwiseLoss.link:
            return log_ratio, 1.0, self.point(log_ratio)
        with torch.enable_grad():
            r = log_ratio.detach().requires_grad_()
            linked = self.link(r)
            (slope,) = torch.autograd.grad(linked.sum(), r)
        return linked.detach(), slope, self.point(log_ratio)


def _check_policy(policy: Any, what: str) -> None:
    if not isinstance(policy, Policy):
        raise BadInput(f"{what} is a policy, such as state.current, and not a {type(policy).__name__}")


def _terms(value: Any) -> tuple[tuple[Policy, float], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return ((cast("Policy", value), 1.0),)  # which the validator checks
    pairs = cast("Sequence[tuple[Policy, float]]", value)
    try:
        return tuple((policy, float(weight)) for policy, weight in pairs)
    except (TypeError, ValueError):
        raise BadInput("several opponents are a list of pairs, Opponent([(policy, weight), ...])") from None


def _check_terms(_: Any, __: Any, terms: tuple[tuple[Policy, float], ...]) -> None:
    for policy, _weight in terms:
        _check_policy(policy, "an update's opponent")
    if not terms or not math.isclose(sum(w for _, w in terms), 1.0, abs_tol=1e-9):
        raise BadInput(f"opponent weights must add up to 1, got {[w for _, w in terms]}")


def _check_weight(_: Any, __: Any, weight: float) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise BadInput(f"anchor weight must be finite and >= 0, got {weight}")


def _check_anchors(_: Any, __: Any, anchors: tuple[Anchor, ...]) -> None:
    if not anchors:
        raise BadInput("an update needs an anchor with a positive weight, or its maximum is not a policy")


def _check_start(_: Any, __: Any, start: Any) -> None:
    _check_policy(start, "an update's start")


def _check_anchor(_: Any, __: Any, policy: Any) -> None:
    _check_policy(policy, "what an anchor holds by")


def _check_steps(_: Any, __: Any, steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise BadInput(f"an update takes at least one gradient step, got {steps}")


@attrs.frozen
class Opponent:
    """Whom to beat: a signed combination of policies, sum of weight * payoff against policy.

    `Opponent(pi)` is pi itself; `Opponent([(pi, 2.0), (previous, -1.0)])` is the optimistic
    2 u_k - u_{k-1}. The weights add up to 1.
    """

    terms: tuple[tuple[Policy, float], ...] = attrs.field(converter=_terms, validator=_check_terms)


@attrs.frozen
class Anchor:
    """A penalty weight * D(pi || policy) that holds the answer near `policy`; weight >= 0.

    Attributes:
        policy: rho.
        weight: w >= 0.
        divergence: D; `None` is the game's.
    """

    policy: Policy = attrs.field(validator=_check_anchor)
    weight: float = attrs.field(converter=float, validator=_check_weight)
    divergence: Divergence | None = None


def _opponent(value: Any) -> Any:
    return value if value is None or isinstance(value, Opponent | Itself) else Opponent(value)


def _anchor(item: Any) -> Anchor:
    if isinstance(item, Anchor):
        return item
    if not isinstance(item, list | tuple):
        raise BadInput(f"anchors are a list of pairs, [(policy, weight), ...], with no {type(item).__name__} in it")
    return Anchor(*cast("Sequence[Any]", item))


def _anchors(value: Any) -> tuple[Anchor, ...]:
    # Equal policies are merged, and zero weights dropped, so that a backend sees each model once.
    merged: list[Anchor] = []
    for anchor in map(_anchor, cast("Iterable[Any]", value) if isinstance(value, Iterable) else [value]):
        for index, other in enumerate(merged):
            if other.policy is anchor.policy and other.divergence == anchor.divergence:
                merged[index] = attrs.evolve(other, weight=other.weight + anchor.weight)
                break
        else:
            merged.append(anchor)
    return tuple(a for a in merged if a.weight > 0)


@attrs.frozen(kw_only=True)
class Update:
    """argmax over pi of  E_{y~pi} v(y) - sum_j w_j D(pi || rho_j): one proximal improvement.

    v is the payoff against `opponent`: u_mu(y) = P(y > mu), or the mean signal of `loss` where a pairwise
    loss is given (its log-ratios h are those of `start` to the reference). On a table, under the reverse
    KL, the exact answer is log pi = (v + sum_j w_j log rho_j) / sum_j w_j - log Z; a parametric policy
    approaches it by gradient steps that begin at `start`.

    Attributes:
        start: where gradient steps begin, and the behaviour policy of a pairwise loss.
        opponent: whom to beat; `ITSELF` makes the update implicit (a fixed point); `None` asks the oracle
            nothing (v = 0).
        anchors: pairs (policy, weight >= 0); at least one weight must be positive.
        loss: a pairwise loss, or `None` for the preference itself.
        steps: gradient steps to spend; `None` leaves it to the driver. Ignored where the answer is exact.
        fit: how a parametric policy approaches the answer; `None` is the policy gradient of the objective.
            Ignored where the answer is exact, which is the same for every fit.
        distances: divergences KL(p || q) that the solver wants to know when the answer is there, by name, as
            pairs (p, q) in which `ITSELF` stands for the answer. They arrive in `Outcome.measured`: exact on a
            table; on a language model a mean over sampled responses, with its standard error as "NAME_error".
    """

    start: Policy = attrs.field(validator=_check_start)
    opponent: Opponent | Itself | None = attrs.field(converter=_opponent)
    anchors: tuple[Anchor, ...] = attrs.field(converter=_anchors, validator=_check_anchors)
    loss: PairwiseLoss | None = None
    steps: int | None = attrs.field(default=None, validator=_check_steps)
    fit: Fit | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.instance_of(Fit)))
    distances: Mapping[str, tuple[Policy | Itself, Policy | Itself]] = attrs.field(
        factory=dict[str, "tuple[Policy | Itself, Policy | Itself]"]
    )

    def __attrs_post_init__(self) -> None:
        if self.fit is not None and self.loss is not None:
            raise BadInput("an update has a pairwise loss or a fit, not both")
        if self.loss is not None and not isinstance(self.opponent, Opponent):
            raise BadInput("a pairwise loss needs an opponent that is a policy")

    @property
    def weight(self) -> float:
        """Sum of the anchors' weights: the strength of the regularisation."""
        return sum(a.weight for a in self.anchors)

    def divergences(self, game: Game) -> tuple[Divergence, ...]:
        """What each anchor holds by, in their order: its own divergence, or else the game's."""
        return tuple(anchor.divergence or game.divergence for anchor in self.anchors)

    @functools.cached_property
    def policies(self) -> tuple[Policy, ...]:
        """Every distinct policy that the update refers to: start, opponents, anchors, and ends of distances."""
        opponents = [p for p, _ in self.opponent.terms] if isinstance(self.opponent, Opponent) else []
        ends = [p for pair in self.distances.values() for p in pair]
        seen: list[Policy] = []
        for policy in (self.start, *opponents, *(a.policy for a in self.anchors), *ends):
            if not isinstance(policy, Itself) and not any(policy is other for other in seen):
                seen.append(policy)
        return tuple(seen)


@attrs.frozen
class Outcome:
    """What came of an update: the new policy, what it cost, and what was measured on the way."""

    policy: Policy
    queries: QueryCount
    measured: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
