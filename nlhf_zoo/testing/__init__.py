"""The conformance kit: a claimed guarantee is tested, and a wrong solver is caught.

`check_solver(solver)` tries every named property that applies; `properties` holds them as plain functions,
`strategies` the games as hypothesis strategies. Needs the extra `nlhf-zoo[testing]`. Names are imported when
first used, so that the pytest plugin, which every pytest in the environment loads, costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from nlhf_zoo.testing import formulas, properties, strategies
    from nlhf_zoo.testing.case import Case, Skip, Violation
    from nlhf_zoo.testing.catalogue import PROPERTIES, Property, named
    from nlhf_zoo.testing.check import DEFAULT_EXAMPLES, Report, Result, check_property, check_solver
    from nlhf_zoo.testing.hardest import cycle
    from nlhf_zoo.testing.measure import Reading, measured
    from nlhf_zoo.testing.pytest_plugin import conformance_test
    from nlhf_zoo.testing.tightness import Tightness, falsify

__all__ = [
    "DEFAULT_EXAMPLES",
    "PROPERTIES",
    "Case",
    "Property",
    "Reading",
    "Report",
    "Result",
    "Skip",
    "Tightness",
    "Violation",
    "check_property",
    "check_solver",
    "conformance_test",
    "cycle",
    "falsify",
    "formulas",
    "measured",
    "named",
    "properties",
    "strategies",
]

_ELSEWHERE = {
    "Case": "case",
    "Skip": "case",
    "Violation": "case",
    "PROPERTIES": "catalogue",
    "Property": "catalogue",
    "named": "catalogue",
    "cycle": "hardest",
    "Reading": "measure",
    "measured": "measure",
    "Tightness": "tightness",
    "falsify": "tightness",
    "conformance_test": "pytest_plugin",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        importlib.import_module("hypothesis")
    except ModuleNotFoundError:
        raise BadInput("nlhf_zoo.testing needs hypothesis: pip install 'nlhf-zoo[testing]'") from None
    if name in ("formulas", "properties", "strategies"):
        return importlib.import_module(f"{__name__}.{name}")
    # Importing the properties fills PROPERTIES.
    importlib.import_module(f"{__name__}.properties")
    value = getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'check')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
