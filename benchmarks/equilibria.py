"""The regularised equilibrium to a duality gap of `--tol`: `nlhf_zoo.equilibrium` against each peer, cell by cell.

A cell is a kind of matrix, a number of responses Y and a beta, with the uniform reference. For every peer a worker
process builds the cell's game and takes turns, ours and the peer, for `--runs` rounds, so that both meet the same
load; what is compared is the median. A peer is given its loosest setting that reaches the tolerance, found before
anything is timed, and of its answer p and the best response to p the one of the smaller gap counts (by the exact gap,
in float64). `newton_krylov` stops by its residual, and is measured twice: told the residual that the gap at this beta
allows, and untold, as a user can run it, from its default on until the gap is reached; the table has the ratio to the
best peer with the one and with the other. A peer whose worker is not done within `--time-limit` is cut off, and not
tried on larger games of that kind and beta. A peer that is not installed is skipped with a line;
`pip install nlhf-zoo[peers]`.

python -m benchmarks equilibria --sizes 10 100 --betas 1 0.01 --kinds random real --time-limit 20
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import multiprocessing as mp
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import attrs

from benchmarks.equilibrium_peers import NEEDS, PEERS, TOLD, UNTOLD

KINDS = ("random", "low_rank", "real")
SIZES = (10, 100, 1000, 4000)
BETAS = (1.0, 0.1, 0.01, 1e-3, 1e-4)
PR_SET_PDEATHSIG = 1
REAL = ("preflib_sushi10", "llmfao_human", "preflib_countries_2013")


@attrs.frozen
class Cell:
    kind: str
    size: int
    beta: float


@attrs.frozen
class Timing:
    """Seconds of ours and of the peer, in turns, wall and processor's; and the gap that each reached."""

    ours: list[tuple[float, float]]
    theirs: list[tuple[float, float]]
    our_gap: float
    their_gap: float
    method: str


# --- a worker: one process a peer, cells one after the other


def die_with_the_parent() -> None:
    """Also while it computes (Linux): a parent that is killed ends no daemon, and only who reads the pipe sees it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(pipe: Any, peer: str, threads: int, runs: int, tol: float) -> None:
    die_with_the_parent()
    import torch

    torch.set_num_threads(threads)
    kept: tuple[tuple[str, int], Any] | None = None
    while True:
        cell = pipe.recv()
        if kept is None or kept[0] != (cell.kind, cell.size):
            kept = (cell.kind, cell.size), build(cell)
        try:
            pipe.send(duel(kept[1], cell.beta, PEERS[peer] if peer != "ours" else None, runs, tol))
        except Exception as failure:  # whatever a peer raises is its result
            pipe.send(f"failed ({type(failure).__name__})")


def build(cell: Cell) -> Any:
    from nlhf_zoo import MatrixOracle
    from nlhf_zoo.data.matrices import read_matrix
    from nlhf_zoo.games.random_matrices import low_rank, random

    if cell.kind == "random":
        return random(seed=0, responses=cell.size)
    if cell.kind == "low_rank":
        return low_rank(seed=0, responses=cell.size, rank=2)
    return MatrixOracle(read_matrix(real_files()[cell.size]).probabilities)


def real_files() -> dict[int, Path]:
    """Y and file of the real matrices."""
    folder = os.environ.get("NLHF_ZOO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    sizes = dict(zip((10, 59, 115), REAL, strict=True))
    files = {size: Path(folder) / f"pref_{name}.csv.gz" for size, name in sizes.items()}
    return {size: file for size, file in files.items() if file.is_file()}


def duel(oracle: Any, beta: float, peer: Callable[..., Any] | None, runs: int, tol: float) -> Timing | str:
    from nlhf_zoo import Game
    from nlhf_zoo.tabular import find_equilibrium

    game = Game(oracle, beta=beta)
    P, reference = oracle.matrix().numpy(), game.reference.log_probs.numpy()  # type: ignore[attr-defined]
    report = find_equilibrium(game, tol)
    setting, their_gap, once = 0, float("nan"), 0.0
    if peer is not None:
        for setting in range(3):
            begun = time.perf_counter()
            their_gap = gap_of(game, peer(P, reference, beta, tol, setting))
            once = time.perf_counter() - begun
            if their_gap <= tol:
                break
        else:
            return f"gap {their_gap:.0e} only ({once:.3g} s)"
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(runs):
        ours.append(seconds(lambda: find_equilibrium(game, tol)))
        if peer is not None:
            theirs.append(seconds(lambda: peer(P, reference, beta, tol, setting)))
    return Timing(ours, theirs, float(report.duality_gap), their_gap, report.method)


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def gap_of(game: Any, z: Any) -> float:
    """The exact gap of a peer's answer, or of the best response to it where that is smaller."""
    import torch

    from nlhf_zoo import TabularPolicy
    from nlhf_zoo.metrics import best_response, duality_gap

    matrix, reference, gaps = game.oracle.matrix(), game.reference.log_probs, []
    log_p = TabularPolicy(torch.as_tensor(z, dtype=torch.float64)).log_probs
    for _ in range(2):
        payoff = matrix @ log_p.exp()
        gaps.append(float(duality_gap(payoff, log_p, reference, game.beta)))
        log_p = best_response(payoff, reference, game.beta)
    return min(gaps)


@attrs.define
class Worker:
    """A peer's process, replaced when it is cut off."""

    peer: str
    threads: int
    runs: int
    tol: float
    process: Any = None
    pipe: Any = None

    def ask(self, cell: Cell, limit: float) -> Timing | str:
        if self.process is None:
            self.pipe, theirs = mp.get_context("spawn").Pipe()
            arguments = (theirs, self.peer, self.threads, self.runs, self.tol)
            self.process = mp.get_context("spawn").Process(target=work, args=arguments, daemon=True)
            self.process.start()
            theirs.close()  # so that a process that dies is an EOFError here
            limit += 15  # importing torch and the peer
        self.pipe.send(cell)
        try:
            if self.pipe.poll(limit):
                return self.pipe.recv()
        except EOFError:
            self.end()
            return "its process died"
        self.end()
        return f"over {limit:.0f} s, cut off"

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def memory(size: int, beta: float, narrow: bool) -> tuple[float, float]:
    """Peak resident memory of `equilibrium` over what was there before, and the matrix; in MB (Linux)."""
    context = mp.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_measure_memory, args=(theirs, size, beta, narrow), daemon=True)
    process.start()
    theirs.close()  # so that a child that dies is an EOFError here
    answer = mine.recv()
    process.join()
    return answer


def _measure_memory(pipe: Any, size: int, beta: float, narrow: bool) -> None:
    die_with_the_parent()
    import torch

    from nlhf_zoo import Game, MatrixOracle, equilibrium
    from nlhf_zoo.games.random_matrices import random

    equilibrium(Game(random(seed=1, responses=600), beta=beta))  # libraries and their buffers
    matrix = random(seed=0, responses=size).matrix()
    oracle = MatrixOracle(matrix, dtype=torch.float32) if narrow else MatrixOracle(matrix)
    del matrix
    ctypes.CDLL(None).malloc_trim(0)  # what making the matrix has left behind would hide as much
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    equilibrium(Game(oracle, beta=beta))
    held = oracle.matrix()
    pipe.send(((_resident("VmHWM") - before), held.numel() * held.element_size() / 2**20))


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


# --- the table


def cells(args: argparse.Namespace) -> list[Cell]:
    found = [
        Cell(kind, size, beta) for kind in args.kinds if kind != "real" for size in args.sizes for beta in args.betas
    ]
    if "real" in args.kinds:
        files = real_files()
        if not files:
            print("real matrices skipped: set NLHF_ZOO_DATA to the folder that holds them", file=sys.stderr)
        found += [Cell("real", size, beta) for size in files for beta in args.betas]
    return found


CLOCKS = ("wall", "processor")


def of(times: Sequence[tuple[float, float]], clock: str) -> list[float]:
    return [pair[CLOCKS.index(clock)] for pair in times]


def median(times: Sequence[tuple[float, float]], clock: str) -> float:
    return statistics.median(of(times, clock))


def spread(times: Sequence[tuple[float, float]], clock: str) -> str:
    chosen = of(times, clock)
    return f"{readable(statistics.median(chosen))} ({readable(min(chosen))}–{readable(max(chosen))})"


def readable(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def run_cell(
    cell: Cell, workers: dict[str, Worker], args: argparse.Namespace, given_up: dict[tuple[str, str, float], int]
) -> str:
    """One row of the table."""
    results: dict[str, Timing | str] = {}
    for peer, worker in workers.items():
        if peer == "ours" and any(isinstance(result, Timing) for result in results.values()):
            continue  # timed beside a peer
        key = (peer, cell.kind, cell.beta)
        if cell.size > given_up.get(key, cell.size):
            results[peer] = f"not tried: cut off at Y = {given_up[key]}"
            continue
        results[peer] = worker.ask(cell, args.time_limit)
        if isinstance(results[peer], str) and "cut off" in str(results[peer]):
            given_up[key] = cell.size
    timings = {peer: t for peer, t in results.items() if isinstance(t, Timing) and t.theirs}
    ratio = {peer: median(t.theirs, args.clock) / median(t.ours, args.clock) for peer, t in timings.items()}
    best, untold = (
        min(ratio.keys() - {left_out}, key=lambda peer: ratio[peer], default=None) for left_out in (UNTOLD, TOLD)
    )
    own = timings[best or untold or ""] if best or untold else results.get("ours")
    ours = spread(own.ours, args.clock) if isinstance(own, Timing) else str(own)
    reached = [t.our_gap for t in results.values() if isinstance(t, Timing)]
    method = next((t.method for t in results.values() if isinstance(t, Timing)), "")
    told = [
        f"{peer} {readable(median(r.theirs, args.clock))}" if isinstance(r, Timing) else f"{peer} {r}"
        for peer, r in results.items()
        if peer != "ours"
    ]
    verdict, other = (f"{ratio[peer]:.1f}× {peer}" if peer else "no peer" for peer in (best, untold))
    gap = f"{max(reached):.0e}" if reached else ""
    first = f"{cell.kind} | {cell.size} | {cell.beta:g} | {ours} | {method} | {gap}"
    return f"| {first} | {verdict} | {other} | {'; '.join(told)} |"


def facts(args: argparse.Namespace) -> str:
    import torch

    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}, torch"
        f" {torch.__version__}, {args.threads} thread(s), load average {load:.1f} at the start; {args.clock} time,"
        f" gap {args.tol:g}, medians (range) of {args.runs} rounds in turns, limit {args.time_limit:g} s"
    )


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    add("--sizes", type=int, nargs="+", default=list(SIZES), help="Y of the random and low-rank games")
    add("--betas", type=float, nargs="+", default=list(BETAS))
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="none: ours alone")
    add("--runs", type=int, default=5, help="rounds, each of ours and the peer")
    add("--tol", type=float, default=1e-10)
    add("--time-limit", type=float, default=20.0, help="seconds for a cell of a peer, its untimed runs included")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--clock", choices=CLOCKS, default="wall", help="processor time is the fairer on a busy machine")
    add("--no-memory", action="store_true", help="leave the measurement of memory out")
    return described


def main() -> int:
    args = parser().parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)  # the workers inherit them
    missing = [peer for peer in args.peers if importlib.util.find_spec(NEEDS[peer]) is None]
    for peer in missing:
        print(f"{peer} skipped: {NEEDS[peer]} is not installed; pip install nlhf-zoo[peers]")
    names = [peer for peer in args.peers if peer not in missing]
    workers = {name: Worker(name, args.threads, args.runs, args.tol) for name in (*names, "ours")}
    print(facts(args), end="\n\n", flush=True)
    print("| matrix | Y | beta | ours | method | gap | faster than the best peer | with f_tol untold | peers |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    given_up: dict[tuple[str, str, float], int] = {}
    for cell in cells(args):
        print(run_cell(cell, workers, args, given_up), flush=True)
    for worker in workers.values():
        worker.end()
    if not args.no_memory and sys.platform == "linux":
        size = max(args.sizes)
        for narrow in (False, True):
            for beta in (max(args.betas), min(args.betas)):
                peak, matrix = memory(size, beta, narrow)
                kind = "float32" if narrow else "float64"
                print(f"\nMemory, Y = {size}, beta = {beta:g}, {kind}: {peak:.0f} MB over a matrix of {matrix:.0f} MB.")
    return 0


if __name__ == "__main__":
    # By its own name, so that worker processes find what is sent to them.
    from benchmarks import equilibria

    sys.exit(equilibria.main())
