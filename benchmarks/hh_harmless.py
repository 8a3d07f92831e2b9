"""Nash-MP and Online DPO on real preferences: the test split of HH-RLHF's harmless-base, end to end on a CPU.

The rows are split by their opening question into two halves and a test part that nothing is fitted to. A BPE
tokenizer learns from the first half; a small Llama is fitted to the chosen responses of both halves; judge A is
fitted to the preferences of the first half and judge B to those of the second, both starting from the Llama's
weights. Solvers then train against judge A, and judge B, which they never met, has its say beside it.

The rows are offensive by design: this script prints numbers and never a row, and asks training for no samples.
The two prompt files that training needs lie in the work folder and nowhere else. An interrupted run goes on where
it stopped when it is started again.

    python benchmarks/hh_harmless.py --work runs/hh_harmless
    python benchmarks/hh_harmless.py --work runs/hh_harmless --solver nash_mp --steps 200
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput

FILE = "hh_harmless_test.jsonl.gz"
TURN = "\n\nHuman:"
TEMPLATE = "{prompt}{first}\n\nOther:{second}\n\nBetter:"
MAX_PROMPT, MAX_RESPONSE = 96, 48
MAX_JUDGED = MAX_PROMPT + 2 * MAX_RESPONSE + 16
SOLVERS = ("nash_mp", "online_dpo")

Pair = tuple[str, str, str]


@attrs.frozen
class Parts:
    """(prompt, chosen, rejected) rows; no opening question occurs in two of the three."""

    first: list[Pair]
    second: list[Pair]
    test: list[Pair]


# --- data


def data_file() -> Path:
    folder = os.environ.get("NLHF_ZOO_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    file = Path(folder) / FILE
    if not file.is_file():
        raise BadInput(f"no {FILE} in {folder}; set NLHF_ZOO_DATA to the folder that holds it")
    return file


def read_parts(file: Path, seed: int, test_share: float) -> Parts:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    openings = list(dict.fromkeys(opening(row["prompt"]) for row in rows))
    order = torch.randperm(len(openings), generator=torch.Generator().manual_seed(seed)).tolist()
    test = round(test_share * len(openings))
    half = test + (len(openings) - test) // 2
    place = {openings[index]: rank for rank, index in enumerate(order)}
    parts = Parts([], [], [])
    for row in rows:
        rank = place[opening(row["prompt"])]
        part = parts.test if rank < test else parts.first if rank < half else parts.second
        part.append((row["prompt"], row["chosen"], row["rejected"]))
    return parts


def opening(prompt: str) -> str:
    return prompt.split("\n\nAssistant:", 1)[0]


def shortened(pairs: Sequence[Pair], tokenizer: Any) -> list[Pair]:
    """The last turns that fit, the last of them cut from the left if need be; responses cut at their end."""

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(text: str) -> str:
        turns = text.split(TURN)[1:]
        kept = TURN + turns.pop()
        while turns and count(TURN + turns[-1] + kept) < MAX_PROMPT:
            kept = TURN + turns.pop() + kept
        return last_tokens(kept, tokenizer, MAX_PROMPT - 1)

    return [(prompt(x), *(first_tokens(y, tokenizer, MAX_RESPONSE) for y in ys)) for x, *ys in pairs]  # type: ignore[misc]  # two responses


def first_tokens(text: str, tokenizer: Any, limit: int) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def last_tokens(text: str, tokenizer: Any, limit: int) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= limit else text[offsets[-limit][0] :]


# --- the three fits


def fit_models(parts: Parts, args: argparse.Namespace) -> dict[str, Any]:
    """Fit tokenizer, language model and judges, save them under --work, and return what was measured."""
    from nlhf_zoo.llm.folders import save_folder
    from nlhf_zoo.llm.small_models import small_llama, train_bpe_tokenizer
    from nlhf_zoo.training.supervised import fit_language_model

    tokenizer = train_bpe_tokenizer((text for row in parts.first for text in row), args.vocabulary)
    cut = Parts(*(shortened(part, tokenizer) for part in (parts.first, parts.second, parts.test)))
    write_prompts(args.work / "prompts.jsonl", cut.first + cut.second)
    write_prompts(args.work / "eval_prompts.jsonl", cut.test)
    model = small_llama(tokenizer, hidden=args.hidden, layers=args.layers, heads=args.heads, seed=args.seed)
    language = fit_language_model(
        model,
        tokenizer,
        [(x, chosen) for x, chosen, _ in cut.first + cut.second],
        epochs=args.language_epochs,
        held_out=[(x, chosen) for x, chosen, _ in cut.test],
        learning_rate=args.language_rate,
        weight_decay=0.1,
        max_length=MAX_PROMPT + MAX_RESPONSE,
        max_response_length=MAX_RESPONSE,
        prompt_weight=args.prompt_weight,
        seed=args.seed,
        accelerator=args.accelerator,
    )
    save_folder(args.work / "reference", model, tokenizer, {})
    measured: dict[str, Any] = {
        "rows": {name: len(part) for name, part in attrs.asdict(parts).items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "language_model": attrs.asdict(language),
        "shorter_wins": {"cut": shorter_wins(cut.test), "whole": shorter_wins(parts.test)},
    }
    for name, pairs, seed in (("judge_a", cut.first, args.seed + 1), ("judge_b", cut.second, args.seed + 2)):
        measured[name] = fit_judge(args, name, model, tokenizer, pairs, cut.test, seed)
    return measured


def fit_judge(
    args: argparse.Namespace, name: str, model: Any, tokenizer: Any, pairs: list[Pair], test: list[Pair], seed: int
) -> dict[str, Any]:
    from nlhf_zoo.llm.small_models import judge_from
    from nlhf_zoo.oracles import PairwiseModelOracle
    from nlhf_zoo.oracles.audit import audit
    from nlhf_zoo.training.supervised import fit_preference_model

    judge = judge_from(model, seed=seed, dropout=args.judge_dropout)
    metrics = fit_preference_model(
        judge,
        tokenizer,
        pairs,
        epochs=args.judge_epochs,
        held_out=test,
        learning_rate=args.judge_rate,
        weight_decay=0.1,
        max_length=MAX_JUDGED,
        template=TEMPLATE,
        seed=seed,
        accelerator=args.accelerator,
    )
    oracle = PairwiseModelOracle(judge, tokenizer, template=TEMPLATE, max_length=MAX_JUDGED)
    oracle.save(args.work / name)
    prompts, chosen, rejected = (list(column) for column in zip(*test, strict=True))
    found = audit(oracle, prompts, chosen, rejected, [1] * len(test))
    return {**attrs.asdict(metrics), "audit": attrs.asdict(found), "warnings": list(found.warnings)}


def shorter_wins(pairs: Sequence[Pair]) -> float:
    """Accuracy of the rule "the shorter response is the better one", ties counting half: the bar to clear."""
    wins = sum(1.0 if len(a) < len(b) else 0.5 if len(a) == len(b) else 0.0 for _, a, b in pairs)
    return wins / len(pairs)


# --- training against judge A


def training_config(solver: str, args: argparse.Namespace) -> Any:
    from nlhf_zoo.training.config import TrainConfig

    return TrainConfig(
        model=str(args.work / "reference"),
        prompts=str(args.work / "prompts.jsonl"),
        eval_prompts=str(args.work / "eval_prompts.jsonl"),
        oracle="pairwise_model",
        oracle_options={"path": str(args.work / "judge_a")},
        eval_oracle="pairwise_model",
        eval_oracle_options={"path": str(args.work / "judge_b")},
        solver=solver,
        beta=args.beta,
        steps=args.steps,
        batch_size=16,
        num_samples=4,
        max_prompt_tokens=MAX_PROMPT,
        max_new_tokens=MAX_RESPONSE,
        learning_rate=args.rate,
        warmup_steps=min(10, args.steps),
        accelerator=args.accelerator,
        show_samples=0,
        logger="csv",
        seed=args.seed,
        out=args.work / solver,
        resume=True,
    )


def run_training(solver: str, args: argparse.Namespace) -> dict[str, Any]:
    """Write the settings of one solver as YAML, for `nlhf-zoo train --config`, train, and return its figures."""
    import yaml

    from nlhf_zoo.training.run import train

    config = training_config(solver, args)
    values = {name: str(v) if isinstance(v, Path) else v for name, v in attrs.asdict(config).items()}
    write_text(args.work / f"{solver}.yaml", yaml.safe_dump(values, sort_keys=False))
    return train(config)


# --- what is written


def report(measured: dict[str, Any]) -> str:
    """The figures as markdown."""
    language, rows = measured["language_model"], measured["rows"]
    lines = [
        "# HH-RLHF harmless-base (test split), small models from nothing",
        "",
        f"Rows: {rows['first']} and {rows['second']} in the halves, {rows['test']} held out of every fit."
        f" Llama of {measured['parameters']:,} parameters, {measured['vocabulary']:,} tokens;"
        f" held-out perplexity {language['held_out_perplexity']:.1f} a response token"
        f" ({language['steps']} steps, {language['seconds']:.0f} s).",
        "",
        "| judge | held-out accuracy | 95 % interval | nats a pair (a coin: 0.693) | mean distance from 1/2 | fit, s |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("judge_a", "judge_b"):
        m = measured[name]
        low, high = m["accuracy_interval"]
        lines.append(
            f"| {name[-1].upper()} | {m['accuracy']:.1%} | {low:.1%} to {high:.1%} | {m['held_out_loss']:.3f}"
            f" | {m['audit']['decisiveness']:.3f} | {m['seconds']:.0f} |"
        )
    shorter = measured["shorter_wins"]
    lines += [
        "",
        f'For comparison, the rule "the shorter response wins": {shorter["whole"]:.1%} on whole responses,'
        f" {shorter['cut']:.1%} on responses cut to {MAX_RESPONSE} tokens, as the judges read them.",
    ]
    if measured.get("solvers"):
        lines += ["", "Win rates against the reference on the held-out prompts, with 95 % intervals:", ""]
        lines += ["| solver | steps | judge A (trained against) | judge B | KL to the reference | tokens | train, s |"]
        lines += ["|---|---|---|---|---|---|---|"]
        lines += [_solver_row(name, m) for name, m in measured["solvers"].items()]
    return "\n".join(lines) + "\n"


def _solver_row(name: str, m: dict[str, Any]) -> str:
    rates = [
        f"{found['mean']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"
        for found in (m["win_rate"]["training"], m["win_rate"]["held_out"])
    ]
    return (
        f"| {name} | {m['steps']} | {rates[0]} | {rates[1]} | {m['kl_to_reference']['mean']:.2f}"
        f" | {m['length']:.1f} (reference {m['reference_length']:.1f}) | {m['seconds']:.0f} |"
    )


def write_prompts(path: Path, pairs: Sequence[Pair]) -> None:
    write_text(path, "".join(json.dumps({"prompt": x}) + "\n" for x in dict.fromkeys(x for x, _, _ in pairs)))


def parser() -> argparse.ArgumentParser:
    described = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = described.add_argument
    add("--work", type=Path, required=True, help="folder for models, settings and figures")
    add("--seed", type=int, default=0)
    add("--test-share", type=float, default=0.2, help="share of the opening questions that nothing is fitted to")
    add(
        "--solver",
        action="append",
        choices=SOLVERS,
        help=f"train with this one; may be repeated (default: {', '.join(SOLVERS)})",
    )
    add("--fit-only", action="store_true", help="stop after the three fits")
    add("--refit", action="store_true", help="fit anew where --work already holds models")
    add("--accelerator", default="cpu", help="as Lightning's")
    add("--vocabulary", type=int, default=2048)
    add("--hidden", type=int, default=128)
    add("--layers", type=int, default=4)
    add("--heads", type=int, default=4)
    add("--language-epochs", type=int, default=6)
    add("--language-rate", type=float, default=3e-3)
    add("--prompt-weight", type=float, default=0.5, help="of a prompt token in the language model's loss")
    add("--judge-epochs", type=int, default=3)
    add("--judge-rate", type=float, default=3e-4)
    add("--judge-dropout", type=float, default=0.1)
    add("--steps", type=int, default=100, help="training batches of a solver")
    add("--rate", type=float, default=5e-4, help="learning rate of a solver")
    add("--beta", type=float, default=1e-2)
    return described


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        args.work.mkdir(parents=True, exist_ok=True)
        models = args.work / "models.json"
        if args.refit or not models.is_file():
            parts = read_parts(data_file(), args.seed, args.test_share)
            # What was trained against other models must not be resumed.
            for solver in SOLVERS:
                shutil.rmtree(args.work / solver, ignore_errors=True)
            write_text(models, json.dumps(fit_models(parts, args), indent=2))
        measured = json.loads(models.read_text())
        measured["solvers"] = {}
        for solver in () if args.fit_only else args.solver or SOLVERS:
            measured["solvers"][solver] = run_training(solver, args)
    except BadInput as error:
        print(f"hh_harmless: {error}", file=sys.stderr)
        return 2
    write_text(args.work / "results.json", json.dumps(measured, indent=2) + "\n")
    write_text(args.work / "results.md", report(measured))
    print(report(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
