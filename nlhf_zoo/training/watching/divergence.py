"""A run that diverges is stopped before it spoils what it has: weights, checkpoints, and the reader's time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from nlhf_zoo.training.checkpoints import checkpoint_at, checkpoints_in, prune, step_of
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.module import NashTraining
from nlhf_zoo.training.watching.signatures import REMEDIES, Limits, exploding

__all__ = ["Diverged", "DivergenceGuard", "SoundCheckpoints"]


class Diverged(ArithmeticError):
    """The run was stopped, because a loss, gradient or weight is not a number, or is out of all bounds.

    Attributes:
        step: gradient steps taken.
        seen: what was out of bounds.
        checkpoint: the last one from before, `None` where none was kept.
    """

    def __init__(self, step: int, seen: str, checkpoint: Path | None) -> None:
        self.step, self.seen, self.checkpoint = step, seen, checkpoint
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint from before was kept"
        super().__init__(f"diverged at step {step}: {seen}; {kept}; {REMEDIES['divergence']}")


class DivergenceGuard(Callback):
    """Looks at every gradient before it is used, and at the weights after.

    While a streak of explosions lasts, `suspicious` keeps checkpoints from being written. Decisions rest on numbers
    that all processes share, so that all stop together.
    """

    def __init__(self, out: Path, limits: Limits | None = None) -> None:
        self.out, self.limits = out, limits or Limits()
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.streak = 0
        self.weights_at_start: float | None = None

    @property
    def suspicious(self) -> bool:
        return self.streak > 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.weights_at_start is None:
            self.weights_at_start = _norm(_trained(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert isinstance(pl_module, NashTraining)
        loss = abs(pl_module.loss())
        norm = _norm(p.grad for p in _trained(pl_module) if p.grad is not None)
        pl_module.show("grad_norm", norm)
        seen = _not_a_number({"loss": loss, "gradient norm": norm})
        once = seen is not None and _scaler(trainer) is None
        if seen is None:
            seen = exploding("gradient norm", [*self.norms, norm], self.limits)
            seen = seen or exploding("loss", [*self.losses, loss], self.limits)
        if not trainer.strategy.reduce_boolean_decision(seen is not None, all=False):
            self.streak = 0
            kept = self.limits.remembered
            self.norms, self.losses = [*self.norms, norm][-kept:], [*self.losses, loss][-kept:]
            return
        self.streak += 1
        if trainer.strategy.reduce_boolean_decision(once, all=False) or self.streak >= self._patience(trainer):
            # The weights that the streak began with are the first that are under suspicion.
            self._stop(trainer, seen or "another process saw it", trainer.global_step - self.streak + 1)

    def _patience(self, trainer: Trainer) -> int:
        # float16's loss scaling looks for its scale by overflows, a dozen of them at the start.
        return self.limits.streak if _scaler(trainer) is None else 10 * self.limits.streak

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        norm, start = _norm(_trained(pl_module)), self.weights_at_start
        seen = _not_a_number({"norm of the weights": norm})
        if seen is None and start and norm > self.limits.weights * start:
            seen = f"the weights grew to {norm / start:.3g} times their norm"
        if seen is not None:
            self._stop(trainer, seen, trainer.global_step)

    def _stop(self, trainer: Trainer, seen: str, suspect: int) -> None:
        good = [path for path in checkpoints_in(self.out) if step_of(path) < suspect]
        if trainer.is_global_zero:
            for path in checkpoints_in(self.out):
                if step_of(path) >= suspect:
                    # Out of the way of a resume, and still there to be looked at.
                    path.rename(path.with_suffix(".suspect"))
        raise Diverged(trainer.global_step, seen, good[-1] if good else None)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms, "losses": self.losses, "weights_at_start": self.weights_at_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norms, self.losses = list(state_dict["norms"]), list(state_dict["losses"])
        self.weights_at_start = state_dict["weights_at_start"]


class SoundCheckpoints(ModelCheckpoint):
    """Lightning's, one every `checkpoint_every` steps; none is written or removed while the guard is suspicious."""

    def __init__(self, config: TrainConfig, guard: DivergenceGuard) -> None:
        super().__init__(
            dirpath=config.out / "checkpoints",
            filename="{step}",
            save_top_k=-1,  # Lightning forgets those of sessions before: the older ones are removed here
            every_n_train_steps=config.checkpoint_every,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._config, self._guard = config, guard

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._guard.suspicious or self._last_global_step_saved == trainer.global_step:
            return
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._last_global_step_saved == trainer.global_step:
            self._prune(trainer)

    def keep(self, trainer: Trainer) -> None:
        """Write one of this step, whatever the schedule says, over one that is there; a collective call."""
        if self._guard.suspicious:
            return
        trainer.save_checkpoint(checkpoint_at(self._config.out, trainer.global_step))
        self._last_global_step_saved = trainer.global_step
        self._prune(trainer)

    def _prune(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            prune(self._config.out, self._config.keep_checkpoints)


def _trained(module: LightningModule) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def _norm(tensors: Iterable[Tensor]) -> float:
    """The 2-norm over all tensors, shards on other devices included."""
    total: Any = torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors])
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total)


def _not_a_number(numbers: dict[str, float]) -> str | None:
    return next((f"the {name} is {value}" for name, value in numbers.items() if not math.isfinite(value)), None)


def _scaler(trainer: Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
