"""Which prompts a run trains on, which it is measured on, and what it says of them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_zoo import BadInput
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.context import remark
from nlhf_zoo.training.prompt_sets import prompts_of

PLAIN = {"model": "lm", "oracle": "o", "out": "run"}


def write(path: Path, prompts: list[Any]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return str(path)


@given(
    prompts=st.lists(st.sampled_from([*"abcdefgh"]), min_size=2, max_size=30).filter(lambda some: len({*some}) > 1),
    size=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_no_held_out_prompt_is_trained_on(prompts: list[str], size: int, seed: int, tmp_path: Path) -> None:
    config = TrainConfig(**PLAIN, prompts=write(tmp_path / "p.jsonl", prompts), eval_size=size, seed=seed)
    trained, held_out = ([p.rendered for p in some] for some in prompts_of(config, byte_tokenizer()))
    assert not {*trained} & {*held_out}
    assert len(held_out) == len({*held_out}) == min(size, len({*prompts}) // 2)
    assert sorted([*trained, *(p for p in prompts if p in held_out)]) == sorted(prompts)


def test_chats_that_are_equal_are_one(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "why?"}]
    config = TrainConfig(**PLAIN, prompts=write(tmp_path / "p.jsonl", [chat, chat]))
    with pytest.raises(BadInput, match="one prompt alone"):
        prompts_of(config, byte_tokenizer())


def said(config: TrainConfig, caplog: pytest.LogCaptureFixture, *, ends: bool = True) -> list[str]:
    tokenizer = byte_tokenizer()
    network = small_llama(tokenizer, hidden=8, layers=1, heads=2, seed=0)
    if not ends:
        tokenizer.eos_token, network.generation_config.eos_token_id = None, None
    with caplog.at_level(logging.WARNING, "nlhf_zoo.training"):
        remark(config, *prompts_of(config, tokenizer), tokenizer, network)
    return [record.getMessage() for record in caplog.records]


def test_prompts_that_are_not_used_as_one_might_think_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = write(tmp_path / "p.jsonl", ["x" * 20, "y" * 11, "z" * 10, "short"])
    config = TrainConfig(
        **PLAIN, prompts=prompts, eval_prompts=prompts, batch_size=2, max_prompt_tokens=10, max_new_tokens=6
    )
    assert said(config, caplog, ends=False) == [
        "4 of the eval_prompts are trained on too: the evaluation is not held out",
        "2 of the 4 training prompts are longer than max_prompt_tokens 10 and lose their beginning; the longest has 20"
        " tokens",
        "neither tokenizer nor model names an end-of-sequence token: every answer is max_new_tokens 6 long",
    ]


def test_a_split_that_is_smaller_than_asked_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = write(tmp_path / "p.jsonl", [*"abcdefg"])
    config = TrainConfig(**PLAIN, prompts=prompts, batch_size=4)
    assert said(config, caplog) == [
        "eval_size 64: 3 of the prompts are held out, half of those that differ, and 4 trained on"
    ]


def test_of_ordinary_prompts_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts = write(tmp_path / "p.jsonl", [*"abcdefgh"])
    assert said(TrainConfig(**PLAIN, prompts=prompts, batch_size=4, eval_size=4), caplog) == []
