"""The hooks that a plugin may implement. A plugin is a module, named by an entry point of the group `nlhf_zoo`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("nlhf_zoo")
hookimpl = pluggy.HookimplMarker("nlhf_zoo")

Contribution = Mapping[str, Any] | Iterable[Any]
"""Classes or factories by name, or an iterable of them, each with an attribute `name`."""


@hookspec
def nlhf_zoo_solvers() -> Contribution:  # type: ignore[empty-body]  # a hookspec has no body
    """Subclasses of `Solver`, frozen attrs classes whose fields are the hyperparameters."""


@hookspec
def nlhf_zoo_oracles() -> Contribution:  # type: ignore[empty-body]  # a hookspec has no body
    """Subclasses of `PreferenceOracle`, or factories that return one; keyword arguments come from `--oracle-set`."""


@hookspec
def nlhf_zoo_games() -> Contribution:  # type: ignore[empty-body]  # a hookspec has no body
    """Factories `(*, seed: int, **parameters) -> PreferenceOracle`: a named game, drawn from a seed."""


@hookspec
def nlhf_zoo_divergences() -> Contribution:  # type: ignore[empty-body]  # a hookspec has no body
    """Subclasses of `Divergence`."""


@hookspec
def nlhf_zoo_engines() -> Contribution:  # type: ignore[empty-body]  # a hookspec has no body
    """Subclasses of `RolloutEngine`, or factories that return one; keyword arguments come from `--engine-set`."""
