"""The exact von Neumann winner beside what other libraries offer, on uniformly random games.

python -m benchmarks winners --sizes 10 100 1000 --rounds 3 --limit 60

Every run is a process of its own, with the libraries' own defaults, warmed up on a small game before the clock
starts; the methods take turns. Each answer's gap, 2 (max_y P(y > pi) - 1/2), is measured here, alike for all. A
method that runs into the limit, or fails, is not asked again at that size. A peer that is not installed is skipped.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def random_preferences(size: int, seed: int) -> Matrix:
    matrix = np.random.default_rng(seed).random((size, size))
    for i in range(size):
        matrix[i, i] = 0.5
        matrix[i + 1 :, i] = 1 - matrix[i, i + 1 :]
    return matrix


def ours(matrix: Matrix) -> Matrix:
    from nlhf_zoo import MatrixOracle
    from nlhf_zoo.tabular import find_winner

    return find_winner(MatrixOracle(matrix)).policy.probs.numpy()


def highs(matrix: Matrix) -> Matrix:
    from scipy.optimize import linprog

    size = len(matrix)
    return linprog(
        c=np.append(np.zeros(size), 1.0),
        A_ub=np.hstack([matrix - 0.5, -np.ones((size, 1))]),
        b_ub=np.zeros(size),
        A_eq=np.append(np.ones(size), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * size + [(None, None)],
    ).x[:size]


def quantecon(matrix: Matrix) -> Matrix:
    from quantecon.optimize import minmax  # type: ignore[import-not-found]

    return minmax(matrix - 0.5)[1]


def nashpy_lemke_howson(matrix: Matrix) -> Matrix:
    import nashpy  # type: ignore[import-not-found]

    return nashpy.Game(matrix - 0.5).lemke_howson(initial_dropped_label=0)[0]


def nashpy_linear_program(matrix: Matrix) -> Matrix:
    import nashpy  # type: ignore[import-not-found]

    return nashpy.Game(matrix - 0.5).linear_program()[0]


def nashpy_supports(matrix: Matrix) -> Matrix:
    import nashpy  # type: ignore[import-not-found]

    return next(iter(nashpy.Game(matrix - 0.5).support_enumeration()))[0]


def _cvxpy(matrix: Matrix, solver: str) -> Matrix:
    import cvxpy  # type: ignore[import-not-found]

    x, t = cvxpy.Variable(len(matrix)), cvxpy.Variable()
    constraints = [x >= 0, cvxpy.sum(x) == 1, (matrix - 0.5) @ x <= t]
    cvxpy.Problem(cvxpy.Minimize(t), constraints).solve(solver=solver)
    return x.value


def clarabel(matrix: Matrix) -> Matrix:
    return _cvxpy(matrix, "CLARABEL")


def ecos(matrix: Matrix) -> Matrix:
    return _cvxpy(matrix, "ECOS")


def open_spiel(matrix: Matrix) -> Matrix:
    import pyspiel  # type: ignore[import-not-found]
    from open_spiel.python.algorithms import lp_solver  # type: ignore[import-not-found]

    game = pyspiel.create_matrix_game(matrix - 0.5, 0.5 - matrix)
    return np.asarray(lp_solver.solve_zero_sum_matrix_game(game)[0]).ravel()


METHODS: dict[str, Callable[[Matrix], Matrix]] = {
    "nlhf_zoo find_winner": ours,
    "quantecon minmax": quantecon,
    "scipy HiGHS": highs,
    "cvxpy Clarabel": clarabel,
    "cvxpy ECOS": ecos,
    "nashpy lemke_howson": nashpy_lemke_howson,
    "nashpy linear_program": nashpy_linear_program,
    "nashpy support_enumeration": nashpy_supports,
    "OpenSpiel lp_solver": open_spiel,
}


def run_one(name: str, size: int, seed: int) -> None:
    """The worker: prints wall seconds, CPU seconds and the gap as JSON."""
    import resource
    import warnings

    warnings.simplefilter("ignore")  # peers warn at length, and are judged by the gap
    method, matrix = METHODS[name], random_preferences(size, seed)
    try:
        method(np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]))  # no Condorcet winner: no short cut
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    answer = method(matrix)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / matrix.nbytes
    x = np.clip(np.asarray(answer, dtype=np.float64), 0, None)
    gap = 2 * float((matrix @ (x / x.sum())).max() - 0.5)
    print(json.dumps({"wall": wall, "cpu": cpu, "gap": max(gap, 0.0), "matrices": grown}))


def asked(name: str, size: int, seed: int, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.winners", "--one", name, str(size), str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"over {limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": (done.stderr.strip().splitlines() or ["no answer"])[-1][:60]}
    return json.loads(lines[-1])


def show(size: int, answers: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n| Y = {size} | wall s | min | max | CPU s | CPU, times ours | largest gap | memory, matrices |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    base = [one["cpu"] for one in answers.get("nlhf_zoo find_winner", []) if "cpu" in one]
    for name, runs in answers.items():
        good = [one for one in runs if "wall" in one]
        failed = next((one["failed"] for one in runs if "failed" in one), "")
        if not good:
            print(f"| {name} | {failed} | | | | | | |")
            continue
        wall, cpu = [one["wall"] for one in good], statistics.median(one["cpu"] for one in good)
        ratio = f"{cpu / statistics.median(base):.1f}" if base else ""
        # Below a few MB the libraries' own buffers are all there is to see.
        memory = f"{max(one['matrices'] for one in good):.1f}" if size >= 500 else ""
        print(
            f"| {name} | {statistics.median(wall):.4f} | {min(wall):.4f} | {max(wall):.4f} | {cpu:.4f} | {ratio} "
            f"| {max(one['gap'] for one in good):.0e} | {memory} |" + (f" {failed}" if failed else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=3, help="games a size; every method gets the same ones, in turn")
    parser.add_argument("--limit", type=float, default=60, help="seconds a process may take, start-up included")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], int(options.one[1]), int(options.one[2]))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, numpy {np.__version__}")
    missing: set[str] = set()
    for size in options.sizes:
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only if name not in missing}
        for seed in range(options.rounds):
            for name, runs in answers.items():
                if name in missing or any("failed" in one for one in runs):
                    continue
                answer = asked(name, size, seed, options.limit)
                if "missing" in answer:
                    print(f"{name}: skipped, {answer['missing']}")
                    missing.add(name)
                else:
                    runs.append(answer)
        show(size, {name: runs for name, runs in answers.items() if name not in missing})


if __name__ == "__main__":
    main()
