"""What `compare` costs beside its solvers' own time, and how much faster two processes are.

    python -m benchmarks comparisons                 # 1,000 cells of overhead, then 1,000 x 8 cells by 1 and 2 jobs
    python -m benchmarks comparisons --cells 50      # both, small

The overhead is measured twice: against the time that the solvers' steps took (as each cell reports it), and against
a bare loop that does the same work with nz.solve, measurements and equilibria included, and keeps it in memory. Both
leave out the report, whose time is printed apart. Sides are run in turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "mmd", "egpo", "sppo", "optimistic_md")
GAME: dict[str, Any] = {"name": "low_rank", "options": {"responses": 30}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="cells of the overhead; seeds of the two processes")
    parser.add_argument("--queries", type=int, default=200, help="budget of each cell")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn; medians are told")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    overhead(options.cells, options.queries, options.rounds)
    speed_up(options.cells, options.queries, options.rounds)


def overhead(cells: int, queries: int, rounds: int) -> None:
    bare, whole, solvers = [], [], []
    report = again = 0.0
    for _ in range(rounds):
        bare.append(timed(lambda: bare_loop(cells, queries)))
        with tempfile.TemporaryDirectory() as out:
            asked = {"seeds": cells, "queries": queries, "out": Path(out) / "comparison", "report": False}
            whole.append(timed(lambda asked=asked: nz.compare([GAME], ["nash_mp"], **asked)))
            solvers.append(solver_seconds(asked["out"]))
            report = timed(lambda asked=asked: nz.compare([GAME], ["nash_mp"], **{**asked, "report": True}))
            again = timed(lambda asked=asked: nz.compare([GAME], ["nash_mp"], **asked))
    loop, all_, own = (statistics.median(side) for side in (bare, whole, solvers))
    print(f"{cells} cells of {queries} queries, {GAME['options']['responses']} responses, one core")
    print(f"  solvers' own steps {own:8.2f} s")
    print(f"  bare loop          {loop:8.2f} s  (with measurements and equilibria)")
    print(f"  compare            {all_:8.2f} s")
    print(f"  compare over the bare loop: {all_ - loop:+.2f} s, {(all_ - loop) / own:+.1%} of the solvers' own steps")
    print(f"  nothing left to play: {again:.2f} s; the report beside that: {report - again:.2f} s")


def bare_loop(cells: int, queries: int) -> list[Any]:
    """The same work by hand: as many measurements, at the same places."""
    from nlhf_zoo.comparison.table import Due

    results = []
    for seed in range(cells):
        oracle = lookup("games", GAME["name"])(seed=seed, **GAME["options"])
        game = nz.Game(oracle, beta=0.1)
        results.append(nz.solve(game, "nash_mp", queries=queries, seed=seed, every=Due()))
    return results


def solver_seconds(out: Path) -> float:
    """Of all cells together: the last value of each."""
    import pyarrow.parquet as pq

    table = pq.read_table(out / "results.parquet", columns=["cell", "seconds"])
    return sum(table.group_by("cell").aggregate([("seconds", "max")]).column("seconds_max").to_pylist())


def speed_up(seeds: int, queries: int, rounds: int) -> None:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs, times in seconds.items():
            with tempfile.TemporaryDirectory() as out:
                asked: dict[str, Any] = {"seeds": seeds, "queries": queries, "report": False, "jobs": jobs}
                times.append(timed(lambda asked=asked, out=out: nz.compare([GAME], SOLVERS, out=f"{out}/c", **asked)))
    one, two = (statistics.median(times) for times in seconds.values())
    print(f"{seeds} seeds x {len(SOLVERS)} solvers: --jobs 1 {one:.1f} s, --jobs 2 {two:.1f} s, {one / two:.2f} times")


def timed(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
