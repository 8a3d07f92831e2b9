"""Which pairs of responses were never compared, and whether a winner rests on them."""

from __future__ import annotations

import attrs
from torch import Tensor

__all__ = ["Unmet", "unmet"]


@attrs.frozen
class Unmet:
    """Of a set of responses: how many there are, their pairs, and how many of the pairs were never compared."""

    responses: int
    pairs: int
    never: int

    @property
    def warning(self) -> str | None:
        """One line where a winner made of these responses rests on pairs without a comparison."""
        if not self.never:
            return None
        return (
            f"the von Neumann winner mixes {self.responses} responses, and {self.never:,} of their {self.pairs:,} pairs"
            " were never compared: each counts as 1/2, so that they may win only by not having met"
        )


def unmet(wins: Tensor, members: Tensor) -> Unmet:
    """How many pairs among these responses have no comparison.

    Args:
        wins: (Y, Y) counts, a tie half to each.
        members: (Y,) bool.
    """
    among = wins[members][:, members]
    met = (among + among.mT).triu(1) > 0
    size = len(among)
    pairs = size * (size - 1) // 2
    return Unmet(size, pairs, pairs - int(met.sum()))
