"""The progress bar, which gets out of the way of what is said after it."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["ProgressBar"]


class ProgressBar(TQDMProgressBar):
    """Lightning's, closed when the run is stopped too: an error's line then begins a line of its own."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()
