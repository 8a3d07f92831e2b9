"""The page of a comparison: who stands where, how each came there, on what games, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nlhf_zoo.oracles.audit import Audit, audit_rows
from nlhf_zoo.report import convergence
from nlhf_zoo.report.convergence import Claim, Curve, Measured
from nlhf_zoo.report.markup import Span, number
from nlhf_zoo.report.page import Report
from nlhf_zoo.report.reading import Comparison, PlayedGame, read_comparison
from nlhf_zoo.report.standings import counts, ends, final_table, name_of, overall_table, verdicts
from nlhf_zoo.secrecy import redact

__all__ = ["compose", "measured", "write_comparison"]

_POINTS = 6000
"""About so many points of curves the whole page may hold for each metric; few curves get no more than usual."""
_OPEN_GAMES = 3
"""With more games than this, the figures of all but the first are folded."""
_JUDGES: Mapping[str, str] = {"training": "training judge", "held_out": "held-out judge"}
_MEASURES: Mapping[str, tuple[str, bool]] = {
    "win_rate_training": ("Win rate against the reference, judge of the training", True),
    "win_rate_held_out": ("Win rate against the reference, held-out judge", True),
    "kl_to_reference": ("KL to the reference, nats", False),
    "length": ("Length of an answer, tokens", False),
}
"""What language models are measured by: heading, and whether it is a share."""


def write_comparison(folder: Path) -> Path:
    """Write `report.html` into the folder of a comparison, from what is there, and return its path.

    A comparison that was interrupted gives a page that says so.

    Raises:
        BadInput: not such a folder, a file in it cannot be read, or the page cannot be written.
    """
    return compose(read_comparison(folder)).write(folder / "report.html")


def compose(comparison: Comparison) -> Report:
    """The page, not yet written."""
    report = Report(_title(comparison), _lead(comparison))
    report.palette.introduce(comparison.names)
    for policy, solver in _trained_by(comparison).items():
        report.palette.share(policy, solver)
    for text, sign in verdicts(comparison):
        report.add_verdict(text, sign)
    _add_standings(report, comparison)
    drawn = sum(len(runs) for game in comparison.games for runs in list(game.runs.values())[:1])
    points = max(48, min(convergence.POINTS, _POINTS // max(drawn, 1)))
    for at, game in enumerate(comparison.games):
        folded = at > 0 and len(comparison.games) > _OPEN_GAMES
        with report.chapter(game.label, _about(game), "Show this game" if folded else ""):
            _add_game(report, game, points, alone=len(comparison.games) == 1)
    _add_tuning(report, comparison)
    _add_origin(report, comparison)
    return report


def _trained_by(comparison: Comparison) -> dict[str, str]:
    """Policies of language models, "nash_mp eta=0.1, seed 0", to the solver that trained each."""
    labels = {row["solver"]: name_of(row) for game in comparison.games for row in ends(game)}
    policies = dict.fromkeys(row["row"] for game in comparison.games for row in game.win_rates)
    return {
        policy: labels[solver]
        for policy in policies
        for solver in sorted(labels, key=len)
        if policy == solver or policy.startswith(f"{solver},")
    }


def _title(comparison: Comparison) -> str:
    solvers, games = len(comparison.names), len(comparison.games)
    if games == 1:
        return f"{counts(solvers, 'solver')} head to head on {comparison.games[0].label}"
    return f"{counts(solvers, 'solver')} head to head on {counts(games, 'game')}"


def _lead(comparison: Comparison) -> str:
    runs = sum(
        len(seeds) for game in comparison.games for found in list(game.runs.values())[:1] for seeds in found.values()
    )
    budgets = {json.dumps(game.summary.get("budget"), sort_keys=True) for game in comparison.games if game.summary}
    text = f"{counts(runs, 'run')} in all."
    if len(budgets) == 1 and (budget := _budget(comparison.games[0])):
        text += f" Each could spend {budget}."
    return text + " On a game all start from the same policy, with the same reference, the same draws of the oracle."


def _budget(game: PlayedGame) -> str:
    budget = game.summary.get("budget") or {}
    named = {"queries": budget.get("of") or "queries", "tokens": "tokens"}
    return " and ".join(f"{number(budget[what])} {words}" for what, words in named.items() if budget.get(what))


def _about(game: PlayedGame) -> str:
    told = game.summary
    parts = [f"{told['responses']:,} responses"] if told.get("responses") else []
    parts += [f"β = {told['beta']:g}"] if told.get("beta") is not None else []
    parts += [counts(len(told["seeds"]), "seed")] if told.get("seeds") else []
    parts += [_budget(game)] if _budget(game) else []
    text = ", ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


_HOW_TO_READ = (
    "Medians over seeds, below them the quartiles; ranks are means with a 95 % bootstrap interval, which is too narrow"
    " for fewer than some ten seeds: the verdict asks an exact test besides. A click on a heading sorts by it."
)


_CRITERIA: Mapping[str, str] = {
    "worst_case_training": "Ranked by the worst case in the pool: the win rate over whom a policy does worst against,"
    " of the policies of all solvers and seeds, of some on the way there, and the reference. That opponent is chosen on"
    " every second prompt and met on the others, both ways round. What it lacks to one half is a lower bound on the"
    " policy's exploitability, which going in a circle does not hide.",
    "queries_to_tol": "Ranked by the queries that it took to get to the tolerance; what never did is above all that it"
    " could spend, and equal to all others that did not.",
    "duality_gap": "Ranked by the final duality gap.",
}


def _ranked_by(game: PlayedGame) -> str:
    return _CRITERIA.get(str(game.summary.get("metric")), "")


def _add_standings(report: Report, comparison: Comparison) -> None:
    if len(comparison.games) > 1:
        report.add_table("Who stands where", *overall_table(comparison), note=_HOW_TO_READ, keyed=True)


def _add_game(report: Report, game: PlayedGame, points: int, alone: bool) -> None:
    columns, rows, solvers = final_table(game)
    note = " ".join([*([_HOW_TO_READ] if alone else []), _ranked_by(game)])
    report.add_table("Where each solver ended", columns, rows, solvers, note=note, keyed=alone)
    found = {metric: measured(game, metric, points) for metric in convergence.METRICS}
    if any(one.curves for one in found.values()):
        report.add_measured(found, ends=False)
    for metric, (title, share) in _MEASURES.items():
        rows = _medians(game, metric, points)
        if rows:
            report.add_curves(title, rows, "step", "value", x_title="Training step", y_title=title, percent=share)
    if game.matrix is not None and len(game.matrix):
        mass = None if game.equilibrium is None else game.equilibrium.tolist()
        report.add_matrix(game.labels, game.matrix.tolist(), mass, "Who beats whom")
    if game.equilibrium is not None and len(game.equilibrium):
        _add_equilibrium(report, game, game.equilibrium)
    _add_language(report, game)


def measured(game: PlayedGame, metric: str, points: int = convergence.POINTS) -> Measured:
    """Curves of a metric, the bounds that were claimed of it, and how the two compare at every measurement."""
    claimed = game.claimed(metric)
    return Measured(
        curves=_curves(game, metric, points),
        claims=[_claim(solver, rows).thinned(points) for solver, rows in claimed.items()],
        checks=[convergence.checked(solver, rows[:, 4], rows[:, 5]) for solver, rows in claimed.items()],
    )


def _curves(game: PlayedGame, metric: str, points: int) -> list[Curve]:
    found = game.runs.get(metric, {})
    return [convergence.curve(solver, [run[:, :5] for run in runs], points) for solver, runs in found.items()]


def _claim(solver: str, rows: np.ndarray) -> Claim:
    """Where a bound depends on the start, the loosest of the seeds is drawn; each is checked against its own."""
    steps, at = np.unique(rows[:, 0], return_inverse=True)
    loosest = np.full(len(steps), -np.inf)
    np.maximum.at(loosest, at, rows[:, 5])
    return Claim(solver, tuple(int(step) for step in steps), tuple(loosest.tolist()))


def _medians(game: PlayedGame, metric: str, points: int) -> list[dict[str, Any]]:
    return [
        {"solver": curve.solver, "step": step, "value": value}
        for curve in _curves(game, metric, points)
        for step, value in zip(curve.steps, curve.median, strict=True)
    ]


def _add_equilibrium(report: Report, game: PlayedGame, mass: np.ndarray) -> None:
    unsure = (game.summary.get("equilibrium") or {}).get("uncertainty")
    intervals, columns, note = None, None, ""
    if unsure and set(game.labels) <= set(unsure["labels"]):
        at = [unsure["labels"].index(label) for label in game.labels]
        intervals = {"equilibrium": [(unsure["low"][i], unsure["high"][i]) for i in at]}
        columns = {"Probability of being played": [unsure["in_support"][i] for i in at]}
        note = (
            f"The preferences are known from win counts. {unsure['draws']:,} redraws of the counts say how sure the"
            " equilibrium is: the interval of each response's mass, and how often it is played at all."
        )
    report.add_distribution(
        game.labels, {"equilibrium": mass.tolist()}, "Equilibrium", note, intervals=intervals, columns=columns
    )


def _add_language(report: Report, game: PlayedGame) -> None:
    _add_audit(report, game)
    _add_pool(report, game)
    averages: Mapping[str, Mapping[str, float]] = game.summary.get("nash_average") or {}
    against = [row for row in game.win_rates if row["column"] == "reference"]
    if against:
        points = [
            {"policy": row["row"], "judge": _judge(row["judge"]), "rate": row["mean"], "low": row["low"],
             "high": row["high"], "comparisons": row["n"]}
            for row in against
        ]  # fmt: skip
        report.add_win_rates(points)
    for judge in dict.fromkeys(row["judge"] for row in game.win_rates):
        _add_round_robin(report, judge, [row for row in game.win_rates if row["judge"] == judge], averages.get(judge))
    policies = list(dict.fromkeys(name for average in averages.values() for name in average))
    if policies:
        shares = {_judge(judge): [average.get(name, 0.0) for name in policies] for judge, average in averages.items()}
        report.add_distribution(
            policies,
            shares,
            "Nash average over policies",
            "The mixture of policies that no policy beats: copies of a policy share its part, and whoever beats only"
            " the weak gets none.",
        )
    prompts: dict[str, dict[str, str]] = {}
    for row in game.samples:
        prompts.setdefault(str(row["prompt"]), {})[str(row["policy"])] = str(row["text"])
    if prompts:
        samples = [
            {"prompt": prompt, "answers": dict(sorted(texts.items(), key=lambda pair: pair[0] != "reference"))}
            for prompt, texts in prompts.items()
        ]
        report.add_samples(samples, "Samples side by side", "Nothing was picked.")


def _add_audit(report: Report, game: PlayedGame) -> None:
    audits: Mapping[str, Mapping[str, Any]] = game.summary.get("audit") or {}
    if audits:
        found = {judge: Audit(**one) for judge, one in audits.items()}
        rows = audit_rows(list(found.values()))
        warnings = [f"{_judge(judge).capitalize()}: {line}." for judge, one in found.items() for line in one.warnings]
        report.add_table(
            "The judges",
            ["On pairs of the reference's answers", *(_judge(judge).capitalize() for judge in audits)],
            [[words, *numbers] for words, numbers in rows],
            note=" ".join(warnings),
        )


def _add_pool(report: Report, game: PlayedGame) -> None:
    """Each solver's part in the Nash average, and where its policies lose most, one row a solver and judge."""
    pool: Mapping[str, Mapping[str, Any]] = game.summary.get("pool") or {}
    names = {row["solver"]: name_of(row) for row in ends(game)}
    rows, groups = [], []
    for judge, solvers in pool.items():
        for solver, one in solvers.items():
            mass, skill, weakest = one["mass"], one["skill"], one["weakest"]
            rows.append(
                [
                    names.get(solver, solver),
                    _judge(judge),
                    Span(mass["value"], mass["low"], mass["high"]),
                    Span(skill["value"], skill["low"], skill["high"]),
                    weakest["column"],
                    Span(weakest["mean"], weakest["low"], weakest["high"]),
                ]
            )
            groups.append(names.get(solver, solver))
    if rows:
        count = game.summary.get("pool_queries")
        asked = f"Its judges were asked about {count:,} pairs, which no budget counts. " if count else ""
        columns = [
            "Solver",
            "Judge",
            "Share of the Nash average",
            "Win rate over it",
            "Loses most to",
            "Win rate there",
        ]
        report.add_table(
            "In the pool of all policies",
            columns,
            rows,
            groups,
            note=asked
            + "The Nash average is the mixture of policies that none of them beats, of the largest entropy. Below"
            " its shares and win rates stand 95 % bootstrap intervals over seeds and prompts, in the last column"
            " that of the pair.",
        )


def _judge(name: str) -> str:
    return _JUDGES.get(name, name)


def _add_round_robin(
    report: Report, judge: str, rows: Sequence[Mapping[str, Any]], average: Mapping[str, float] | None
) -> None:
    policies = list(dict.fromkeys(name for row in rows for name in (row["row"], row["column"])))
    found = {(row["row"], row["column"]): row for row in rows}
    # A policy meets itself in a draw; a pair that was not played is unknown.
    own, unknown = {"mean": 0.5, "low": 0.5, "high": 0.5}, dict.fromkeys(("mean", "low", "high"), float("nan"))
    cells = [[found.get((i, j), own if i == j else unknown) for j in policies] for i in policies]
    report.add_matrix(
        policies,
        [[cell["mean"] for cell in row] for row in cells],
        [average.get(name, 0.0) for name in policies] if average else None,
        f"Everyone against everyone, {_judge(judge)}",
        intervals=[[(cell["low"], cell["high"]) for cell in row] for row in cells],
        weights="Nash average",
    )


def _add_tuning(report: Report, comparison: Comparison) -> None:
    rows = []
    for game in comparison.games:
        for entry, tuning in (game.summary.get("tuning") or {}).items():
            for tried in tuning.get("tried") or [{"options": tuning["chosen"], "score": None}]:
                chosen = "chosen" if tried["options"] == tuning["chosen"] else ""
                spent = [len(tuning["seeds"]), tuning["queries"], tuning.get("pool_queries") or None]
                row = [_options(tried["options"]), chosen, tried["score"], tuning.get("by"), *spent]
                rows.append([game.label, entry, *row])
    if rows:
        columns = ["Game", "Solver", "Tried", "Choice", "Score", "By", "Seeds", "Queries in all", "Of the pool besides"]
        if not any(row[-1] for row in rows):  # on tables no judge is asked who did best
            rows, columns = [row[:-1] for row in rows], columns[:-1]
        note = (
            "Tuning runs have seeds of their own, and every solver that is tuned may spend the same. A score is the"
            " mean over runs, of the log10 where it goes by a gap or by queries."
        )
        report.add_table("Tuning", columns, rows, caption="What was tried, and what was chosen", note=note)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "defaults"


def _add_origin(report: Report, comparison: Comparison) -> None:
    """The command that does it again, what it ran on, and what it was asked."""
    command = comparison.summary.get("command") or comparison.environment.get("command")
    if command:
        report.add_command(str(command), title="How to do it again")
    for title, values in (("Environment", comparison.environment), ("Settings", comparison.config)):
        rows = [pair for pair in _flat(values) if pair[0] != "command"]
        if rows:
            report.add_table(title, ["Name", "Value"], rows)


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested mappings as pairs of a dotted name and a text."""
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{above}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            # Blotted out by name, as on a command line.
            pairs.append((f"{above}{name}", redact(f"{name}={text}").partition("=")[2]))
    return pairs
