"""How a language model carries an update out on its own: a plain loop of gradient steps.

`nlhf-zoo train` runs the same objectives through Lightning instead; this loop is for notebooks, tests and
small models, where a policy is a value and `improve` returns a new one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from nlhf_zoo.interfaces import Game, Itself, Outcome, Update
from nlhf_zoo.llm.objective import Objective, exact_objective, measured_distances, sampled_objective
from nlhf_zoo.llm.payoffs import exact_payoff
from nlhf_zoo.llm.tokens import PromptBatch, TokenResponses

if TYPE_CHECKING:
    from nlhf_zoo.llm.policy import CausalLMPolicy

__all__ = ["InnerLoop", "to_convergence"]


def _adamw(parameters: Iterable[Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)


class _RestartedLBFGS(torch.optim.LBFGS):
    """LBFGS that begins afresh at every step.

    An implicit update has a new objective after each; a curvature remembered from the last one can stop the line
    search short of the new minimum, and rounding then decides whether the loop arrives.
    """

    def step(self, closure: Any) -> Any:  # type: ignore[override]  # LBFGS's own signature
        self.state.clear()
        return super().step(closure)


def to_convergence(parameters: Iterable[Parameter]) -> Optimizer:
    """An optimizer for `InnerLoop(responses=...)` whose every step goes to the minimum, as far as float64 reaches."""
    return _RestartedLBFGS(
        parameters,
        max_iter=100,
        history_size=50,
        tolerance_grad=1e-11,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )


@attrs.frozen(eq=False)
class InnerLoop:
    """Gradient steps on all prompts at once.

    Attributes:
        prompts: the prompts of the game.
        steps: optimizer steps, where the update does not say.
        optimizer: makes an optimizer of parameters; AdamW at the papers' 1e-6 unless given. One that calls
            its closure several times (LBFGS) is welcome with `responses`.
        num_samples: responses a prompt and step, >= 1; 2 for an update against itself.
        responses: the whole response set, (B, Y, T); expectations are then exact and nothing is sampled.
        tolerance: stop when no parameter's gradient exceeds this (exact expectations only).
    """

    prompts: Sequence[str]
    steps: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    optimizer: Callable[[Iterable[Parameter]], Optimizer] = _adamw
    num_samples: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    responses: TokenResponses | None = None
    tolerance: float = 0.0

    def run(self, policy: CausalLMPolicy, update: Update, game: Game, generator: torch.Generator | None) -> Outcome:
        """A copy of `policy` after the steps; `policy` itself is left as it is."""
        before = game.oracle.queries
        student = attrs.evolve(policy, network=copy.deepcopy(policy.network).requires_grad_(True))
        prompts = student.encode(self.prompts)
        optimizer = self.optimizer(student.network.parameters())
        objective = self._objective(student, update, game, prompts, generator)
        measured: dict[str, Any] = {}
        for _ in range(update.steps or self.steps):
            evaluate = objective()

            def closure(evaluate: Callable[[], Objective] = evaluate) -> torch.Tensor:
                optimizer.zero_grad()
                result = evaluate()
                result.loss.backward()
                measured.update(result.measured)
                return result.loss

            optimizer.step(closure)  # type: ignore[arg-type]  # the closure's value is a tensor, as torch's docs say
            # An implicit update is done when it is flat against what it has become, not against what it was.
            if self.responses is not None and self._flat(student, objective):
                break
        student.network.zero_grad()
        count = self.num_samples
        distances, _ = measured_distances(
            update, student, prompts, responses=self.responses, num_samples=count, generator=generator
        )
        return Outcome(student, game.oracle.queries - before, measured | distances)

    def _flat(self, student: CausalLMPolicy, objective: Callable[[], Callable[[], Objective]]) -> bool:
        if self.tolerance <= 0:
            return False
        gradients = torch.autograd.grad(objective()().loss, list(student.network.parameters()), allow_unused=True)
        return max(float(g.abs().max()) for g in gradients if g is not None) <= self.tolerance

    def _objective(
        self,
        student: CausalLMPolicy,
        update: Update,
        game: Game,
        prompts: PromptBatch,
        generator: torch.Generator | None,
    ) -> Callable[[], Callable[[], Objective]]:
        """What to evaluate in each step; exact payoffs against fixed opponents are asked for once."""
        if self.responses is None:
            return lambda: lambda: sampled_objective(student, update, game, prompts, self.num_samples, generator)
        responses = self.responses
        fixed = None
        if not isinstance(update.opponent, Itself):
            fixed = exact_payoff(student, update, game, prompts, responses)

        def step() -> Callable[[], Objective]:
            payoff = fixed if fixed is not None else exact_payoff(student, update, game, prompts, responses)
            return lambda: exact_objective(student, update, game, prompts, responses, payoff)

        return step
