"""The final table of a comparison for a paper: LaTeX with booktabs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nlhf_zoo.report.convergence import FLOOR
from nlhf_zoo.report.reading import Comparison, PlayedGame
from nlhf_zoo.report.standings import counts, ends, name_of

__all__ = ["latex_table"]

_HEADS: Mapping[str, str] = {
    "queries_to_tol": "Queries to tolerance",
    "worst_case_training": "Worst case",
    "worst_case_held_out": "Worst case, held out",
    "duality_gap": "Duality gap",
    "kl_to_equilibrium": "KL",
    "span_to_equilibrium": "Span",
    "win_rate_training": "Win rate",
    "win_rate_held_out": "Win rate, held out",
    "kl_to_reference": "KL to reference",
    "length": "Length",
}
_SPECIAL = str.maketrans(
    {**{character: f"\\{character}" for character in "&%$#_{}"},
     "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\n": " "}
)  # fmt: skip


def latex_table(comparison: Comparison) -> str:
    """A table environment, medians with quartiles below; whoever is among the best of a game is bold.

    It needs the package booktabs and nothing else.
    """
    rows = {game.label: ends(game) for game in comparison.games}
    metrics = [metric for metric in _HEADS if any(metric in row["final"] for mine in rows.values() for row in mine)]
    heads = ["Solver", *(_HEADS[metric] for metric in metrics), "Queries", "Runs"]
    body = []
    for game in comparison.games:
        if len(comparison.games) > 1:
            body.append(rf"\midrule \multicolumn{{{len(heads)}}}{{l}}{{\emph{{{_text(game.label)}}}}} \\")
        body.append(r"\midrule")
        for row in rows[game.label]:
            body += [
                _line([_solver(row), *(_median(row, metric) for metric in metrics), _queries(row), _text(row["runs"])])
            ]
            spans = [_quartiles(row, metric) for metric in metrics]
            body += [_line(["", *spans, "", ""])] if any(spans) else []
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        _line(heads),
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_caption(comparison.games[0], len(comparison.games))}}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _caption(first: PlayedGame, games: int) -> str:
    on = _text(first.label) if games == 1 else counts(games, "game")
    return f"Where each solver ended on {on}: medians over runs, quartiles below. Bold: among the best."


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _text(value: object) -> str:
    return str(value).translate(_SPECIAL)


def _solver(row: Mapping[str, Any]) -> str:
    name = _text(name_of(row))
    return rf"\textbf{{{name}}}" if row.get("best") else name


def _median(row: Mapping[str, Any], metric: str) -> str:
    return _end(row, metric, "median")


def _quartiles(row: Mapping[str, Any], metric: str) -> str:
    low, high = (row["final"].get(metric, {}).get(end) for end in ("low", "high"))
    if low is None or low == high:
        return ""
    return rf"{{\scriptsize {_number(low)} to {_end(row, metric, 'high')}}}"


def _end(row: Mapping[str, Any], metric: str, which: str) -> str:
    value = row["final"].get(metric, {}).get(which)
    if value is None and metric in row["final"] and metric == "queries_to_tol":
        return f"$>{_queries(row)}$"  # it never got there, with all that it could spend
    return _number(value)


def _queries(row: Mapping[str, Any]) -> str:
    return "--" if row.get("queries") is None else f"{row['queries']:,.0f}".replace(",", r"\,")


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "--"
    if math.isinf(value):
        return r"$\infty$"
    if abs(value) < FLOOR:
        return r"$<10^{-16}$"
    if 1e-3 <= abs(value) < 1e4:
        return f"${value:.3g}$"
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"${mantissa}\times10^{{{int(exponent)}}}$"
