"""What one comparison is: every setting, in one frozen object that a YAML file can hold. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.errors import BadInput

__all__ = ["TUNING_SEEDS_FROM", "UNSAVED", "CompareConfig"]

TUNING_SEEDS_FROM = 1_000_000
"""Runs have the seeds below, tuning those from here on: the two never meet."""
UNSAVED = {"saved": False}
"""Metadata of a field that says where and how the work is done, not what it is: no part of a saved config."""


def _at_least(least: float) -> Any:
    def check(_: Any, field: Any, value: float | None) -> None:
        if value is not None and not least <= value < math.inf:
            raise BadInput(f"{field.name} must be >= {least:g} and finite, got {value:g}")

    return check


@attrs.frozen(kw_only=True)
class CompareConfig:
    """What is compared with what, how often, for how much.

    Attributes:
        games: what is played: a registered name or a file each; in a YAML file also language-model runs, as
            `train: {model: ..., prompts: ..., oracle: ...}` with the options of nlhf-zoo train.
        solvers: who plays, by registered name, with hyperparameters; several values of one are a grid.
        seeds: runs of every solver on every game; the seed draws the game, where it is drawn, and the oracle's coins.
        seed: the first of the seeds.
        queries: budget of oracle queries a run: exact payoffs, or single comparisons where those are sampled or a
            language model's judge is asked; a step that would go beyond it is taken back. A game in a YAML file may
            have `queries` and `tokens` of its own.
        sampled_queries: budget of single comparisons, where it is another than that of exact payoffs.
        tokens: budget of generated tokens a run, for language models; whichever budget is spent first ends it.
        steps: at most so many steps a run; needed for solvers that ask no oracle.
        tol: end a run when its duality gap is at most this, and rank by the queries that it took; games on tables only.
        beta: strength of the regularisation towards the reference, where a game has none of its own.
        comparisons: replace exact payoffs by so many sampled comparisons a response; exact unless given.
        policy: what is trained, from the reference on: table (exact), softmax, log_linear or mlp.
        policy_options: its options, as `--policy-set learning_rate=0.5`.
        tune: of each solver's grid, play only the point that did best on tuning seeds; otherwise all points are
            contestants.
        tuning_seeds: tuning runs of each point of the largest grid; smaller grids get more, for equal queries.
        tuning_games: games to tune on, instead of each game itself under other seeds.
        earlier_policies: so many policies from the course of each solver's first run join the pool of a language model
            as opponents, where its `train` has `eval_every`; they cost questions to its judge.
        draws: for games made of win counts, so many matrices drawn from what the counts allow say how sure the
            equilibrium is; 0 leaves it out.
        out: folder of the comparison; new, empty, or that of a comparison to go on with.
        jobs: processes.
        cluster: address of a Ray cluster to play on ("auto" for the one this machine is part of); needs the extra
            nlhf-zoo[cluster].
        report: write report.html.
    """

    games: Sequence[Any]
    solvers: Sequence[Any]
    seeds: int = attrs.field(default=10, validator=_at_least(1))
    seed: int = attrs.field(default=0, validator=_at_least(0))
    queries: int | None = attrs.field(default=None, validator=_at_least(1))
    sampled_queries: int | None = attrs.field(default=None, validator=_at_least(1))
    tokens: int | None = attrs.field(default=None, validator=_at_least(1))
    steps: int | None = attrs.field(default=None, validator=_at_least(1))
    tol: float | None = attrs.field(default=None, validator=_at_least(0))
    beta: float = attrs.field(default=0.1, converter=float, validator=_at_least(0))
    comparisons: int | None = attrs.field(default=None, validator=_at_least(1))
    policy: str = "table"
    policy_options: Mapping[str, Any] = attrs.field(factory=dict)
    tune: bool = True
    tuning_seeds: int = attrs.field(default=2, validator=_at_least(1))
    tuning_games: Sequence[Any] = ()
    earlier_policies: int = attrs.field(default=2, validator=_at_least(0))
    draws: int = attrs.field(default=200, validator=_at_least(0))
    out: Path = attrs.field(converter=Path, metadata=UNSAVED)
    jobs: int = attrs.field(default=1, validator=_at_least(1), metadata=UNSAVED)
    cluster: str | None = attrs.field(default=None, metadata=UNSAVED)
    report: bool = attrs.field(default=True, metadata=UNSAVED)

    def __attrs_post_init__(self) -> None:
        for name in ("games", "solvers"):
            if not getattr(self, name):
                raise BadInput(f"a comparison needs at least one of {name}; give --{name[:-1]}")
        own = any(isinstance(raw, Mapping) and {"queries", "tokens"} & set(raw) for raw in self.games)
        if self.queries is None and self.sampled_queries is None and self.tokens is None and not own:
            raise BadInput("a comparison needs a budget; give --queries, or --tokens for language models")
        if self.seed + self.seeds > TUNING_SEEDS_FROM:
            raise BadInput(f"seeds must stay below {TUNING_SEEDS_FROM:,}: those from there on are for tuning")
        if self.cluster is not None and self.jobs != 1:
            raise BadInput("give --jobs or --cluster, not both: a cluster uses all its processors")
