"""Who judges: the preference oracle, and the count of what it was asked."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nlhf_zoo.interfaces.policy import Policy
    from nlhf_zoo.interfaces.update import PairwiseLoss

__all__ = ["EnumerableOracle", "PreferenceOracle", "QueryCount"]


@attrs.frozen
class QueryCount:
    """What an oracle was asked, per game: `exact` payoff vectors u_mu, and `sampled` single comparisons.

    The two are different currencies (an exact payoff vector is one query in the exact setting of the
    papers, a comparison is one in the sampled setting) and are never added to each other.
    """

    exact: int = 0
    sampled: int = 0

    def __add__(self, other: QueryCount) -> QueryCount:
        return QueryCount(self.exact + other.exact, self.sampled + other.sampled)

    def __sub__(self, other: QueryCount) -> QueryCount:
        return QueryCount(self.exact - other.exact, self.sampled - other.sampled)

    @property
    def total(self) -> int:
        """The count in the currency that this oracle deals in (one of the two is always 0)."""
        return self.exact + self.sampled


class PreferenceOracle(ABC):
    """A pairwise preference P(first > second | prompt) in [0, 1].

    Required of every subclass: P(a > b) + P(b > a) = 1 and P(a > a) = 1/2. Nothing else is assumed, no
    reward and no transitivity. Subclasses write `probability` (and `query_cost`, if a call costs anything
    but one comparison a row); calls are counted by this base class, so a subclass cannot forget to.
    """

    answers_by_coin: bool = False
    """Whether a comparison is to come out as 0 or 1, by a coin with the probability, thrown by whoever asks."""

    waits: bool = False
    """Whether a call mostly waits on something else (a network), so that whoever asks may generate meanwhile.

    `probability` is then called in a thread of its own, one call at a time and in order, but not always by the same
    thread; its tensors need a dtype, torch's default being that of the training.
    """

    unfinished_penalty: float = 0.0
    """Log-odds, >= 0, that a response which a length limit cut off loses against one that ended by itself.

    Language policies apply it to what `probability` answers of their samples, coins being thrown after it; a table
    has no such responses. At infinity the cut response loses for certain.
    """

    _queries = QueryCount()
    _depth = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("probability", "payoff"):
            if name in cls.__dict__:
                setattr(cls, name, _counted(name, cls.__dict__[name]))

    @abstractmethod
    def probability(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """P(first > second | prompt), row by row.

        Text oracles take three equally long sequences of strings; enumerable oracles take tensors of
        response indices (or labels), and for `prompts` game indices, or `None` where there is one game.

        Returns:
            (B,) floating-point tensor in [0, 1].
        """

    def query_cost(self, method: str, *args: Any, **kwargs: Any) -> QueryCount:
        """What one call of `method` ("probability" or "payoff") costs; one comparison a row by default."""
        if method == "payoff":
            return QueryCount(exact=1)
        return QueryCount(sampled=len(kwargs["first"] if "first" in kwargs else args[1]))

    @property
    def queries(self) -> QueryCount:
        """All that this object was asked so far, measurements under `uncounted` left out."""
        return self._queries

    def charge(self, cost: QueryCount) -> None:
        """Count calls that were answered without a call: replayed on the device, where no method is entered."""
        self._queries = self._queries + cost

    @property
    def measured(self) -> Mapping[str, float]:
        """What this judge has to tell beside its answers (calls, money, disagreement, ...), for logs; by name."""
        return {}

    @contextlib.contextmanager
    def uncounted(self) -> Generator[None]:
        """Calls inside measure the solver (a duality gap, a win rate); they are not learning and not counted."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1


# pyright: reportPrivateUsage=false
# The wrapper below is the other half of PreferenceOracle, and sees its counters.


def _counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PreferenceOracle, *args: Any, **kwargs: Any) -> Any:
        # The outermost call alone counts: an oracle that wraps another, or calls super(), asks once.
        outermost = self._depth == 0
        self._depth += 1
        try:
            answer = method(self, *args, **kwargs)
        finally:
            self._depth -= 1
        if outermost:
            self._queries = self._queries + self.query_cost(name, *args, **kwargs)
        return answer

    return call


class EnumerableOracle(PreferenceOracle):
    """An oracle over a finite list of responses, for one game or a batch of games.

    Attributes:
        batch_shape: leading dimensions of the games, `()` for a single one.
        num_responses: Y.
        labels: names of the responses, or `None`.
    """

    batch_shape: tuple[int, ...]
    num_responses: int
    labels: Sequence[str] | None

    def __repr__(self) -> str:
        shape = getattr(self, "batch_shape", ())
        games = f"{' x '.join(map(str, shape))} games of " if shape else ""
        return f"{type(self).__name__}({games}{getattr(self, 'num_responses', 'unknown')} responses)"

    @abstractmethod
    def payoff(
        self,
        opponent: Tensor,
        *,
        loss: PairwiseLoss | None = None,
        log_ratio: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """u_mu(y) = sum over y' of mu(y') P(y > y'): one query.

        Args:
            opponent: (..., Y) weights mu; a probability vector, or a signed combination of them.
            loss: where given, the mean *signal* of this pairwise loss is returned instead,
                v(y) = sum over y' of mu(y') loss.signal(P(y > y'), h(y) - h(y')).
            log_ratio: (..., Y) h = log(pi / pi_ref), needed with `loss`.
            generator: source of randomness of a sampling oracle; exact oracles ignore it.

        Returns:
            (..., Y) tensor of the opponent's dtype.
        """

    def matrix(self) -> Tensor:
        """(..., Y, Y) P, where the oracle has one.

        Raises:
            BadInput: the oracle is an operator and holds no matrix.
        """
        raise BadInput(f"{type(self).__name__} holds no preference matrix; use payoff()")

    def uniform_policy(self) -> Policy:
        """The uniform policy over the responses, a game's reference where none is given."""
        raise BadInput(f"{type(self).__name__} offers no uniform policy; give the game a reference")
