"""What a named property is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from hypothesis.strategies import SearchStrategy

from nlhf_zoo.interfaces import Solver

__all__ = ["PROPERTIES", "Property", "named"]


@attrs.frozen
class Property:
    """A statement that should hold of a solver, and the inputs to try it on.

    Attributes:
        name: of the function, with dashes.
        holds: `holds(solver, **inputs)` returns nothing, raises `Violation` where the statement is wrong and
            `Skip` where it says nothing. Its docstring is the mathematics.
        inputs: a strategy of keyword arguments, made when first used; `None` for a statement about the
            solver alone.
        applies: the reason why the statement says nothing about this solver, or `None`.
        share: examples spent, as a share of those asked for.
        fixed: inputs that are tried besides, every time, the smallest first.
    """

    name: str
    holds: Callable[..., None]
    inputs: Callable[[], SearchStrategy[dict[str, Any]]] | None
    applies: Callable[[Solver], str | None]
    share: float = 1.0
    fixed: Callable[[], list[dict[str, Any]]] = list

    @property
    def statement(self) -> str:
        """The first line of the mathematics."""
        return (self.holds.__doc__ or "").strip().splitlines()[0]


PROPERTIES: dict[str, Property] = {}
"""Every property by name, in the order in which they are checked: the cheap and telling ones first."""


def _always(solver: Solver) -> str | None:
    return None if "table" in solver.backends else "the solver does not run on tables"


def named(
    inputs: Callable[[], SearchStrategy[dict[str, Any]]] | None = None,
    *,
    applies: Callable[[Solver], str | None] = lambda solver: None,
    share: float = 1.0,
    fixed: Callable[[], list[dict[str, Any]]] = list,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `(solver, **inputs)` as a named property; the function stays as it is."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        name = function.__name__.replace("_", "-")
        tables = _always if inputs is not None else lambda solver: None
        PROPERTIES[name] = Property(
            name, function, inputs, lambda solver: tables(solver) or applies(solver), share, fixed
        )
        return function

    return register
