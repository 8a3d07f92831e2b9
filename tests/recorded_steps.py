"""CUDA graphs on a CPU: a step's operations are recorded once, and run again on the same memory without any Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.outside: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in WAITS):
            raise RuntimeError(f"{func.name()}: operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        tree_map_only(Tensor, self._note, (args, kwargs))
        answer = func(*args, **kwargs)
        tree_map_only(Tensor, lambda one: self._made.add(id(one)), answer)
        self.calls.append((func, args, kwargs, answer))
        return answer

    def _note(self, tensor: Tensor) -> None:
        if id(tensor) not in self._made and id(tensor) not in self.outside:
            # What a graph knows is the address: where the tensor is given other storage, this keeps the old.
            self.outside[id(tensor)] = tensor, tensor.detach()

    def run(self) -> dict[int, Tensor]:
        now = {key: alias for key, (_, alias) in self.outside.items()}

        def of_today(tensor: Tensor) -> Tensor:
            return now[id(tensor)]

        for func, args, kwargs, before in self.calls:
            answer = func(*tree_map_only(Tensor, of_today, args), **tree_map_only(Tensor, of_today, kwargs))
            pairs = zip(*(torch.utils._pytree.tree_leaves(one) for one in (before, answer)), strict=True)
            now.update({id(old): new for old, new in pairs if isinstance(old, Tensor)})
        return now


class RecordedSteps:
    """Stands for `nlhf_zoo.llm.static_reading.Capture`, and counts."""

    bytes = 0

    def __init__(self) -> None:
        self.captured, self.replayed = 0, 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        recorder = _Recorder()
        with recorder:
            answer = step()
        self.captured += 1
        kept = answer.clone().fill_(torch.nan)

        def replay() -> None:
            self.replayed += 1
            kept.copy_(recorder.run()[id(answer)])

        return kept, replay
