"""A game by what a person calls it: a registered name with parameters, or a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from torch import Tensor

from nlhf_zoo.data.matrices import read_matrix
from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import EnumerableOracle
from nlhf_zoo.oracles.matrix import MatrixOracle
from nlhf_zoo.registry import load, lookup

__all__ = ["NamedGame", "is_registered", "named_game"]


@attrs.frozen(eq=False)
class NamedGame:
    """One game of listed responses; `wins` (Y, Y) are the counts that it was made of, if it was."""

    oracle: EnumerableOracle
    wins: Tensor | None = None


def is_registered(game: str) -> bool:
    """Whether `game` is a registered name, which goes before a file of that name.

    Raises:
        BadInput: it is neither, and does not look like a file.
    """
    if game in load().games:
        return True
    _refuse_a_misspelt_name(game)
    return False


def named_game(
    game: str,
    parameters: Mapping[str, Any],
    *,
    seed: int,
    smoothing: float = 0.5,
    kind: Literal["auto", "probabilities", "counts"] = "auto",
) -> NamedGame:
    """The oracle of a registered game, drawn from `seed` unless the parameters have one, or of a file.

    Raises:
        BadInput: neither a name nor a file, a parameter that does not fit, a file that holds no preference
            matrix, responses that cannot be listed, or a batch of games.
    """
    wins = None
    if is_registered(game):
        oracle = _built(game, {"seed": seed, **parameters})
    else:
        if parameters:
            raise BadInput(f"game {game}: parameters are for games by name; a file has none")
        read = read_matrix(game, smoothing=smoothing, kind=kind)
        oracle, wins = MatrixOracle(read.probabilities, read.labels), read.wins
    if not isinstance(oracle, EnumerableOracle):
        raise BadInput(f"game {game}: its responses cannot be listed; only games where they can are played on a table")
    if oracle.batch_shape:
        raise BadInput(f"game {game}: a batch of {tuple(oracle.batch_shape)} games; give one")
    return NamedGame(oracle, wins)


def _refuse_a_misspelt_name(game: str) -> None:
    # With a suffix or a folder in it, a file is meant, and its reader says what is wrong with it.
    if Path(game).suffix or len(Path(game).parts) != 1 or Path(game).exists():
        return
    try:
        lookup("games", game)
    except BadInput as error:
        raise BadInput(str(error).replace(repr(game), f"{game!r}, nor a file of that name", 1)) from None


def _built(name: str, arguments: Mapping[str, Any]) -> Any:
    factory = lookup("games", name)
    try:
        return factory(**arguments)
    except BadInput:
        raise
    except (TypeError, ValueError) as error:
        _refuse_an_unknown_parameter(name, factory, arguments)
        raise BadInput(f"game {name}: {error}") from None


def _refuse_an_unknown_parameter(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    known = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    unknown = next((key for key in arguments if key not in known), None)
    if unknown is not None and not open_ended:
        raise BadInput(f"game {name} has no parameter {unknown!r}; it has {', '.join(known) or 'none'}") from None
