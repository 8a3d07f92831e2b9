"""The documentation site: it builds without a warning, asks nothing of a network, and holds every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nlhf_zoo as nz

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert not re.search(r"WARNING|ERROR", told), told
    return folder


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    found = " ".join(map(text, (site / "reference").glob("*.html")))
    headings = re.findall(r'<h2 id="([\w.]+)" class="doc doc-heading">\s*<code class="[^"]*doc-symbol-(\w+)"', found)
    # Where a module and a function share a name, the module is no answer.
    named = {identifier.rpartition(".")[2] for identifier, kind in headings if kind != "module"}
    assert {*nz.__all__} - named == {"__version__", "testing"}


def test_formulas_are_mathml(site: Path) -> None:
    theory = text(site / "theory.html")
    assert theory.count("<math") > 50
    assert "arithmatex" not in theory
    formulas = re.findall(r"<math.*?</math>", theory, flags=re.DOTALL)
    assert [formula for formula in formulas if "\\" in formula or "<merror" in formula] == [], "LaTeX that is not known"


def test_links_out_of_the_pages_lead_to_the_repository(site: Path) -> None:
    assert "/benchmarks/RESULTS.md" in text(site / "choose.html")
    assert 'href="../' not in text(site / "choose.html")


def test_pages_ask_nothing_of_a_network(site: Path, browser: Any) -> None:
    errors: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    pages = sorted({*site.rglob("*.html")} - {site / "404.html"})  # the one that a server has to serve
    assert len(pages) > 40
    wide = []
    for path in pages:
        page.goto(path.as_uri())
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
            wide.append(path.name)
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert errors == []
    assert wide == [], "wider than a phone"


def test_the_search_finds_a_page_without_a_server(site: Path, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("mirror prox")
    page.locator(".md-search-result__item").first.wait_for(state="visible", timeout=30_000)
    context.close()
