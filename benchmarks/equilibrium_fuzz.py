"""Random games of every kind against the residual of `equilibrium`'s answer, in extended precision.

Whatever the game is, the residual proves the answer: |pi - pi*|_1 is at most half its span. A game is drawn by its
number: a kind of matrix, a number of responses up to `--largest`, a beta from 3e-7 to 30, and a reference that is
uniform, normal or reaches down to e^-700. It is solved to the default tolerance and, every fourth time, to `EXACT`; one
in eight is float32, one in sixteen a batch of three.

python -m benchmarks equilibrium_fuzz --games 3000 --largest 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from nlhf_zoo import Game, MatrixOracle, TabularPolicy
from nlhf_zoo.tabular import EXACT, find_equilibrium

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _preferences(upper: np.ndarray) -> np.ndarray:
    """P with this upper triangle."""
    above = np.triu(upper, 1)
    return above + np.tril(1 - above.T, -1) + 0.5 * np.eye(len(upper))


def _bradley_terry(rng: np.random.Generator, size: int) -> np.ndarray:
    scores = rng.normal(size=size) * rng.choice([0.1, 1.0, 10.0])
    return 1 / (1 + np.exp(scores[None] - scores[:, None]))


def _low_rank(rng: np.random.Generator, size: int) -> np.ndarray:
    left, right = rng.normal(size=(2, size, int(rng.integers(1, 5))))
    skew = left @ right.T - right @ left.T
    return 0.5 + skew / (2 * max(float(np.abs(skew).max()), 1e-300))


def _nearly_low_rank(rng: np.random.Generator, size: int) -> np.ndarray:
    noise = np.triu(rng.normal(size=(size, size)) * 10.0 ** -rng.integers(3, 14), 1)
    return (_low_rank(rng, size) + noise - noise.T).clip(0, 1)


def _cyclic(rng: np.random.Generator, size: int) -> np.ndarray:
    ahead = (np.arange(size)[None] - np.arange(size)[:, None]) % size
    wins = np.where(ahead == 0, 0.0, np.where(2 * ahead < size, 1.0, np.where(2 * ahead == size, 0.0, -1.0)))
    return 0.5 + 0.5 * rng.uniform(0.1, 1) * wins


def _blocks(rng: np.random.Generator, size: int) -> np.ndarray:
    p, group = _preferences(rng.uniform(size=(size, size))), rng.integers(0, 3, size)
    return np.where(group[:, None] == group[None], 0.5, p)


KINDS: dict[str, Draw] = {
    "uniform": lambda rng, size: _preferences(rng.uniform(size=(size, size))),
    "deterministic": lambda rng, size: _preferences(rng.integers(0, 2, (size, size)).astype(float)),
    "nearly deterministic": lambda rng, size: _preferences(1 / (1 + np.exp(-15 * rng.normal(size=(size, size))))),
    "quarters": lambda rng, size: _preferences(rng.integers(0, 5, (size, size)) / 4),
    "low rank": _low_rank,
    "nearly low rank": _nearly_low_rank,
    "cyclic": _cyclic,
    "Bradley-Terry": _bradley_terry,
    "blocks of ties": _blocks,
}


def _reference(rng: np.random.Generator, size: int) -> np.ndarray:
    depth = rng.choice([0.0, 0.0, 2.0, 15.0, 700.0])
    if depth == 700:
        return -700 * rng.uniform(size=size) ** rng.choice([1.0, 8.0])
    return depth * rng.normal(size=size)


def _span(p: np.ndarray, log_reference: np.ndarray, beta: float, z: np.ndarray) -> float:
    wide, z = p.astype(np.longdouble), z.astype(np.longdouble)
    weights = np.exp(z - z.max())
    r = z - log_reference - wide @ (weights / weights.sum()) / beta
    return float(r.max() - r.min())


def check(number: int, smallest: int, largest: int) -> tuple[str, str]:
    """The method that game `number` took, and what is wrong with its answer ("" where nothing is)."""
    rng = np.random.default_rng(number)
    kind = str(rng.choice(list(KINDS)))
    size = int(np.exp(rng.uniform(np.log(smallest), np.log(largest + 1))))
    beta = float(10 ** rng.uniform(np.log10(3e-7), np.log10(30)))
    tol = EXACT if number % 4 == 3 else 1e-10
    games = 3 if number % 16 == 5 else 1
    matrices = [KINDS[kind](rng, size) for _ in range(games)]
    dtype = torch.float32 if number % 8 == 6 else torch.float64
    references = np.stack([_reference(rng, size) for _ in range(games)])
    stacked = torch.from_numpy(np.stack(matrices) if games > 1 else matrices[0])
    oracle = MatrixOracle(stacked, dtype=dtype)
    policy = TabularPolicy(torch.from_numpy(references if games > 1 else references[0]))
    told = f"game {number}: {kind}, Y = {size}, beta = {beta:.2g}, tol {tol:g}"
    try:
        report = find_equilibrium(Game(oracle, policy, beta), tol)
    except Exception as failure:  # whatever it is, it is a finding
        return "failed", f"{told}: {type(failure).__name__}: {failure}"
    z, log_ref = report.policy.log_probs.reshape(games, size).numpy(), policy.log_probs.reshape(games, size).numpy()
    solved = oracle.matrix().double().reshape(games, size, size).numpy()
    allowed = 2 * (tol / max(1.0, beta)) ** 0.5
    for one in range(games):
        rounding = 3e-14 * (1 / beta + float(np.abs(z[one]).max()))
        span = _span(solved[one], log_ref[one], beta, z[one])
        if not span <= allowed + rounding:
            return report.method, f"{told}: residual {span:.1e}, {allowed + rounding:.1e} allowed ({report.method})"
    return report.method, ""


def main() -> int:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    described.add_argument("--games", type=int, default=3000)
    described.add_argument("--first", type=int, default=0, help="number of the first game")
    described.add_argument("--smallest", type=int, default=1)
    described.add_argument("--largest", type=int, default=60)
    args = described.parse_args()
    torch.set_num_threads(1)
    begun, methods, wrong = time.perf_counter(), Counter[str](), 0
    for number in range(args.first, args.first + args.games):
        method, fault = check(number, args.smallest, args.largest)
        methods[method] += 1
        wrong += bool(fault)
        if fault:
            print(fault, flush=True)
    print(f"{args.games} games, {wrong} wrong, {time.perf_counter() - begun:.0f} s; {dict(methods)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
