"""`nlhf-zoo compare`: the head-to-head."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nlhf_zoo.cli.verb import Answer, Entries, Verb
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERB"]


def run(config: CompareConfig) -> Answer:
    """Play what is missing, and say who did best; the exit code is 1 where a run failed."""
    from nlhf_zoo.cli.terminal import progress_bar
    from nlhf_zoo.comparison.engine import run_comparison
    from nlhf_zoo.secrecy import redact

    _check_types(config)
    command = redact(shlex.join(["nlhf-zoo", *sys.argv[1:]]))
    with progress_bar("compare", None, lines=True) as move:

        def progress(done: int, total: int) -> None:
            if move is not None:
                move(done, total=total)

        try:
            comparison = run_comparison(config, progress, command)
        except KeyboardInterrupt:
            print(f"nlhf-zoo: what has ended is in {config.out}; the same command goes on with it", file=sys.stderr)
            raise
    document = {"out": str(config.out), **comparison.summary}
    failed = document["cells"]["failed"]
    return Answer(document, lambda console: _show(document, console), code=1 if failed else 0)


def _check_types(config: CompareConfig) -> None:
    """Values of hyperparameters, of policy options and of training runs against the annotations, ahead of any work."""
    import typing

    from nlhf_zoo.cli.flags import typed
    from nlhf_zoo.cli.policies import check_policy_options
    from nlhf_zoo.cli.solvers import configured
    from nlhf_zoo.comparison.entries import divided, grid_points

    check_policy_options(config.policy, config.policy_options)
    for raw in config.solvers:
        if isinstance(raw, Mapping) and isinstance(raw.get("options"), Mapping):
            for point in grid_points(raw["options"]):
                configured(str(raw.get("name")), divided(point)[0])
        elif isinstance(raw, str):
            configured(raw, {})
    hints = typing.get_type_hints(TrainConfig)
    for raw in (*config.games, *config.tuning_games):
        if isinstance(raw, Mapping) and isinstance(raw.get("train"), Mapping):
            typed(raw["train"], hints, f"game {raw.get('name') or raw.get('label') or ''}: train")


def _show(document: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import printable

    audited: list[Any] = []
    for label, game in document["games"].items():
        if game.get("audit") and game["audit"] not in audited:
            audited.append(game["audit"])
            console.print(_audit_table(game["audit"]))
        console.print(_game_table(label, game))
        for verdict in (game["verdict"], *(other["verdict"] for other in game["beside"].values())):
            console.print(f"{printable(label)}: {printable(verdict)}")
        warning = ((game["equilibrium"] or {}).get("never_compared") or {}).get("warning")
        if warning:
            console.print(f"{printable(label)}: {warning}; the report says how sure each of them is")
        console.print()
        for row in game["table"]:
            for error in row["errors"]:
                console.print(f"{printable(row['solver'])} failed: {printable(error)}")
    if document["overall"] is not None and len(document["games"]) > 1:
        console.print(f"overall: {printable(document['overall']['verdict'])}")
    console.print(f"written to {document['out']}")


def _audit_table(audits: Mapping[str, Any]) -> Any:
    from nlhf_zoo.cli.terminal import number, table
    from nlhf_zoo.oracles.audit import Audit, audit_rows

    rows = audit_rows([Audit(**one) for one in audits.values()])
    return table(None, ("audit of the judge", *audits), [[words, *map(number, values)] for words, values in rows])


_BESIDE = {"win_rate_training": "win rate over the reference", "win_rate_held_out": "held-out"}
"""What a language model's table shows beside what it is ranked by."""


def _game_table(label: str, game: Mapping[str, Any]) -> Any:
    from nlhf_zoo.cli.terminal import number, table

    metric, rows = game["metric"], game["table"]
    columns: dict[str, list[str]] = {
        "solver": [row["solver"] for row in rows],
        "runs": [str(row["runs"]) for row in rows],
        game["budget"]["of"]: ["-" if row["queries"] is None else f"{row['queries']:,.0f}" for row in rows],
        "seconds": [number(row["seconds"]) for row in rows],
        metric.replace("_", " "): [_end(row, metric, "median") for row in rows],
        "quartiles": [f"{_end(row, metric, 'low')} to {_end(row, metric, 'high')}" for row in rows],
        "rank (95 %)": [_rank(row.get("rank", {})) for row in rows],
    }
    if any(row["reached"] for row in rows):
        columns["got there"] = [f"{row['reached']['runs']} of {row['runs']}" for row in rows]
    for name, heading in _BESIDE.items():
        if any(name in row["final"] for row in rows):
            columns[heading] = [_end(row, name, "median") for row in rows]
    made = list(zip(*columns.values(), strict=True))
    return table(label, list(columns), made, right=list(columns)[1:])


def _end(row: Mapping[str, Any], metric: str, which: str) -> str:
    """A run that never got to the tolerance has spent all that it could: it would have needed more."""
    from nlhf_zoo.cli.terminal import number

    value = row["final"].get(metric, {}).get(which)
    return f"> {row['queries']:,.0f}" if value is None and metric == "queries_to_tol" and row["runs"] else number(value)


def _rank(rank: Mapping[str, float]) -> str:
    from nlhf_zoo.cli.terminal import number

    return f"{number(rank.get('mean'))} ({number(rank.get('low'))} to {number(rank.get('high'))})"


VERB = Verb(
    name="compare",
    summary="solvers against each other: games x solvers x seeds at one budget, and a report",
    description="""\
Several values of a hyperparameter are a grid: it is tuned on seeds of its own, with as many queries for each solver
that has one, and the best point alone is reported (--no-tune reports all). Several values of a game's parameter are
several games. A comparison that was stopped goes on where it was when the same command is given again; more seeds,
solvers or games may be added. Exit code 1 where a run failed.""",
    example="""\
  nlhf-zoo compare --game low_rank --game-set responses=100 rank=2,5 --beta 0.01 \\
      --solver nash_mp --grid eta=0.02,0.1,0.5 --solver online_ipo --grid eta=0.1,1,10 --solver mmd \\
      --queries 2000 --seeds 10 --jobs 2 --out runs/first
  nlhf-zoo compare --game votes.csv --solver nash_mp --solver online_dpo --queries 500 --out runs/votes --json
  nlhf-zoo compare --config runs/first/config.yaml --seeds 20 --out runs/first
""",
    options=CompareConfig,
    run=run,
    flags={"policy_options": "--policy-set"},
    entries={
        "games": Entries("--game", ("--game-set",), "the game's parameters"),
        "solvers": Entries("--solver", ("--grid", "--set"), "the solver's hyperparameters"),
        "tuning_games": Entries("--tuning-game", ("--tuning-game-set",), "the tuning game's parameters"),
    },
)
