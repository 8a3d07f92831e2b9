"""Where the numbers and sample answers of a run go while it lasts: one of Lightning's loggers by its name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from nlhf_zoo.errors import BadInput
from nlhf_zoo.training.config import TrainConfig

__all__ = ["make_logger", "show_samples"]


def make_logger(config: TrainConfig, resumed_at: int | None) -> Logger | bool:
    """The logger that a configuration names; `False` for none.

    Args:
        resumed_at: step of the checkpoint that the run goes on from.

    Raises:
        BadInput: its package is not installed, or an option does not fit.
    """
    if config.logger == "none":
        return False
    # A folder a session: a logger would delete what the one before the resume has written.
    session = "" if resumed_at is None else f"resumed_at_{resumed_at}"
    try:
        return _KINDS[config.logger](config.out, session, **config.logger_options)
    except ModuleNotFoundError:
        raise BadInput(
            f"logger {config.logger} needs a package that is not installed: pip install {config.logger},"
            " or choose tensorboard or csv"
        ) from None
    except TypeError as error:
        reason = str(error).rpartition("() ")[2]
        raise BadInput(f"logger_options: {config.logger} {reason}") from None


def _tensorboard(out: Path, session: str, **options: Any) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    # What the logger does not know it keeps for the writer, which is made when the training has begun.
    known = {name for one in (TensorBoardLogger, SummaryWriter) for name in inspect.signature(one).parameters}
    for name in options.keys() - (known - {"kwargs", "log_dir"}):
        raise TypeError(f"TensorBoardLogger() has no option {name!r}")
    given = {"save_dir": out, "name": "logs", "version": session, "default_hp_metric": False}
    return TensorBoardLogger(**{**given, **options})


def _csv(out: Path, session: str, **options: Any) -> Logger:
    return CSVLogger(**{"save_dir": out, "name": "logs", "version": session, **options})


def _wandb(out: Path, session: str, **options: Any) -> Logger:
    name = f"{out.name} {session}".strip()
    return WandbLogger(**{"save_dir": out / "logs", "project": "nlhf-zoo", "group": out.name, "name": name, **options})


def _mlflow(out: Path, session: str, **options: Any) -> Logger:
    name = f"{out.name} {session}".strip()
    given = {"save_dir": str(out / "logs"), "experiment_name": "nlhf-zoo", "run_name": name}
    return MLFlowLogger(**{**given, **options})


_KINDS: Mapping[str, Callable[..., Logger]] = {
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def show_samples(logger: Logger, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """A table of prompts and answers, where the logger has a place for one."""
    if not rows:
        return
    columns = list(rows[0])
    if isinstance(logger, TensorBoardLogger):
        head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
        body = "\n".join(f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows)
        logger.experiment.add_text("samples", head + body, step)
    elif isinstance(logger, WandbLogger):
        logger.log_table("samples", columns=columns, data=[[row[column] for column in columns] for row in rows])
    elif isinstance(logger, MLFlowLogger):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        logger.experiment.log_text(logger.run_id, text, f"samples/step={step}.jsonl")


def _cell(value: Any) -> str:
    # Of Markdown, what would break the table or draw what the model wrote.
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    for character in "\\`*_{}[]<>#|!":
        text = text.replace(character, f"\\{character}" if character != "<" else "&lt;")
    return text.replace("\n", " ⏎ ")
