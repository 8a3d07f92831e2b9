"""Every block of code in the documentation runs, or says why it cannot and is checked as far as it goes.

Above a fence a page may say, in a comment that readers do not see:

    <!-- not run: REASON -->    the block is parsed only: Python compiles, JSON, TOML and YAML parse, and the flags
                                and values of every `nlhf-zoo` command are those that the verb takes
    <!-- config: WHAT -->       of YAML: what it configures, one of `CONFIGS`; it has to be a valid one
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from markdown_it import MarkdownIt

from nlhf_zoo.cli.flags import read
from nlhf_zoo.cli.main import VERBS

ROOT = Path(__file__).parents[1]
RUN = {"python", "sh"}
DATA: dict[str, Callable[[str], Any]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
OUTPUT = {"text"}
PREFERENCES = "a,b,c\n0.5,0.9,0.2\n0.1,0.5,0.7\n0.8,0.3,0.5\n"
"""A reader's own file, on the pages that run."""
QUICK = {"index.md", "theory.md"}
"""Pages whose blocks take less than about ten seconds; the others are run by the slow tests."""


@attrs.frozen
class Block:
    page: Path
    line: int
    language: str
    code: str
    mark: str | None
    said: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced and indented blocks of a page, those inside of lists too, in order."""
    found, mark, said = [], None, ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, mark, said))
        if token.type == "html_block":
            match = re.fullmatch(r"<!-- (not run|config): (.+?) -->", token.content.strip(), flags=re.DOTALL)
            mark, said = match.groups() if match else (None, "")
        elif not token.type.endswith("_open"):
            mark, said = None, ""
    return found


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks(page)]


def those(pick: Callable[[Block], bool]) -> Any:
    return pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in BLOCKS if pick(b)])


def test_every_block_says_what_it_is() -> None:
    odd = [str(b) for b in BLOCKS if b.language not in RUN | DATA.keys() | OUTPUT]
    assert odd == [], "these are not sh, python, yaml, json, toml or text, or are indented and not fenced"
    unmarked = [str(b) for b in BLOCKS if b.language == "yaml" and b.mark is None]
    assert unmarked == [], "these do not say what they configure"
    assert [str(b) for b in BLOCKS if b.mark == "config" and b.language != "yaml"] == []


# --- blocks that are only read


@those(lambda b: b.language in DATA)
def test_data_parse(block: Block) -> None:
    assert DATA[block.language](block.code)


@those(lambda b: b.language == "python" and b.mark == "not run")
def test_python_that_is_not_run_compiles(block: Block) -> None:
    compile(block.code, str(block), "exec")


def commands(code: str) -> list[list[str]]:
    """The arguments of each `nlhf-zoo` in a piece of shell, wherever it stands in its line."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] | None = None
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        for word in lexer:
            if word == "nlhf-zoo":
                words = []
                found.append(words)
            elif set(word) <= set("();<>|&"):
                words = None
            elif words is not None:
                words.append(word)
    return found


def verb(name: str) -> Any:
    return importlib.import_module(f"nlhf_zoo.cli.{name}").VERB


@those(lambda b: b.language == "sh" and b.mark == "not run" and "nlhf-zoo" in b.code)
def test_commands_that_are_not_run_could_be(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = commands(block.code)
    assert asked
    for name, *arguments in asked:
        assert name in VERBS
        # Made, and not run; a verb that takes a config file says so, and may leave out what is required.
        read(verb(name), [*arguments, *(["--print-config"] if verb(name).configurable else [])])


def test_a_wrong_command_is_found() -> None:
    (arguments,) = commands("srun -n 8 nlhf-zoo train --model m \\\n    --batchsize 3 | tee log # nlhf-zoo")
    assert arguments == ["train", "--model", "m", "--batchsize", "3"]
    with pytest.raises(Exception, match="--batch-size"):
        read(verb("train"), [*arguments[1:], "--print-config"])


# --- configurations


def _verb_config(name: str) -> Callable[[str, Path], None]:
    def check(text: str, folder: Path) -> None:
        (folder / "block.yaml").write_text(text, encoding="utf-8")
        read(verb(name), ["--config", str(folder / "block.yaml"), "--print-config"])

    return check


def _compare(text: str, folder: Path) -> None:
    from nlhf_zoo.comparison.config import CompareConfig
    from nlhf_zoo.comparison.entries import game_entries, solver_entries

    config = CompareConfig(out=folder / "out", **yaml.safe_load(text))
    assert game_entries(config.games, config)
    assert solver_entries(config)


def _judge_template(text: str, folder: Path) -> None:
    from nlhf_zoo.oracles.judge_prompt import read_judge_prompt

    (folder / "template.yaml").write_text(text, encoding="utf-8")
    read_judge_prompt(folder / "template.yaml")


CONFIGS = {"train": _verb_config("train"), "compare": _compare, "judge template": _judge_template}


@those(lambda b: b.mark == "config")
def test_configurations_are_valid(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    CONFIGS[block.said](block.code, tmp_path)


# --- blocks that run


def sample_files(folder: Path) -> None:
    """What commands that are not run take for a reader's own files."""
    (folder / "my_preferences.csv").write_text(PREFERENCES)
    (folder / "votes.csv").write_text("a,b,c\n0,9,2\n1,0,7\n8,3,0\n")
    train = "{model: models/sft, prompts: prompts.jsonl, oracle: pairwise_model, out: runs/a}"
    compare = "{games: [low_rank], solvers: [nash_mp], queries: 100, out: runs/first}"
    configs = {"votes": "{game: votes.csv}", "first": compare, "second": train, "nash_mp": train}
    for run, text in configs.items():
        (folder / "runs" / run).mkdir(parents=True)
        (folder / "runs" / run / "config.yaml").write_text(text)
    (folder / "run.yaml").write_text(train)
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(8)))


@pytest.fixture
def environment(page: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a shell in a virtual environment that has what this one has, and keeps what a page installs."""
    folder = tmp_path / "environment"
    # Pip takes longer to come than many a page to run.
    venv.create(folder, with_pip=any("pip" in block.code for block in running(page)))
    site = next(folder.glob("lib/python*/site-packages"))
    here = sysconfig.get_paths()["purelib"]
    (site / "this_environment.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")
    python = folder / "bin" / "python"
    for name, module in {"nlhf-zoo": "nlhf_zoo", "pytest": "pytest"}.items():
        launcher = folder / "bin" / name
        launcher.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n')
        launcher.chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "NLHF_ZOO"))}
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_QUIET": "1"}
    return clean | offline | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "120"}


def running(page: Path) -> list[Block]:
    return [b for b in BLOCKS if b.page == page and b.language in RUN and b.mark != "not run"]


@pytest.mark.timeout(660)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=() if page.name in QUICK else pytest.mark.slow)
        for page in PAGES
        if running(page)
    ],
)
def test_page_runs(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "my_preferences.csv").write_text(PREFERENCES)
    asked = [
        {"language": b.language, "code": b.code, "where": str(page.relative_to(ROOT)), "line": b.line}
        for b in running(page)
    ]
    (tmp_path / "blocks.json").write_text(json.dumps(asked), encoding="utf-8")
    runner = [tmp_path / "environment/bin/python", Path(__file__).with_name("page_runner.py"), tmp_path / "blocks.json"]
    done = subprocess.run(
        list(map(str, runner)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
