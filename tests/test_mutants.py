"""The kit's mutation score: every broken solver is caught, by the property that explains what is wrong with it."""

from __future__ import annotations

import inspect

import pytest
import torch

from nlhf_zoo.testing import PROPERTIES, check_property
from tests import divergence_mutants
from tests.mutants import EQUIVALENT, MUTANTS
from tests.test_divergences import ALL

EXAMPLE = {
    "log_ratio": torch.tensor([-6.0, -1.0, 0.5, 2.0], dtype=torch.float64),
    "other": -0.5,
    "a": -1.0,
    "b": 1.5,
    "weight": 0.3,
    "seed": 1,
    "size": 4,
}
"""What the tests of divergences are given."""


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 40
    assert {prop for _, prop in MUTANTS.values()} <= set(PROPERTIES)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_solver_is_caught(name: str) -> None:
    solver, prop = MUTANTS[name]
    result = check_property(solver, prop, examples=10, shrink=False)
    if result.status != "failed":  # as it does for the few that need many examples
        result = check_property(solver, prop, shrink=False)
    assert result.status == "failed", f"{name} survives {prop}: {result.detail}"
    # An exception would be caught by anything; what is asked for is that the statement itself is refuted.
    assert not result.detail.startswith("it raised"), result.detail


@pytest.mark.parametrize("name", divergence_mutants.MUTANTS)
def test_a_broken_divergence_is_caught(name: str) -> None:
    divergence, test = divergence_mutants.MUTANTS[name]
    # One example does, and none is made small.
    plain = getattr(getattr(test, "hypothesis", None), "inner_test", test)
    wanted = inspect.signature(plain).parameters
    given = {key: value for key, value in EXAMPLE.items() if key in wanted}
    for kept in ALL:
        if type(kept) is type(divergence).__mro__[1]:
            plain(divergence=kept, **given)
    with pytest.raises(AssertionError):
        plain(divergence=divergence, **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVALENT)
def test_an_equivalent_one_keeps_every_promise(name: str) -> None:
    for prop in PROPERTIES:
        result = check_property(EQUIVALENT[name], prop, examples=40)
        assert result.status != "failed", f"{prop}: {result.detail}"
