"""How often a training's warnings are false, and how often and how soon they see what they are for.

Healthy runs (solvers x judges x seeds) count false alarms; runs made ill on purpose count hits. A run's numbers are
kept in --out, one file a run, so that the rules can be asked again without training again:

python -m benchmarks training_warnings --out DIR --first 100 --seeds 4
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import math
import random
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.training.watching.history import History
from nlhf_zoo.training.watching.signatures import RULES, Limits

STEPS = 60

Texts = Sequence[str]


def _sigmoid(gaps: Sequence[float]) -> list[float]:
    return [1 / (1 + math.exp(-max(-50.0, min(50.0, gap)))) for gap in gaps]


def _share(text: str) -> float:
    return sum("a" <= c <= "p" for c in text.lower()) / max(1, len(text))


def share(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """Prefers a larger share of the letters a to p: length does not count."""
    return _sigmoid([6 * (_share(a) - _share(b)) for a, b in zip(first, second, strict=True)])


def _kind(text: str) -> int:
    """0 for most first characters of an untrained model, 1 for a small letter, 2 for a capital or a digit."""
    first = text[:1]
    return 1 if "a" <= first <= "z" else 2 if first and first in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" else 0


def cyclic(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """1 beats 0, 2 beats 1, 0 beats 2: no answer is best."""
    gaps = [(_kind(a) - _kind(b) + 1) % 3 - 1 for a, b in zip(first, second, strict=True)]
    return [0.5 + 0.4 * gap for gap in gaps]


def sure(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """A judge without doubts: 0.95 for whoever has the larger share of letters, ties 1/2."""
    return [
        0.5 + 0.45 * ((_share(a) > _share(b)) - (_share(a) < _share(b))) for a, b in zip(first, second, strict=True)
    ]


def rare(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """A judge that seldom decides: for whoever begins with one of ten characters where the other does not."""
    good = [[text[:1] in tuple("abcdefghij") for text in side] for side in (first, second)]
    return [0.5 + 0.5 * (a - b) for a, b in zip(*good, strict=True)]


def _noise(size: float, prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """1/2 and noise that depends on the texts alone, and changes its sign with their order."""
    found = []
    for prompt, a, b in zip(prompts, first, second, strict=True):
        low, high = sorted((a, b))
        digest = hashlib.sha256(f"{prompt}\0{low}\0{high}".encode()).digest()
        drawn = size * (2 * int.from_bytes(digest[:4], "big") / 2**32 - 1)
        found.append(0.5 if a == b else 0.5 + (drawn if a == low else -drawn))
    return found


def even(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    return _noise(0.01, prompts, first, second)


def random_taste(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    return _noise(0.3, prompts, first, second)


def tosses(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    """Says something else whenever it is asked."""
    return [0.5 + random.uniform(-0.3, 0.3) for _ in first]


def longer(prompts: Texts, first: Texts, second: Texts) -> list[float]:
    return _sigmoid([float(len(a) - len(b)) for a, b in zip(first, second, strict=True)])


@attrs.frozen
class Case:
    """Runs of a kind: what they are trained with, and the warning that they ought to raise, if any."""

    name: str
    judge: str
    changes: Mapping[str, Any]
    expected: str | None = None


_SOLVERS: Mapping[str, Mapping[str, Any]] = {
    "nash_mp": {"solver_options": {"eta": 0.1, "kappa": 0.1}},
    "nash_md": {},
    "online_dpo": {},
}

HEALTHY = [
    Case(f"{solver}, {judge}", judge, {"solver": solver, **options})
    for solver, options in _SOLVERS.items()
    for judge in ("share", "cyclic", "sure", "rare")
]

_FAST = {"beta": 1e-6, "learning_rate": 1e-2}

ILL = [
    Case("beta of 10,000", "share", {"beta": 1e4, "learning_rate": 1e-4}, "collapse to the reference"),
    Case("learning rate of 1e-7", "share", {"learning_rate": 1e-7}, "collapse to the reference"),
    Case(
        "kappa of 1, no pull, a cycle",
        "cyclic",
        {**_FAST, "learning_rate": 3e-2, "solver_options": {"eta": 1.0, "kappa": 1.0}},
        "oscillation",
    ),
    Case("online_ipo, no pull, a cycle", "cyclic", {**_FAST, "solver": "online_ipo", "beta": 1e-2}, "oscillation"),
    Case("1/2 and noise of 0.01", "even", {}, "weak oracle"),
    Case("a taste of 1/2 and noise of 0.3", "random_taste", {}, "weak oracle"),
    Case("1/2 and noise of 0.3, anew each time", "tosses", {}, "weak oracle"),
    Case("pays for length", "longer", {}, "length exploitation"),
    Case("pays for length, online_dpo", "longer", {"solver": "online_dpo"}, "length exploitation"),
    Case("no pull", "share", {**_FAST, "learning_rate": 3e-2}, "entropy collapse"),
    Case(
        "no pull, online_dpo",
        "share",
        {"solver": "online_dpo", "beta": 1e-3, "learning_rate": 3e-2},
        "entropy collapse",
    ),
]


def model(folder: Path, seed: int) -> None:
    """A small Llama whose answers end after a few tokens, most before the limit."""
    import torch

    from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama

    if (folder / "lm").exists():
        return
    tokenizer = byte_tokenizer()
    network = small_llama(tokenizer, hidden=24, layers=1, heads=2, seed=seed)
    with torch.no_grad():
        asked: Any = tokenizer("say 1:ab", return_tensors="pt")
        state = network.model(asked.input_ids).last_hidden_state[0].mean(0)
        assert tokenizer.eos_token_id == 2
        network.lm_head.weight[2] = 2.8 * state / state.square().sum()
    tokenizer.save_pretrained(folder / "lm")
    network.save_pretrained(folder / "lm")
    rows = [json.dumps({"prompt": f"say {i}:"}) for i in range(96)]
    (folder / "prompts.jsonl").write_text("\n".join(rows), encoding="utf-8")


def trained(case: Case, seed: int, folder: Path) -> tuple[History, list[str]]:
    """The numbers of one run, from its file or by training, and what the audit at its start has warned of."""
    import torch

    from nlhf_zoo.training.checkpoints import newest_checkpoint
    from nlhf_zoo.training.config import TrainConfig
    from nlhf_zoo.training.run import train
    from nlhf_zoo.training.watching.watcher import read_warnings

    kept = folder / f"{case.name}, seed {seed}.json".replace("/", " of ")
    if not kept.exists():
        base, out = folder / f"model_{seed}", folder / "run"
        base.mkdir(parents=True, exist_ok=True)
        model(base, seed)
        shutil.rmtree(out, ignore_errors=True)
        settings: dict[str, Any] = {
            "model": str(base / "lm"),
            "prompts": str(base / "prompts.jsonl"),
            "oracle": "callable",
            "oracle_options": {"function": f"benchmarks.training_warnings:{case.judge}"},
            "out": out,
            "steps": STEPS,
            "batch_size": 4,
            "num_samples": 4,
            "beta": 0.05,
            "max_new_tokens": 12,
            "learning_rate": 2e-3,
            "accelerator": "cpu",
            "eval_every": 10,
            "eval_size": 32,
            "eval_batch_size": 32,
            "checkpoint_every": STEPS,
            "logger": "none",
            "progress": False,
            "show_samples": 0,
            "seed": seed,
            **case.changes,
        }
        with contextlib.redirect_stderr(io.StringIO()):
            train(TrainConfig(**settings))
        last = newest_checkpoint(out)
        assert last is not None
        state = torch.load(last, weights_only=True)["callbacks"]
        numbers = {name: state["Watcher"][name] for name in ("training", "evaluations", "start")}
        audited = [warned.signature for warned in read_warnings(out / "warnings.jsonl") if warned.step == 0]
        kept.write_text(json.dumps({**numbers, "audited": audited}), encoding="utf-8")
    rows = json.loads(kept.read_text(encoding="utf-8"))
    return History(rows["training"], rows["evaluations"], STEPS, rows["start"]), rows["audited"]


def alarms(history: History, audited: Sequence[str], limits: Limits) -> dict[str, int]:
    """The step of each signature's first warning, asked when a run's watcher asks."""
    found = dict.fromkeys(audited, 0)
    for past in _prefixes(history):
        for name, rule in RULES.items():
            if name not in found and rule(past, limits) is not None:
                found[name] = int(past.training[-1]["step"])
    return found


def _prefixes(history: History) -> Iterator[History]:
    evaluated = {int(row["step"]) for row in history.evaluations}
    for step in range(1, history.steps + 1):
        if step % max(1, history.window // 4) and step not in evaluated:
            continue
        evaluations = [row for row in history.evaluations if row["step"] <= step]
        yield attrs.evolve(history, training=history.training[:step], evaluations=evaluations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of what the runs have measured")
    parser.add_argument("--first", type=int, default=100, help="the first seed; the limits were looked at on seed 0")
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    seeds, limits = range(given.first, given.first + given.seeds), Limits()
    raised: dict[str, list[dict[str, int]]] = {}
    for seed in seeds:
        for case in (*HEALTHY, *ILL):
            raised.setdefault(case.name, []).append(alarms(*trained(case, seed, given.out), limits))
            print(f"# seed {seed}, {case.name}: {raised[case.name][-1]}", flush=True)
    _show(raised, len(seeds))


def _show(raised: Mapping[str, Sequence[Mapping[str, int]]], seeds: int) -> None:
    healthy = [run for case in HEALTHY for run in raised[case.name]]
    print("\n| warning | false, of healthy runs |\n| --- | --- |")
    for name in RULES:
        print(f"| {name} | {sum(name in run for run in healthy)} of {len(healthy)} |")
    print(f"| any | {sum(bool(run) for run in healthy)} of {len(healthy)} |")
    print(
        f"\n| made ill by | warning | seen | at step, of {STEPS} (median) | others |\n| --- | --- | --- | --- | --- |"
    )
    for case in ILL:
        runs = raised[case.name]
        steps = [run[str(case.expected)] for run in runs if case.expected in run]
        when = f"{statistics.median(steps):g}" if steps else "-"
        others = sorted({name for run in runs for name in run} - {str(case.expected)})
        counted = ", ".join(f"{name} {sum(name in run for run in runs)}" for name in others) or "none"
        print(f"| {case.name} | {case.expected} | {len(steps)} of {seeds} | {when} | {counted} |")


if __name__ == "__main__":
    main()
