"""The pytest plugin: `conformance_test(solver)` makes a test of every property, by name.

A test file is three lines:

    from my_plugin.solver import MySolver
    from nlhf_zoo.testing import conformance_test
    test_conformance = conformance_test(MySolver())

Loaded by every pytest in the environment, so nothing heavy is imported here before a test runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nlhf_zoo.interfaces import Solver

__all__ = ["conformance_test"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("nlhf_zoo", "conformance of solvers (nlhf_zoo)")
    group.addoption("--nlhf-examples", type=int, default=100, help="games a property, on average (100)")
    group.addoption("--nlhf-seed", type=int, default=0, help="seed of the games (0)")


def conformance_test(solver: Solver | str, *, properties: Iterable[str] | None = None) -> Callable[..., None]:
    """A test function, parametrised by property; assign it to a name that begins with `test_`.

    A property that does not apply is skipped with its reason; where `declares-itself` fails, so are all others. One
    that fails shows the smallest counterexample as a program. The options --nlhf-examples and --nlhf-seed set
    effort and seed.

    Args:
        solver: an object, or a registered name.
        properties: names of those to test; all, unless given.
    """
    from nlhf_zoo.testing.catalogue import PROPERTIES
    from nlhf_zoo.testing.check import FIRST, check_property

    @functools.cache
    def misfit() -> bool:
        from nlhf_zoo.drive import configure

        return check_property(configure(solver), FIRST).status == "failed"

    @pytest.mark.parametrize("name", list(PROPERTIES if properties is None else properties))
    def test_conformance(name: str, request: pytest.FixtureRequest) -> None:
        from nlhf_zoo.drive import configure

        if name != FIRST and misfit():
            pytest.skip(f"not tried, because {FIRST} failed")
        option = request.config.getoption
        result = check_property(
            configure(solver),
            name,
            examples=int(option("--nlhf-examples", 100) or 100),
            seed=int(option("--nlhf-seed", 0) or 0),
        )
        if result.status == "not applicable":
            pytest.skip(result.detail)
        if result.status == "failed":
            statement = PROPERTIES[name].statement
            pytest.fail(f"{statement}\n{result.detail}\n(seed {result.seed})\n\n{result.counterexample}", pytrace=False)

    return test_conformance
