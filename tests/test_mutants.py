"""The kit's mutation score: every broken solver is caught, by the property that explains what is wrong with it."""

from __future__ import annotations

import pytest

from nlhf_zoo.testing import PROPERTIES, check_property
from tests.mutants import EQUIVALENT, MUTANTS


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 40
    assert {prop for _, prop in MUTANTS.values()} <= set(PROPERTIES)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_solver_is_caught(name: str) -> None:
    solver, prop = MUTANTS[name]
    result = check_property(solver, prop, shrink=False)
    assert result.status == "failed", f"{name} survives {prop}: {result.detail}"
    # An exception would be caught by anything; what is asked for is that the statement itself is refuted.
    assert not result.detail.startswith("it raised"), result.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUIVALENT)
def test_an_equivalent_one_keeps_every_promise(name: str) -> None:
    for prop in PROPERTIES:
        result = check_property(EQUIVALENT[name], prop, examples=40)
        assert result.status != "failed", f"{prop}: {result.detail}"
