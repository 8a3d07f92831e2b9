"""Figures and tables of the study `language_models`, from its rows and its verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.figures import figure, save
from benchmarks.paper.language_model_verdict import LONGER, RIVAL, by_seed, solvers_of, standing, weights_of, win_rates
from benchmarks.paper.results import Row

__all__ = ["draw", "tables"]


def draw(rows: list[Row], out: Path) -> None:
    _draw_solvers(rows, out / "solvers.png")
    _draw_kappa(rows, out / "kappa.png")
    _draw_longer(rows, out / "longer.png")
    _draw_weights(rows, out / "weights.png")


def _draw_solvers(rows: list[Row], path: Path) -> None:
    names, against = solvers_of(rows, "solvers"), win_rates(rows, "solvers", 0.5)
    with figure(7.5, 3.2) as drawn:
        table, gaps = drawn.subplots(1, 2, width_ratios=(1.3, 1))
        rates = np.array([[0.5 if a == b else against[a][b]["mean"] for b in names] for a in names])
        table.imshow(rates, cmap="RdBu", vmin=0.35, vmax=0.65)
        for i, j in np.ndindex(rates.shape):
            told = i != j and names[j] not in standing(against[names[i]])["not_distinguishable"]
            table.text(j, i, f"{100 * rates[i, j]:.1f}" + ("*" if told else ""), ha="center", va="center", fontsize=7)
        table.set_xticks(range(len(names)), names, rotation=40, ha="right")
        table.set_yticks(range(len(names)), names)
        table.grid(visible=False)
        table.set_title("win rate of the row over the column, %\n(* told from 50 %)")
        for at, name in enumerate(names):
            values = by_seed(rows, "solvers", 0.5, name, "gap")
            gaps.plot(values, [at] * len(values), "o", color="C0", markersize=4)
        gaps.set_yticks(range(len(names)), names)
        gaps.set_ylim(len(names) - 0.5, -0.5)
        gaps.set_xlim(left=0)
        gaps.set_title("duality gap at the end, each seed")
        save(drawn, path)


def _draw_kappa(rows: list[Row], path: Path) -> None:
    names = solvers_of(rows, "kappa")
    with figure(7.5, 2.8) as drawn:
        way, gaps = drawn.subplots(1, 2)
        _ways(way, rows, "kappa")
        for at, name in enumerate(names):
            values = by_seed(rows, "kappa", 0.5, name, "gap")
            gaps.plot([at] * len(values), values, "o", color=f"C{at}", markersize=4)
        gaps.set_xticks(range(len(names)), [name.replace("kappa", "κ") for name in names])
        gaps.set_ylim(bottom=0)
        gaps.set_title("duality gap at the end, each seed")
        save(drawn, path)


def _draw_longer(rows: list[Row], path: Path) -> None:
    names = solvers_of(rows, "longer")
    with figure(7.5, 2.8) as drawn:
        way, gaps = drawn.subplots(1, 2)
        _ways(way, rows, "longer")
        for at, name in enumerate(names):
            for place, part in enumerate(("solvers", "longer")):
                values = by_seed(rows, part, 0.5, name, "gap")
                gaps.plot([at + 0.3 * place] * len(values), values, "ox"[place], color=f"C{at}", markersize=4)
        gaps.set_xticks([at + 0.15 for at in range(len(names))], names)
        gaps.set_ylim(bottom=0)
        gaps.set_title(f"duality gap, each seed:\no at the budget, x at {LONGER} times as much")
        save(drawn, path)


def _ways(axes: Any, rows: Sequence[Row], part: str) -> None:
    """Win rate against the reference over steps, by solver."""
    for at, name in enumerate(solvers_of(rows, part)):
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
            for weight in weights_of(rows):
                values = by_seed(rows, "weights", weight, name, "gap")
                gaps.plot([weight + shift] * len(values), values, "o", color=f"C{at}", markersize=4)
                rates = by_seed(rows, "weights", weight, name, f"over {RIVAL}")
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


def tables(found: Mapping[str, Any]) -> str:
    """A verdict as Markdown: four tables, an empty line between them."""
    return "\n\n".join([_solver_table(found), _longer_table(found), _kappa_table(found), _weight_table(found)]) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ends(figures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    return [_percent(figures["win_rate"]), _shown(figures["gap"]), _shown(figures["exploited"]), _shown(figures["kl"])]


def _shown(found: Mapping[str, float | None], scale: float = 1, digits: int = 3) -> str:
    middle, *ends = (f"{scale * value:.{digits}f}" for value in found.values() if value is not None)
    return (middle + (f" [{', '.join(ends)}]" if ends else "")).replace("-", "−")


def _percent(found: Mapping[str, float | None]) -> str:
    return _shown(found, 100, 1)


_MEASURES = ("win rate over the reference, %", "duality gap", "exploited", "KL to the reference")


def _solver_table(found: Mapping[str, Any]) -> str:
    rows = [
        [f"`{name}`", f"{found['learning_rates'][name]:g}", *_ends(figures)]
        for name, figures in found["solvers"].items()
    ]
    return _table(("solver", "learning rate", *_MEASURES), [*rows, *_marks(found, 0.5, 1)])


def _marks(found: Mapping[str, Any], weight: float, blank: int) -> list[list[str]]:
    rows = []
    for name in ("reference", "equilibrium"):
        rate, *rest = (
            found["marks"][f"{name} {weight:g} {metric}"] for metric in ("win_rate", "gap", "exploited", "kl")
        )
        rows.append([f"({name})", *[""] * blank, f"{100 * rate:.1f}", *(f"{value:.3f}" for value in rest)])
    return rows


def _longer_table(found: Mapping[str, Any]) -> str:
    over = found["longer_against"]
    rows = [
        [f"`{name}`", *_ends(figures), "" if name == RIVAL else _percent(over[name][RIVAL])]
        for name, figures in found["longer"].items()
    ]
    return _table(("solver", *_MEASURES, f"win rate over `{RIVAL}`, %"), rows)


def _kappa_table(found: Mapping[str, Any]) -> str:
    rows = [[name.removeprefix("kappa="), *_ends(figures)] for name, figures in found["kappa"].items()]
    return _table(("κ", *_MEASURES), rows)


def _weight_table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            weight,
            _percent(at["over_online_dpo"]["nash_mp"]),
            *(_shown(at["solvers"][name]["gap"]) for name in ("nash_mp", RIVAL)),
            *(_shown(at["solvers"][name]["exploited"]) for name in ("nash_mp", RIVAL)),
        ]
        for weight, at in found["weights"].items()
    ]
    head = (
        "weight",
        "`nash_mp` over `online_dpo`, %",
        *(f"{of}, `{name}`" for of in ("gap", "exploited") for name in ("nash_mp", RIVAL)),
    )
    return _table(head, rows)
