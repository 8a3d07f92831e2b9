"""Whether a run may use its folder and go on with what is in it, and what of it may differ from before."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import yaml

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json, from_yaml
from nlhf_zoo.training.checkpoints import checkpoints_in, newest_checkpoint, step_of
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.judges import comparable
from nlhf_zoo.training.local_files import digests
from nlhf_zoo.training.processes import first_process
from nlhf_zoo.training.values import plain
from nlhf_zoo.training.watching.watcher import read_warnings

__all__ = ["begin", "check_unchanged", "read_audit", "read_changes", "read_warned", "resumable"]

logger = logging.getLogger("nlhf_zoo.training")

_CONFIG, _INPUTS, _CHANGES = "config.yaml", "inputs.json", "changes.jsonl"

# What may differ between a run and its resumption: how long it is, what is watched, and where it runs.
_FREE = {
    *("out", "resume", "estimate", "steps", "queries", "tokens", "progress", "checkpoint_every", "keep_checkpoints"),
    *("log_every", "logger", "logger_options", "show_samples", "show_audit", "labelled_pairs"),
    *("eval_every", "eval_batch_size", "eval_oracle", "eval_oracle_options"),
    # Devices x nodes x accumulate must stay; the checkpoint knows how many processes there were.
    *("accelerator", "devices", "nodes", "strategy", "accumulate", "gradient_checkpointing", "trust_remote_code"),
}
# What makes it another run from there on, and is kept in the folder: a run that diverged goes on with gentler steps.
_STEPS = ("learning_rate", "warmup_steps", "lr_schedule", "weight_decay", "max_grad_norm")


def resumable(config: TrainConfig, lock: str) -> str | None:
    """The newest checkpoint to resume from, where that is asked for and there is one.

    Args:
        lock: name of the one file that an unused folder may hold.

    Raises:
        BadInput: the folder may not be used, or what is in it is another run's.
    """
    out = config.out
    if first_process():  # the others come when it has begun to write
        if out.exists() and not out.is_dir():
            raise BadInput(f"out: {out} is a file; give a folder")
        used = out.exists() and any(path.name != lock for path in out.iterdir())
        if used and not config.resume:
            raise BadInput(f"out: {out} is not empty; give a new folder, or resume to go on with the run in it")
        if used and not (out / _CONFIG).is_file():
            raise BadInput(f"out: {out} holds no run to resume (it has no {_CONFIG}); give its folder")
        # Before the first checkpoint there is nothing to go on with: a setting that stopped the run can be mended.
        if checkpoints_in(out):
            _same_run(config)
    return _newest(config)


def check_unchanged(config: TrainConfig, checkpoint: str | None) -> None:
    """Refuse where, while this process loaded its models, another one has trained in the folder and ended.

    Raises:
        BadInput: it has.
    """
    begun = not config.resume and (config.out / _CONFIG).exists()
    if first_process() and (begun or _newest(config) != checkpoint):
        raise BadInput(f"out: another process has trained in {config.out} meanwhile; look at it, and begin again")


def _newest(config: TrainConfig) -> str | None:
    found = newest_checkpoint(config.out) if config.resume else None
    return None if found is None else str(found)


def begin(config: TrainConfig, checkpoint: str | None) -> None:
    """Write what the run is into its folder; what a session without checkpoint has measured goes."""
    out = config.out
    if checkpoint is None:
        for name in ("audit.json", "evaluations.jsonl", "warnings.jsonl", _CHANGES):
            (out / name).unlink(missing_ok=True)
        for path in (out / "samples").glob("step=*.jsonl"):
            path.unlink()
    else:
        _note_changes(config, step_of(Path(checkpoint)))
    settings = yaml.safe_dump(plain(attrs.asdict(config), infinite=True), sort_keys=False, allow_unicode=True)
    write_text(out / _CONFIG, settings)
    write_text(out / _INPUTS, json.dumps(_inputs(config), indent=2) + "\n")


def read_changes(out: Path) -> list[dict[str, Any]]:
    """Settings of the optimizer that a resumption has changed: step, setting, was, now.

    Raises:
        BadInput: the file is damaged.
    """
    file = out / _CHANGES
    return [_mapping(file, from_json, line) for line in _lines(file)]


def read_audit(out: Path) -> dict[str, Any] | None:
    """What the judges were like, where they were looked at.

    Raises:
        BadInput: the file is damaged.
    """
    found = out / "audit.json"
    return _mapping(found, from_json) if found.is_file() else None


def read_warned(out: Path) -> list[dict[str, Any]]:
    """The warnings so far: step, signature, what was seen, what helps.

    Raises:
        BadInput: the file is damaged.
    """
    return [attrs.asdict(warned) for warned in read_warnings(out / "warnings.jsonl")]


def _note_changes(config: TrainConfig, step: int) -> None:
    before = _saved(config.out)
    found = read_changes(config.out)
    for name in _STEPS:
        was, now = before.get(name, getattr(config, name)), getattr(config, name)
        if was != now:
            logger.warning("%s was %s, and is %s from step %d on", name, was, now, step)
            found.append({"step": step, "setting": name, "was": was, "now": now})
    if found:
        write_text(config.out / _CHANGES, "".join(json.dumps(row) + "\n" for row in found))


def _saved(out: Path) -> dict[str, Any]:
    return _mapping(out / _CONFIG, from_yaml)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except ValueError as error:
        raise _damaged(file, error) from None


def _mapping(file: Path, parse: Callable[[str], Any], text: str | None = None) -> dict[str, Any]:
    """What a file of a run's folder holds, or a line of it."""
    try:
        found = parse(file.read_text(encoding="utf-8") if text is None else text)
    except ValueError as error:
        raise _damaged(file, error) from None
    if not isinstance(found, dict):
        raise BadInput(f"resume: {file} holds {type(found).__name__}, not a mapping; put it back, or give a new folder")
    return found


def _damaged(file: Path, error: ValueError) -> BadInput:
    return BadInput(f"resume: {file} is damaged ({error}); put it back, or give a new folder")


def _same_run(config: TrainConfig) -> None:
    """Refuse to go on with another run's checkpoint."""
    now, before = comparable(plain(attrs.asdict(config), infinite=True)), comparable(_saved(config.out))
    for name, value in now.items():
        if name not in (*_FREE, *_STEPS) and before.get(name, value) != value:
            raise BadInput(
                f"resume: {name} was {before[name]!r} in the run in {config.out}, and is {value!r} now;"
                " resume with the same, or give a new folder"
            )
    inputs = config.out / _INPUTS
    begun = _mapping(inputs, from_json) if inputs.is_file() else {}
    for name, value in _inputs(config).items():
        if begun.get(name, value) != value:
            raise BadInput(
                f"resume: the files of {name} ({getattr(config, name)}) have changed since the run in {config.out}"
                f" began; put them back, or give a new folder, or delete {inputs} to go on with them as they are"
            )
    # Read when the training has ended: what is wrong with them is said now.
    for read in (read_warned, read_audit, read_changes):
        read(config.out)


def _inputs(config: TrainConfig) -> dict[str, str]:
    """Digests of the local files that a resumed run must find as they were."""
    settings = attrs.asdict(config, recurse=False)
    return digests({name: value for name, value in settings.items() if name not in _FREE})
