"""The callback that keeps the numbers, asks the rules, and says each failure once an episode."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from lightning.pytorch import Callback, LightningModule, Trainer

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json
from nlhf_zoo.training.evaluation import Answers
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.watching.history import History, mean_and_error
from nlhf_zoo.training.watching.signatures import REMEDIES, RULES, Limits

__all__ = ["Warned", "Watcher", "read_warnings"]

logger = logging.getLogger("nlhf_zoo.training")

_KEPT = 600
"""Gradient steps whose numbers are kept, beside the first window."""


@attrs.frozen
class Warned:
    """A failure signature that was seen: at which gradient step, what, and what helps."""

    step: int
    signature: str
    seen: str
    remedy: str


class Watcher(Callback):
    """Warnings go to the log, to OUT/warnings.jsonl, and from there to result.json.

    An episode begins when a rule first sees its signature and ends when it has not seen it for two windows of steps;
    only its beginning is said. What is kept is part of the checkpoint, so that a resumed run warns as an unbroken one.
    """

    def __init__(self, out: Path, steps: int, limits: Limits | None = None) -> None:
        self.path, self.limits = out / "warnings.jsonl", limits or Limits()
        self.history = History(steps=steps)
        self.last_seen: dict[str, int] = {}
        self._speaks = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What a killed session had said of steps that are about to be repeated is said again then.
        self._speaks = trainer.is_global_zero
        if self._speaks and self.path.exists():
            self._write([warned for warned in read_warnings(self.path) if warned.step <= trainer.global_step])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, NashTraining)
        rows = list(self.history.training)
        if not pl_module.measured or (rows and rows[-1]["step"] == trainer.global_step):
            return  # one of several batches of a gradient step: the last will speak for them
        rows.append({"step": float(trainer.global_step), **pl_module.measured})
        window = self.history.window
        if len(rows) > window + _KEPT:
            del rows[window]
        self.history = attrs.evolve(self.history, training=rows)
        if trainer.global_step % max(1, window // 4) == 0:
            self._judge(trainer.global_step)

    def starts_from(self, answers: Sequence[Answers]) -> None:
        """Take in answers of the model that training starts from, several to each prompt."""
        sampled = [
            mean_and_error([float(length) for one in answers for length in one.lengths]),
            mean_and_error([-one.entropy for one in answers]),
            mean_and_error([float(len(set(row)) > 1) for row in zip(*(one.texts for one in answers), strict=True)]),
        ]
        start: dict[str, float] = {}
        for name, (mean, error) in zip(("length", "log_prob_per_token", "distinct"), sampled, strict=True):
            if math.isfinite(error):
                start |= {name: mean, f"{name}_error": error}
        self.history = attrs.evolve(self.history, start=start)

    def evaluated(self, step: int, figures: Mapping[str, Any]) -> None:
        """Take in an evaluation: the win rate against the judge trained on, and the distance."""
        rate = figures["win_rate"]["training"]
        row = {
            "step": float(step),
            "win_rate": rate["mean"],
            "win_rate_low": rate["low"],
            "win_rate_high": rate["high"],
            "kl": figures["kl_to_reference_k3"],
        }
        if not all(math.isfinite(value) for value in row.values()):
            return
        before = [old for old in self.history.evaluations if old["step"] != step]
        self.history = attrs.evolve(self.history, evaluations=[*before, row])
        self._judge(step)

    def warn(self, step: int, signature: str, seen: str, *, aloud: bool = True) -> None:
        """Write it down and, `aloud`, say it, unless its episode has begun already."""
        began = self.last_seen.get(signature)
        self.last_seen[signature] = step
        if not self._speaks or (began is not None and step - began <= 2 * self.history.window):
            return
        warned = Warned(step, signature, seen, REMEDIES[signature])
        if aloud:
            logger.warning("step %d: %s: %s; %s", step, signature, seen, warned.remedy)
        # A session that repeats a step, or the last evaluation, sees it again.
        others = [one for one in read_warnings(self.path) if (one.step, one.signature) != (step, signature)]
        self._write([*others, warned])

    def _judge(self, step: int) -> None:
        for signature, rule in RULES.items():
            seen = rule(self.history, self.limits)
            if seen is not None:
                self.warn(step, signature, seen)

    def _write(self, warned: list[Warned]) -> None:
        lines = [json.dumps(attrs.asdict(one), ensure_ascii=False) + "\n" for one in warned]
        write_text(self.path, "".join(lines))

    def state_dict(self) -> dict[str, Any]:
        return {
            "training": [dict(row) for row in self.history.training],
            "evaluations": [dict(row) for row in self.history.evaluations],
            "start": dict(self.history.start),
            "last_seen": dict(self.last_seen),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        kept = {name: state_dict[name] for name in ("training", "evaluations", "start") if name in state_dict}
        self.history = attrs.evolve(self.history, **kept)
        self.last_seen = dict(state_dict["last_seen"])


def read_warnings(path: Path) -> list[Warned]:
    """Those of a run's warnings.jsonl, an empty list where there is none.

    Raises:
        BadInput: it holds something else.
    """
    if not path.is_file():
        return []
    try:
        return [Warned(**from_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise BadInput(f"{path}: is damaged ({error}); put it back, or remove it") from None
