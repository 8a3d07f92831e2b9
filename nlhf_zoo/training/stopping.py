"""A run that is asked to stop by a signal: the step at hand is finished and kept, and the run can go on from it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from nlhf_zoo.errors import Interrupted
from nlhf_zoo.training.checkpoints import newest_checkpoint, step_of
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.processes import everyone
from nlhf_zoo.training.watching.divergence import SoundCheckpoints

__all__ = ["SignalStop"]

# SLURM announces the end of a job by whichever its `--signal` names; elsewhere the third has no such meaning, and
# would end the process too. Windows lacks it.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]

_ECHO = 1.0
"""Seconds within which a launcher or a cluster repeats a signal, or sends another for the same reason."""


class SignalStop(Callback):
    """Ends the training after the gradient step in which SIGTERM, SIGINT or SIGUSR1 came; a second one ends it at once.

    The signal may reach any of the processes; after each gradient step they agree. Stands before the evaluation, so
    that a step at which one is due is kept before it, and once more after it.
    """

    def __init__(self, config: TrainConfig, checkpoints: SoundCheckpoints) -> None:
        self.config, self.checkpoints = config, checkpoints
        self.agreed: signal.Signals | None = None
        self._heard: signal.Signals | None = None
        self._heard_at = 0.0
        self._trainer: Trainer | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Heed the signals while inside; other threads than the main one cannot.

        Raises:
            Interrupted: on leaving, where a signal has ended the training; its step is kept.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # With a handler in place Lightning installs none for SLURM's: that would write a checkpoint of half a step.
        before = {signum: signal.signal(signum, self._hear) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if self.agreed is not None:
            raise Interrupted(self._how_to_go_on(), 128 + self.agreed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            # Lightning has put a handler of its own before ours, which lets the processes wait for each other in it.
            signal.signal(signal.SIGTERM, self._hear)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.config.accumulate == 0 and self._agree(trainer):
            trainer.should_stop = True
            self.checkpoints.keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        every = self.config.eval_every
        if self.agreed and every and trainer.global_step % every == 0:
            self.checkpoints.keep(trainer)  # with what the evaluation has found
        self._agree(trainer)

    def _agree(self, trainer: Trainer) -> bool:
        """Whether any of the processes has heard a signal; a collective call."""
        if trainer.strategy.reduce_boolean_decision(self._heard is not None, all=False):
            self.agreed = next(heard for heard in everyone(self._heard) if heard is not None)
        return self.agreed is not None

    def _hear(self, signum: int, frame: Any) -> None:
        now, name = time.monotonic(), signal.Signals(signum).name
        if self._heard is None:
            self._heard, self._heard_at = signal.Signals(signum), now
            # Past the stream and the logging module, whose locks the signal may have found taken.
            with contextlib.suppress(OSError, ValueError):  # a notebook's may have no number
                os.write(sys.stderr.fileno(), f"\n{name}: stopping after this step; once more stops at once\n".encode())
        elif now - self._heard_at > _ECHO:
            self._stop_at_once(signum)

    def _stop_at_once(self, signum: int) -> None:
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        launcher = None if self._trainer is None else self._trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)  # type: ignore[arg-type]  # any signal
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)

    def _how_to_go_on(self) -> str:
        assert self.agreed is not None
        out = self.config.out
        found = newest_checkpoint(out)
        kept = "nothing was kept" if found is None else f"step {step_of(found)} is kept"
        again = shlex.join(["nlhf-zoo", "train", "--config", str(out / "config.yaml"), "--resume"])
        return f"stopped by {self.agreed.name}; {kept}; go on with: {again}"
