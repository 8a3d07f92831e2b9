"""The distribution as installed: light import, resolvable names, entry points, declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import Distribution, distribution, entry_points, packages_distributions
from pathlib import Path

import pytest

import nlhf_zoo
from nlhf_zoo import interfaces

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "lightning", "datasets", "scipy", "matplotlib", "pyarrow", "pandas")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def installed() -> Distribution:
    return distribution("nlhf-zoo")


def normalised(requirement: str) -> str:
    """The distribution name that begins a requirement, in the one spelling that package indexes compare."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def modules_loaded_by(statement: str) -> list[str]:
    program = f"{statement}\nimport sys\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import nlhf_zoo",
        "import nlhf_zoo; nlhf_zoo.Game, nlhf_zoo.BadInput, nlhf_zoo.hookimpl, nlhf_zoo.__version__, dir(nlhf_zoo)",
    ],
    ids=["import", "ground-floor-names"],
)
def test_import_is_light(statement: str) -> None:
    loaded = modules_loaded_by(statement)
    assert "nlhf_zoo" in loaded
    assert not set(HEAVY).intersection(loaded)


@pytest.mark.parametrize("name", nlhf_zoo.__all__)
def test_exported_name_resolves(name: str) -> None:
    assert getattr(nlhf_zoo, name) is not None
    assert name in dir(nlhf_zoo)


def test_functions_are_not_hidden_by_modules_of_the_same_name() -> None:
    # Importing a submodule sets an attribute of its parent, which would go before the lazy name.
    import_module("nlhf_zoo.drive")
    import_module("nlhf_zoo.tabular")
    for name in ("solve", "duality_gap", "equilibrium", "von_neumann_winner", "read_matrix", "solvers"):
        assert callable(getattr(nlhf_zoo, name)), name


def test_every_public_name_of_the_interfaces_is_exported() -> None:
    assert set(interfaces.__all__) <= set(nlhf_zoo.__all__)
    for name in interfaces.__all__:
        assert getattr(nlhf_zoo, name) is getattr(interfaces, name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nash_mp'"):
        nlhf_zoo.nash_mp  # noqa: B018  # the access is what is tested  # pyright: ignore[reportAttributeAccessIssue]


def test_version_agrees(installed: Distribution) -> None:
    assert nlhf_zoo.__version__ == installed.version == PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_entry_points_are_installed(installed: Distribution) -> None:
    found = {p.name: p.value for p in installed.entry_points if p.group == "nlhf_zoo"}
    assert found == PROJECT["entry-points"]["nlhf_zoo"]
    scripts = {p.name: p.value for p in installed.entry_points if p.group == "console_scripts"}
    assert scripts == PROJECT["scripts"]


@pytest.mark.parametrize("name", sorted(PROJECT["entry-points"]["nlhf_zoo"]))
def test_plugin_loads_and_implements_a_hook(name: str) -> None:
    (point,) = (p for p in entry_points(group="nlhf_zoo", name=name) if p.dist and p.dist.name == "nlhf-zoo")
    hooks = [attribute for attribute in dir(point.load()) if attribute.startswith("nlhf_zoo_")]
    assert hooks


def test_every_first_party_plugin_module_has_an_entry_point() -> None:
    modules = {f"nlhf_zoo_plugins.{p.stem}" for p in (ROOT / "plugins/nlhf_zoo_plugins").glob("[!_]*.py")}
    assert modules <= set(PROJECT["entry-points"]["nlhf_zoo"].values())


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_every_import_is_a_declared_dependency() -> None:
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in ("dev", "peers")}
    requirements = [*PROJECT["dependencies"], *(requirement for wanted in extras.values() for requirement in wanted)]
    declared = {normalised(requirement) for requirement in requirements} | {"nlhf-zoo"}
    # Triton comes with the builds of torch that it serves, and is not missed elsewhere.
    providers = {"triton": ["torch"], **packages_distributions()}
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for folder in ("nlhf_zoo", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        for module in imported_modules(path) - sys.stdlib_module_names - {"nlhf_zoo", "nlhf_zoo_plugins"}
        if declared.isdisjoint(normalised(name) for name in providers.get(module, []))
    }
    assert not undeclared


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin)] == []
    # The peers of the benchmarks are measured as they are found, and not installed by anything of ours.
    extras = [group for name, group in PROJECT["optional-dependencies"].items() if name != "peers"]
    wanted = {normalised(r) for group in (PROJECT["dependencies"], *extras) for r in group} - {"nlhf-zoo"}
    assert wanted <= {normalised(pin) for pin in pins}
