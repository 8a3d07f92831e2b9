"""One supervised fit: batches, optimiser, schedule and Lightning's loop, whatever the loss."""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader

from nlhf_zoo.errors import BadInput
from nlhf_zoo.training.length_buckets import LengthBuckets
from nlhf_zoo.training.quiet import quiet_lightning

__all__ = ["Fit", "Fitted", "Schedule", "run_fit"]


@attrs.frozen
class Schedule:
    """How long and how fast: one of `epochs` and `max_steps`, and AdamW with warm-up and cosine.

    Raises:
        BadInput: neither or both of the two, or a number out of range.
    """

    epochs: int | None
    max_steps: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    accelerator: str
    precision: Any

    def __attrs_post_init__(self) -> None:
        given = [value for value in (self.epochs, self.max_steps) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise BadInput(f"give epochs or max_steps, >= 1, got epochs={self.epochs}, max_steps={self.max_steps}")
        if self.batch_size < 1 or not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise BadInput(
                "batch_size must be >= 1, learning_rate > 0 and weight_decay >= 0, got"
                f" {self.batch_size}, {self.learning_rate}, {self.weight_decay}"
            )

    def rate(self, step: int, total: int) -> float:
        """Share of the learning rate at a step: linear warm-up over 5 %, then a cosine from 1 to 0.1."""
        warmup = max(1, total // 20)
        if step < warmup:
            return (step + 1) / warmup
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))


@attrs.frozen
class Fitted:
    """Optimiser steps, wall seconds, and the mean loss over the last epoch's batches as they were met."""

    steps: int
    seconds: float
    loss: float


class Fit(LightningModule):
    """A model, and a loss that is a sum over a batch; items are pairs of token lists."""

    def __init__(self, model: Any, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule, self.total_steps = model, schedule, 0
        self._met: list[tuple[Tensor, Tensor]] = []

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> dict[str, Tensor]:
        """Items as one padded batch on the CPU."""

    @abstractmethod
    def total_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """() summed loss in nats, and () what it is the sum of (a count, or a sum of weights)."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        total, count = self.total_loss(batch)
        loss = total / count
        self._met.append((total.detach(), count.detach()))
        self.log("loss", loss, prog_bar=True, logger=False, batch_size=1)
        return loss

    def on_train_epoch_start(self) -> None:
        self._met.clear()

    def recent_loss(self) -> float:
        """Mean loss of the batches met since the epoch began."""
        return float(sum(total for total, _ in self._met) / sum(count for _, count in self._met))

    def configure_optimizers(self) -> Any:
        schedule = self.schedule
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.95), weight_decay=schedule.weight_decay
        )
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.rate(step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    @torch.no_grad()
    def measure(self, items: Sequence[Any]) -> tuple[float, float]:
        """Summed loss over all items and what it is the sum of, on the model's device, in eval mode."""
        self.model.eval()
        total = count = 0.0
        order = sorted(items, key=_length)
        for at in range(0, len(order), self.schedule.batch_size):
            batch = self.collate(order[at : at + self.schedule.batch_size])
            found = self.total_loss({name: value.to(self.model.device) for name, value in batch.items()})
            total, count = total + float(found[0]), count + float(found[1])
        return total, count


def run_fit(fit: Fit, items: Sequence[Any], progress: bool) -> Fitted:
    """Train on the items; the model is left on the accelerator, global random state as it was."""
    schedule = fit.schedule
    buckets = LengthBuckets([_length(item) for item in items], schedule.batch_size, schedule.seed)
    fit.total_steps = schedule.max_steps or (schedule.epochs or 0) * len(buckets)
    loader = DataLoader(
        items,  # type: ignore[arg-type]  # a list is a map-style data set
        batch_sampler=buckets,
        collate_fn=fit.collate,
        generator=torch.Generator().manual_seed(schedule.seed),
    )
    # Lightning keeps a submodule's mode, and models come in eval mode, where dropout is off.
    fit.model.train()
    with quiet_lightning(), torch.random.fork_rng():
        torch.manual_seed(schedule.seed)
        trainer = Trainer(
            max_epochs=schedule.epochs or -1,
            max_steps=schedule.max_steps or -1,
            accelerator=schedule.accelerator,
            precision=schedule.precision,
            devices=1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            # Standard output belongs to results.
            callbacks=[RichProgressBar(console_kwargs={"stderr": True})] if progress else None,
            use_distributed_sampler=False,
        )
        start = time.perf_counter()
        trainer.fit(fit, loader)
        seconds = time.perf_counter() - start
        fit.model.to(trainer.strategy.root_device)
    return Fitted(trainer.global_step, seconds, fit.recent_loss())


def _length(item: Sequence[Sequence[int]]) -> int:
    return sum(len(part) for part in item)
