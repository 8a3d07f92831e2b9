"""What a judge says of one order of a pair, before both orders are averaged, and what it says when asked again."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from nlhf_zoo.interfaces import PreferenceOracle

__all__ = ["AsksBothOrders", "Samples", "asked_again", "one_order", "samples"]


@runtime_checkable
class AsksBothOrders(Protocol):
    """An oracle that makes a judge antisymmetric by asking both orders, and can tell what it said of one."""

    def one_order(self, prompts: Any, first: Any, second: Any) -> Tensor: ...


@runtime_checkable
class Samples(Protocol):
    """An oracle whose judge may answer the same question differently, and can be asked it again."""

    @property
    def samples(self) -> bool: ...

    def asked_again(self, prompts: Any, first: Any, second: Any) -> Tensor:
        """(B,) what `one_order` answers when the judge is asked anew, not from a cache."""
        ...


def one_order(oracle: PreferenceOracle, prompts: Any, first: Any, second: Any) -> Tensor:
    """(B,) the judge's word in this order alone; the preference itself, where the oracle knows no other."""
    if isinstance(oracle, AsksBothOrders):
        return oracle.one_order(prompts, first, second)
    return oracle.probability(prompts, first, second)


def samples(oracle: PreferenceOracle) -> bool:
    return isinstance(oracle, Samples) and oracle.samples


def asked_again(oracle: PreferenceOracle, prompts: Any, first: Any, second: Any) -> Tensor:
    """(B,) the same as `one_order`, asked anew where the judge samples."""
    if isinstance(oracle, Samples) and oracle.samples:
        return oracle.asked_again(prompts, first, second)
    return one_order(oracle, prompts, first, second)
