"""What `compare` costs beside its solvers' own time, and how much faster two processes are.

    python -m benchmarks comparisons                 # 1,000 cells of overhead, then 1,000 x 8 cells by 1 and 2 jobs
    python -m benchmarks comparisons --cells 50      # both, small
    python -m benchmarks comparisons --only overhead

The overhead is what a whole comparison takes over a bare loop that does the same work with nz.solve, measurements and
equilibria included, and forgets it; as a share of the solvers' own steps, which are played a third time without
measurements. All three take turns cell by cell, in one process, so that what else the machine does falls on each
alike; processor time and wall time are both told, after a small comparison that loads what has to be loaded. The
report is left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import attrs
import torch

import nlhf_zoo as nz
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.engine import run_comparison
from nlhf_zoo.comparison.table import Due
from nlhf_zoo.drive import equilibrium_of
from nlhf_zoo.registry import lookup

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "mmd", "egpo", "sppo", "optimistic_md")
GAME: dict[str, Any] = {"name": "low_rank", "options": {"responses": 30}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="cells of the overhead; seeds of the two processes")
    parser.add_argument("--queries", type=int, default=200, help="budget of each cell")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn; medians and the spread are told")
    parser.add_argument("--only", choices=("overhead", "speed_up"), help="one of the two parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for name, part in PARTS.items():
        if options.only in (None, name):
            part(options.cells, options.queries, options.rounds)


@attrs.frozen
class Clock:
    """Processor time of this process and wall time, in seconds."""

    cpu: float = attrs.field(factory=time.process_time)
    wall: float = attrs.field(factory=time.perf_counter)

    def __sub__(self, other: Clock) -> Clock:
        return Clock(self.cpu - other.cpu, self.wall - other.wall)

    def __add__(self, other: Clock) -> Clock:
        return Clock(self.cpu + other.cpu, self.wall + other.wall)


NOTHING = Clock(0.0, 0.0)


@attrs.frozen
class Round:
    """All cells once: by compare, by the bare loop, and the solvers' own steps alone.

    Attributes:
        whole: of compare, what lies before the first cell and after the last one included.
        ends: that alone.
    """

    whole: Clock
    ends: Clock
    bare: Clock
    own: Clock

    def share(self, clock: str) -> float:
        return (getattr(self.whole, clock) - getattr(self.bare, clock)) / getattr(self.own, clock)


def overhead(cells: int, queries: int, rounds: int) -> None:
    one_round(5, queries)
    found: list[Round] = []
    for _ in range(rounds):
        found.append(one_round(cells, queries))
        print(f"  a round: cpu {found[-1].share('cpu'):.1%}, wall {found[-1].share('wall'):.1%}", flush=True)
    print(f"{cells} cells of {queries} queries, {GAME['options']['responses']} responses, one core, {rounds} round(s)")
    for clock in ("cpu", "wall"):
        a_cell = {
            side: statistics.median(getattr(getattr(one, side), clock) for one in found) / cells * 1e3
            for side in ("own", "bare", "whole")
        }
        ends = statistics.median(getattr(one.ends, clock) for one in found)
        shares = sorted(one.share(clock) for one in found)
        print(
            f"  {clock:4}  a cell: own steps {a_cell['own']:.2f} ms, bare loop {a_cell['bare']:.2f} ms, compare"
            f" {a_cell['whole']:.2f} ms; overhead {statistics.median(shares):.1%} of the own steps"
            f" ({shares[0]:.1%} to {shares[-1]:.1%});"
            f" {ends * 1e3:.0f} ms of it before the first cell and after the last"
        )


def one_round(cells: int, queries: int) -> Round:
    bare = own = aside = played = NOTHING
    done, since = 0, Clock()

    def turn(count: int, _: int) -> None:
        """After each cell of the comparison: the same by hand."""
        nonlocal bare, own, aside, played, done, since
        begun = Clock()
        if count > done:
            played += begun - since
            bare += timed(lambda: by_hand(done, queries))
            own += steps_alone(done, queries)
            done = count
        since = Clock()
        aside += since - begun

    with tempfile.TemporaryDirectory() as out:
        config = CompareConfig(games=[GAME], solvers=["nash_mp"], seeds=cells, queries=queries, out=out, report=False)
        whole = timed(lambda: run_comparison(config, turn))
    return Round(whole - aside, whole - aside - played, bare, own)


def by_hand(seed: int, queries: int) -> None:
    """A cell with as many measurements, at the same places."""
    nz.solve(drawn(seed), "nash_mp", queries=queries, seed=seed, every=Due())


def steps_alone(seed: int, queries: int) -> Clock:
    """The steps of the same cell, measured at the first and the last alone."""
    game = drawn(seed)
    target = equilibrium_of(game)
    return timed(lambda: nz.solve(game, "nash_mp", queries=queries, seed=seed, every=10**9, target=target))


def drawn(seed: int) -> nz.Game:
    return nz.Game(lookup("games", GAME["name"])(seed=seed, **GAME["options"]), beta=0.1)


def speed_up(seeds: int, queries: int, rounds: int) -> None:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs, times in seconds.items():
            with tempfile.TemporaryDirectory() as out:
                asked: dict[str, Any] = {"seeds": seeds, "queries": queries, "report": False, "jobs": jobs}
                times.append(
                    timed(lambda asked=asked, out=out: nz.compare([GAME], SOLVERS, out=f"{out}/c", **asked)).wall
                )
    one, two = (statistics.median(times) for times in seconds.values())
    print(f"{seeds} seeds x {len(SOLVERS)} solvers: --jobs 1 {one:.1f} s, --jobs 2 {two:.1f} s, {one / two:.2f} times")


def timed(work: Callable[[], Any]) -> Clock:
    begun = Clock()
    work()
    return Clock() - begun


PARTS = {"overhead": overhead, "speed_up": speed_up}

if __name__ == "__main__":
    main()
