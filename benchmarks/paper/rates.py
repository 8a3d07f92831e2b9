"""Does Nash-MP contract as claimed, (1 + 2 beta)^(-N/2), whatever the number of responses, and what does noise leave?

low_rank, r in {2, 5, 10} x Y in {50, 200, 500} x beta in {0.1, 0.03, 0.01, 0.003}, eta = 2 beta (the theory's), exact
payoffs, 10 seeds: the slope of log KL, log gap and log span against the queries N, as a share of the claimed slope
-log(1 + 2 beta)/2 per query. Then the same solver on sampled payoffs, 1 to 64 comparisons a response, r = 2: where the
KL settles. (An antisymmetric matrix has even rank: r = 5 is of rank 6.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import nlhf_zoo as nz
from benchmarks.paper import figures
from benchmarks.paper.intervals import Floats, median_interval, statistic_interval
from benchmarks.paper.results import Row, write_rows, write_text, write_verdict

METRICS = {"kl": "kl_to_equilibrium", "gap": "duality_gap", "span": "span_to_equilibrium"}
FLOORS = {"kl": 1e-13, "gap": 1e-13, "span": 1e-7}
"""Below, rounding of the measurement bends the slope."""
EXACT = 0.0
"""Stands for the number of comparisons of an exact oracle."""


@attrs.frozen
class Scale:
    """How much is measured."""

    ranks: Sequence[int] = (2, 5, 10)
    responses: Sequence[int] = (50, 200, 500)
    betas: Sequence[float] = (0.1, 0.03, 0.01, 0.003)
    comparisons: Sequence[int] = (1, 4, 16, 64)
    noisy_responses: Sequence[int] = (50, 200)
    seeds: int = 10


QUICK = Scale(ranks=(2, 5), responses=(20, 40), betas=(0.3, 0.2), comparisons=(1, 16), noisy_responses=(20,), seeds=2)


def run(out: Path, quick: bool) -> None:
    scale = QUICK if quick else Scale()
    rows: list[dict[str, Any]] = []
    for beta in scale.betas:
        rows += [row for one in exact(scale, beta, out) for row in slopes(one)]
        rows += [row for one in noisy(scale, beta, out) for row in floor(one)]
    kept = write_rows(out / "results.csv", rows)
    found = verdict(kept)
    write_verdict(out / "verdict.json", found)
    write_text(out / "verdict.md", table(found))
    draw_rates(kept, out / "rates.png")
    draw_noise(kept, out / "noise.png")


# What is played


@attrs.frozen(kw_only=True)
class Played:
    """One run: `course` is (n, 3), steps, queries and the value, of each metric; `bound` (n,) that of the KL."""

    cell: Mapping[str, float]
    course: Mapping[str, Floats]
    bound: Floats


def exact(scale: Scale, beta: float, out: Path) -> list[Played]:
    # The claim alone shrinks the KL by e^-16 in this many queries.
    options = {"responses": list(scale.responses), "rank": list(scale.ranks)}
    game = {"name": "low_rank", "options": options, "beta": beta}
    return played(out / "comparison" / f"exact {beta}", game, scale, queries=round(16 / beta))


def noisy(scale: Scale, beta: float, out: Path) -> list[Played]:
    options = {"responses": list(scale.noisy_responses), "rank": 2}
    game = {"name": "low_rank", "options": options, "beta": beta, "comparisons": list(scale.comparisons)}
    return played(out / "comparison" / f"noisy {beta}", game, scale, queries=10**12, steps=round(3 / beta))


def played(folder: Path, game: Mapping[str, Any], scale: Scale, **budget: int) -> list[Played]:
    found: dict[tuple[str, int], dict[str, list[tuple[float, ...]]]] = defaultdict(lambda: defaultdict(list))
    comparison = nz.compare([game], ["nash_mp"], out=folder, seeds=scale.seeds, report=False, **budget)
    for row in comparison.results().to_pylist():
        point = (row["step"], row["queries"], row["value"], math.nan if row["bound"] is None else row["bound"])
        found[row["game"], row["seed"]][row["metric"]].append(point)
    runs = []
    for (label, seed), courses in found.items():
        tables = {name: np.array(courses[metric]) for name, metric in METRICS.items()}
        # "low_rank responses=50 rank=2 beta=0.1"
        cell = {name: float(value) for name, value in (part.split("=") for part in label.split()[1:])}
        course = {name: values[:, :3] for name, values in tables.items()}
        cell = {"comparisons": EXACT, **cell, "seed": seed}
        runs.append(Played(cell=cell, course=course, bound=tables["kl"][:, 3]))
    return runs


# What is measured


def slopes(run: Played) -> Iterator[dict[str, Any]]:
    """Of the end of an exact run, from a hundredth (span: a tenth) of the start on until rounding."""
    claimed = math.log1p(2 * run.cell["beta"]) / 2
    for metric, course in run.course.items():
        queries, values = course[:, 1], course[:, 2]
        start = values[0] * (0.1 if metric == "span" else 0.01)
        tail = (values < start) & (values > FLOORS[metric])
        slope = np.polyfit(queries[tail], np.log(values[tail]), 1)[0] if tail.sum() > 2 else math.nan
        yield _row(run, f"{metric}_rate_over_claim", -slope / claimed)
    kl = run.course["kl"][:, 2]
    later = (kl > FLOORS["kl"]) & (run.course["kl"][:, 0] > 0)
    yield _row(run, "kl_over_bound", float((kl / run.bound)[later].max()))
    yield _row(run, "start_kl_times_2_beta", kl[0] * 2 * run.cell["beta"])


def floor(run: Played) -> Iterator[dict[str, Any]]:
    """The mean over the second half of a noisy run, which begins when the claim alone has shrunk the start by e^-3."""
    steps = run.course["kl"][:, 0]
    late = steps >= steps[-1] / 2
    for metric in ("kl", "gap"):
        yield _row(run, f"{metric}_floor", float(run.course[metric][late, 2].mean()))


def _row(run: Played, measure: str, value: float) -> dict[str, Any]:
    whole = {name: int(run.cell[name]) for name in ("rank", "responses", "comparisons", "seed")}
    return {"beta": run.cell["beta"], **whole, "measure": measure, "value": float(value)}


# What it says


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """Rates as multiples of the claimed ones, the effect of Y on them, and the floors that noise leaves.

    `exponent_of_responses`: b in rate ~ Y^b, fitted within each (r, beta), with a 95 % interval over seeds; 0 is
    independence. `exponent_of_comparisons`: the same for the KL floor and the comparisons c; -1 is what a variance
    does. `floor_times_8_beta_c`: at the most comparisons; 1 is what a linear model says: each step puts noise of
    variance 1/c on log-probabilities (a payoff's coins, 1/(4c), over a weight of about 1/2) and shrinks what there is
    by 1/(1 + 2 beta), so that their variance settles at 1/(4 beta c), and KL is half of it.
    """
    bounds = [row["value"] for row in rows if row["measure"] == "kl_over_bound"]
    starts = [row["value"] for row in rows if row["measure"] == "start_kl_times_2_beta"]
    rates = {metric: _rates(rows, f"{metric}_rate_over_claim") for metric in METRICS}
    return {
        "runs": len(bounds),
        "bound_broken": sum(value > 1 + 1e-9 for value in bounds),
        "worst_kl_over_bound": max(bounds),
        "largest_start_kl_times_2_beta": max(starts),
        "rates": {metric: cells["by_cell"] for metric, cells in rates.items()},
        "least_rate": {metric: cells["least"] for metric, cells in rates.items()},
        "exponent_of_responses": {metric: cells["exponent"] for metric, cells in rates.items()},
        "exponent_of_responses_by_rank": rates["kl"]["exponent_by_rank"],
        "exponent_between_the_two_largest": rates["kl"]["exponent_at_the_end"],
        "noise": _noise(rows),
    }


def _rates(rows: Sequence[Row], measure: str) -> dict[str, Any]:
    mine = [row for row in rows if row["measure"] == measure]
    cells: dict[tuple[float, float], dict[float, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in mine:
        cells[row["rank"], row["beta"]][row["responses"]][row["seed"]] = row["value"]
    by_cell = {
        f"r={rank:g} beta={beta:g}": {f"Y={y:g}": median_interval(list(seeds.values())) for y, seeds in sizes.items()}
        for (rank, beta), sizes in cells.items()
    }
    return {
        "by_cell": by_cell,
        "least": min(row["value"] for row in mine),
        "exponent": _exponent([list(sizes.items()) for sizes in cells.values()]),
        "exponent_by_rank": {
            f"r={rank:g}": _exponent([list(sizes.items()) for (r, _), sizes in cells.items() if r == rank])
            for rank in dict.fromkeys(rank for rank, _ in cells)
        },
        "exponent_at_the_end": _exponent([sorted(sizes.items())[-2:] for sizes in cells.values()]),
    }


def _exponent(groups: Sequence[Sequence[tuple[float, Mapping[float, float]]]]) -> dict[str, float | None]:
    """b of log value = a(group) + b log x, with its interval over seeds.

    Args:
        groups: in each, x and the values by seed.
    """
    seeds = sorted(groups[0][0][1])
    logs = np.log([[[values[seed] for _, values in group] for group in groups] for seed in seeds])  # (seed, group, x)
    x = np.log([[x for x, _ in group] for group in groups])
    x = x - x.mean(1, keepdims=True)
    return statistic_interval(logs, lambda sample: float((sample.mean(0) * x).sum() / (x * x).sum()))


def _noise(rows: Sequence[Row]) -> dict[str, Any]:
    cells: dict[tuple[float, float], dict[float, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["measure"] == "kl_floor":
            cells[row["responses"], row["beta"]][row["comparisons"]][row["seed"]] = row["value"]
    return {
        f"Y={y:g} beta={beta:g}": {
            "kl_floor": {f"{count:g}": median_interval(list(seeds.values())) for count, seeds in counts.items()},
            "exponent_of_comparisons": _exponent([list(counts.items())]),
            "floor_times_8_beta_c": _predicted(counts, beta),
        }
        for (y, beta), counts in cells.items()
    }


def _predicted(counts: Mapping[float, Mapping[float, float]], beta: float) -> dict[str, float | None]:
    most = max(counts)
    return median_interval([value * 8 * beta * most for value in counts[most].values()])


def table(found: Mapping[str, Any]) -> str:
    """The verdict as two tables in Markdown."""
    sizes = list(next(iter(found["rates"]["kl"].values())))
    lines = [f"| KL rate / claimed | {' | '.join(sizes)} |", f"| --- |{' --- |' * len(sizes)}"]
    for cell, row in found["rates"]["kl"].items():
        lines.append(f"| {cell} | {' | '.join(_interval(row[size], 'median') for size in sizes)} |")
    counts = list(next(iter(found["noise"].values()))["kl_floor"])
    lines += ["", f"| KL floor, comparisons c a response | {' | '.join(counts)} | exponent | last floor × 8βc |"]
    lines.append(f"| --- |{' --- |' * (len(counts) + 2)}")
    for cell, row in found["noise"].items():
        floors = " | ".join(f"{row['kl_floor'][count]['median']:.2g}" for count in counts)
        ends = _interval(row["exponent_of_comparisons"], "value"), _interval(row["floor_times_8_beta_c"], "median")
        lines.append(f"| {cell} | {floors} | {' | '.join(ends)} |")
    return "\n".join(lines) + "\n"


def _interval(found: Mapping[str, float], middle: str) -> str:
    return f"{found[middle]:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


# What it looks like


def draw_rates(rows: Sequence[Row], path: Path) -> None:
    found = _rates(rows, "kl_rate_over_claim")["by_cell"]
    betas = sorted({row["beta"] for row in rows}, reverse=True)
    ranks = sorted({row["rank"] for row in rows if row["measure"] == "kl_over_bound"})
    sizes = sorted({row["responses"] for row in rows if row["measure"] == "kl_over_bound"})
    with figures.figure(1.9 * len(betas), 2.6) as figure:
        panels = figure.subplots(1, len(betas), sharey=True, squeeze=False)[0]
        for axes, beta in zip(panels, betas, strict=True):
            for rank, colour, marker in zip(ranks, ("tab:blue", "tab:orange", "tab:green"), "os^", strict=False):
                cell = found[f"r={rank:g} beta={beta:g}"]
                ends = [cell[f"Y={size:g}"] for size in sizes]
                middle = np.array([end["median"] for end in ends])
                error = [middle - [end["low"] for end in ends], [end["high"] for end in ends] - middle]
                axes.errorbar(sizes, middle, error, color=colour, marker=marker, ms=4, capsize=2, label=f"r = {rank:g}")
            axes.axhline(1, color="0.3", ls="--", lw=0.9)
            axes.set(xscale="log", xlabel="responses Y", title=f"β = {beta:g}")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.minorticks_off()
        panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("KL rate per query / claimed")
        panels[0].legend(loc="upper left")
        figures.save(figure, path)


def draw_noise(rows: Sequence[Row], path: Path) -> None:
    found = _noise(rows)
    sizes = sorted({name.split()[0] for name in found}, key=lambda name: float(name[2:]))
    counts = sorted({row["comparisons"] for row in rows if row["measure"] == "kl_floor"})
    with figures.figure(3.2 * len(sizes) + 0.6, 2.8) as figure:
        for axes, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
            cells = [(name.split("=")[-1], cell["kl_floor"]) for name, cell in found.items() if name.split()[0] == size]
            for (beta, cell), marker in zip(cells, "os^D", strict=False):
                ends = [cell[f"{count:g}"] for count in counts]
                middle = np.array([end["median"] for end in ends])
                error = [middle - [end["low"] for end in ends], [end["high"] for end in ends] - middle]
                axes.errorbar(counts, middle, error, marker=marker, ms=4, capsize=2, label=f"β = {beta}")
                axes.plot(counts, 1 / (8 * float(beta) * np.array(counts)), ls=":", lw=0.8, color="0.4")
            axes.set(
                xscale="log", yscale="log", xlabel="comparisons a response and query", title=size.replace("=", " = ")
            )
            axes.set_xticks(counts, [f"{count:g}" for count in counts])
            axes.minorticks_off()
            axes.set_ylabel("KL(equilibrium ‖ policy), settled")
            axes.legend(loc="best")
        figures.save(figure, path)
