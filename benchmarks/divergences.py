"""What a step costs on a table under other divergences than the reverse KL, and an improvement at deep references.

python -m benchmarks divergences --repeats 15

Processor time, medians in milliseconds. To compare two versions, run it in both, in turn, on the same machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import nlhf_zoo as nz
from nlhf_zoo.drive import configure, iterates
from nlhf_zoo.interfaces import Divergence
from nlhf_zoo.registry import lookup
from nlhf_zoo.tabular.general_equilibrium import general_equilibrium

BOUNDED = ("forward_kl", "jensen_shannon", "alpha", "squared_hellinger")


def game(size: int, beta: float, divergence: str = "reverse_kl", rows: int | None = None) -> nz.Game:
    generator = torch.Generator().manual_seed(0)
    shape = (size, size) if rows is None else (rows, size, size)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    reference = nz.TabularPolicy(torch.randn(shape[:-1], generator=generator, dtype=torch.float64))
    return nz.Game(nz.MatrixOracle((drawn - drawn.mT).sigmoid()), reference, beta, _divergence(divergence))


def _divergence(name: str) -> Divergence:
    return lookup("divergences", name)()


def median(once: Callable[[], object], repeats: int) -> float:
    once()
    taken: list[float] = []
    for _ in range(repeats):
        begun = time.process_time()
        once()
        taken.append(time.process_time() - begun)
    return 1000 * statistics.median(taken)


def step(solver: str, mine: nz.Game, repeats: int) -> float:
    states = iterates(mine, configure(solver))
    next(states)
    return median(lambda: next(states), repeats)


def deep(name: str, floor: float, repeats: int) -> float:
    generator = torch.Generator().manual_seed(0)
    log_rho = (floor * torch.rand(256, 20, generator=generator, dtype=torch.float64)).log_softmax(-1)
    payoff = torch.rand(256, 20, generator=generator, dtype=torch.float64)
    return median(lambda: _divergence(name).improve(payoff, [(log_rho, 0.1)]), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    print("| step, beta = 0.1 | rspo | dph_rl |\n| --- | --- | --- |")
    for size, rows in ((10, None), (100, None), (10, 64)):
        taken = [step(solver, game(size, 0.1, rows=rows), repeats) for solver in ("rspo", "dph_rl")]
        print(f"| Y = {size}{f', {rows} games' if rows else ''} | {taken[0]:.2f} | {taken[1]:.2f} |")
    print("\n| divergence, Y = 10 | mmd's step | improvement, 256 x 20, to -5 | to -700 | equilibrium |")
    print("| --- | --- | --- | --- | --- |")
    for name in (*BOUNDED, "chi_squared"):
        mine = game(10, 0.1, name)
        cells = [step("mmd", mine, repeats), deep(name, -5.0, repeats), deep(name, -700.0, repeats)]
        cells.append(median(lambda mine=mine: general_equilibrium(mine), repeats))
        print(f"| {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
