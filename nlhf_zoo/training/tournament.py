"""Everyone against everyone: trained policies and their reference, on held-out prompts, under every judge."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.llm import CausalLMPolicy
from nlhf_zoo.llm.loading import load_causal_lm, load_tokenizer
from nlhf_zoo.llm.tokens import Decoding
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.evaluation import Answers, answer, verdicts, win_rate
from nlhf_zoo.training.judges import build_judges
from nlhf_zoo.training.prompt_sets import prompts_of
from nlhf_zoo.training.stream import PromptText

__all__ = ["REFERENCE", "play_tournament"]

REFERENCE = "reference"


def play_tournament(
    config: TrainConfig, policies: Mapping[str, str], earlier: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Win rates of every pair, and the answers that they were measured on.

    Args:
        config: of the runs; its judges, its held-out prompts, its reference.
        policies: name -> folder in transformers format; the reference is added.
        earlier: name -> samples/step=N.jsonl of a run, met by all and no contestant; one that does not hold an answer
            to every held-out prompt is left out.

    Returns:
        `rows`: row, column, judge, mean, low, high, n, both ways round and each against itself; `samples`: policy,
        prompt, text, for the first `config.show_samples` prompts; `policies`: the names, the reference first; `pool`:
        these and the earlier ones; `rows_earlier`: as `rows`, with an earlier one for column; `verdicts`: judge ->
        (policies, pool, prompts) float64 P(answer of the row > answer of the column).
    """
    tokenizer = load_tokenizer(config.tokenizer or config.model, config.trust_remote_code)
    _, held_out = prompts_of(config, tokenizer)
    decoding = Decoding(config.max_new_tokens, config.max_prompt_tokens, config.temperature)

    def loaded(folder: str) -> CausalLMPolicy:
        network = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=config.trust_remote_code)
        return CausalLMPolicy(network.eval(), tokenizer, decoding=decoding)

    reference = loaded(config.reference or config.model)
    answers: dict[str, Answers] = {}
    # One policy in memory at a time, beside the reference; each draws from a seed of its own.
    for at, (name, folder) in enumerate({REFERENCE: None, **policies}.items()):
        policy = reference if folder is None else loaded(folder)
        seed = config.seed + 101 + at
        answers[name] = answer(policy, reference, held_out, seed=seed, batch_size=config.eval_batch_size)
    samples = [
        {"policy": name, "prompt": prompt.judged, "text": text}
        for name, mine in answers.items()
        for prompt, text in list(zip(mine.prompts, mine.texts, strict=True))[: config.show_samples]
    ]
    contestants = list(answers)
    answers |= _earlier(earlier or {}, held_out)
    judged = {judge: _verdicts(oracle, answers, len(contestants)) for judge, oracle in build_judges(config).items()}
    rows, rows_earlier = [], []
    for judge, found in judged.items():
        rows += _win_rates(judge, contestants, found)
        rows_earlier += _win_rates_earlier(judge, list(answers), found)
    told = {"rows": rows, "rows_earlier": rows_earlier, "samples": samples}
    return {**told, "policies": contestants, "pool": list(answers), "verdicts": judged}


def _earlier(files: Mapping[str, Path], held_out: Sequence[PromptText]) -> dict[str, Answers]:
    found: dict[str, Answers] = {}
    for name, file in files.items():
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if [line["prompt"] for line in lines] == [prompt.judged for prompt in held_out]:
            found[name] = Answers(tuple(held_out), tuple(line["policy"] for line in lines), (), (), ())
    return found


def _verdicts(oracle: PreferenceOracle, answers: Mapping[str, Answers], contestants: int) -> np.ndarray:
    given = list(answers.values())
    found = np.full((contestants, len(given), len(given[0].texts)), 0.5)
    for one, other in itertools.product(range(contestants), range(len(given))):
        if one < other:
            found[one, other] = verdicts(oracle, given[one], given[other])
            if other < contestants:
                found[other, one] = 1 - found[one, other]
    return found


def _win_rates(judge: str, names: Sequence[str], judged: np.ndarray) -> list[dict[str, Any]]:
    count = judged.shape[-1]
    rows = [_row(name, name, judge, 0.5, 0.5, 0.5, count) for name in names]
    for one, other in itertools.combinations(range(len(names)), 2):
        found = win_rate(judged[one, other].tolist())
        rows.append(_row(names[one], names[other], judge, found.mean, found.low, found.high, count))
        rows.append(_row(names[other], names[one], judge, 1 - found.mean, 1 - found.high, 1 - found.low, count))
    return rows


def _win_rates_earlier(judge: str, pool: Sequence[str], judged: np.ndarray) -> list[dict[str, Any]]:
    contestants = len(judged)
    rows = []
    for one, other in itertools.product(range(contestants), range(contestants, len(pool))):
        found = win_rate(judged[one, other].tolist())
        rows.append(_row(pool[one], pool[other], judge, found.mean, found.low, found.high, found.samples))
    return rows


def _row(row: str, column: str, judge: str, mean: float, low: float, high: float, n: int) -> dict[str, Any]:
    return {"row": row, "column": column, "judge": judge, "mean": mean, "low": low, "high": high, "n": n}
