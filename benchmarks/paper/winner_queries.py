"""How many queries until an epsilon-von-Neumann winner of real preferences, for every solver: is it O(1/epsilon)?

pi is one if no response beats it with more than 1/2 + epsilon: max_y P(y > pi) <= 1/2 + epsilon. Counted are exact
payoff vectors until the first policy for which that holds (which whoever asks for its payoffs can see), at most
20,000 (those without a rate: `LOWER_CAPS`). Each solver is set as its theory says for this epsilon:

- those of the regularised game, last iterate: beta = epsilon / (2 log 115), so that the equilibrium itself is at most
  beta log Y <= epsilon/2 away, and otherwise their defaults, which follow beta;
- multiplicative weights (spo and its kin), average iterate: eta = 4 epsilon, which the regret bound makes best;
- onpo, average iterate: eta = 1, the largest that is proved;
- mpo and comal, last iterate: a regularisation of 0.1, whose reference moves every 50 steps.

Solvers that take the same steps on a table (tests/test_docs.py) are run for the two largest epsilon only.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

import nlhf_zoo as nz
from benchmarks.paper import figures
from benchmarks.paper.intervals import statistic_interval
from benchmarks.paper.real_matrices import real_matrices
from benchmarks.paper.results import Row, write_rows, write_text, write_verdict
from nlhf_zoo.drive import configure, iterates

EPSILONS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
CAP = 20_000
LOWER_CAPS = {"nash_ema": 4_000, "mnpo": 4_000, "f_dpo": 2_000, "online_dpo": 2_000, "rspo": 100, "dph_rl": 100}
"""No rate is proved for the first two at this step, and no theory leads the next two to an equilibrium; the last two
solve for a multiplier in every step, which takes fifty times as long."""
TWINS = {
    "inpo": "mmd", "f_dpg": "mmd", "online_ipo": "mmd", "nash_prox": "exact_prox", "sppo": "spo", "rebel": "spo",
    "dno": "spo", "comal": "mpo",
}  # fmt: skip
ALONE = ("adaptive_nash_mp", "exact_prox", "nash_prox", "rspo", "dph_rl", "f_dpo")
"""Played game by game: one takes no batch, the cost of others depends on the game's size."""
FEWEST = 10
"""Counts below are too coarse for a slope."""


@attrs.frozen
class Entry:
    """A solver as it is set for an epsilon."""

    name: str
    options: Callable[[float, float], Mapping[str, float]] = lambda epsilon, beta: {}
    label: str = ""
    average: bool = False

    @property
    def shown(self) -> str:
        return self.label or self.name


def entries() -> list[Entry]:
    """Every solver that runs on tables and asks something."""
    settings: dict[str, Entry] = {
        **{name: Entry(name, lambda epsilon, beta: {"eta": 4 * epsilon}, average=True) for name in _like("spo")},
        **{name: Entry(name, lambda epsilon, beta: {"tau": 0.1}) for name in _like("mpo")},
        **{name: Entry(name, lambda epsilon, beta: {"eta": 4 * beta}) for name in ("nash_ema", "mnpo")},
        "onpo": Entry("onpo", lambda epsilon, beta: {"eta": 1.0}, average=True),
    }
    known = [name for name, cls in nz.solvers().items() if "table" in cls.backends and name != "spin"]
    found = [settings.get(name, Entry(name)) for name in known]
    found.append(Entry("exact_prox", lambda epsilon, beta: {"eta": 1.0}, label="exact_prox eta=1"))
    return sorted(found, key=lambda entry: entry.name in LOWER_CAPS)


def _like(name: str) -> list[str]:
    return [name, *(twin for twin, first in TWINS.items() if first == name)]


def run(out: Path, quick: bool) -> None:
    matrices = {name: found.probabilities for name, found in real_matrices().items()}
    epsilons, caps = EPSILONS, {entry.name: LOWER_CAPS.get(entry.name, CAP) for entry in entries()}
    if quick:
        matrices = {name: matrix for name, matrix in matrices.items() if len(matrix) < 12}
        epsilons, caps = EPSILONS[:3], {name: max(1, cap // 500) for name, cap in caps.items()}
    rows: list[dict[str, Any]] = []
    for entry in entries():
        tried = epsilons[:2] if entry.name in TWINS else epsilons
        rows += ended(entry, matrices, tried, caps[entry.name], out / "ended")
    kept = write_rows(out / "results.csv", rows)
    found = verdict(kept)
    write_verdict(out / "verdict.json", found)
    write_text(out / "verdict.md", table(found))
    draw(kept, out / "queries.png")


def ended(
    entry: Entry, matrices: Mapping[str, Tensor], epsilons: Sequence[float], cap: int, folder: Path
) -> list[dict[str, Any]]:
    """What `measured` gives, from `folder` where an earlier run of the same settings has left it."""
    settings = {"matrices": list(matrices), "epsilons": list(epsilons), "cap": cap}
    file = folder / f"{entry.shown}.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["settings"] == settings:
            return kept["rows"]
    rows = list(measured(entry, matrices, epsilons, cap))
    folder.mkdir(exist_ok=True)
    write_text(file, json.dumps({"settings": settings, "rows": rows}))
    return rows


def measured(
    entry: Entry, matrices: Mapping[str, Tensor], epsilons: Sequence[float], cap: int
) -> Iterator[dict[str, Any]]:
    """One row a matrix and epsilon, infinite where `cap` queries were not enough.

    A smaller epsilon is not tried when half of the matrices were too hard.
    """
    for epsilon in epsilons:
        beta = epsilon / (2 * math.log(max(len(matrix) for matrix in matrices.values())))
        solver = configure(entry.name, **entry.options(epsilon, beta))
        everyone = list(matrices.values())
        groups = [[matrix] for matrix in everyone] if entry.name in ALONE else [everyone]
        reached = [queries for group in groups for queries in first_reached(group, solver, beta, epsilon, cap, entry)]
        for (name, matrix), queries in zip(matrices.items(), reached, strict=True):
            yield {
                "solver": entry.shown,
                "iterate": "average" if entry.average else "last",
                "matrix": name,
                "responses": len(matrix),
                "epsilon": epsilon,
                "beta": beta,
                "cap": cap,
                "queries": queries,
            }
        if sum(map(math.isfinite, reached)) * 2 <= len(reached):
            return


def first_reached(
    matrices: Sequence[Tensor], solver: nz.Solver, beta: float, epsilon: float, cap: int, entry: Entry
) -> list[float]:
    """Queries until each game's policy is an epsilon-von-Neumann winner; all are played together."""
    game = batch(matrices, beta)
    assert isinstance(game.oracle, nz.MatrixOracle)
    matrix, total = game.oracle.matrix(), torch.zeros(())
    reached = [math.inf] * len(matrices)
    for state in iterates(game, solver):
        assert isinstance(state.current, nz.TabularPolicy)
        probs = state.current.probs
        if entry.average:
            total = total + probs
            probs = total / (state.step + 1)
        if state.queries.total > cap:
            break
        won = (matrix @ probs.unsqueeze(-1)).squeeze(-1).amax(-1).reshape(-1).tolist()
        for at, value in enumerate(won):
            if value <= 0.5 + epsilon and math.isinf(reached[at]):
                reached[at] = state.queries.total
        if all(map(math.isfinite, reached)):
            break
    return reached


def batch(matrices: Sequence[Tensor], beta: float) -> nz.Game:
    """One game as it is; several as one batch, filled up with responses that lose and that the reference has at e^-700.

    Such a response has no chance in any policy, and its log-probability is a number: all updates stay finite.
    """
    if len(matrices) == 1:
        return nz.Game(nz.MatrixOracle(matrices[0]), beta=beta)
    size = max(map(len, matrices))
    filled = torch.full((len(matrices), size, size), 0.5, dtype=torch.float64)
    reference = torch.full((len(matrices), size), -700.0, dtype=torch.float64)
    for at, matrix in enumerate(matrices):
        own = len(matrix)
        filled[at, :own, :own], filled[at, :own, own:], filled[at, own:, :own] = matrix, 1, 0
        reference[at, :own] = -math.log(own)
    return nz.Game(nz.MatrixOracle(filled), beta=beta, reference=nz.TabularPolicy(reference))


# What it says


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """For each solver: on how many matrices each epsilon was reached, median queries, and the slope.

    `slope`: mean over matrices of the slope of log queries in log(1/epsilon), with a 95 % interval over matrices;
    from counts of ten and more, where a matrix has three of them; null where none has. 1 is the claim.
    `same_as`: a twin's queries against those of the solver whose steps it takes.
    """
    by_solver: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_solver[row["solver"]].append(row)
    found = {solver: _judged(mine) for solver, mine in by_solver.items()}
    for twin, first in TWINS.items():
        known = {(row["matrix"], row["epsilon"]): row["queries"] for row in by_solver[first]}
        equal = [known.get((row["matrix"], row["epsilon"])) == row["queries"] for row in by_solver[twin]]
        found[twin]["same_as"] = {"solver": first, "equal": sum(equal), "of": len(equal)}
    return found


def _judged(rows: Sequence[Row]) -> dict[str, Any]:
    by_epsilon: dict[float, list[float]] = defaultdict(list)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        by_epsilon[row["epsilon"]].append(row["queries"])
        if FEWEST <= row["queries"] < math.inf:
            points[row["matrix"]].append((math.log(1 / row["epsilon"]), math.log(row["queries"])))
    slopes = [_slope(mine) for mine in points.values() if len(mine) > 2]
    medians = {f"{epsilon:g}": float(np.median(queries)) for epsilon, queries in by_epsilon.items()}
    return {
        "iterate": rows[0]["iterate"],
        "reached": {f"{e:g}": f"{sum(map(math.isfinite, q))} of {len(q)}" for e, q in by_epsilon.items()},
        "median_queries": {e: value if math.isfinite(value) else None for e, value in medians.items()},
        "slope": statistic_interval(slopes, lambda sample: float(sample.mean())) if slopes else None,
        "slopes_of": len(slopes),
        "fewer_than_responses": sum(row["queries"] < row["responses"] for row in rows),
        "runs": len(rows),
    }


def _slope(points: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0])


def table(found: Mapping[str, Any]) -> str:
    """The verdict as a table in Markdown."""
    epsilons = list(dict.fromkeys(e for row in found.values() for e in row["median_queries"]))
    lines = [f"| solver | {' | '.join(f'ε = {e}' for e in epsilons)} | slope | matrices |"]
    lines.append(f"| --- |{' --- |' * (len(epsilons) + 2)}")
    for solver, row in sorted(found.items(), key=lambda item: "same_as" in item[1]):
        cells = " | ".join(_cell(row, e) for e in epsilons)
        slope, same = row["slope"], row.get("same_as")
        shown = (
            ""
            if slope is None
            else "{:.2f} [{:.2f}, {:.2f}]".format(*(round(slope[end], 2) + 0.0 for end in ("value", "low", "high")))
        )
        if same:
            shown = f"as `{same['solver']}`: {same['equal']} of {same['of']} equal"
        lines.append(f"| `{solver}`, {row['iterate']} | {cells} | {shown} | {row['slopes_of'] or ''} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], epsilon: str) -> str:
    if epsilon not in row["median_queries"]:
        return ""
    median, reached = row["median_queries"][epsilon], row["reached"][epsilon]
    shown = "never" if median is None else f"{median:,.0f}"
    few, every = reached.split(" of ")
    return shown if few == every else f"{shown} ({few}/{every})"


def draw(rows: Sequence[Row], path: Path) -> None:
    by_solver: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["solver"] not in (*TWINS, *LOWER_CAPS):
            by_solver[row["solver"]][row["epsilon"]].append(row["queries"])
    sizes = [row["responses"] for row in rows]
    with figures.figure(6.4, 3.8) as figure:
        axes = figure.subplots()
        axes.axhspan(min(sizes), max(sizes), color="0.9", zorder=0)
        axes.text(1e4, min(sizes), "Y queries tell the matrix ", va="bottom", ha="right", fontsize=7, color="0.4")
        for at, (solver, cells) in enumerate(by_solver.items()):
            medians = [(1 / e, float(np.median(q))) for e, q in cells.items() if math.isfinite(np.median(q))]
            if medians:
                look: dict[str, Any] = {"color": f"C{at % 10}", "marker": "osD^vPX*"[at % 8], "ms": 4}
                look |= {"lw": 2 if solver == "nash_mp" else 1, "ls": "-" if at < 10 else "--"}
                axes.plot(*zip(*medians, strict=True), label=solver, **look)
        claim = np.array([10.0, 1e4])
        axes.plot(claim, 1.6 * claim, color="k", ls=":", lw=0.9)
        axes.text(claim[1], 1.6 * claim[1], " 1/ε", fontsize=7, va="center")
        axes.set(xscale="log", yscale="log", xlabel="1/ε", ylabel="queries, median over seven real matrices")
        axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), fontsize=7)
        figures.save(figure, path)
