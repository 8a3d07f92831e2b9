"""The language-model part: a reference fitted to the made-up language, and policies trained from it."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from nlhf_zoo.demo import language
from nlhf_zoo.llm.policy import CausalLMPolicy
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.training.config import TrainConfig

__all__ = ["QUICK", "Fit", "Scale", "answer", "fit_reference", "train_policy", "write_prompts"]

PROMPT_TOKENS, RESPONSE_TOKENS = 40, 44
JUDGE = "nlhf_zoo.demo.language:judge"


@attrs.frozen(kw_only=True)
class Scale:
    """How much of everything; the defaults take minutes on two cores, `QUICK` is for a look at the page.

    Attributes:
        hidden, layers, heads: of the Llama.
        fit_steps, fit_batch, fit_rate: of the supervised fit.
        steps, batch, samples, rate, beta: of the training against the judge.
        held_out: prompts that are only evaluated with.
        answers: answers a held-out prompt, in the evaluation.
    """

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    fit_steps: int = 450
    fit_batch: int = 48
    fit_rate: float = 4e-3
    steps: int = 150
    batch: int = 24
    samples: int = 4
    rate: float = 3e-4
    beta: float = 0.05
    held_out: int = 72
    answers: int = 16


@attrs.frozen(kw_only=True)
class Fit:
    """What the supervised fit came to: size of the model, wall time, nats a token on prompts it never saw."""

    parameters: int
    seconds: float
    held_out_loss: float | None


QUICK = Scale(hidden=96, fit_steps=250, fit_batch=32, steps=30, batch=16, samples=2, held_out=24, answers=4)


def write_prompts(path: Path, prompts: Sequence[str]) -> Path:
    """Prompts as jsonl, one object with `prompt` a line."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), "utf-8")
    return path


def fit_reference(folder: Path, scale: Scale, prompts: Sequence[str], held_out: Sequence[str], seed: int) -> Fit:
    """Fit a small byte-level Llama to the language, and save it in transformers format."""
    from nlhf_zoo.llm.folders import save_folder
    from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
    from nlhf_zoo.training.supervised import fit_language_model

    tokenizer = byte_tokenizer()
    model = small_llama(tokenizer, hidden=scale.hidden, layers=scale.layers, heads=scale.heads, seed=seed)
    metrics = fit_language_model(
        model,
        tokenizer,
        language.examples(scale.fit_steps * scale.fit_batch, seed, prompts),
        epochs=1,
        held_out=language.examples(256, seed + 1, held_out),
        batch_size=scale.fit_batch,
        learning_rate=scale.fit_rate,
        max_length=PROMPT_TOKENS + RESPONSE_TOKENS,
        max_response_length=RESPONSE_TOKENS,
        prompt_weight=0.2,
        seed=seed,
        progress=False,
    )
    save_folder(folder, model, tokenizer, {})
    return Fit(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=metrics.seconds,
        held_out_loss=metrics.held_out_loss,
    )


def train_policy(
    solver: str, reference: Path, prompts: Path, held_out: Path, out: Path, scale: Scale, seed: int
) -> tuple[Path, list[dict[str, Any]]]:
    """Train from the reference against the judge; the policy's folder, and one row an evaluation on the way."""
    from nlhf_zoo.training.run import train

    every = max(1, scale.steps // 10)
    result = train(
        TrainConfig(
            model=str(reference),
            prompts=str(prompts),
            eval_prompts=str(held_out),
            oracle="callable",
            oracle_options={"function": JUDGE, "symmetrise": False},
            out=out,
            solver=solver,
            beta=scale.beta,
            steps=scale.steps,
            batch_size=scale.batch,
            num_samples=scale.samples,
            max_prompt_tokens=PROMPT_TOKENS,
            max_new_tokens=RESPONSE_TOKENS,
            learning_rate=scale.rate,
            warmup_steps=min(10, scale.steps),
            checkpoint_every=scale.steps,
            eval_every=every,
            logger="csv",
            seed=seed,
        )
    )
    return Path(result["policy"]), _win_rates(out / "logs" / "metrics.csv", solver, every)


def _win_rates(path: Path, solver: str, every: int) -> list[dict[str, Any]]:
    column = "eval/win_rate_training"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{**row, "step": int(row["step"]) + 1} for row in csv.DictReader(file) if row.get(column)]
    # Lightning counts a batch from 0, and repeats the last evaluation in the rows until the next one.
    rows = [row for row in rows if row["step"] % every == 0]
    # Before the first batch the policy is the reference, and meets itself.
    start = {"solver": solver, "step": 0, "win_rate": 0.5}
    return [start, *({"solver": solver, "step": row["step"], "win_rate": float(row[column])} for row in rows)]


def answer(folder: Path, prompts: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """`count` answers of the model in `folder` to each prompt."""
    decoding = Decoding(max_new_tokens=RESPONSE_TOKENS, max_prompt_tokens=PROMPT_TOKENS)
    policy = CausalLMPolicy.from_pretrained(str(folder), decoding=decoding)
    drawn = policy.sample(prompts, count, torch.Generator().manual_seed(seed))
    return [list(texts) for texts in drawn.texts]
