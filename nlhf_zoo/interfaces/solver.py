"""How to learn: a solver declares improvements, a driver carries them out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces.oracle import QueryCount
from nlhf_zoo.interfaces.policy import Policy

if TYPE_CHECKING:
    from nlhf_zoo.interfaces.game import Game
    from nlhf_zoo.interfaces.guarantee import Guarantee
    from nlhf_zoo.interfaces.update import Outcome, Update

__all__ = ["Solver", "State", "hyperparameter"]


def hyperparameter(default: float | None = None, *, above: float | None = None, at_most: float | None = None) -> Any:
    """A number of a solver in (above, at_most]; without a default, `None` unless given: the theory's own choice."""
    checks: list[Any] = []
    if above is not None:
        checks.append(attrs.validators.gt(above))
    if at_most is not None:
        checks.append(attrs.validators.le(at_most))
    return attrs.field(default=default, validator=attrs.validators.optional(checks))


def _check_slots(_: Any, __: Any, policies: Mapping[str, Any]) -> None:
    for slot, policy in policies.items():
        if not isinstance(policy, Policy):
            kind = type(policy).__name__
            raise BadInput(f"a slot of a state holds a policy, and {slot!r} a {kind}; plain numbers go to `numbers`")


@attrs.frozen(eq=False)
class State:
    """Where a solver stands: named policy slots, counters, and the phase within the step.

    Everything that a solver remembers is here, so that a run can be saved and resumed at any moment, in
    the middle of a step too.

    Attributes:
        policies: slots by name; `current` is always there and is the solver's answer so far. Each distinct
            policy is a model held in memory on an LLM.
        step: completed steps.
        phase: position within the step, 0 at its beginning.
        numbers: the solver's own plain numbers (an adaptive step size), JSON values only.
        queries: what the updates have cost; kept by the driver.
    """

    policies: Mapping[str, Policy] = attrs.field(validator=_check_slots)
    step: int = 0
    phase: int = 0
    numbers: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    queries: QueryCount = QueryCount()

    def __getitem__(self, slot: str) -> Policy:
        """
        Raises:
            BadInput: there is no such slot at this point of the run.
        """
        if slot not in self.policies:
            raise BadInput(
                f"in step {self.step}, phase {self.phase}, there is no slot {slot!r} but {', '.join(self.policies)};"
                " set it in init(), middle() or next(), which drops every slot that it is not given"
            )
        return self.policies[slot]

    @property
    def current(self) -> Policy:
        return self.policies["current"]

    def middle(self, **slots: Policy) -> State:
        """The next phase of the same step, with these slots set."""
        return attrs.evolve(self, policies={**self.policies, **slots}, phase=self.phase + 1)

    def next(self, **slots: Policy) -> State:
        """The beginning of the next step, with these slots set and all others, but `current`, dropped."""
        return attrs.evolve(self, policies={"current": self.current, **slots}, step=self.step + 1, phase=0)


class Solver(ABC):
    """A frozen attrs class whose fields are hyperparameters; pure functions of game and state.

    A solver holds no tensor and calls no backend: it *asks* for an improvement (`propose`), is told what
    came of it (`accept`), and so runs on a table and on a language model unchanged.

    Class attributes:
        name: what it is registered and called by.
        summary: one line for `nlhf-zoo list`.
        paper: where it is from.
        needs_beta: whether the regularisation must be positive.
        when: one to three sentences: when to use it, and when not.
        backends: "table", "llm", or both.
        only: why a backend is missing from `backends`; empty where both are there.
        no_guarantee: why nothing is proved of it; said wherever `guarantees` is empty.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    when: ClassVar[str] = ""
    needs_beta: ClassVar[bool] = True
    backends: ClassVar[tuple[str, ...]] = ("table", "llm")
    only: ClassVar[str] = ""
    no_guarantee: ClassVar[str] = ""

    @classmethod
    def practical(cls, beta: float) -> Mapping[str, Any]:
        """Hyperparameters that its paper uses on language models; `nlhf-zoo train` starts from them."""
        return {}

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """What is proved of it, at these hyperparameters; empty where nothing is, and `no_guarantee` says why."""
        return ()

    def init(self, game: Game, policy: Policy) -> State:
        """The state before the first step, starting at `policy`.

        Raises:
            BadInput: the game is not one that this solver can play.
        """
        if self.needs_beta and game.beta <= 0:
            raise BadInput(f"{self.name} needs beta > 0, got {game.beta:g}; give --beta a positive value")
        return State({"current": policy})

    @abstractmethod
    def propose(self, game: Game, state: State) -> Update:
        """What to improve, against whom, held by what."""

    @abstractmethod
    def accept(self, game: Game, state: State, outcome: Outcome) -> State:
        """The state after the proposed update came out as `outcome`."""
