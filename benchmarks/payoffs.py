"""Batched payoffs beside the speed of the memory, and operators with a million responses.

python -m benchmarks payoffs --runs 7 --threads 1 [--no-peers] [--no-operators]

Every cell runs 100 Nash-MP iterations through `nlhf_zoo.drive.iterates`, in turn with a read of 512 MB, with the
plain `matmul` and with the product alone. GB/s is the bytes of P read (two payoffs an iteration) over time; on a
busy machine the best run of each is the fairer, so both median and best are printed. There, use one thread or
set OMP_WAIT_POLICY=PASSIVE: torch's threads wait for each other spinning, and take the core from whom they wait for.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import nlhf_zoo as nz
from nlhf_zoo.drive import configure, iterates

CELLS = [(4096, 10), (1024, 64), (256, 100), (16, 1000)]
LARGER_THAN_CACHE = [(4096, 64), (2048, 100)]
STEPS, BETA = 100, 0.1
RESPONSES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each, after one warm-up")
    parser.add_argument("--threads", type=int, help="of torch, and of the products; torch's own choice otherwise")
    parser.add_argument("--no-peers", action="store_true", help="leave out the Python loops over games")
    parser.add_argument("--no-operators", action="store_true", help="leave out the operators")
    parser.add_argument("--operator", choices=list(OPERATORS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.operator:
        measure_operator(asked.operator)
        return
    if asked.threads:
        torch.set_num_threads(asked.threads)
    print(f"torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, OMP_WAIT_POLICY", end=" ")
    print(os.environ.get("OMP_WAIT_POLICY", "as it comes"))
    measure_batches(asked.runs)
    if not asked.no_peers:
        measure_peers()
    if not asked.no_operators:
        for name in OPERATORS:
            subprocess.run([sys.executable, "-m", "benchmarks.payoffs", "--operator", name], check=True)


def measure_batches(runs: int) -> None:
    big = torch.ones(2**26, dtype=torch.float64)
    print(f"\n{'':>24}{'P, MB':>8} | GB/s, median (best)")
    print(
        f"{'games x Y':>16}{'dtype':>8}{'':>8} | {'read':>14}{'matmul':>14}{'payoff':>14}{'Nash-MP':>14}"
        f" | Nash-MP of read: wall, processor"
    )
    for dtype, (games, y) in itertools.product((torch.float64, torch.float32), [*CELLS, *LARGER_THAN_CACHE]):
        oracle = nz.MatrixOracle(_random_batch(games, y), dtype=dtype)
        size = oracle.matrix().nbytes
        tasks = _tasks(oracle, size)
        speeds: dict[str, list[float]] = {name: [] for name in ("read", *tasks)}
        busy: dict[str, list[float]] = {name: [] for name in speeds}
        for run in range(runs + 1):
            for name, (nbytes, task) in {"read": (big.nbytes, read(big)), **tasks}.items():
                seconds, processor = _timed(task)
                if run:
                    speeds[name].append(nbytes / seconds / 1e9)
                    busy[name].append(nbytes / processor / 1e9)
        cells = "".join(f"{statistics.median(s):>7.1f} ({max(s):4.1f})" for s in speeds.values())
        wall, processor = (
            statistics.median(a / b for a, b in zip(rates["Nash-MP"], rates["read"], strict=True))
            for rates in (speeds, busy)
        )
        print(
            f"{f'{games:,} x {y:,}':>16}{str(dtype)[6:]:>8}{size / 1e6:>8.1f} | {cells}"
            f" | {wall:>5.0%} {processor:>5.0%}",
            flush=True,
        )


def _tasks(oracle: nz.EnumerableOracle, size: int) -> dict[str, tuple[int, Callable[[], object]]]:
    matrix = oracle.matrix()
    mu = torch.full(matrix.shape[:-1], 1 / matrix.shape[-1], dtype=matrix.dtype)
    # Cells in the cache are over in a millisecond: the products are repeated, at most as often as in the iterations.
    repeat = max(1, min(2 * STEPS, int(1e9 / size)))
    return {
        "matmul": (size * repeat, lambda: [(matrix @ mu.unsqueeze(-1)) for _ in range(repeat)]),
        "payoff": (size * repeat, lambda: [oracle.payoff(mu) for _ in range(repeat)]),
        "Nash-MP": (2 * STEPS * size, lambda: nash_mp(oracle)),
    }


def _random_batch(games: int, y: int) -> Tensor:
    upper = torch.rand(games, y, y, generator=torch.Generator().manual_seed(0), dtype=torch.float64).triu_(1)
    lower = torch.ones(y, y, dtype=torch.float64).tril(-1) - upper.mT
    return upper + lower.tril(-1) + torch.eye(y, dtype=torch.float64) / 2


def read(values: Tensor) -> Callable[[], object]:
    """Every byte once, by dot products with a vector in the cache, one part a thread (faster than a sum)."""
    threads = torch.get_num_threads()
    rows = values.view(-1, 1024).numpy()  # 8 kB: the other factor stays in the smallest cache
    ones = np.ones(1024)
    if threads == 1:
        return lambda: np.vecdot(rows, ones)

    def by_threads() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: np.vecdot(part, ones), np.array_split(rows, 4 * threads)))

    return by_threads


def nash_mp(oracle: nz.EnumerableOracle) -> Tensor:
    states = iterates(nz.Game(oracle, beta=BETA), configure("nash_mp"))
    policy = next(itertools.islice(states, STEPS, None)).current
    assert isinstance(policy, nz.TabularPolicy)
    return policy.log_probs


def _timed(task: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of the processor (all threads), which a busy machine changes far less."""
    begun, process = time.perf_counter(), time.process_time()
    task()
    return time.perf_counter() - begun, time.process_time() - process


def measure_peers() -> None:
    """Games one after the other, a few of each cell, scaled to all: numpy's own Nash-MP, and scipy's root finder."""
    print(
        f"\n{'games x Y':>16}{'zoo s':>9} (gap){'':>7}{'numpy loop s':>14}{'ratio':>7}{'scipy hybr s':>14}{'ratio':>7}"
    )
    for games, y in CELLS:
        oracle = nz.MatrixOracle(_random_batch(games, y))
        matrices = oracle.matrix().numpy()
        ours, gap = [], 0.0
        loops: dict[str, list[float]] = {"numpy": [], "scipy": []}
        for count in range(3):
            begun = time.perf_counter()
            log_probs = nash_mp(oracle)
            ours.append(time.perf_counter() - begun)
            gap = float(nz.duality_gap(nz.Game(oracle, beta=BETA), nz.TabularPolicy(log_probs)).max())
            for name, play in (("numpy", numpy_nash_mp), ("scipy", scipy_equilibrium)):
                # A thousand unknowns take hybr a minute: one game, once, says enough.
                if name == "scipy" and y > 100 and count:
                    continue
                some = 1 if y > 100 and name == "scipy" else min(games, 8)
                begun = time.perf_counter()
                for matrix in matrices[:some]:
                    play(matrix)
                loops[name].append((time.perf_counter() - begun) * games / some)
        here = statistics.median(ours)
        numpy_s, scipy_s = (statistics.median(loops[name]) for name in ("numpy", "scipy"))
        print(
            f"{f'{games:,} x {y:,}':>16}{here:>9.3f} ({gap:.0e}){numpy_s:>15.2f}{numpy_s / here:>7.1f}"
            f"{scipy_s:>14.2f}{scipy_s / here:>7.1f}",
            flush=True,
        )


def numpy_nash_mp(matrix: np.ndarray) -> np.ndarray:
    """The same 100 iterations at eta = 2 beta, for one game, as one would write them."""
    weight = BETA + 0.5
    log_p = np.full(len(matrix), -np.log(len(matrix)))
    for _ in range(STEPS):
        half = _normalise((matrix @ np.exp(log_p) + 0.5 * log_p) / weight)
        log_p = _normalise((matrix @ np.exp(half) + 0.5 * log_p) / weight)
    return log_p


def _normalise(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def scipy_equilibrium(matrix: np.ndarray) -> np.ndarray:
    """The regularised equilibrium itself, to scipy's default tolerance."""
    from scipy.optimize import root

    def residual(z: np.ndarray) -> np.ndarray:
        return z - matrix @ np.exp(_normalise(z)) / BETA

    return root(residual, np.zeros(len(matrix)), method="hybr").x


def bradley_terry() -> tuple[nz.EnumerableOracle, Callable[[Tensor], Tensor]]:
    scores = torch.randn(RESPONSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return nz.BradleyTerryOracle(scores), lambda rows: (scores[rows].unsqueeze(-1) - scores).sigmoid()


def factors() -> tuple[nz.EnumerableOracle, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    u = torch.nn.functional.normalize(torch.randn(RESPONSES, 8, generator=generator, dtype=torch.float64), dim=-1)
    s = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    s = s - s.mT
    s = s / (2 * torch.linalg.matrix_norm(s, 2))
    return nz.FactorOracle(u, s), lambda rows: 0.5 + u[rows] @ s @ u.mT


def _peak() -> float:
    """MiB of memory at most so far. Linux's own page: what getrusage says is inherited from a larger parent."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


OPERATORS = {"bradley_terry": bradley_terry, "factors": factors}


def measure_operator(name: str) -> None:
    """A process of its own, so that its peak memory is its own."""
    nz.solve(nz.Game(nz.MatrixOracle([[0.5, 0.6], [0.4, 0.5]])), "nash_mp", steps=1)
    before = _peak()
    begun, process = time.perf_counter(), time.process_time()
    oracle, rows = OPERATORS[name]()
    built = time.perf_counter() - begun
    result = nz.solve(nz.Game(oracle, beta=BETA), "nash_mp", steps=STEPS, every=STEPS)
    seconds, process = time.perf_counter() - begun, time.process_time() - process
    peak = _peak() - before
    some = torch.arange(0, RESPONSES, RESPONSES // 100)
    assert isinstance(result.policy, nz.TabularPolicy)
    mu = result.policy.probs
    error = float((oracle.payoff(mu)[some] - rows(some) @ mu).abs().max())
    print(
        f"\n{name}, Y = {RESPONSES:,}: built in {built:.2f} s, with {STEPS} Nash-MP iterations {seconds:.1f} s wall,"
        f" {process:.1f} s of processor; {peak:.0f} MiB above torch alone;"
        f" gap {result.history[-1]['duality_gap']:.0e}; 100 payoffs against the direct sum: {error:.0e}",
        flush=True,
    )


if __name__ == "__main__":
    main()
