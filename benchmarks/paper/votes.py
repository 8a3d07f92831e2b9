"""The llmfao votes by pair of answers, so that judges can be compared on the same answers and resampled together."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping

import attrs
import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.real_matrices import data_file

__all__ = ["Votes", "read_votes"]

Floats = NDArray[np.float64]

_FOR_THE_FIRST = {"left": 1.0, "right": 0.0, "tie": 0.5}


@attrs.frozen(eq=False)
class Votes:
    """N pairs of answers to the same prompt that every judge has seen.

    Attributes:
        labels: Y names of models.
        pairs: (N, 2) which two models answered.
        ballots: judge -> for each pair the votes for its first answer, 1, 0 or 1/2 each.
    """

    labels: tuple[str, ...]
    pairs: NDArray[np.int64]
    ballots: Mapping[str, list[list[float]]]

    def wins(self, judge: str, times: NDArray[np.int64]) -> Floats:
        """(Y, Y) win counts, each pair of answers taken so many times (N,)."""
        won: Floats = np.array([sum(votes) for votes in self.ballots[judge]], dtype=np.float64)
        cast: Floats = np.array([len(votes) for votes in self.ballots[judge]], dtype=np.float64)
        taken = times.astype(np.float64)
        return self._table(won * taken, cast * taken)

    def halves(self, judge: str, times: NDArray[np.int64], generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Two tables of one vote a pair, by different voters: how far a judge agrees with its own kind."""
        chosen = np.array([
            generator.choice(votes, size=2, replace=False) if len(votes) > 1 else (np.nan, np.nan)
            for votes in self.ballots[judge]
        ])  # fmt: skip
        kept = np.where(np.isnan(chosen[:, 0]), 0.0, times)
        first, second = np.nan_to_num(chosen).T
        return self._table(first * kept, kept), self._table(second * kept, kept)

    def core(self) -> Votes:
        """The votes among models that all met one another: those that met most, each kept if it met all before it."""
        size = len(self.labels)
        met = np.zeros((size, size), dtype=bool)
        met[self.pairs[:, 0], self.pairs[:, 1]] = met[self.pairs[:, 1], self.pairs[:, 0]] = True
        kept: list[int] = []
        for model in np.argsort(-met.sum(1), kind="stable"):
            if met[model, kept].all():
                kept.append(int(model))
        place = {model: at for at, model in enumerate(sorted(kept))}
        inside = [at for at, pair in enumerate(self.pairs) if place.keys() >= {*map(int, pair)}]
        return Votes(
            tuple(self.labels[model] for model in place),
            np.array([[place[int(model)] for model in self.pairs[at]] for at in inside]),
            {judge: [ballots[at] for at in inside] for judge, ballots in self.ballots.items()},
        )

    def _table(self, won: Floats, cast: Floats) -> Floats:
        table = np.zeros((len(self.labels), len(self.labels)))
        np.add.at(table, (self.pairs[:, 0], self.pairs[:, 1]), won)
        np.add.at(table, (self.pairs[:, 1], self.pairs[:, 0]), cast - won)
        return table


def read_votes(judges: tuple[str, ...]) -> Votes:
    """The pairs of answers that all of `judges` have voted on.

    Raises:
        BadInput: the files are not there.
    """
    with gzip.open(data_file("llmfao_responses.jsonl.gz"), "rt", encoding="utf-8") as file:
        names = {row["model_id"]: row["model"] for row in map(json.loads, file)}
    seen: dict[str, dict[tuple[int, int, int], list[float]]] = {judge: {} for judge in judges}
    with gzip.open(data_file("llmfao_votes.csv.gz"), "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["judge"] not in seen:
                continue
            x, y, vote = int(row["model_x"]), int(row["model_y"]), _FOR_THE_FIRST[row["winner"]]
            key = (int(row["prompt_id"]), min(x, y), max(x, y))
            seen[row["judge"]].setdefault(key, []).append(vote if x < y else 1 - vote)
    common = sorted(set.intersection(*(set(of) for of in seen.values())))
    models = sorted({model for _, *both in common for model in both})
    place = {model: at for at, model in enumerate(models)}
    return Votes(
        tuple(names[model] for model in models),
        np.array([[place[first], place[second]] for _, first, second in common]),
        {judge: [of[key] for key in common] for judge, of in seen.items()},
    )
