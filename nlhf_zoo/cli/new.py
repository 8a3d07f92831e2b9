"""`nlhf-zoo new`: a plugin project that installs, passes its own tests and `check`."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from nlhf_zoo.cli.verb import UNSAVED, Answer, Verb
from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERB", "project_files"]


@attrs.frozen(kw_only=True)
class NewOptions:
    """What to call it, and where it goes.

    Attributes:
        name: of the project and, with underscores for hyphens, of its module and its solver.
        out: folder to make it in; a folder of that name here, unless given.
    """

    name: str
    out: Path | None = attrs.field(default=None, metadata=UNSAVED)


def project_files(name: str) -> dict[str, str]:
    """The files of a plugin project by path.

    Raises:
        BadInput: a name that cannot be a package, or that a solver, a module or a distribution has already.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise BadInput(f"{name!r} cannot be a project name; use lower-case words joined by hyphens, as in my-solver")
    _check_free(name, module)
    words = {
        "@DISTRIBUTION@": name.replace("_", "-"),
        "@MODULE@": module,
        "@CLASS@": "".join(word.capitalize() for word in module.split("_")),
    }
    paths = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{module}/solver.py": "solver.py",
        "tests/test_solver.py": "test_solver.py",
        ".github/workflows/tests.yml": "tests.yml",
    }
    made = {path: _filled(template, words) for path, template in paths.items()}
    made[f"src/{module}/__init__.py"] = f'"""The solver `{module}`."""\n'
    return made


def _filled(template: str, words: dict[str, str]) -> str:
    text = (files("nlhf_zoo.cli") / "project" / f"{template}.template").read_text(encoding="utf-8")
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text


def _check_free(name: str, module: str) -> None:
    from importlib.util import find_spec

    from nlhf_zoo.registry import load

    taken = load().solvers.get(module)
    if taken is not None:
        raise BadInput(f"there is a solver {module!r} already, from {taken.distribution}; choose another name")
    if find_spec(module) is not None:
        raise BadInput(f"there is a module {module!r} already, which {name} would hide; choose another name")


def run(options: NewOptions) -> Answer:
    """Write the project."""
    from nlhf_zoo.cli.answers import claim_folder, write_files

    made = project_files(options.name)
    out = options.out or Path(options.name)
    claim_folder(out)
    for path in made:
        (out / path).parent.mkdir(parents=True, exist_ok=True)
    write_files(out, made)
    document = {"name": options.name, "folder": str(out), "files": sorted(made)}
    return Answer(document, lambda console: _show(options.name, out, sorted(made), console))


def _show(name: str, out: Path, made: list[str], console: Console) -> None:
    for path in made:
        console.print(f"{out / path}")
    module = name.replace("-", "_")
    console.print(f"\nnext:\n  cd {out}\n  pip install -e '.[test]'\n  pytest\n  nlhf-zoo check {module}")


VERB = Verb(
    name="new",
    summary="a plugin project with a working solver, its tests and a CI file",
    description="The project installs with pip and passes its own tests and `nlhf-zoo check` as it is.",
    example="""\
  nlhf-zoo new my-solver
  cd my-solver && pip install -e '.[test]' && pytest && nlhf-zoo check my_solver
""",
    options=NewOptions,
    run=run,
    positional="name",
    configurable=False,
)
