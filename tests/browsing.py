"""Pages of reports in a real browser, which may log no error and ask nothing of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nlhf_zoo.report import Report

__all__ = ["visits"]


@contextlib.contextmanager
def visits(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """A function that opens a report, written in `folder`, or the file of one; at the end all pages are judged."""
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
        file = report if isinstance(report, Path) else report.write(folder / "report.html")
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
