"""The language-model part from start to end: fit, train, answer."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.demo import language
from nlhf_zoo.demo.models import Fit, Scale, answer, fit_reference, train_policy, write_prompts
from nlhf_zoo.demo.tournament import Answers

__all__ = ["SOLVERS", "LanguagePlay", "play_language"]

SOLVERS = ("nash_mp", "online_dpo")


@attrs.frozen(eq=False, kw_only=True)
class LanguagePlay:
    """What came of the language-model part.

    Attributes:
        scale: how much of everything.
        prompts: held-out prompts.
        answers: policy to its answers, the reference first.
        logs: one row an evaluation in training, with solver, step and win_rate.
        seconds: what each model took to fit or train.
        fit: what the supervised fit came to.
    """

    scale: Scale
    prompts: Sequence[str]
    answers: Mapping[str, Answers]
    logs: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]
    fit: Fit

    @property
    def trained(self) -> list[str]:
        return [name for name in self.answers if name != "reference"]


def play_language(out: Path, scale: Scale, seed: int, notify: Callable[[str], None] = lambda _: None) -> LanguagePlay:
    """Fit the reference, train each solver's policy from it, and let all of them answer the held-out prompts.

    The models are left in `out`/models, one folder each, replacing those of an earlier demo; all other files are
    made in a scratch folder that is removed, also when something fails.
    """
    train_on, held_out = language.split_prompts(scale.held_out, seed)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=out) as name, _library_output():
        scratch = Path(name)
        asked, held = write_prompts(scratch / "train.jsonl", train_on), write_prompts(scratch / "eval.jsonl", held_out)
        notify("fitting the reference to the made-up language")
        fit = fit_reference(scratch / "reference", scale, train_on, held_out, seed)
        folders, seconds, logs = {"reference": scratch / "reference"}, {"reference": fit.seconds}, []
        for solver in SOLVERS:
            notify(f"training with {solver}, {scale.steps} batches")
            begun = time.perf_counter()
            folders[solver], rows = train_policy(
                solver, folders["reference"], asked, held, scratch / solver, scale, seed
            )
            seconds[solver] = time.perf_counter() - begun
            logs += rows
        notify("answering the held-out prompts")
        # Each policy draws from a seed of its own: with equal draws, equal policies would give equal answers.
        answers = {
            policy: answer(folder, held_out, scale.answers, seed + at)
            for at, (policy, folder) in enumerate(folders.items())
        }
        _keep(folders, out / "models")
    return LanguagePlay(scale=scale, prompts=held_out, answers=answers, logs=logs, seconds=seconds, fit=fit)


def _keep(folders: Mapping[str, Path], models: Path) -> None:
    models.mkdir(exist_ok=True)
    for name, folder in folders.items():
        shutil.rmtree(models / name, ignore_errors=True)
        folder.rename(models / name)


@contextlib.contextmanager
def _library_output() -> Iterator[None]:
    """Progress bars of libraries go to a terminal's stderr, or nowhere; stdout is for the result alone."""
    import lightning.pytorch  # noqa: F401  # importing it sets its loggers' levels, which are changed below
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr if sys.stderr.isatty() else nowhere))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="lightning")
        for name in ("lightning.pytorch", "lightning.fabric"):
            chatty = logging.getLogger(name)
            stack.callback(chatty.setLevel, chatty.level)
            chatty.setLevel(logging.WARNING)
        yield
