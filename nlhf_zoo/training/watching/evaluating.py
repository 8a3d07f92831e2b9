"""The callback that measures: the oracles' audit at first, an evaluation every so many steps, a last checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from lightning.pytorch import Callback, LightningModule, Trainer

from nlhf_zoo.atomic import write_text
from nlhf_zoo.data.pairs import LabelledPair
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.audit import Audit
from nlhf_zoo.training.checkpoints import checkpoint_at
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.evaluation import Report, answer, report
from nlhf_zoo.training.judges import audit_judges, show_audits
from nlhf_zoo.training.loggers import show_samples
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.processes import by_first, first_process
from nlhf_zoo.training.stream import PromptText
from nlhf_zoo.training.values import plain
from nlhf_zoo.training.watching.watcher import Watcher

__all__ = ["Evaluator"]

logger = logging.getLogger("nlhf_zoo.training")


class Evaluator(Callback):
    """Writes OUT/audit.json and OUT/samples/step=N.jsonl, logs the figures, and tells the watcher."""

    def __init__(
        self,
        config: TrainConfig,
        oracles: Mapping[str, PreferenceOracle],
        held_out: Sequence[PromptText],
        labelled: Sequence[LabelledPair],
        watcher: Watcher,
    ) -> None:
        self.config, self.oracles, self.watcher = config, oracles, watcher
        self.held_out, self.labelled = held_out, labelled
        self._last: tuple[int, Report] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > 0:
            return
        assert isinstance(pl_module, NashTraining)
        found = self._audit(pl_module)
        if trainer.is_global_zero:
            write_text(self.config.out / "audit.json", json.dumps(found, indent=2) + "\n")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.config.eval_every
        if not every or trainer.global_step % every or (batch_idx + 1) % self.config.accumulate:
            return
        assert isinstance(pl_module, NashTraining)
        measured = self.evaluate(pl_module, trainer.global_step)
        for name, value in _flat(measured.figures):
            pl_module.log(f"eval/{name}", value)
        for one in trainer.loggers if trainer.is_global_zero else ():
            show_samples(one, measured.samples(self.config.show_samples), trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = checkpoint_at(self.config.out, trainer.global_step)
        if not trainer.interrupted and not by_first(last.exists):
            trainer.save_checkpoint(last)

    def evaluate(self, module: NashTraining, step: int) -> Report:
        """Measure the policy after `step` gradient steps, once; a collective call."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        reference = module.pool.policy(module.pool.reference)
        config = self.config
        measured = report(
            module.current,
            reference,
            self.held_out,
            self.oracles,
            seed=config.seed + 11,
            batch_size=config.eval_batch_size,
        )
        self._last = step, measured
        rows = measured.samples(config.show_samples)
        if rows and first_process():
            folder = config.out / "samples"
            folder.mkdir(exist_ok=True)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            write_text(folder / f"step={step}.jsonl", "".join(lines))
        self.watcher.evaluated(step, measured.figures)
        return measured

    def _audit(self, module: NashTraining) -> dict[str, Any]:
        """What each oracle says of pairs of the reference's own answers; the watcher warns of what it finds.

        A table of it goes to stderr, where asked for. A collective call.
        """
        config, reference = self.config, module.pool.policy(module.pool.reference)
        first, second = (
            answer(reference, reference, self.held_out, seed=config.seed + shift, batch_size=config.eval_batch_size)
            for shift in (2, 3)
        )
        if config.reference in (None, config.model):
            self.watcher.starts_from((first, second))
        pairs = [i for i, (a, b) in enumerate(zip(first.texts, second.texts, strict=True)) if a != b]
        if not pairs:
            logger.warning("the reference gave equal answers to every held-out prompt: there is nothing to prefer")
            return {}
        judged = [self.held_out[i].judged for i in pairs]
        mine, theirs = ([answers.texts[i] for i in pairs] for answers in (first, second))

        def asked() -> dict[str, Audit]:
            found = audit_judges(self.oracles, judged, mine, theirs, self.labelled)
            if config.show_audit:
                show_audits(found)
            return found

        found = by_first(asked)
        weak = [f"{role} oracle: {'; '.join(one.warnings)}" for role, one in found.items() if one.warnings]
        if weak:
            self.watcher.warn(0, "weak oracle", "; ".join(weak), aloud=config.show_audit)
        return {role: plain(attrs.asdict(one)) for role, one in found.items()}


def _flat(figures: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """Numbers by name, an estimate as its mean under its own name and its ends under NAME_low and NAME_high."""
    found: list[tuple[str, float]] = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and {"mean", "low", "high"} <= value.keys():
            found += [(f"{above}{name}", value["mean"])]
            found += [(f"{above}{name}_{end}", value[end]) for end in ("low", "high")]
        elif isinstance(value, Mapping):
            found += _flat(value, f"{above}{name}_")
        elif isinstance(value, int | float):
            found.append((f"{above}{name}", float(value)))
    return found
