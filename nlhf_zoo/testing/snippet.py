"""A counterexample as a program that anyone can run."""

from __future__ import annotations

from typing import Any

import attrs

from nlhf_zoo.interfaces import Solver
from nlhf_zoo.testing.catalogue import Property

__all__ = ["snippet"]


def snippet(solver: Solver, prop: Property, inputs: dict[str, Any]) -> str:
    """Python source that imports the solver, plays the game, and raises the violation."""
    cls = type(solver)
    lines = ["from nlhf_zoo.testing import Case, properties", f"from {cls.__module__} import {cls.__qualname__}", ""]
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        lines[1] = f"# {cls.__qualname__} is defined in {cls.__module__}, where this has to stand"
    lines.append(f"solver = {_construction(solver)}")
    lines += [f"{name} = {_source(value)}" for name, value in inputs.items()]
    arguments = "".join(f", {name}={name}" for name in inputs)
    lines.append(f"properties.{prop.holds.__name__}(solver{arguments})")
    return "\n".join(lines) + "\n"


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
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(fields)})"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(item) for item in value)}]"
    return repr(value)
