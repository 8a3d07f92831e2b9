"""What the rows of the study `language_models` say, as numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.paper.results import Row

__all__ = ["LONGER", "RIVAL", "by_seed", "solvers_of", "standing", "verdict", "weights_of", "win_rates"]

RIVAL = "online_dpo"
LONGER = 3
"""Times the budget of the longer runs."""
FINAL = ("gap", "exploited", "kl", "win_rate")
_STUDENT = {1: math.inf, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Number of seeds -> half the width of the 95 % interval of a mean, in its standard errors."""


def verdict(rows: list[Row]) -> dict[str, Any]:
    """Means over seeds with 95 % intervals; one policy beats another where that of its win rate lies above 1/2."""
    return {
        "solvers": measured(rows, "solvers", 0.5),
        "against": win_rates(rows, "solvers", 0.5),
        "nash_mp": standing(win_rates(rows, "solvers", 0.5)["nash_mp"]),
        "learning_rates": {
            row["solver"]: row["value"] for row in rows if row["part"] == "tuning" and row["metric"] == "learning_rate"
        },
        "tuned_by_gap": _tuned_by_gap(rows),
        "tournament": _shares([row["value"] for row in rows if row["part"] == "tournament"]),
        "kappa": measured(rows, "kappa", 0.5),
        "kappa_against": win_rates(rows, "kappa", 0.5),
        "longer": measured(rows, "longer", 0.5),
        "longer_against": win_rates(rows, "longer", 0.5),
        "weights": {
            f"{weight:g}": {
                "solvers": measured(rows, "weights", weight),
                "over_online_dpo": {
                    name: over[RIVAL] for name, over in win_rates(rows, "weights", weight).items() if name != RIVAL
                },
            }
            for weight in weights_of(rows)
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


def solvers_of(rows: Sequence[Row], part: str) -> list[str]:
    return list(dict.fromkeys(row["solver"] for row in rows if row["part"] == part))


def weights_of(rows: Sequence[Row]) -> list[float]:
    return sorted({row["weight"] for row in rows if row["part"] == "weights"})


def by_seed(rows: Sequence[Row], part: str, weight: float, name: str, metric: str) -> list[float]:
    """By seed."""
    key = (part, weight, name, metric)
    mine = [row for row in rows if (row["part"], row["weight"], row["solver"], row["metric"]) == key]
    return [row["value"] for row in sorted(mine, key=lambda row: row["seed"])]


def measured(rows: Sequence[Row], part: str, weight: float) -> dict[str, Any]:
    return {
        name: {metric: _mean(by_seed(rows, part, weight, name, metric)) for metric in (*FINAL, "queries", "tokens")}
        for name in solvers_of(rows, part)
    }


def win_rates(rows: Sequence[Row], part: str, weight: float) -> dict[str, dict[str, Any]]:
    names = solvers_of(rows, part)
    return {
        one: {other: _mean(by_seed(rows, part, weight, one, f"over {other}")) for other in names if other != one}
        for one in names
    }


def standing(over: Mapping[str, Mapping[str, float | None]]) -> dict[str, list[str]]:
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
