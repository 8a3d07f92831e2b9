"""Checking the parameters of a game: one line that names the game, the parameter and its range."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch

from nlhf_zoo.errors import BadInput

__all__ = ["batch", "generator", "number", "whole"]


def whole(game: str, name: str, value: Any, minimum: int) -> int:
    """`value` as an int.

    Raises:
        BadInput: not a whole number, or below `minimum`.
    """
    candidate: Any = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        exact = None if isinstance(value, bool) else operator.index(candidate)
    except TypeError:
        exact = None
    if exact is None or exact < minimum:
        raise BadInput(f"game {game}: {name} must be a whole number >= {minimum}, got {value!r}")
    return exact


def number(game: str, name: str, value: Any, maximum: float = math.inf) -> float:
    """`value` as a float in [0, maximum].

    Raises:
        BadInput: not a finite number, negative, or above `maximum`.
    """
    try:
        real = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        real = math.nan
    if not (math.isfinite(real) and 0 <= real <= maximum):
        allowed = ">= 0" if maximum == math.inf else f"in [0, {maximum:g}]"
        raise BadInput(f"game {game}: {name} must be a finite number {allowed}, got {value!r}")
    return real


def generator(game: str, seed: Any) -> torch.Generator:
    """A generator on the CPU, whatever the device of the game: one seed, one game, everywhere."""
    chosen = whole(game, "seed", seed, 0)
    if chosen >= 2**63:
        raise BadInput(f"game {game}: seed must be below 2**63, got {seed!r}")
    return torch.Generator().manual_seed(chosen)


def batch(game: str, games: Any) -> tuple[int, ...]:
    """The leading shape: `()` for a single game, `(G,)` for G independent draws."""
    return () if games is None else (whole(game, "games", games, 1),)
