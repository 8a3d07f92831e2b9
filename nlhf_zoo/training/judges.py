"""The judges of a run: built, audited, watched; and what happens when one of them gives no more verdicts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from lightning.pytorch import Callback, LightningModule, Trainer

from nlhf_zoo.data.pairs import LabelledPair
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.audit import Audit, accuracy, audit, audit_rows
from nlhf_zoo.oracles.build import build_oracle, essential_options
from nlhf_zoo.oracles.failures import JudgeFailed
from nlhf_zoo.training.checkpoints import checkpoint_at
from nlhf_zoo.training.config import TrainConfig

__all__ = ["JudgeWatch", "audit_judges", "build_judges", "comparable", "show_audits"]

logger = logging.getLogger("nlhf_zoo.training")

VERDICTS = "verdicts.sqlite"
"""In the run's folder: the verdicts of judges that cost money."""


def build_judges(config: TrainConfig) -> dict[str, PreferenceOracle]:
    """The judge trained against, "training", and the second one, "held_out", where there is one.

    Raises:
        BadInput: no such judge, or one that cannot be made of its options.
    """
    asked = {"training": (config.oracle, config.oracle_options)}
    if config.eval_oracle is not None:
        asked["held_out"] = (config.eval_oracle, config.eval_oracle_options)
    return {role: build_oracle(*judge, verdicts=config.out / VERDICTS) for role, judge in asked.items()}


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without those options of its judge that do not change answers: they may differ at a resume."""
    oracle, options = settings.get("oracle"), settings.get("oracle_options")
    if not isinstance(oracle, str) or not isinstance(options, Mapping):
        return dict(settings)
    return {**settings, "oracle_options": dict(essential_options(oracle, options))}


def audit_judges(
    oracles: Mapping[str, PreferenceOracle],
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    labelled: Sequence[LabelledPair] = (),
) -> dict[str, Audit]:
    """What each judge is like on these pairs, and how often it agrees with the labels; by role."""
    found: dict[str, Audit] = {}
    for role, oracle in oracles.items():
        one = audit(oracle, prompts, first, second)
        if labelled:
            columns = ([getattr(pair, part) for pair in labelled] for part in ("prompt", "chosen", "rejected"))
            one = attrs.evolve(one, **accuracy(oracle, *columns))
        found[role] = one
    return found


def show_audits(found: Mapping[str, Audit]) -> None:
    """A small table on stderr, a column a judge; what was not measured of any is left out."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("audit of the judge", *found, box=box.SIMPLE_HEAD, pad_edge=False)
    for words, numbers in audit_rows(list(found.values())):
        table.add_row(words, *("-" if number is None else f"{number:.3g}" for number in numbers))
    Console(stderr=True, markup=False, highlight=False).print(table)


class JudgeWatch(Callback):
    """Logs what the judge has to tell (calls, money, disagreement, ...); keeps the run when it fails."""

    def __init__(self, config: TrainConfig, oracle: PreferenceOracle) -> None:
        self.config, self.oracle = config, oracle

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and trainer.global_step % self.config.log_every == 0:
            for name, value in self.oracle.measured.items():
                pl_module.log(f"judge/{name}", value, rank_zero_only=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # With several processes the others wait elsewhere, and a checkpoint needs them all: the newest one of the
        # schedule stands, and the verdicts since then are in the file.
        if not isinstance(exception, JudgeFailed) or trainer.world_size > 1 or not trainer.global_step:
            return
        last = checkpoint_at(self.config.out, trainer.global_step)
        if not last.exists():
            trainer.save_checkpoint(last)
        logger.info("the judge gives no more verdicts; the run is kept at step %d", trainer.global_step)
