"""Takes the pictures of docs/gallery.md: runs the page's blocks, and photographs the reports.

python docs/screenshots.py [FOLDER]     of the runs; one that goes away, unless given
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
SHOTS = {
    "standings": ("low_rank", "part-1"),
    "convergence": ("low_rank", "part-2"),
    "matrix": ("low_rank", "part-3"),
    "equilibrium": ("votes", "part-4"),
}
"""Picture -> the run, and the part of its report."""
TALLEST = 900


def run_page(folder: Path) -> None:
    """The page's blocks, in order, in this folder."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for language, code in re.findall(r"^```(python|sh)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euc", code]
        subprocess.run(command, cwd=folder, check=True)


def shoot(browser: Any, report: Path, part: str, out: Path) -> None:
    """The top of one part of a report."""
    page = browser.new_context(viewport={"width": 1000, "height": TALLEST}).new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready]")
    section = page.locator(f"#{part}")
    section.scroll_into_view_if_needed()
    plots = section.locator(".plot")
    if plots.count():
        plots.first.scroll_into_view_if_needed()
        plots.first.locator(".main-svg").first.wait_for(state="attached")
    page.evaluate(f"document.getElementById({part!r}).scrollIntoView()")
    page.wait_for_timeout(300)  # for what is drawn when it comes into sight
    box = section.bounding_box()
    clip = {"x": box["x"], "y": max(0, box["y"]), "width": box["width"], "height": min(box["height"], TALLEST)}
    page.screenshot(path=out, clip=clip)
    page.context.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        folder.mkdir(exist_ok=True)
        run_page(folder)
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
        for name, (run, part) in SHOTS.items():
            shoot(browser, folder / "runs" / run / "report.html", part, DOCS / "gallery" / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
