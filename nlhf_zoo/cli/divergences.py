"""A divergence from its name and KEY=VALUE pairs."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from typing import Any

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import Divergence

__all__ = ["configured_divergence"]


def configured_divergence(name: str, parameters: Mapping[str, Any]) -> Divergence:
    """The registered divergence with these parameters, their types checked by its annotations.

    Raises:
        BadInput: no such divergence or parameter, or a value that does not fit.
    """
    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.registry import lookup

    cls = lookup("divergences", name)
    known = inspect.signature(cls).parameters
    unknown = next((key for key in parameters if key not in known), None)
    if unknown is not None:
        raise BadInput(f"{name} has no parameter {unknown!r}; it has {', '.join(known) or 'none'}")
    try:
        hints = typing.get_type_hints(cls)
    except Exception:  # a plugin's annotations may name what only a type checker imports
        hints = {}
    typed(parameters, hints, f"--divergence-set, {name}")
    try:
        return cls(**parameters)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name}: {error.args[0] if error.args else error}") from None
