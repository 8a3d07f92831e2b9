"""What a run has spent, and when that is enough."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.module import NashTraining

__all__ = ["Budget"]


class Budget(Callback):
    """Ends a run after the gradient step in which its queries or tokens, of all processes, reach their budget.

    After each evaluation it adds a row to evaluations.jsonl: step, queries, tokens, seconds, and what was logged as
    eval/NAME. A run that was killed and resumed may have rows twice; the later one counts.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._judge(trainer, *_spent(pl_module))  # a resumed run may have spent all before

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.config.accumulate:
            return
        evaluated = self.config.eval_every and trainer.global_step % self.config.eval_every == 0
        if not evaluated and self.config.queries is None and self.config.tokens is None:
            return
        queries, tokens = _spent(pl_module)
        self._judge(trainer, queries, tokens)
        if evaluated and trainer.is_global_zero:
            assert isinstance(pl_module, NashTraining)
            spent = {"queries": queries, "tokens": tokens, "seconds": pl_module.seconds}
            logged = {
                name.removeprefix("eval/"): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("eval/")
            }
            with (self.config.out / "evaluations.jsonl").open("a", encoding="utf-8") as rows:
                rows.write(json.dumps({"step": trainer.global_step, **spent, **logged}) + "\n")

    def _judge(self, trainer: Trainer, queries: int, tokens: int) -> None:
        for budget, spent in ((self.config.queries, queries), (self.config.tokens, tokens)):
            if budget is not None and spent >= budget:
                trainer.should_stop = True


def _spent(module: LightningModule) -> tuple[int, int]:
    """Queries and tokens, of all processes."""
    assert isinstance(module, NashTraining)
    return module.queries.total, module.tokens_generated
