"""Built-in games, each drawn from a seed, and the hook by which they register."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nlhf_zoo.games.bradley_terry import bradley_terry, bradley_terry_cyclic
from nlhf_zoo.games.cycles import cyclic, rock_paper_scissors
from nlhf_zoo.games.random_matrices import low_rank, random
from nlhf_zoo.oracles.matrix import MatrixOracle
from nlhf_zoo.registry.hookspecs import hookimpl

__all__ = [
    "bradley_terry",
    "bradley_terry_cyclic",
    "cyclic",
    "low_rank",
    "nlhf_zoo_games",
    "random",
    "rock_paper_scissors",
]


@hookimpl
def nlhf_zoo_games() -> Mapping[str, Callable[..., MatrixOracle]]:
    return {
        "random": random,
        "low_rank": low_rank,
        "bradley_terry": bradley_terry,
        "cyclic": cyclic,
        "bradley_terry+cyclic": bradley_terry_cyclic,
        "rock_paper_scissors": rock_paper_scissors,
    }
