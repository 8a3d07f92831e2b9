"""A Python function as a judge."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.failures import JudgeFailed
from nlhf_zoo.oracles.sequence_scores import same_length

__all__ = ["CallableOracle"]

Judge = Callable[[list[str], list[str], list[str]], Sequence[float] | Tensor]


class CallableOracle(PreferenceOracle):
    """P(first > second | prompt) by a function of three equally long lists of texts.

    Args:
        function: (prompts, first, second) -> B numbers in [0, 1], a sequence or a tensor.
        symmetrise: ask both orders, in one call of twice the rows, and answer
            (P(a, b) + 1 - P(b, a)) / 2, which satisfies P(a, b) + P(b, a) = 1 and P(a, a) = 1/2 for any
            function (a response against itself is not asked). Turned off, the function is taken at its
            word and must satisfy both itself; `audit` tells whether it does.
        name: for messages; the function's own, unless given.
    """

    def __init__(self, function: Judge, *, symmetrise: bool = True, name: str | None = None) -> None:
        if not callable(function):
            raise BadInput(f"a callable oracle needs a function, got {type(function).__name__}")
        self.function = function
        self.symmetrise = symmetrise
        self.name = name or getattr(function, "__qualname__", type(function).__name__)

    @classmethod
    def load(cls, function: str, *, symmetrise: bool = True) -> CallableOracle:
        """From "package.module:function", a module on Python's path.

        Raises:
            BadInput: not of this form, no such module or one that raises, or nothing callable of that name in it.
        """
        module_name, _, attribute = function.partition(":")
        if not module_name or not attribute:
            raise BadInput(f"name the function as package.module:function, got {function!r}")
        try:
            found: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                found = getattr(found, part)
        except ImportError as error:
            raise BadInput(f"cannot import {module_name!r} ({error}); put its folder on PYTHONPATH") from error
        except AttributeError as error:
            raise BadInput(f"module {module_name!r} has no {attribute!r}") from error
        except (Exception, SystemExit) as error:  # foreign code
            raise BadInput(f"cannot import {module_name!r} ({_line(error)})") from error
        return cls(found, symmetrise=symmetrise, name=function)

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the answers, as far as can be seen: the function's name and the source of its module."""
        try:
            source = inspect.getsource(inspect.getmodule(self.function) or self.function)  # type: ignore[arg-type]
        except (OSError, TypeError):  # built in, or made on the spot
            source = ""
        return {
            "function": self.name,
            "symmetrise": self.symmetrise,
            "source": hashlib.sha256(source.encode()).hexdigest(),
        }

    @property
    def samples(self) -> bool:
        """A function may toss coins; nothing says whether it does."""
        return True

    def __repr__(self) -> str:
        return f"CallableOracle({self.name}, {'both orders averaged' if self.symmetrise else 'one order asked'})"

    def probability(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 P(first > second | prompt) in [0, 1], on the CPU.

        Raises:
            BadInput: columns of unequal length.
            JudgeFailed: the function raised, or its answer is not B finite numbers in [0, 1].
        """
        if not self.symmetrise:
            return self.one_order(prompts, first, second)
        same_length(prompts, first, second)
        answer = torch.full((len(prompts),), 0.5, dtype=torch.float64)
        differ = [i for i in range(len(prompts)) if first[i] != second[i]]
        if differ:
            x, a, b = ([column[i] for i in differ] for column in (prompts, first, second))
            forward, backward = self.one_order(x + x, a + b, b + a).chunk(2)
            answer[differ] = (forward + (1 - backward)) / 2
        return answer

    def asked_again(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 the same as `one_order`: a function is called anew each time."""
        return self.one_order(prompts, first, second)

    def one_order(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Tensor:
        """(B,) float64 what the function says of this order alone."""
        same_length(prompts, first, second)
        if not len(prompts):
            return torch.empty(0, dtype=torch.float64)
        try:
            answer = self.function(list(prompts), list(first), list(second))
        except (Exception, SystemExit) as error:  # foreign code
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise JudgeFailed(
                f"judge {self.name} raised {_line(error)} ({place.filename}, line {place.lineno})"
            ) from error
        try:
            values = torch.as_tensor(answer, dtype=torch.float64, device="cpu").detach()
        except (TypeError, ValueError, RuntimeError) as error:
            reason = f"got {type(answer).__name__} ({error})"
            raise JudgeFailed(f"judge {self.name} must return numbers, {reason}") from error
        if values.shape != (len(prompts),):
            raise JudgeFailed(f"judge {self.name} was asked {len(prompts)} pairs, but answered {tuple(values.shape)}")
        wrong = ~((values >= 0) & (values <= 1))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise JudgeFailed(f"judge {self.name} answered {values[row].item()} for pair {row}; it must be in [0, 1]")
        return values


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
