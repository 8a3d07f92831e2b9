"""Does Nash-MP get ahead of Online DPO, Online IPO and others on a small language model with an intransitive judge?

Everyone starts from one fitted Llama of 14 thousand parameters, on the language of `throws`, where every response can
be listed: what is said of a final policy is exact, the mean over 12 held-out prompts. Budgets of queries and of tokens
are equal, and each solver's learning rate is chosen on a seed of its own, by the win rate against the reference.

- "solvers": who is ahead at weight 1/2, each against each;
- "kappa": Nash-MP's moving average, from a fast to a slow one;
- "longer": three of them at three times the budget, with the same learning rates;
- "weights": from which weight of the cycle on Nash solvers beat Online DPO, with the learning rates of "solvers".

nash_prox is not played: with the same kappa its practical form is nash_mp's, bit for bit.

Columns of results.csv: part, weight, solver, seed, step, metric, value. gap (regularised duality gap), exploited (what
the best response of all wins beyond 1/2), kl and win_rate against the reference, "over NAME" (win rate over that
solver's policy of the same seed) and queries and tokens (spent) are of the final policy; win_rate_on_the_way is
sampled, 240 answers an evaluation. "tuning" holds each learning rate's win rate, sampled, and its gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.paper.figures import figure, save
from benchmarks.paper.listed import Listed
from benchmarks.paper.results import Row, write_rows, write_verdict
from benchmarks.paper.throw_games import BETA, QUICK, Played, Scale, Trained, Workshop, play
from benchmarks.paper.throws import Judge

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "egpo", "sppo")
RATES = (1e-3, 3e-3, 1e-2)
KAPPAS = (0.5, 0.1, 0.01, 0.001)
WEIGHTS = (0.0, 0.5, 1.0)
RIVAL = "online_dpo"
LONGER, CONTINUED = 3, ("nash_mp", RIVAL, "online_ipo")
FINAL = ("gap", "exploited", "kl", "win_rate")
_STUDENT = {1: math.inf, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds -> half the width of the 95 % interval of a mean, in its standard errors."""


def run(out: Path, quick: bool) -> None:
    workshop = Workshop.made(out / "runs", QUICK if quick else Scale())
    measures = workshop.measures
    few = slice(2) if quick else slice(None)
    solvers = ("nash_mp", "nash_md", RIVAL) if quick else SOLVERS
    grid = [_entry(name, {"train.learning_rate": list(RATES[few])}) for name in solvers]
    contest = play(workshop, [0.5], grid)
    chosen = contest.choices()
    weighed = play(workshop, WEIGHTS[few], [_entry(name, chosen[name]) for name in ("nash_mp", RIVAL)])
    sweep = play(workshop, [0.5], [_entry("nash_mp", chosen["nash_mp"] | {"kappa": kappa}) for kappa in KAPPAS[few]])
    continued = play(workshop.longer(LONGER), [0.5], [_entry(name, chosen[name]) for name in CONTINUED])
    found = [
        *_tuning(contest, measures),
        *_part("solvers", contest.runs, measures),
        *_tournament(contest, measures),
        *_part("kappa", sweep.runs, measures),
        *_part("weights", weighed.runs, measures),
        *_part("longer", continued.runs, measures),
        *_marks(measures, WEIGHTS[few]),
    ]
    rows = write_rows(out / "results.csv", found)
    write_verdict(out / "verdict.json", verdict(rows))
    draw(rows, out)


def _entry(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    kappa = {"kappa": 0.1} if name == "nash_mp" else {}
    return {"name": name, "options": {**kappa, **options}}


# Rows


def _row(part: str, weight: float, solver: str, metric: str, value: float, seed: Any = "", step: Any = "") -> Row:
    named = {"part": part, "weight": weight, "solver": solver, "seed": seed, "step": step}
    return {**named, "metric": metric, "value": float(value)}


def _called(part: str, run: Trained) -> str:
    return f"kappa={run.options['kappa']:g}" if part == "kappa" else run.name


def _part(part: str, runs: Sequence[Trained], measures: Listed) -> Iterator[Row]:
    """What is measured of each run, on the way and at its end."""
    for run in runs:
        judge, name = Judge(run.weight), _called(part, run)
        for step, value in zip(run.course["step"], run.course["win_rate_training"], strict=True):
            yield _row(part, run.weight, name, "win_rate_on_the_way", value, run.seed, step)
        for metric in ("queries", "tokens"):
            yield _row(part, run.weight, name, metric, run.course[metric][-1], run.seed)
        for metric, value in measures.measured(run.table, judge, BETA).items():
            yield _row(part, run.weight, name, metric, value, run.seed)
        for other in runs:
            if (other.weight, other.seed) == (run.weight, run.seed) and other is not run:
                rate = measures.win_rate(run.table, other.table, judge)
                yield _row(part, run.weight, name, f"over {_called(part, other)}", rate, run.seed)


def _tuning(contest: Played, measures: Listed) -> Iterator[Row]:
    for run in contest.tuning:
        name = f"{run.name} {run.options['train.learning_rate']:g}"
        yield _row("tuning", run.weight, name, "win_rate", run.course["win_rate_training"][-1], run.seed)
        yield _row("tuning", run.weight, name, "gap", measures.measured(run.table, Judge(run.weight), BETA)["gap"])
    for name, options in contest.choices().items():
        yield _row("tuning", 0.5, name, "learning_rate", options["train.learning_rate"])


def _tournament(contest: Played, measures: Listed) -> Iterator[Row]:
    """Whether the interval of compare's own tournament, which is sampled, holds the exact win rate."""
    places = {f"{run.label}, seed {run.seed}": run for run in contest.runs}
    for row in pq.read_table(contest.folder / "win_rates.parquet").to_pylist():
        one, other = places.get(row["row"]), places.get(row["column"])
        if one is not None and other is not None and row["row"] < row["column"]:
            exact = measures.win_rate(one.table, other.table, Judge(one.weight))
            inside = float(row["low"] <= exact <= row["high"])
            yield _row("tournament", one.weight, one.name, f"inside, {other.name} {other.seed}", inside, one.seed)


def _marks(measures: Listed, weights: Sequence[float]) -> Iterator[Row]:
    """The two ends of the way: the reference, and the equilibrium."""
    for weight in weights:
        judge = Judge(weight)
        ends = {"reference": measures.reference, "equilibrium": measures.equilibrium(judge, BETA)}
        for name, table in ends.items():
            for metric, value in measures.measured(table, judge, BETA).items():
                yield _row("marks", weight, name, metric, value)


# What they say


def verdict(rows: list[Row]) -> dict[str, Any]:
    """Means over seeds with 95 % intervals; one policy beats another where that of its win rate lies above 1/2."""
    return {
        "solvers": _measured(rows, "solvers", 0.5),
        "against": _against(rows, "solvers", 0.5),
        "nash_mp": _standing(_against(rows, "solvers", 0.5)["nash_mp"]),
        "learning_rates": {
            row["solver"]: row["value"] for row in rows if row["part"] == "tuning" and row["metric"] == "learning_rate"
        },
        "tuned_by_gap": _tuned_by_gap(rows),
        "tournament": _shares([row["value"] for row in rows if row["part"] == "tournament"]),
        "kappa": _measured(rows, "kappa", 0.5),
        "kappa_against": _against(rows, "kappa", 0.5),
        "longer": _measured(rows, "longer", 0.5),
        "longer_against": _against(rows, "longer", 0.5),
        "weights": {
            f"{weight:g}": {
                "solvers": _measured(rows, "weights", weight),
                "over_online_dpo": {
                    name: over[RIVAL] for name, over in _against(rows, "weights", weight).items() if name != RIVAL
                },
            }
            for weight in _weights(rows)
        },
        "marks": {
            f"{row['solver']} {row['weight']:g} {row['metric']}": row["value"] for row in rows if row["part"] == "marks"
        },
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    """With the 95 % interval of Student; none of a single run."""
    middle, count = float(np.mean(values)), len(values)
    half = _STUDENT[count] * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    found = {"mean": middle, "low": middle - half, "high": middle + half}
    return {name: None if math.isnan(value) else float(f"{value:.4g}") for name, value in found.items()}


def _names(rows: Sequence[Row], part: str) -> list[str]:
    return list(dict.fromkeys(row["solver"] for row in rows if row["part"] == part))


def _weights(rows: Sequence[Row]) -> list[float]:
    return sorted({row["weight"] for row in rows if row["part"] == "weights"})


def _values(rows: Sequence[Row], part: str, weight: float, name: str, metric: str) -> list[float]:
    """By seed."""
    key = (part, weight, name, metric)
    mine = [row for row in rows if (row["part"], row["weight"], row["solver"], row["metric"]) == key]
    return [row["value"] for row in sorted(mine, key=lambda row: row["seed"])]


def _measured(rows: Sequence[Row], part: str, weight: float) -> dict[str, Any]:
    return {
        name: {metric: _mean(_values(rows, part, weight, name, metric)) for metric in (*FINAL, "queries", "tokens")}
        for name in _names(rows, part)
    }


def _against(rows: Sequence[Row], part: str, weight: float) -> dict[str, dict[str, Any]]:
    names = _names(rows, part)
    return {
        one: {other: _mean(_values(rows, part, weight, one, f"over {other}")) for other in names if other != one}
        for one in names
    }


def _standing(over: Mapping[str, Mapping[str, float | None]]) -> dict[str, list[str]]:
    """Whom it beats, who beats it, and from whom it cannot be told apart."""
    found: dict[str, list[str]] = {"beats": [], "loses_to": [], "not_distinguishable": []}
    for other, rate in over.items():
        low, high = rate["low"], rate["high"]
        told = "beats" if low is not None and low > 0.5 else "loses_to" if high is not None and high < 0.5 else None
        found[told or "not_distinguishable"].append(other)
    return found


def _tuned_by_gap(rows: Sequence[Row]) -> dict[str, float]:
    """The learning rate of each solver that the duality gap would have chosen."""
    gaps: dict[str, dict[float, float]] = {}
    for row in rows:
        if row["part"] == "tuning" and row["metric"] == "gap":
            name, rate = row["solver"].split()
            gaps.setdefault(name, {})[float(rate)] = row["value"]
    return {name: min(found, key=lambda rate: found[rate]) for name, found in gaps.items()}


def _shares(inside: Sequence[float]) -> dict[str, float]:
    return {"pairs": len(inside), "inside": float(f"{np.mean(inside):.4g}") if len(inside) else math.nan}


# Figures


def draw(rows: list[Row], out: Path) -> None:
    _draw_solvers(rows, out / "solvers.png")
    _draw_kappa(rows, out / "kappa.png")
    _draw_longer(rows, out / "longer.png")
    _draw_weights(rows, out / "weights.png")


def _draw_solvers(rows: list[Row], path: Path) -> None:
    names, against = _names(rows, "solvers"), _against(rows, "solvers", 0.5)
    with figure(7.5, 3.2) as drawn:
        table, gaps = drawn.subplots(1, 2, width_ratios=(1.3, 1))
        rates = np.array([[0.5 if a == b else against[a][b]["mean"] for b in names] for a in names])
        table.imshow(rates, cmap="RdBu", vmin=0.35, vmax=0.65)
        for i, j in np.ndindex(rates.shape):
            told = i != j and names[j] not in _standing(against[names[i]])["not_distinguishable"]
            table.text(j, i, f"{100 * rates[i, j]:.1f}" + ("*" if told else ""), ha="center", va="center", fontsize=7)
        table.set_xticks(range(len(names)), names, rotation=40, ha="right")
        table.set_yticks(range(len(names)), names)
        table.grid(visible=False)
        table.set_title("win rate of the row over the column, %\n(* told from 50 %)")
        for at, name in enumerate(names):
            values = _values(rows, "solvers", 0.5, name, "gap")
            gaps.plot(values, [at] * len(values), "o", color="C0", markersize=4)
        gaps.set_yticks(range(len(names)), names)
        gaps.set_ylim(len(names) - 0.5, -0.5)
        gaps.set_xlim(left=0)
        gaps.set_title("duality gap at the end, each seed")
        save(drawn, path)


def _draw_kappa(rows: list[Row], path: Path) -> None:
    names = _names(rows, "kappa")
    with figure(7.5, 2.8) as drawn:
        way, gaps = drawn.subplots(1, 2)
        _ways(way, rows, "kappa")
        for at, name in enumerate(names):
            values = _values(rows, "kappa", 0.5, name, "gap")
            gaps.plot([at] * len(values), values, "o", color=f"C{at}", markersize=4)
        gaps.set_xticks(range(len(names)), [name.replace("kappa", "κ") for name in names])
        gaps.set_ylim(bottom=0)
        gaps.set_title("duality gap at the end, each seed")
        save(drawn, path)


def _draw_longer(rows: list[Row], path: Path) -> None:
    names = _names(rows, "longer")
    with figure(7.5, 2.8) as drawn:
        way, gaps = drawn.subplots(1, 2)
        _ways(way, rows, "longer")
        for at, name in enumerate(names):
            for place, part in enumerate(("solvers", "longer")):
                values = _values(rows, part, 0.5, name, "gap")
                gaps.plot([at + 0.3 * place] * len(values), values, "ox"[place], color=f"C{at}", markersize=4)
        gaps.set_xticks([at + 0.15 for at in range(len(names))], names)
        gaps.set_ylim(bottom=0)
        gaps.set_title(f"duality gap, each seed:\no at the budget, x at {LONGER} times as much")
        save(drawn, path)


def _ways(axes: Any, rows: Sequence[Row], part: str) -> None:
    """Win rate against the reference over steps, by solver."""
    for at, name in enumerate(_names(rows, part)):
        curves: dict[float, list[float]] = {}
        for row in rows:
            if (row["part"], row["solver"], row["metric"]) == (part, name, "win_rate_on_the_way"):
                curves.setdefault(row["step"], []).append(row["value"])
        steps = sorted(curves)
        axes.plot(steps, [np.mean(curves[step]) for step in steps], label=name.replace("kappa", "κ"))
        low, high = ([pick(curves[step]) for step in steps] for pick in (min, max))
        axes.fill_between(steps, low, high, color=f"C{at}", alpha=0.12)
    axes.set_xlabel("gradient steps")
    axes.set_title("win rate against the reference, sampled:\nmean and range of the seeds")
    axes.legend()


def _draw_weights(rows: list[Row], path: Path) -> None:
    with figure(7.5, 2.8) as drawn:
        over, gaps = drawn.subplots(1, 2)
        for at, name in enumerate(("nash_mp", RIVAL)):
            shift = 0.02 * at
            for weight in _weights(rows):
                values = _values(rows, "weights", weight, name, "gap")
                gaps.plot([weight + shift] * len(values), values, "o", color=f"C{at}", markersize=4)
                rates = _values(rows, "weights", weight, name, f"over {RIVAL}")
                over.plot([weight + shift] * len(rates), rates, "o", color=f"C{at}", markersize=4)
            gaps.plot([], [], "o", color=f"C{at}", label=name)
        over.axhline(0.5, color="grey", linewidth=0.8)
        over.set_xlabel("weight of the cycle")
        over.set_title(f"win rate over {RIVAL}, each seed")
        gaps.set_ylim(bottom=0)
        gaps.set_xlabel("weight of the cycle")
        gaps.set_title("duality gap at the end, each seed")
        gaps.legend()
        save(drawn, path)
