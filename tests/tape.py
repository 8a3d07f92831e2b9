"""A CUDA graph's stand-in on the CPU: a tape of torch's operations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Tape"]


class _Strict(TorchDispatchMode):
    """On a device, reading a number makes the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for the device")
        return func(*args, **(kwargs or {}))


class _Taping(_Strict):
    """Keeps every operation with the very tensors it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        self.tape.append((func, args, kwargs or {}, made))
        return made


def _is_fresh(result: Any, args: Any) -> bool:
    """Whether an operation made this tensor, and did not return a view of what it was given, or that itself."""
    given = tree_leaves(args)
    places = {tensor.untyped_storage().data_ptr() for tensor in given if isinstance(tensor, Tensor)}
    return isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in places


class Tape:
    """A recorder whose replay repeats operations, and no Python, on the same tensors: as a CUDA graph does.

    Attributes:
        recorded: how many recordings were made; replays, how often they were launched.
    """

    def __init__(self) -> None:
        self.recorded = self.replays = 0
        self.place = self

    @contextlib.contextmanager
    def no_waiting(self) -> Iterator[None]:
        with _Strict():
            yield

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recorded += 1
        with _Taping() as taping:
            made = work()
        fresh = [(func, args, kwargs, result, _is_fresh(result, args)) for func, args, kwargs, result in taping.tape]
        for *_, result, made_here in fresh:  # a CUDA graph computes nothing while it is recorded
            if made_here and result.is_floating_point():
                result.fill_(torch.nan)

        def replay() -> None:
            self.replays += 1
            for func, args, kwargs, result, made_here in fresh:
                again = func(*args, **kwargs)
                if made_here:
                    result.copy_(again)

        return replay, made

    def ask(self, numbers: Tensor) -> Callable[[], bool]:
        there = numbers.clone()
        return lambda: bool((there < torch.inf).all())
