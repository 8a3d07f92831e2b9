"""Settings of every test: no hub, and one thread (the tests' tensors are small, and cores are shared). Its fixtures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

import pytest
import torch

if TYPE_CHECKING:
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
    from tests.browsing import visits

    with visits(browser, tmp_path) as go:
        yield go
