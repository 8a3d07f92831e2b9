"""Settings of every test: no hub, and one thread (the tests' tensors are small, and cores are shared). Its fixtures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

if TYPE_CHECKING:
    from nlhf_zoo.report import Report
    from tests.third_party import ThirdParty

torch.set_num_threads(1)

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("no browser at /usr/bin/chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        " --disable-component-update --disable-sync"
    )
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments.split())
        yield chromium
        chromium.close()


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ThirdParty:
    from tests.third_party import ThirdParty

    return ThirdParty(tmp_path / "site", monkeypatch, capsys)


@pytest.fixture
def visit(browser: Any, tmp_path: Path):
    """Opens a report or the file of one; at the end no error may have been logged and nothing asked of a network."""
    errors: list[str] = []
    requests: list[str] = []
    contexts = []

    def go(report: Report | Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        file = report if isinstance(report, Path) else report.write(tmp_path / "report.html")
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]")
        plots = page.locator(".plot")
        if plots.count():
            plots.first.scroll_into_view_if_needed()
            plots.first.locator(".main-svg").first.wait_for(state="attached")
        return page

    yield go
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
