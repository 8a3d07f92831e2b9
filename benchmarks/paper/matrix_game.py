"""Is Nash-MP ahead of the other four first solvers on the paper's matrix game, exact and sampled, and by how much?

low_rank, r = 2, Y = 100, beta = 0.01, 10 seeds; each solver with default and with tuned hyperparameters. The two
comparisons are `matrix_game_exact.yaml` and `matrix_game_sampled.yaml`, which `nlhf-zoo compare --config` plays too.

A query is a payoff vector here in both: exact, or (sampled) one comparison for each of the 100 responses.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import nlhf_zoo as nz
from benchmarks.paper import figures
from benchmarks.paper.intervals import median_interval
from benchmarks.paper.results import Row, write_rows, write_text, write_verdict

TARGETS = (1e-3, 1e-4, 1e-8, 1e-12)
RESPONSES = 100
SOLVERS = ("nash_mp", "exact_prox", "nash_md", "online_ipo", "online_dpo")
COLOURS: Mapping[str, str] = {
    "nash_mp": "tab:blue", "exact_prox": "tab:purple", "nash_md": "tab:green", "online_ipo": "tab:orange",
    "online_dpo": "tab:red",
}  # fmt: skip

Curve = list[tuple[float, float, float]]
"""Of one run: step, queries, duality gap."""


def run(out: Path, quick: bool) -> None:
    curves: dict[tuple[str, ...], list[tuple[int, Curve]]] = {}
    for oracle in ("exact", "sampled"):
        curves |= played(oracle, out, quick)
    rows = write_rows(out / "results.csv", list(measured(curves)))
    found = verdict(rows)
    write_verdict(out / "verdict.json", found)
    write_text(out / "verdict.md", table(found))
    draw(curves, out / "gap.png")


def played(oracle: str, out: Path, quick: bool) -> dict[tuple[str, ...], list[tuple[int, Curve]]]:
    """(oracle, solver, hyperparameters, options) -> seed and curve of each run."""
    settings = yaml.safe_load((Path(__file__).parent / f"matrix_game_{oracle}.yaml").read_text(encoding="utf-8"))
    if quick:
        settings |= {"queries": settings["queries"] // 60, "seeds": 2, "tuning_seeds": 1}
        for solver in settings["solvers"]:
            solver["options"] = {name: grid[::8] for name, grid in solver.get("options", {}).items()}
    comparison = nz.compare(**settings, out=out / "comparison" / oracle, report=False)
    (game,) = comparison.summary["games"].values()
    entries = {row["solver"]: row for row in game["table"]}
    cost = RESPONSES if oracle == "sampled" else 1
    runs: dict[tuple[str, int], Curve] = defaultdict(list)
    for row in comparison.results().to_pylist():
        if row["role"] == "run" and row["metric"] == "duality_gap":
            runs[row["solver"], row["seed"]].append((row["step"], row["queries"] / cost, row["value"]))
    found: dict[tuple[str, ...], list[tuple[int, Curve]]] = defaultdict(list)
    for (label, seed), curve in runs.items():
        name, hyperparameters = entries[label]["entry"].split()
        options = " ".join(f"{key}={value:g}" for key, value in entries[label]["options"].items())
        found[oracle, name, hyperparameters, options].append((seed, curve))
    return found


def measured(curves: Mapping[tuple[str, ...], Sequence[tuple[int, Curve]]]) -> Iterator[dict[str, Any]]:
    for (oracle, solver, hyperparameters, options), runs in curves.items():
        for seed, curve in runs:
            shared = {"oracle": oracle, "solver": solver, "hyperparameters": hyperparameters, "options": options}
            yield {**shared, "seed": seed, "measure": "final_gap", "target": None, "value": curve[-1][2]}
            yield {**shared, "seed": seed, "measure": "start_gap", "target": None, "value": curve[0][2]}
            for target in TARGETS:
                step, queries = next(((s, q) for s, q, gap in curve if gap <= target), (math.inf, math.inf))
                yield {**shared, "seed": seed, "measure": "steps", "target": target, "value": step}
                yield {**shared, "seed": seed, "measure": "queries", "target": target, "value": queries}


def verdict(rows: Sequence[Row]) -> dict[str, Any]:
    """Final gaps and queries to a gap, medians over seeds with 95 % intervals; null where a median run never got there.

    `steps_online_ipo_over_nash_mp`: how many more steps Online IPO takes to a gap, seed by seed; null
    where no run of Nash-MP gets there.
    """
    found: dict[str, Any] = {}
    for oracle in ("exact", "sampled"):
        entries: dict[str, Any] = {}
        for solver in SOLVERS:
            for hyperparameters in ("default", "tuned"):
                mine = _of(rows, oracle, solver, hyperparameters)
                entries[f"{solver} {hyperparameters}"] = {
                    "options": mine[0]["options"],
                    "final_gap": median_interval(list(_values(mine, "final_gap").values())),
                    "queries_to": {
                        f"{target:g}": median_interval(list(_values(mine, "queries", target).values()))
                        for target in TARGETS
                    },
                }
        starts = [row["value"] for row in rows if row["oracle"] == oracle and row["measure"] == "start_gap"]
        found[oracle] = {
            "start_gap": median_interval(starts),
            "entries": entries,
            "steps_online_ipo_over_nash_mp": _ahead(rows, oracle),
        }
    return found


def _values(rows: Sequence[Row], measure: str, target: float | str = "") -> dict[float, float]:
    return {row["seed"]: row["value"] for row in rows if row["measure"] == measure and row["target"] == target}


def _ahead(rows: Sequence[Row], oracle: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for hyperparameters in ("default", "tuned"):
        for target in TARGETS:
            steps = {
                solver: _values(_of(rows, oracle, solver, hyperparameters), "steps", target)
                for solver in ("nash_mp", "online_ipo")
            }
            pairs = [(steps["online_ipo"][seed], steps["nash_mp"][seed]) for seed in steps["nash_mp"]]
            reached = [more - less for more, less in pairs if math.isfinite(less)]
            found[f"{hyperparameters}, gap {target:g}"] = median_interval(reached) if reached else None
    return found


def _of(rows: Sequence[Row], *entry: str) -> list[Row]:
    return [row for row in rows if (row["oracle"], row["solver"], row["hyperparameters"]) == entry]


def table(found: Mapping[str, Any]) -> str:
    """The verdict as a table in Markdown."""
    lines = [
        "| oracle | solver | hyperparameters | final gap [95 %] | queries to 1e-3 | to 1e-4 | to 1e-8 | to 1e-12 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for oracle, part in found.items():
        for entry, row in part["entries"].items():
            solver, hyperparameters = entry.split()
            gap = row["final_gap"]
            medians = [to["median"] for to in row["queries_to"].values()]
            to = " | ".join("never" if queries is None else f"{queries:.0f}" for queries in medians)
            shown = f"{gap['median']:.1e} [{gap['low']:.1e}, {gap['high']:.1e}]"
            if gap["high"] < 1e-14:
                shown = "rounding"
            how = f"{hyperparameters}{', ' + row['options'] if row['options'] else ''}"
            lines.append(f"| {oracle} | `{solver}` | {how} | {shown} | {to} |")
    return "\n".join(lines) + "\n"


def draw(curves: Mapping[tuple[str, ...], Sequence[tuple[int, Curve]]], path: Path) -> None:
    with figures.figure(7.8, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        axes = {"exact": left, "sampled": right}
        for (oracle, solver, hyperparameters, _), runs in curves.items():
            length = min(len(curve) for _, curve in runs)
            points = np.array([curve[:length] for _, curve in runs])[:, 1:]
            queries, gaps = np.median(points[:, :, 1], 0), np.clip(points[:, :, 2], 1e-15, None)
            low, median, high = np.quantile(gaps, (0.25, 0.5, 0.75), axis=0)
            line, name = ("-" if hyperparameters == "tuned" else ":"), f"{solver} {hyperparameters}"
            # Dots above lines: two solvers may have the same course.
            axes[oracle].plot(queries, median, line, color=COLOURS[solver], label=name, zorder=3 if line == ":" else 2)
            if hyperparameters == "tuned":
                axes[oracle].fill_between(queries, low, high, color=COLOURS[solver], alpha=0.2, lw=0)
        for oracle, one in axes.items():
            unit = "exact payoff vectors" if oracle == "exact" else "sampled payoff vectors (100 comparisons each)"
            one.set(xscale="log", yscale="log", xlabel=unit, title=f"{oracle} oracle")
        axes["exact"].set_ylabel("duality gap")
        handles, labels = axes["exact"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        figures.save(figure, path)
