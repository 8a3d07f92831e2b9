"""Adaptive Nash-MP against the fixed step eta = 2 beta: queries to a duality gap of 1e-10, rejected steps counted.

First the games that the choice of the step is for (random, Y = 1000, beta = 0.01), then every kind of matrix of the
conformance kit, where it must never cost much more. Queries are counted by the oracle; nothing here is a timing.

python -m benchmarks adaptive
python -m benchmarks adaptive --sizes 100 --seeds 3 --examples 50
python -m benchmarks adaptive --language-model     the same solver on a small language model, instead
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import torch

import nlhf_zoo as nz
from nlhf_zoo.registry import lookup
from nlhf_zoo.testing import strategies
from nlhf_zoo.testing.case import Case

TOLERANCE = 1e-10
MOST = 200_000


def queries(game: nz.Game, solver: str) -> int | None:
    """Queries until the gap is at most 1e-10; `None` where 200,000 are not enough."""
    assert isinstance(game.reference, nz.TabularPolicy)
    result = nz.solve(game, solver, queries=MOST, tol=TOLERANCE, target=game.reference)  # no distance is wanted
    return result.queries.total if result.converged else None


def large(size: int, beta: float, seeds: int) -> None:
    print(f"\n{'game':<12}{'Y':>6}{'beta':>8}{'fixed':>9}{'adaptive':>10}{'ratio':>8}   (medians of {seeds} seeds)")
    for name in ("random", "low_rank", "bradley_terry"):
        pairs = []
        for seed in range(seeds):
            game = nz.Game(lookup("games", name)(seed=seed, responses=size), beta=beta)
            fixed, adaptive = queries(game, "nash_mp"), queries(game, "adaptive_nash_mp")
            if fixed is None or adaptive is None:
                raise SystemExit(f"{name}, seed {seed}: gap 1e-10 not reached in {MOST} queries")
            pairs.append((fixed, adaptive))
        ratios = [a / f for f, a in pairs]
        fixed, adaptive = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{name:<12}{size:>6}{beta:>8g}{fixed:>9g}{adaptive:>10g}{statistics.median(ratios):>8.3f}   {spread}")


def kinds(examples: int, seed: int) -> None:
    print(f"\n{'kind':<20}{'games':>6}{'median':>8}{'worst':>8}{'over 1.3':>10}   ratio of queries, adaptive / fixed")
    for kind in strategies.KINDS:
        ratios = _ratios(kind, examples, seed)
        values = [ratio for ratio, _ in ratios]
        worst, where = max(ratios, key=lambda pair: pair[0])
        over = sum(value > 1.3 for value in values)
        print(f"{kind:<20}{len(values):>6}{statistics.median(values):>8.3f}{worst:>8.3f}{over:>10}", flush=True)
        if worst > 1.3:
            print(f"    worst: {where}")


def _ratios(kind: str, examples: int, seed: int) -> list[tuple[float, Case]]:
    found: list[tuple[float, Case]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategies.cases(kinds=(kind,), low=1e-3, high=10, steps=1))
    def compare(case: Case) -> None:
        fixed = queries(case.game(), "nash_mp")
        adaptive = queries(case.game(), "adaptive_nash_mp")
        if fixed and adaptive is not None:
            found.append((adaptive / fixed, case))

    compare()
    return found


def classes(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """A judge of which third of the alphabet's codes a text is made of: each beats the next, and the first is liked."""
    sides = [[[sum(ord(c) % 3 == i for c in text) for i in range(3)] for text in side] for side in (first, second)]
    counts = [torch.tensor(side, dtype=torch.float64) + 0.1 for side in sides]
    mine, theirs = (count / count.sum(-1, keepdim=True) for count in counts)
    cycle = (mine * theirs.roll(-1, -1)).sum(-1) - (theirs * mine.roll(-1, -1)).sum(-1)
    return torch.sigmoid(3 * (mine - theirs)[:, 0] + 2 * cycle).tolist()


def language_model(batches: int, inner: int, seeds: int) -> None:
    """Steps chosen on a small language model, beside Nash-MP's literal form with the papers' fixed step of 0.1."""
    from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
    from nlhf_zoo.training.config import TrainConfig
    from nlhf_zoo.training.run import train

    print(f"{'solver':<20}{'inner':>6}{'seed':>5}{'win rate':>10}{'KL':>8}   the step, in order (first, ..., last)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = byte_tokenizer()
        small_llama(tokenizer, hidden=64, layers=2, heads=4, seed=0).save_pretrained(folder / "lm")
        tokenizer.save_pretrained(folder / "lm")
        (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"say {i}:"}) for i in range(64)))
        for seed in range(seeds):
            for solver, options in (("nash_mp", {"eta": 0.1, "kappa": None}), ("adaptive_nash_mp", {"eta": 0.1})):
                out = folder / f"{solver}-{seed}"
                common = {"beta": 0.01, "batch_size": 8, "num_samples": 4, "max_new_tokens": 8, "learning_rate": 3e-3}
                config = TrainConfig(
                    model=str(folder / "lm"),
                    prompts=str(folder / "prompts.jsonl"),
                    oracle="callable",
                    oracle_options={"function": "benchmarks.adaptive:classes"},
                    solver=solver,
                    solver_options=options,
                    out=str(out),
                    steps=batches,
                    inner_steps=inner,
                    seed=seed,
                    accelerator="cpu",
                    logger="csv",
                    eval_size=32,
                    **common,
                )
                result = train(config)
                (log,) = out.rglob("metrics.csv")
                with log.open() as file:
                    etas = [row["train/eta"] for row in csv.DictReader(file) if row.get("train/eta")]
                steps = [f"{float(eta):.3g}" for eta, _ in itertools.groupby(etas)]
                shown = "fixed 0.1" if not steps else ", ".join([*steps[:8], "...", steps[-1]])
                won, distance = result["win_rate"]["training"]["mean"], result["kl_to_reference"]["mean"]
                print(f"{solver:<20}{inner:>6}{seed:>5}{won:>10.3f}{distance:>8.3f}   {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=100, help="games of each kind of the kit")
    parser.add_argument("--seed", type=int, default=0, help="of the kit's games")
    parser.add_argument("--language-model", action="store_true", help="train a small model instead of playing tables")
    parser.add_argument("--batches", type=int, default=120, help="gradient steps of each training run")
    parser.add_argument("--inner", type=int, default=5, help="gradient steps an update")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.language_model:
        language_model(given.batches, given.inner, given.seeds)
        return
    for size in given.sizes:
        large(size, given.beta, given.seeds)
    kinds(given.examples, given.seed)


if __name__ == "__main__":
    main()
