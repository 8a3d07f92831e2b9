"""The head-to-head: games x solvers x seeds at equal budgets, into one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlhf_zoo.comparison.config import CompareConfig

if TYPE_CHECKING:
    from nlhf_zoo.comparison.engine import Comparison

__all__ = ["CompareConfig", "compare"]


def compare(
    games: Sequence[Any], solvers: Sequence[Any], *, out: str | Path, queries: int | None = None, **settings: Any
) -> Comparison:
    """Play every solver on every game under every seed at one budget, and write the folder `out`.

        nz.compare(
            [{"name": "low_rank", "options": {"rank": [2, 5]}}, "votes.csv"],
            ["online_ipo", {"name": "nash_mp", "options": {"eta": [0.02, 0.1, 0.5]}}],
            queries=2000, seeds=10, out="runs/first",
        )

    Stopped, it goes on where it was when called again.

    Args:
        games: registered names, files, or mappings with name, options, beta, ... (see docs/compare.md).
        solvers: registered names, or mappings with name and options; lists of values are a grid to be tuned.
        out: the folder; new, empty, or that of a comparison to go on with.
        queries: budget of oracle queries a run.
        settings: other fields of `CompareConfig`.

    Raises:
        BadInput: a setting that cannot be used; nothing was played then.
    """
    from nlhf_zoo.comparison.engine import run_comparison
    from nlhf_zoo.errors import BadInput

    try:
        config = CompareConfig(games=games, solvers=solvers, out=Path(out), queries=queries, **settings)
    except TypeError as error:
        raise BadInput(f"compare(): {error}") from None
    return run_comparison(config)
