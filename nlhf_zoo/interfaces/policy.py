"""Who answers: the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nlhf_zoo.interfaces.game import Game
    from nlhf_zoo.interfaces.update import Outcome, Update

__all__ = ["Policy", "Responses"]


class Responses:
    """K responses to each of B prompts; what it holds is the backend's (indices, or tokens and texts)."""

    num_samples: int


class Policy(ABC):
    """A distribution pi(y | x) over responses, as a value: nothing here changes a policy in place.

    Solvers compare policies with `is`, and treat every operation below as returning a new value.
    """

    @abstractmethod
    def sample(self, prompts: Any, num_samples: int, generator: torch.Generator) -> Responses:
        """Draw `num_samples` independent responses to each of the B prompts."""

    @abstractmethod
    def log_prob(self, prompts: Any, responses: Any) -> Tensor:
        """(B, K) log pi(response | prompt), summed over tokens; differentiable in the parameters, if any."""

    @abstractmethod
    def improve(self, update: Update, game: Game, generator: torch.Generator | None = None) -> Outcome:
        """Carry an update out: exactly where a closed form exists, otherwise by gradient steps."""

    @abstractmethod
    def mixture(self, other: Policy, weight: float) -> Policy:
        """The geometric mixture, proportional to self^(1 - weight) * other^weight, renormalised; weight in [0, 1]."""

    @abstractmethod
    def average(self, other: Policy, weight: float) -> Policy:
        """The policy with parameters (1 - weight) * self + weight * other; an EMA step has weight kappa.

        On a table the parameters are log-probabilities up to a constant, so this is the geometric mixture.
        """
