"""What a solver promises, in a form that can be tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces.divergence import ReverseKL

if TYPE_CHECKING:
    from torch import Tensor

    from nlhf_zoo.interfaces.game import Game
    from nlhf_zoo.interfaces.policy import Policy
    from nlhf_zoo.interfaces.solver import State

__all__ = [
    "MEASURED",
    "Affine",
    "Bound",
    "Guarantee",
    "Recursion",
    "contraction",
    "linear_rate",
    "span_rate",
]

MEASURED: Mapping[str, str] = {
    "kl": "kl_to_equilibrium",
    "span": "span_to_equilibrium",
    "duality_gap": "duality_gap",
}
"""A guarantee's metric -> the measurement of a run that it speaks of, where runs measure it."""


class Bound(Protocol):
    def __call__(self, n: int, game: Game, initial: Tensor | None = None) -> Tensor: ...


def _farthest(game: Game) -> float:
    return 1 / (2 * game.beta)


def _nothing(game: Game) -> Callable[[int], float]:
    return lambda n: 0.0


@attrs.frozen
class Affine:
    """The bound initial * left(n) + rest(n): a `Bound` that can be had of many n without a tensor each.

    Attributes:
        left: of a game, the function from n to the share of the initial value that is left then.
        first: of a game, what stands for an initial value that is not known; by default 1/(2 beta), which
            KL(equilibrium || reference) does not exceed, as payoffs lie in [0, 1].
        rest: of a game, the function from n to what is added, wherever the run began; by default 0.
    """

    left: Callable[[Game], Callable[[int], float]]
    first: Callable[[Game], float] = attrs.field(default=_farthest, kw_only=True)
    rest: Callable[[Game], Callable[[int], float]] = attrs.field(default=_nothing, kw_only=True)

    def __call__(self, n: int, game: Game, initial: Tensor | None = None) -> Tensor:
        import torch

        start = torch.tensor(self.first(game), dtype=torch.float64) if initial is None else initial
        return start * self.left(game)(n) + self.rest(game)(n)

    def course(self, game: Game, counts: Sequence[int], initial: float) -> list[float]:
        """The bound at each n of `counts` in plain numbers, a game and its functions looked at once."""
        left, rest = self.left(game), self.rest(game)
        return [initial * left(n) + rest(n) for n in counts]


class Recursion(Protocol):
    def __call__(self, step: int, game: Game, previous: Tensor) -> Tensor: ...


def _always(game: Game) -> bool:
    return True


@attrs.frozen(kw_only=True)
class Guarantee:
    """metric(target, iterate after n steps) <= bound(n, game), whenever `holds(game)`.

    Attributes:
        metric: "kl" is KL(target || pi), "span" is span(log pi - log target); "duality_gap" (of the
            regularised game) and "unregularised_gap" (the same at beta = 0) need no target.
        bound: called with n, the game and, where it is known, the metric's `initial` value at n = 0; returns
            a (...) tensor, one entry a game. `None` claims no rate; see `limit`.
        limit: what is said of whole runs where `bound` is `None`: "reached", the target is a fixed point, and every
            run comes to it; "kept", it is a fixed point, and a run from elsewhere may go anywhere; "open", nothing,
            and the recursion is the whole claim.
        per: what n counts, completed steps or queries (`QueryCount.total`).
        every: the claim speaks of the policies after steps 0, every, 2 every ... alone: where a solver's steps
            come in rounds. n still counts steps, or queries; a recursion leads from one such policy to the next.
        iterate: which iterate the claim speaks of; "average" is the arithmetic mean of the n policies that
            were played, those of steps 0 to n - 1.
        start: where a run may begin: at "any" policy, or only at the game's "reference".
        recursion: called with a step k, the game and the metric after k steps; bounds the metric after step
            k + 1, wherever step k began. `lambda k, game, previous: previous` says that the metric never grows.
        certainty: "sure" for exact expectations; under a sampling oracle a claim on the metric's
            "expectation", or one that holds with "probability" 1 - delta at each n on its own.
        delta: see `certainty`.
        assumptions: what must hold of the game and the hyperparameters, in words.
        holds: the same as a predicate on the game (the hyperparameters are the solver's own).
        target: the policy that the metric measures the distance to; `None` is the game's equilibrium.
        about: made of the game that is played and of a state, the game that the claim is about, where that is
            another one: its equilibrium is the target (at beta = 0 a von Neumann winner), and its duality gap is
            meant. For a bound the state is the first of the run; for a recursion the one that the step begins at, so
            that the target may move. `holds`, bounds and recursions are given the game that is played.
        source: paper and theorem.
    """

    metric: Literal["kl", "duality_gap", "unregularised_gap", "span"] = attrs.field(
        validator=attrs.validators.in_(("kl", "duality_gap", "unregularised_gap", "span"))
    )
    bound: Bound | None
    per: Literal["step", "query"] = attrs.field(default="step", validator=attrs.validators.in_(("step", "query")))
    iterate: Literal["last", "average"] = attrs.field(
        default="last", validator=attrs.validators.in_(("last", "average"))
    )
    start: Literal["any", "reference"] = attrs.field(
        default="any", validator=attrs.validators.in_(("any", "reference"))
    )
    limit: Literal["reached", "kept", "open"] = attrs.field(
        default="reached", validator=attrs.validators.in_(("reached", "kept", "open"))
    )
    every: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    recursion: Recursion | None = None
    certainty: Literal["sure", "expectation", "probability"] = attrs.field(
        default="sure", validator=attrs.validators.in_(("sure", "expectation", "probability"))
    )
    delta: float = 0.0
    assumptions: str = "beta > 0"
    holds: Callable[[Game], bool] = _always
    target: Callable[[Game], Policy] | None = None
    about: Callable[[Game, State], Game] | None = None
    source: str

    def __attrs_post_init__(self) -> None:
        if (self.certainty == "probability") != (0 < self.delta < 1):
            raise BadInput(f"delta in (0, 1) goes with certainty='probability', got {self.delta}, {self.certainty!r}")
        if self.bound is None and self.limit == "open" and self.recursion is None:
            raise BadInput("a guarantee claims something: give it a bound, a recursion, or limit='reached' or 'kept'")


def _rate(factor: float | Callable[[Game], float]) -> Callable[[Game], float]:
    """The factor as a function of the game that refuses to promise nothing."""

    def checked(value: float, where: str) -> float:
        if not 0 < value <= 1:
            raise BadInput(f"a linear rate shrinks by a factor in (0, 1], got {value:g}{where}")
        return value

    if callable(factor):
        return lambda game: checked(factor(game), f" in a game with beta = {game.beta:g}")
    constant = checked(factor, "")
    return lambda game: constant


def contraction(factor: float | Callable[[Game], float]) -> Bound:
    """The bound initial * factor^n of a linear rate in KL(equilibrium || pi).

    Without an initial value the start is taken to be the reference, where
    beta KL(equilibrium || reference) <= 1/2 because payoffs lie in [0, 1].

    Args:
        factor: in (0, 1], a number or a function of the game.

    Raises:
        BadInput: a number outside (0, 1]; from the bound, where a function gives one.
    """
    rate = _rate(factor)

    def course(game: Game) -> Callable[[int], float]:
        shrink = rate(game)
        return lambda n: shrink**n

    return Affine(course)


def linear_rate(
    factor: float | Callable[[Game], float],
    *,
    assumptions: str,
    source: str,
    holds: Callable[[Game], bool] = _always,
) -> Guarantee:
    """KL(equilibrium || last iterate) shrinks by `factor` in every step, from any start.

    Args:
        factor: in (0, 1], a number or a function of the game, asked only where `holds(game)`.
        assumptions: in words; the reverse KL is added to what `holds` asks of the game.

    Raises:
        BadInput: a number outside (0, 1]; from bound and recursion, where a function gives one.
    """
    rate = _rate(factor)
    return Guarantee(
        metric="kl",
        bound=contraction(factor),
        recursion=lambda step, game, previous: rate(game) * previous,
        assumptions=assumptions,
        holds=lambda game: isinstance(game.divergence, ReverseKL) and holds(game),
        source=source,
    )


def span_rate(
    factor: Callable[[Game], float],
    gain: Callable[[Game], float],
    *,
    assumptions: str,
    source: str,
    holds: Callable[[Game], bool] = _always,
) -> Guarantee:
    """span(log last iterate - log equilibrium) shrinks like sqrt(factor)^n, from any start: uniform convergence.

    For a step log next = factor log pi_k + ... whose payoff is off by a span of at most 2 gain sqrt(2 KL_k), KL_k =
    KL(equilibrium || pi_k), and whose KL_k shrinks by `factor`. KL_0 is at most an eighth of the squared span, so
    that span_{k+1} <= factor span_k + gain factor^(k/2) span_0, and the bound is what this comes to.

    Args:
        factor: of the linear rate in KL, in (0, 1).
        gain: see above.
    """
    rate = _rate(factor)

    def course(game: Game) -> Callable[[int], float]:
        shrink, worth = rate(game), gain(game)
        root = shrink**0.5

        def left(n: int) -> float:
            # sum over k < n of shrink^(n - 1 - k) root^k
            paid = root ** (n - 1) * (1 - root**n) / (1 - root) if root < 1 else n
            return shrink**n + worth * paid

        return left

    return Guarantee(
        metric="span",
        bound=Affine(course, first=lambda game: 1 / game.beta),
        assumptions=assumptions,
        holds=lambda game: isinstance(game.divergence, ReverseKL) and holds(game),
        source=source,
    )
