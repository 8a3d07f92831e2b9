"""Solvers trained on the language of throws by `nz.compare`, and measured over every response."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pyarrow.parquet as pq
from torch import Tensor

import nlhf_zoo as nz
from benchmarks.paper.listed import Listed, listed
from benchmarks.paper.throws import JUDGES, RESPONSE_TOKENS, fit_reference, split_prompts

__all__ = ["BETA", "QUICK", "Played", "Scale", "Trained", "Workshop", "play"]

BETA = 0.01
_COPIES = 20
"""Of each held-out prompt in the evaluation on the way, so that a win rate rests on 240 answers."""


@attrs.frozen(kw_only=True)
class Scale:
    """How much of everything.

    Attributes:
        fit_steps: of the reference's supervised fit.
        steps: gradient steps of self-play that the budget pays for.
        prompts, samples: a batch; each prompt's samples meet each other.
        seeds: runs of each solver; tuning has one seed of its own a grid point.
    """

    fit_steps: int = 150
    steps: int = 50
    prompts: int = 24
    samples: int = 4
    seeds: int = 5

    @property
    def queries(self) -> int:
        return self.steps * self.prompts * self.samples * (self.samples - 1) // 2

    @property
    def tokens(self) -> int:
        return self.steps * self.prompts * self.samples * RESPONSE_TOKENS

    @property
    def every(self) -> int:
        """Steps between two evaluations."""
        return max(1, min(10, self.steps // 5))


QUICK = Scale(fit_steps=30, steps=4, prompts=4, seeds=1)


@attrs.frozen(eq=False, slots=False)
class Workshop:
    """The reference and the prompts of a study, on disk; one reference for all."""

    folder: Path
    scale: Scale

    @classmethod
    def made(cls, folder: Path, scale: Scale) -> Workshop:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "reference" / "config.json").exists():
            fit_reference(folder / "reference", steps=scale.fit_steps, seed=0)
        train_on, held_out = split_prompts()
        for name, prompts in (("train", train_on), ("held_out", held_out * _COPIES)):
            lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        return cls(folder, scale)

    def longer(self, times: int) -> Workshop:
        """The same, at so many times the budget."""
        return attrs.evolve(self, scale=attrs.evolve(self.scale, steps=times * self.scale.steps))

    @functools.cached_property
    def measures(self) -> Listed:
        return listed(self.folder / "reference")

    def game(self, weight: float) -> dict[str, Any]:
        """A game of `nz.compare`."""
        return {
            "name": f"weight={weight:g}",
            "train": {
                "model": str(self.folder / "reference"),
                "prompts": str(self.folder / "train.jsonl"),
                "eval_prompts": str(self.folder / "held_out.jsonl"),
                "oracle": "callable",
                "oracle_options": {"function": f"benchmarks.paper.throws:{JUDGES[weight]}", "symmetrise": False},
                "beta": BETA,
                "batch_size": self.scale.prompts,
                "num_samples": self.scale.samples,
                "max_prompt_tokens": 8,
                "max_new_tokens": RESPONSE_TOKENS,
                "learning_rate": 3e-3,
                "warmup_steps": 5,
                "eval_every": self.scale.every,
                "eval_batch_size": 240,
                "show_samples": 0,
                "checkpoint_every": 10**6,
                "log_every": 10**6,
                "accelerator": "cpu",
            },
        }


@attrs.frozen(eq=False)
class Trained:
    """One run and its final policy.

    Attributes:
        label: what `compare` calls it in its tournament.
        course: metric -> its values at the evaluations, the start and the end among them; and step, queries, tokens.
        table: (B, Y) log-probabilities.
    """

    weight: float
    name: str
    label: str
    options: Mapping[str, Any]
    seed: int
    course: Mapping[str, Sequence[float]]
    table: Tensor


@attrs.frozen(eq=False)
class Played:
    """What came of a comparison.

    Attributes:
        summary: summary.json.
        win_rates: rows of win_rates.parquet, the sampled tournament.
        runs, tuning: the reported runs, and those that chose the hyperparameters.
    """

    summary: Mapping[str, Any]
    win_rates: Sequence[Mapping[str, Any]]
    runs: Sequence[Trained]
    tuning: Sequence[Trained]

    def choices(self) -> dict[str, dict[str, Any]]:
        """Solver -> the options that it was played with, of the only game."""
        (game,) = self.summary["games"].values()
        return {row["name"]: dict(row["options"]) for row in game["table"]}


def play(workshop: Workshop, called: str, weights: Sequence[float], solvers: Sequence[Any]) -> Played:
    """Compare solvers, given as `nz.compare` takes them, at equal budgets of queries and of tokens.

    Args:
        called: the comparison's folder in the workshop.
    """
    scale, out = workshop.scale, workshop.folder / called
    comparison = nz.compare(
        games=[workshop.game(weight) for weight in weights],
        solvers=solvers,
        seeds=scale.seeds,
        queries=scale.queries,
        tokens=scale.tokens,
        tuning_seeds=1,
        out=out,
    )
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in comparison.results().to_pylist():
        rows.setdefault((row["role"], row["cell"]), []).append(row)
    found: dict[str, list[Trained]] = {"run": [], "tuning": []}
    for (role, cell), mine in rows.items():
        found[role].append(_trained(mine, workshop.measures.table(out / "runs" / cell / "policy")))
    win_rates = pq.read_table(out / "win_rates.parquet").to_pylist()
    return Played(comparison.summary, win_rates, found["run"], found["tuning"])


def _trained(rows: Sequence[Mapping[str, Any]], table: Tensor) -> Trained:
    first = rows[0]
    course: dict[str, list[float]] = {}
    for row in rows:
        course.setdefault(row["metric"], []).append(row["value"])
    same = [row for row in rows if row["metric"] == first["metric"]]
    course |= {name: [row[name] for row in same] for name in ("step", "queries", "tokens")}
    weight, options = float(first["game"].partition("=")[2]), json.loads(first["options"])
    return Trained(weight, first["name"], first["solver"], options, first["seed"], course, table)
