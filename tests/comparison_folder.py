"""Folders of comparisons for tests of their report: real runs of real solvers, written by the agreed schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

import nlhf_zoo as nz
from nlhf_zoo.comparison.claims import claimed
from nlhf_zoo.drive import configure, solve
from nlhf_zoo.interfaces import Game
from nlhf_zoo.report.convergence import METRICS

Solvers = Mapping[str, tuple[str, Mapping[str, Any]]]

LADDER: Solvers = {
    "nash_mp": ("nash_mp", {}),
    "nash_md eta=0.5": ("nash_md", {"eta": 0.5}),
    "online_ipo eta=0.5": ("online_ipo", {"eta": 0.5}),
}


def random_game(seed: int = 0, responses: int = 6, beta: float = 0.1) -> Game:
    generator = torch.Generator().manual_seed(seed)
    upper = torch.rand(responses, responses, generator=generator, dtype=torch.float64).triu(1)
    matrix = upper + (1 - upper).mT.tril(-1)
    matrix.fill_diagonal_(0.5)
    labels = tuple(f"answer {chr(97 + at)}" for at in range(responses))
    oracle = nz.MatrixOracle(matrix, labels=labels)
    return Game(oracle, oracle.uniform_policy(), beta=beta)


def build(
    folder: Path,
    games: Mapping[str, Game],
    solvers: Solvers = LADDER,
    seeds: Sequence[int] = (0, 1),
    queries: int = 40,
    every: int = 1,
    wins: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Play, and write config, environment, results, games and summary.

    Args:
        games: label to game.
        solvers: label to registered name and hyperparameters.
        wins: label of a game to its (Y, Y) counts, where it came from counts.
    """
    (folder / "games").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    told = {}
    for at, (label, game) in enumerate(games.items()):
        target = nz.equilibrium(game)
        counts = (wins or {}).get(label)
        _write_game(folder / "games" / f"game-{at}.npz", label, game, target, counts)
        played = [row for name in solvers for row in _play(label, game, name, solvers, seeds, queries, every, target)]
        rows += played
        told[label] = _summary(label, game, played, solvers, seeds, queries, counts, target)
    tuning = {**rows[0], "role": "tuning", "seed": 1000}
    pq.write_table(pa.Table.from_pylist([*rows, tuning]), folder / "results.parquet")
    overall = {
        "ranks": {name: {"mean": 1.0 + i, "low": 1.0, "high": 2.0 + i} for i, name in enumerate(solvers)},
        "best": list(solvers)[:1],
        "verdict": f"{next(iter(solvers))} is ahead over {len(games)} game(s)",
    }
    command = "nlhf-zoo compare --game " + " --game ".join(games) + " --token abcdef123"
    cells = len(games) * len(solvers) * len(seeds)
    summary = {
        "command": command,
        "partial": False,
        "cells": {"planned": cells, "done": cells, "failed": 0},
        "games": told,
        "overall": overall,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump({"queries": queries, "seeds": len(seeds)}))
    environment = {"versions": {"nlhf-zoo": "0.1.0", "torch": torch.__version__}, "device": "cpu", "commit": "0123abc"}
    (folder / "environment.json").write_text(json.dumps({**environment, "command": command}))
    return folder


def _write_game(path: Path, label: str, game: Game, target: Any, counts: np.ndarray | None) -> None:
    oracle: Any = game.oracle
    arrays = {
        "P": oracle.matrix().numpy(),
        "labels": np.array(oracle.labels or [f"response {i}" for i in range(oracle.matrix().shape[-1])]),
        "reference": game.reference.log_probs.numpy(),  # type: ignore[attr-defined]  # a table
        "equilibrium": target.log_probs.numpy(),
        "beta": np.array(game.beta),
        "kind": np.array("exact"),
        "label": np.array(label),
    }
    if counts is not None:
        arrays["wins"] = counts
    np.savez(path, **arrays)


def _play(
    label: str, game: Game, solver: str, solvers: Solvers, seeds: Sequence[int], queries: int, every: int, target: Any
) -> list[dict[str, Any]]:
    name, options = solvers[solver]
    made, rows = configure(name, **options), []
    for seed in seeds:
        # Another start for each seed: an exact game has nothing else that is random.
        noise = torch.randn(len(target.log_probs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        start = nz.TabularPolicy((game.reference.log_probs + 0.3 * noise).log_softmax(-1))  # type: ignore[attr-defined]
        result = solve(game, made, queries=queries, seed=seed, target=target, policy=start, every=every)
        bounds = claimed(made, game, result.history)
        rows += [
            {
                "game": label, "solver": solver, "entry": solver, "name": name, "options": json.dumps(options),
                "seed": seed, "role": "run", "step": row["step"], "queries": row["queries"], "tokens": 0,
                "seconds": row["seconds"], "metric": metric, "value": row[metric],
                "bound": bounds[metric][at] if metric in bounds else None, "cell": f"{label}/{solver}/{seed}",
            }
            for at, row in enumerate(result.history) if row["queries"] <= queries
            for metric in METRICS
        ]  # fmt: skip
    return rows


def _summary(
    label: str, game: Game, rows: Sequence[Mapping[str, Any]], solvers: Solvers, seeds: Sequence[int], queries: int,
    counts: np.ndarray | None, target: Any,
) -> dict[str, Any]:  # fmt: skip
    table = []
    for at, (solver, (name, options)) in enumerate(solvers.items()):
        mine = [row for row in rows if row["solver"] == solver]
        final = {}
        for metric in METRICS:
            last = {row["seed"]: row["value"] for row in mine if row["metric"] == metric}
            low, median, high = quantiles([*last.values(), *last.values()], n=4)
            final[metric] = {"median": median, "low": low, "high": high}
        gaps = [row for row in mine if row["metric"] == "duality_gap"]
        to = {
            name: next((row["queries"] for row in gaps if row["value"] <= float(name)), None)
            for name in ("1e-2", "1e-4", "1e-6")
        }
        table.append(
            {
                "solver": solver, "entry": solver, "name": name, "options": dict(options), "runs": len(seeds),
                "failed": 0, "errors": [], "queries": queries, "tokens": 0, "seconds": gaps[-1]["seconds"],
                "final": final, "queries_to": to, "best": at == 0,
                "rank": {"mean": 1.0 + at, "low": 1.0 + at / 2, "high": 2.0 + at},
                "bounds": {"points": 0, "broken": 0},
            }
        )  # fmt: skip
    best = next(iter(solvers))
    return {
        "kind": "counts" if counts is not None else "exact",
        "responses": len(target.probs), "beta": game.beta, "budget": {"queries": queries, "tokens": None},
        "seeds": list(seeds), "deterministic": False, "metric": "duality_gap", "better": "lower", "table": table,
        "best": [best], "verdict": f"{best} is ahead",
        "tuning": {
            best: {
                "points": 2, "seeds": [1000], "queries": 2 * queries, "chosen": {"eta": 0.5},
                "tried": [{"options": {"eta": 0.5}, "score": -8.1}, {"options": {"eta": 0.1}, "score": None}],
            }
        },
        "equilibrium": {"uncertainty": None if counts is None else _uncertainty(game, counts, target)},
    }  # fmt: skip


def _uncertainty(game: Game, counts: np.ndarray, target: Any, draws: int = 40) -> dict[str, Any]:
    oracle: Any = game.oracle
    generator, masses = np.random.default_rng(0), []
    n = counts + counts.T
    share = np.where(n > 0, (counts + 0.5) / (n + 1), 0.5)
    for _ in range(draws):
        upper = np.triu(generator.binomial(np.round(n).astype(int), share), 1)
        drawn = upper + np.tril((n - upper.T), -1)
        p = np.where(n > 0, (drawn + 0.5) / (n + 1), 0.5)
        np.fill_diagonal(p, 0.5)
        again = Game(nz.MatrixOracle(torch.from_numpy(p)), game.reference, beta=game.beta)
        masses.append(nz.equilibrium(again).probs.numpy())
    low, high = np.quantile(masses, [0.025, 0.975], axis=0)
    return {
        "draws": draws, "level": 0.95, "labels": list(oracle.labels), "mass": target.probs.tolist(),
        "low": low.tolist(), "high": high.tolist(), "in_support": (np.array(masses) > 1e-3).mean(0).tolist(),
    }  # fmt: skip


def add_language(folder: Path, game: str, policies: Sequence[str], text: str = "It rains.") -> None:
    """Add what a comparison on language models has beside: win rates of two judges, Nash average, samples."""
    players = [*policies, "reference"]
    generator = np.random.default_rng(0)
    rows = []
    for judge in ("training", "held_out"):
        for i, one in enumerate(players):
            for other in players[i + 1 :]:
                mean = float(generator.uniform(0.3, 0.7))
                for row, column, rate in ((one, other, mean), (other, one, 1 - mean)):
                    ends = {"mean": rate, "low": rate - 0.05, "high": rate + 0.05, "n": 400}
                    rows.append({"game": game, "row": row, "column": column, "judge": judge, **ends})
    pq.write_table(pa.Table.from_pylist(rows), folder / "win_rates.parquet")
    samples = [
        {"game": game, "policy": player, "prompt": f"Prompt {at}: what is it like?", "text": f"{text} ({player}, {at})"}
        for at in range(3)
        for player in players
    ]
    (folder / "samples.jsonl").write_text("\n".join(json.dumps(sample) for sample in samples) + "\n")
    summary = json.loads((folder / "summary.json").read_text())
    share = 1 / len(players)
    summary["games"][game]["nash_average"] = {
        judge: dict.fromkeys(players, share) for judge in ("training", "held_out")
    }
    told, span = summary["games"][game], {"value": 0.4, "low": 0.3, "high": 0.5}
    told["pool"] = {judge: _pool(told["table"], rows, judge, span) for judge in ("training", "held_out")}
    audit = {"pairs": 64, "antisymmetry_error": 0.0, "position_bias": 0.05, "order_flips": 0.1, "decisiveness": 0.2}
    told["audit"] = dict.fromkeys(("training", "held_out"), audit)
    (folder / "summary.json").write_text(json.dumps(summary))


def _pool(
    table: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], judge: str, span: Mapping[str, float]
) -> dict[str, Any]:
    found = {}
    for row in table:
        mine = [one for one in rows if one["judge"] == judge and one["row"].startswith(f"{row['solver']},")]
        found[row["solver"]] = {"mass": span, "skill": span, "weakest": min(mine, key=lambda one: one["mean"])}
    return found
