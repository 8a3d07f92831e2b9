"""The README.md beside a trained policy: what it is, what it was trained against, how it measured, how to repeat it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import attrs
import yaml

from nlhf_zoo.secrecy import public
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.values import plain

__all__ = ["model_card"]

_LIBRARIES = ("nlhf-zoo", "torch", "transformers", "lightning", "peft")


def model_card(config: TrainConfig, result: Mapping[str, Any]) -> str:
    """Markdown with a YAML head, as model hubs read it; the licence is left to whoever publishes.

    Names the model, the data and the judges as the user gave them. No other path is in it, and no value of an option
    that is called a key, token, secret or password.

    Args:
        result: as in result.json.
    """
    head = {
        "base_model": config.model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nlhf", "preference-optimisation", result["solver"]],
    }
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {_cell(config.model)}, trained by {result['solver']}",
        "Trained on preferences, as a game against itself (Nash learning from human feedback), with"
        " nlhf-zoo. Choose a licence before you publish it: that of the base"
        " model, of the data and of the judge may bind you.",
        _table("Training", _training(config, result)),
        _table("Win rate against the reference", _win_rates(config, result)),
        _table("Distance and diversity", _quality(result)),
        *_warnings(result),
        *_changes(result),
        _command(config),
        _table("Libraries", [(name, version(name)) for name in _LIBRARIES]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    # One line, in which nothing ends the cell or begins an element.
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


def _training(config: TrainConfig, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    options = ", ".join(f"{name} = {value}" for name, value in result["solver_options"].items())
    return [
        ("solver", f"{result['solver']} ({options})" if options else result["solver"]),
        ("beta", f"{config.beta:g}"),
        ("reference", config.reference or config.model),
        ("prompts", config.prompts),
        ("judge", _judge(config.oracle, config.oracle_options)),
        ("learning rate", f"{config.learning_rate:g}"),
        ("steps, prompts a step, answers a prompt", f"{result['steps']}, {config.batch_size}, {config.num_samples}"),
        ("temperature, longest answer", f"{config.temperature:g}, {config.max_new_tokens} tokens"),
        ("precision", config.precision),
        ("seed", str(config.seed)),
        ("comparisons asked of the judge", f"{result['queries']:,}"),
        ("tokens generated", f"{result['tokens_generated']:,}"),
    ]


def _judge(name: str, options: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{key} = {value}" for key, value in public(options).items())
    return f"{name} ({shown})" if shown else name


def _win_rates(config: TrainConfig, result: Mapping[str, Any]) -> list[tuple[str, str]]:
    judges = {"training": _judge(config.oracle, config.oracle_options)}
    if config.eval_oracle is not None:
        judges["held_out"] = _judge(config.eval_oracle, config.eval_oracle_options)
    return [
        (
            f"{name.replace('_', '-')} judge: {judges[name]}",
            f"{rate['mean']:.1%}, 95 % interval {rate['low']:.1%} to {rate['high']:.1%}, {rate['samples']} prompts",
        )
        for name, rate in result["win_rate"].items()
    ]


def _quality(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    far = result["kl_to_reference"]
    interval = "" if far["low"] is None else f", 95 % interval {far['low']:.3g} to {far['high']:.3g}"
    return [
        ("KL to the reference, nats an answer", f"{far['mean']:.3g}{interval}"),
        ("length, tokens", f"{result['length']:.1f} (reference {result['reference_length']:.1f})"),
        ("cut off by the limit", f"{result['unfinished']:.0%} (reference {result['reference_unfinished']:.0%})"),
        ("entropy, nats a token", f"{result['entropy']:.3g}"),
        ("distinct answers", f"{result['distinct']:.0%}"),
    ]


def _warnings(result: Mapping[str, Any]) -> list[str]:
    if not result["warnings"]:
        return []
    rows = [(f"{warned['signature']}, step {warned['step']}", warned["seen"]) for warned in result["warnings"]]
    return [_table("Warnings while it was trained", rows)]


def _changes(result: Mapping[str, Any]) -> list[str]:
    if not result["changes"]:
        return []
    rows = [
        (f"{one['setting']}, step {one['step']}", f"from {one['was']} to {one['now']}") for one in result["changes"]
    ]
    return [_table("Changed at a resumption", rows)]


def _command(config: TrainConfig) -> str:
    """The settings that are not the defaults, and how to run them; of paths, only those that the user gave."""
    settings: dict[str, Any] = {}
    for field in attrs.fields(TrainConfig):
        value = getattr(config, field.name)
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]  # attrs' stubs hide Factory's class
        if field.name not in ("out", "resume") and value != default:
            settings[field.name] = plain(public(value), infinite=True)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 0)
    return f"## Repeat it\n\n`nlhf-zoo train --config run.yaml --out OUT` with run.yaml:\n\n{fence}yaml\n{text}{fence}"
