"""`nlhf-zoo new`: what it makes installs in a fresh environment, passes its own tests, and passes `check`."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from nlhf_zoo.cli.main import main
from nlhf_zoo.cli.new import project_files
from tests.third_party import ThirdParty


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment that has what this one has, and nothing of its own yet."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "this_environment.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n", encoding="utf-8"
    )
    return folder / "bin"


def _run(*command: str | Path, folder: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NLHF_ZOO"))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=clean, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_project_installs_and_passes(tmp_path: Path, environment: Path) -> None:
    project = tmp_path / "my-solver"
    assert main(["new", "my-solver", "--out", str(project)]) == 0
    python = environment / "python"
    _run(
        *(python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", project),
        folder=tmp_path,
    )
    command = (python, "-c", "import sys; from nlhf_zoo.cli import main; sys.exit(main())")
    listed = json.loads(_run(*command, "list", "--json", folder=tmp_path))
    assert [s["distribution"] for s in listed["solvers"] if s["name"] == "my_solver"] == ["my-solver"]
    tested = _run(python, "-m", "pytest", "-q", "--nlhf-examples", "10", folder=project)
    assert " passed" in tested
    assert "failed" not in tested
    checked = json.loads(_run(*command, "check", "my_solver", "--examples", "10", "--json", folder=tmp_path))
    assert checked["passed"]
    assert any(r["name"] == "last-iterate-meets-its-bound" and r["status"] == "passed" for r in checked["results"])


def test_every_file_is_filled_in_and_the_solver_is_short() -> None:
    made = project_files("my-solver")
    assert not any(
        "@" in text.replace("@attrs", "").replace("@property", "").replace("@hookimpl", "").replace("@v", "")
        for text in made.values()
    )
    code = [
        line for line in made["src/my_solver/solver.py"].splitlines() if line and not line.startswith(('"', " " * 8))
    ]
    assert len(code) <= 30
    compile(made["src/my_solver/solver.py"], "solver.py", "exec")


FORGETFUL = """
import attrs
from nlhf_zoo import Solver

@attrs.frozen
class LookAhead(Solver):
    name = "look_ahead"
    summary = "x"
    def propose(self, game, state): ...
    def accept(self, game, state, outcome): ...

def nlhf_zoo_solvers():
    return [LookAhead]
"""


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (FORGETFUL, "installed but registers nothing; is @hookimpl missing above nlhf_zoo_solvers() in look_ahead?"),
        ("import no_such_module", "did not load: ModuleNotFoundError: No module named 'no_such_module'"),
        (FORGETFUL.replace("def nlhf", "from nlhf_zoo import hookimpl\n@hookimpl\ndef nlhf"), ""),
    ],
)
def test_a_plugin_that_brings_nothing_is_told_why(third_party: ThirdParty, source: str, words: str) -> None:
    third_party.install("look-ahead", look_ahead=source)
    done = third_party.run("check", "look-ahead", "--only", "declares_itself", only="look_ahead")
    if words:
        assert done.code == 2
        assert words in done.err
        assert len(done.err.splitlines()) == 1
    else:  # it is found, hyphens and all, and checked; its lines come one by one on stderr
        assert done.code == 1
        assert done.err.splitlines() == ["declares-itself: failed"]
        assert "propose() must give an Update" in done.out


@pytest.mark.parametrize("name", ["nash_mp", "nash-mp", "My-Solver", "2x", "class", "json", "a b", "../x", ""])
def test_a_name_that_cannot_be_is_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", name, "--out", str(tmp_path / "project")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "project").exists()


def test_an_existing_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    assert main(["new", "my-solver", "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
