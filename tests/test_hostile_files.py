"""Files of a stranger, damaged or made to do harm: one line says which, nothing in them is run."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from nlhf_zoo.atomic import alone
from nlhf_zoo.cli.config_files import read_config, scalar
from nlhf_zoo.cli.main import main
from nlhf_zoo.comparison import engine
from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.engine import run_comparison
from nlhf_zoo.comparison.journal import Journal
from nlhf_zoo.comparison.plan import check_continues
from nlhf_zoo.data import read_matrix
from nlhf_zoo.data.prompts import read_prompts, render_prompts
from nlhf_zoo.errors import BadInput
from nlhf_zoo.llm.loading import load_causal_lm, load_tokenizer
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.oracles import CallableOracle, GenerativeModelOracle, RewardModelOracle
from nlhf_zoo.oracles.judge_prompt import read_judge_prompt
from nlhf_zoo.oracles.templates import Template, chat_template, encode
from nlhf_zoo.oracles.verdicts.question import Verdict
from nlhf_zoo.oracles.verdicts.store import VerdictStore
from nlhf_zoo.plain import from_json, from_yaml
from nlhf_zoo.report.reading import read_comparison
from nlhf_zoo.training import run
from nlhf_zoo.training.checkpoints import read_checkpoint
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from tests.comparison_folder import build, random_game
from tests.tiny_training import settings, write_folder

DEEP = "[" * 100_000
LONG = "1" * 5000


class Harm:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


# --- texts


@pytest.mark.parametrize("text", [DEEP, LONG, "{", "\ufeff{}", ""])
def test_whatever_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        LONG,
        "a: 2020-99-99",
        "!!int x",
        "!!bool x",
        "!!timestamp x",
        "\x00",
        "[",
        "!!python/object/apply:os.abort []",
    ],
)
def test_whatever_is_no_yaml_is_a_value_error_of_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"\Anot YAML[^\n]*\Z"):
        from_yaml(text)


@pytest.mark.parametrize("text", [DEEP, "!!int x"])
def test_every_reader_of_yaml_says_so_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(text)
    for read in (read_config, read_judge_prompt):
        with pytest.raises(BadInput, match=r"some\.yaml: not YAML"):
            read(str(tmp_path / "some.yaml"))
    with pytest.raises(BadInput, match="is not a YAML value"):
        scalar(text)


def test_a_number_of_thousands_of_digits_is_one_line_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "matrix.json").write_text(f"[[{LONG}]]")
    with pytest.raises(BadInput, match=r"matrix\.json: not json"):
        read_matrix(tmp_path / "matrix.json")
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": {LONG}}}')
    with pytest.raises(BadInput, match=r"line 1 cannot be read"):
        read_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize("prompt", ["\ud83d", [{"role": "user", "content": "\ud83d"}]])
def test_half_a_surrogate_pair_is_no_prompt(prompt: Any, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": prompt}))
    with pytest.raises(BadInput, match="half a surrogate pair"):
        read_prompts(tmp_path / "prompts.jsonl")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_are_finite(value: float, tmp_path: Path) -> None:
    for name in ("beta", "learning_rate", "temperature", "max_grad_norm", "lora_alpha"):
        with pytest.raises(BadInput, match=f"{name} must be .* and finite"):
            TrainConfig(**settings(tmp_path, tmp_path / "out", **{name: value}))
    for name in ("beta", "tol"):
        with pytest.raises(BadInput, match=f"{name} must be .* and finite"):
            CompareConfig(games=["random"], solvers=["nash_mp"], queries=1, out=tmp_path, **{name: value})


# --- a comparison's folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("compared") / "out", {"one": random_game()})


def npz(**arrays: Any) -> bytes:
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", DEEP.encode()),
        ("summary.json", f'{{"a": {LONG}}}'.encode()),
        ("summary.json", b'{"games": 3}'),
        ("summary.json", b'{"games": {"one": 3}}'),
        ("summary.json", b'{"cells": [1]}'),
        ("summary.json", b'{"overall": 3}'),
        ("config.yaml", b"a: 2020-99-99"),
        ("samples.jsonl", DEEP.encode()),
        ("games/game-0.npz", b""),
        ("games/game-0.npz", npz(P=np.eye(2))[:100]),
        ("games/game-0.npz", npz(P=np.array("x"))),
        ("games/game-0.npz", npz(P=np.zeros(3))),
        ("games/game-0.npz", npz(P=np.eye(2), labels=np.array(["a"]))),
        ("games/game-0.npz", npz(equilibrium=np.array("x"))),
        ("games/game-0.npz", npz(P=np.eye(2), equilibrium=np.zeros(3))),
    ],
)
def test_a_damaged_file_of_a_comparison_is_one_line(name: str, content: bytes, compared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(compared, tmp_path / "copy"))
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match=Path(name).name) as caught:
        read_comparison(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [DEEP, "[1, 2]", '{"key": "a", "policy": {"float64": 3}}'])
def test_a_foreign_line_of_a_journal_is_passed_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(f'{line}\n{{"key": "b", "rows": 1}}\n')
    assert [*Journal(tmp_path).cells] == ["b"]


def test_a_plan_nested_too_deeply_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(DEEP)
    with pytest.raises(BadInput, match="cannot be understood"):
        check_continues(tmp_path / "plan.json", {})


def test_two_comparisons_do_not_work_in_one_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CompareConfig(games=["random"], solvers=["nash_mp"], queries=4, seeds=1, out=tmp_path / "out")
    run_comparison(config)
    before = (config.out / "summary.json").read_bytes()
    with alone(config.out / ".lock"), pytest.raises(BadInput, match="another process is comparing in"):
        run_comparison(attrs.evolve(config, seeds=2))
    assert (config.out / "summary.json").read_bytes() == before
    run_comparison(attrs.evolve(config, seeds=2))

    @contextlib.contextmanager
    def without_locks(*_: Any) -> Iterator[None]:
        raise OSError(errno.ENOLCK, "No locks available")
        yield

    monkeypatch.setattr(engine, "alone", without_locks)
    assert run_comparison(attrs.evolve(config, seeds=3)).summary["cells"]["done"] == 3


# --- a training's folder


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("material"))


def begun(material: Path, out: Path) -> TrainConfig:
    """A run that can be resumed, as far as its settings and inputs go."""
    out.mkdir()
    config = TrainConfig(**settings(material, out, resume=True))
    (out / "config.yaml").write_text(yaml.safe_dump(settings(material, out)))
    return config


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"\xff"),
        ("config.yaml", b""),
        ("config.yaml", DEEP.encode()),
        ("config.yaml", b"steps: !!int x"),
        ("inputs.json", b""),
        ("inputs.json", b"[1]"),
        ("inputs.json", DEEP.encode()),
        ("warnings.jsonl", b"\xff"),
        ("warnings.jsonl", b"[1]"),
        ("warnings.jsonl", b"{}"),
        ("audit.json", b"{"),
    ],
)
def test_a_damaged_file_of_a_training_is_said_before_it_goes_on(
    name: str, content: bytes, material: Path, tmp_path: Path
) -> None:
    config = begun(material, tmp_path / "out")
    (config.out / "checkpoints").mkdir()
    (config.out / "checkpoints" / "step=1.ckpt").touch()  # without any, the run begins anew
    (config.out / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}.*put it back") as caught:
        train(config)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    whole = {"state_dict": {}, "pytorch-lightning_version": "2.6.0"}
    torch.save({**whole, "callbacks": Harm(tmp_path / "harm")}, tmp_path / "step=1.ckpt")
    with pytest.raises(BadInput, match=r"step=1\.ckpt: is damaged, or holds code.*remove it"):
        read_checkpoint(tmp_path / "step=1.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("what", ["no checkpoint", "a list", "another archive"])
def test_what_is_no_checkpoint_is_one_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "step=1.ckpt"
    if what == "another archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "hello")
    else:
        torch.save({"a": 1} if what == "no checkpoint" else [1], path)
    with pytest.raises(BadInput, match=r"step=1\.ckpt: is .*remove it") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_another_process_has_used_meanwhile_is_left_alone(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(**settings(material, tmp_path / "out"))

    def another_trains(*_: Any) -> None:
        config.out.mkdir()
        (config.out / "config.yaml").write_text("model: another")

    monkeypatch.setattr(run, "_prepare", another_trains)
    with pytest.raises(BadInput, match=r"another process has trained in .* meanwhile"):
        train(config)
    assert (config.out / "config.yaml").read_text() == "model: another"


def test_a_checkpoint_that_came_meanwhile_is_not_passed_over(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = begun(material, tmp_path / "out")

    def another_trains(*_: Any) -> None:
        (config.out / "checkpoints").mkdir()
        torch.save({}, config.out / "checkpoints" / "step=7.ckpt")

    monkeypatch.setattr(run, "_prepare", another_trains)
    with pytest.raises(BadInput, match=r"another process has trained in .* meanwhile"):
        train(config)


# --- models, tokenizers and functions


def adapter(folder: Path, config: str) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(config)
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not json"),
        (DEEP, "is not json"),
        ("[]", "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": "@"}', "is its own base model"),
    ],
)
def test_an_adapters_config_is_read_with_care(config: str, message: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", config.replace("@", str(tmp_path / "adapter")))
    with pytest.raises(BadInput, match=message):
        load_causal_lm(folder)


@pytest.mark.parametrize("config", ["[]", DEEP, '{"model_type": "llama", "num_attention_heads": 0}'])
def test_a_models_config_is_read_with_care(config: str, material: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(material / "lm", tmp_path / "lm"))
    (folder / "config.json").write_text(config)
    for load in (load_tokenizer, load_causal_lm, RewardModelOracle.load):
        with pytest.raises(BadInput, match=r"cannot (be )?load"):
            load(str(folder))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for",
        "{% for i in range(999999999) %}x{% endfor %}",
        "{{ messages[7].content }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_is_foreign_code_in_a_sandbox(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(BadInput, match="prompt 1: the chat template refuses"):
        render_prompts(["x"], tokenizer, chat=True)
    with pytest.raises(BadInput, match="the chat template refuses"):
        chat_template(tokenizer)
    with pytest.raises(BadInput, match="the chat template refuses"):
        GenerativeModelOracle(small_llama(tokenizer, hidden=32, layers=1, heads=2, seed=0), tokenizer)


def test_the_name_of_a_special_token_in_a_response_is_mere_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|turn|>"]})
    template = Template("{prompt}|{first}|{second}<eos>", ("prompt", "first", "second"))
    rows = [{"prompt": "<|turn|>", "first": f"A<|turn|>{tokenizer.eos_token}", "second": tokenizer.eos_token}]
    (ids,) = encode(tokenizer, template, rows, 1000)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|turn|>")) == 1, "the prompt's own"
    assert tokenizer.eos_token_id not in ids[:-1]
    assert "A< |turn|>" in tokenizer.decode(ids)


@pytest.mark.parametrize("body", ["raise RuntimeError('on purpose')", "def judge(:", "import sys; sys.exit(3)"])
def test_a_judges_module_that_raises_is_one_line(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_that_raises.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match="cannot import 'module_that_raises'"):
        CallableOracle.load("module_that_raises:judge")


def test_what_a_judge_raises_is_one_line() -> None:
    def judge(*_: Any) -> Any:
        raise ValueError("first\nsecond")

    with pytest.raises(BadInput, match="first second") as caught:
        CallableOracle(judge).probability(["p"], ["a"], ["b"])
    assert "\n" not in str(caught.value)


# --- the file of verdicts


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="of format 0, not 1"):
        VerdictStore(path).known([b"key"])
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", [7.0, -0.5, "text"])
def test_a_verdict_that_is_no_probability_is_refused(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    store = VerdictStore(path)
    store.record("judge", {b"key": Verdict(0.5)})
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE verdicts SET probability = ?", (value,))
    with pytest.raises(BadInput, match=f"holds {value!r} for a probability"):
        VerdictStore(path).known([b"key"])


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="null byte"):
        VerdictStore("\x00").known([b"key"])


# --- the command line


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        ("--game random --game-set responses=10000000000", 1, "out of memory"),
        ("--game random --policy mlp --policy-set hidden=1000000000000", 1, "out of memory"),
        (f"--game random --comparisons {10**30}", 2, "fewer than 2**31 comparisons"),
    ],
)
def test_what_no_machine_can_do_is_one_line(
    argv: str, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["solve", "--steps", "1", *argv.split()]) == code
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1


def test_a_label_that_is_no_unicode_is_said_before_anything_is_written(tmp_path: Path) -> None:
    games = [{"name": "random", "label": "\udcff.csv"}]
    with pytest.raises(BadInput, match="has no name in Unicode"):
        run_comparison(CompareConfig(games=games, solvers=["nash_mp"], queries=3, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
