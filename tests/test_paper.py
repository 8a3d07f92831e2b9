"""The reproduction studies run in their quick form, and what is said of their results follows from results.csv."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.paper.__main__ import main, studies
from benchmarks.paper.figures import LARGEST
from benchmarks.paper.results import read_rows

KEPT = Path(__file__).parents[1] / "docs" / "reproduction"


def module(study: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.paper.{study}")


def agrees(study: str, folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    assert verdict == json.loads(json.dumps(module(study).verdict(read_rows(folder / "results.csv"))))


@pytest.mark.parametrize("study", studies())
def test_quick_study(study: str, tmp_path: Path) -> None:
    assert main([study, "--quick", "--out", str(tmp_path)]) == 0
    agrees(study, tmp_path)
    figures = [*tmp_path.glob("*.png")]
    assert figures
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


@pytest.mark.parametrize("study", studies())
def test_kept_results(study: str) -> None:
    agrees(study, KEPT / study)
    page = (KEPT / f"{study}.md").read_text(encoding="utf-8")
    for figure in (KEPT / study).glob("*.png"):
        assert figure.stat().st_size < LARGEST
        assert f"{study}/{figure.name}" in page


@pytest.mark.parametrize("study", studies())
def test_the_index_has_it(study: str) -> None:
    index = (KEPT.parent / "reproduction.md").read_text(encoding="utf-8")
    assert f"(reproduction/{study}.md)" in index
    assert f"python -m benchmarks.paper {study}" in index
    assert studies()[study].endswith(".") or studies()[study].endswith("?")
