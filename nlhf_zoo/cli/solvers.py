"""A solver from its name and KEY=VALUE pairs."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from nlhf_zoo.interfaces import Solver

__all__ = ["configured"]


def configured(name: str, hyperparameters: Mapping[str, Any]) -> Solver:
    """The registered solver with these hyperparameters, their types checked by its annotations.

    Raises:
        BadInput: no such solver or hyperparameter, or a value that does not fit.
    """
    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.drive import configure
    from nlhf_zoo.registry import lookup

    cls = lookup("solvers", name)
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # a plugin's annotations may name what only a type checker imports
        hints = {}
    typed(hyperparameters, hints, f"--set, {name}")
    return configure(name, **hyperparameters)
