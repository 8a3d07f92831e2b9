"""What a run is lent: tensors of the game and of its start, which rivals and the caller go on using."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from nlhf_zoo.errors import BadInput

__all__ = ["Lent"]


class Lent:
    """Tensors by name, which a solver may read and must not write to.

    torch counts the writes to a tensor, so that looking costs nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # Tensors of an inference mode have no count.
        self._writes = [(name, one, one._version) for name, one in tensors.items() if not one.is_inference()]

    def check(self, solver: str, step: int) -> None:
        """
        Raises:
            BadInput: one of them was written to since they were lent.
        """
        for name, tensor, writes in self._writes:
            if tensor._version != writes:
                raise BadInput(
                    f"{solver}: step {step} changed the {name} in place, which others use too; make a new tensor"
                    " instead (x + y for x.add_(y), x.clone() before x[...] = y)"
                )
