"""How long a report takes to open in headless Chromium: the processor time of its main thread, and on the clock.

python -m benchmarks report_load runs/first --runs 5
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a comparison; its report.html is opened")
    parser.add_argument("--runs", type=int, default=5, help="counted visits, after one warm-up")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    page = (options.folder / "report.html").absolute()
    visits = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(options.runs + 1):
            visits.append(_visit(browser, page.as_uri()))
        browser.close()
    print(f"{page.stat().st_size / 1e6:.1f} MB, load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for at, what in enumerate(("main thread, processor seconds", "first paint, seconds", "loaded, seconds")):
        times = [visit[at] for visit in visits[1:]]
        print(f"{what}: {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})")


def _visit(browser, address: str) -> tuple[float, float, float]:  # type: ignore[no-untyped-def]  # playwright is optional
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    tools = context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(address)
    page.wait_for_selector("html[data-ready]")
    page.wait_for_timeout(500)  # figures near the window are drawn just after
    found = {metric["name"]: metric["value"] for metric in tools.send("Performance.getMetrics")["metrics"]}
    paint, loaded = page.evaluate(
        "[performance.getEntriesByName('first-contentful-paint')[0].startTime,"
        " performance.getEntriesByType('navigation')[0].loadEventEnd]"
    )
    context.close()
    return found["TaskDuration"], paint / 1000, loaded / 1000


if __name__ == "__main__":
    main()
