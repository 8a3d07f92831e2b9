"""A counterexample as a program that anyone can run."""

from __future__ import annotations

from typing import Any

import attrs

from nlhf_zoo.interfaces import Solver
from nlhf_zoo.testing.catalogue import Property
from nlhf_zoo.testing.hardest import cycle

__all__ = ["readings_snippet", "snippet"]


def snippet(solver: Solver, prop: Property, inputs: dict[str, Any]) -> str:
    """Python source that imports the solver, plays the game, and raises the violation."""
    arguments = "".join(f", {name}={name}" for name in inputs)
    return _program(solver, inputs, "properties", f"properties.{prop.holds.__name__}(solver{arguments})")


def readings_snippet(solver: Solver, claim: int, each_step: bool, inputs: dict[str, Any]) -> str:
    """Python source that plays the game and prints, step by step, what is measured beside its bound."""
    asked = "".join([f", claim={claim}" * bool(claim), ", each_step=True" * each_step])
    arguments = "".join(f", {name}={name}" for name in inputs if name != "case")
    return _program(solver, inputs, "measured", f"print(*measured(solver, case{asked}{arguments}), sep='\\n')")


def _program(solver: Solver, inputs: dict[str, Any], door: str, last: str) -> str:
    cls = type(solver)
    values = [f"{name} = {_source(value)}" for name, value in inputs.items()]
    names = ["Case", *(["cycle"] if any("=cycle(" in value for value in values) else []), door]
    where = f"from {cls.__module__} import {cls.__qualname__}"
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        where = f"# {cls.__qualname__} is defined in {cls.__module__}, where this has to stand"
    head = [f"from nlhf_zoo.testing import {', '.join(names)}", where, ""]
    return "\n".join([*head, f"solver = {_construction(solver)}", *values, last]) + "\n"


def _construction(solver: Solver) -> str:
    cls = type(solver)
    if not attrs.has(cls):
        return f"{cls.__name__}()"
    given = [
        f"{field.alias}={getattr(solver, field.name)!r}"
        for field in attrs.fields(cls)
        if field.init and getattr(solver, field.name) != _default(field)
    ]
    return f"{cls.__name__}({', '.join(given)})"


def _default(field: Any) -> Any:
    default = field.default
    return default.factory() if isinstance(default, attrs.Factory) and not default.takes_self else default  # type: ignore[arg-type]


def _source(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_source(item) for item in value)}]"
    if not attrs.has(type(value)):
        return repr(value)
    fields = [
        f"{field.name}={_plain(getattr(value, field.name))}"
        for field in attrs.fields(type(value))
        # Nobody should have to know what beta is by default.
        if field.name == "beta" or getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        if len(value) >= 5 and isinstance(value[0], tuple) and _is_cycle(value):
            strength = value[0][1] - 0.5
            return f"cycle({len(value)})" if strength == 0.5 else f"cycle({len(value)}, {strength!r})"
        if len(value) >= 5 and isinstance(value[0], float) and len(set(value)) == 1:
            return f"[{value[0]!r}] * {len(value)}"
        return f"[{', '.join(_plain(item) for item in value)}]"
    return repr(value)


def _is_cycle(rows: tuple[Any, ...]) -> bool:
    return len(rows) % 2 == 1 and [list(row) for row in rows] == cycle(len(rows), rows[0][1] - 0.5)
