"""Does Nash-MP get ahead of Online DPO, Online IPO and others on a small language model with an intransitive judge?

Everyone starts from one fitted Llama of 14 thousand parameters, on the language of `throws`, where every response can
be listed: what is said of a final policy is exact, the mean over 12 held-out prompts. Budgets of queries and of tokens
are equal, and each solver's learning rate is chosen on a seed of its own, by compare's criterion (in the recorded
results still the win rate against the reference).

- "solvers": who is ahead at weight 1/2, each against each;
- "kappa": Nash-MP's moving average, from a fast to a slow one;
- "longer": two of them at three times the budget, with the same learning rates;
- "weights": from which weight of the cycle on Nash solvers beat Online DPO, with the learning rates of "solvers".

nash_prox is not played: with the same kappa its practical form is nash_mp's, bit for bit.

Columns of results.csv: part, weight, solver, seed, step, metric, value. gap (regularised duality gap), exploited (what
the best response of all wins beyond 1/2), kl and win_rate against the reference, "over NAME" (win rate over that
solver's policy of the same seed) and queries and tokens (spent) are of the final policy; win_rate_on_the_way is
sampled, 240 answers an evaluation. "tuning" holds each learning rate's win rate, sampled, and its gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.paper.language_model_figures import draw, tables
from benchmarks.paper.language_model_verdict import LONGER, RIVAL, verdict
from benchmarks.paper.listed import Listed
from benchmarks.paper.results import Row, write_rows, write_verdict
from benchmarks.paper.throw_games import BETA, QUICK, Played, Scale, Trained, Workshop, play
from benchmarks.paper.throws import Judge
from nlhf_zoo.atomic import write_text

SOLVERS = ("nash_mp", "nash_md", "online_dpo", "online_ipo", "egpo", "sppo")
RATES = (1e-3, 3e-3, 1e-2)
KAPPAS = (0.5, 0.1, 0.01, 0.001)
WEIGHTS = (0.0, 0.5, 1.0)
CONTINUED = ("nash_mp", RIVAL)


def run(out: Path, quick: bool) -> None:
    workshop = Workshop.made(out / "runs", QUICK if quick else Scale())
    measures = workshop.measures
    few = slice(2) if quick else slice(None)
    solvers = ("nash_mp", "nash_md", RIVAL) if quick else SOLVERS
    grid = [_entry(name, {"train.learning_rate": list(RATES[few])}) for name in solvers]
    contest = play(workshop, "contest", [0.5], grid)
    chosen = contest.choices()
    weighed = play(workshop, "weights", WEIGHTS[few], [_entry(name, chosen[name]) for name in ("nash_mp", RIVAL)])
    kappas = [_entry("nash_mp", chosen["nash_mp"] | {"kappa": kappa}) for kappa in KAPPAS[few]]
    sweep = play(workshop, "kappas", [0.5], kappas)
    continued = play(workshop.longer(LONGER), "continued", [0.5], [_entry(name, chosen[name]) for name in CONTINUED])
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
    said = verdict(rows)
    write_verdict(out / "verdict.json", said)
    write_text(out / "verdict.md", tables(said))
    draw(rows, out)


def _entry(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    kappa = {"kappa": 0.1} if name == "nash_mp" else {}
    return {"name": name, "options": {**kappa, **options}}


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
    for row in contest.win_rates:
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
