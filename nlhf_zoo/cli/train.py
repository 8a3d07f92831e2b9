"""`nlhf-zoo train`: a solver on a language model, through Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from nlhf_zoo.cli.verb import Answer, Verb
from nlhf_zoo.errors import Interrupted
from nlhf_zoo.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERB"]


def run(config: TrainConfig) -> Answer:
    """Train; the run's folder, config.yaml in it too, is written by `nlhf_zoo.training.run.train`."""
    from nlhf_zoo.cli.solvers import configured

    # Misspelt names and hyperparameters are said before the language-model libraries are loaded.
    configured(config.solver, config.solver_options)
    if config.estimate is not None:
        from nlhf_zoo.training.estimate import estimate

        expected = estimate(config, config.estimate)
        return Answer(expected, lambda console: _show(expected, console))
    _say_what_happens()

    from nlhf_zoo.training.processes import first_process, started_by_lightning
    from nlhf_zoo.training.run import train

    try:
        result = train(config)
    except Interrupted:
        if not started_by_lightning():
            raise
        # Its parent says so and has the exit code; were there one here, it would take it for a crash.
        return Answer({}, lambda console: None, silent=True)
    return Answer(result, lambda console: _show(result, console), silent=not first_process())


def _say_what_happens() -> None:
    """Our own lines to stderr. Lightning's loggers have handlers; one of the root's would say their lines again."""
    import logging

    ours = logging.getLogger("nlhf_zoo")
    ours.setLevel(logging.INFO)
    if not ours.hasHandlers():
        ours.addHandler(logging.StreamHandler())


def _show(result: Mapping[str, Any], console: Console) -> None:
    from nlhf_zoo.cli.terminal import table

    console.print(table(None, ("result", ""), list(_rows(result))))


def _rows(result: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in result.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
            yield name, _estimate(value)
        elif key == "warnings":
            if value:
                yield name, ", ".join(f"{warned['signature']} (step {warned['step']})" for warned in value)
        elif key == "changes":
            if value:
                yield name, ", ".join(f"{one['setting']} {one['now']} (step {one['step']})" for one in value)
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{name}, ")
        elif value not in (None, [], ""):
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _estimate(value: Mapping[str, Any]) -> str:
    if value["low"] is None:  # one sample alone
        return f"{value['mean']:.3g}, too few samples for an interval"
    return f"{value['mean']:.3g}, 95 % interval {value['low']:.3g} to {value['high']:.3g}"


VERB = Verb(
    name="train",
    summary="train a language model by a solver against a judge, from a config file or flags",
    description="""\
Ends with the win rate against the reference (95 % interval), the KL to it, answers to read, and the policy in
transformers format, all in the folder --out. With --resume a run that was stopped goes on from its last checkpoint.""",
    example="""\
  nlhf-zoo train --model models/sft --prompts prompts.jsonl --oracle pairwise_model --oracle-set path=models/judge \\
      --solver nash_mp --set eta=0.1 kappa=0.1 --beta 1e-3 --steps 200 --out runs/nash_mp
  nlhf-zoo train --config runs/nash_mp/config.yaml --resume
  nlhf-zoo train --config runs/nash_mp/config.yaml --devices 8 --strategy fsdp2 --estimate h100
  nlhf-zoo train --config runs/nash_mp/config.yaml --solver online_dpo --out runs/online_dpo --json
""",
    options=TrainConfig,
    run=run,
    flags={
        "solver_options": "--set",
        "engine_options": "--engine-set",
        "oracle_options": "--oracle-set",
        "eval_oracle_options": "--eval-oracle-set",
        "logger_options": "--logger-set",
    },
    record="inputs.json",
)
