"""Training against judges that cost money, run out of it, or are several; and the audit of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nlhf_zoo.cli import main
from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.failures import BudgetSpent
from nlhf_zoo.training.config import TrainConfig
from nlhf_zoo.training.run import train
from tests.judge_server import KEY, MODEL, JudgeServer, judge_server
from tests.test_training import folder, weights
from tests.tiny_training import command, settings

__all__ = ["folder"]  # the fixture


def letters(text: str) -> float:
    return float(sum(c in "abcdefghij" for c in text))


def paid(server: JudgeServer, **options: Any) -> dict[str, Any]:
    given = {"model": MODEL, "base_url": server.url, "key_env": "A_JUDGES_KEY", "backoff": 0.01, **options}
    return {"oracle": "openai", "oracle_options": given}


def test_a_spent_budget_keeps_the_run_and_it_resumes_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", KEY)
    length = {"steps": 6, "eval_size": 4, "checkpoint_every": 100}
    with judge_server(quality=letters, soft=True) as server:
        whole = train(TrainConfig(**settings(folder, tmp_path / "whole", **length, **paid(server))))
        all_calls = len(server.delivered)
        assert whole["judges"]["training"]["calls"] == all_calls
        assert set(server.given.values()) == {1}
    out = tmp_path / "broken"
    with judge_server(quality=letters, soft=True) as server:
        with pytest.raises(BudgetSpent, match="raise it and go on with resume"):
            train(TrainConfig(**settings(folder, out, **length, **paid(server, max_calls=all_calls // 2))))
        assert len(server.delivered) == all_calls // 2
        (kept,) = (out / "checkpoints").iterdir()
        assert 0 < int(kept.stem.removeprefix("step=")) < 6
        again = paid(server, max_calls=1000, concurrency=2)
        result = train(TrainConfig(**settings(folder, out, **length, **again, resume=True)))
        assert len(server.delivered) == all_calls
        assert set(server.given.values()) == {1}
    for key in ("queries", "tokens_generated", "win_rate", "kl_to_reference"):
        assert result[key] == whole[key], key
    assert result["judges"]["training"]["calls"] == all_calls
    one, two = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(one[key], two[key]) for key in one)
    (log,) = (tmp_path / "whole").rglob("metrics.csv")
    assert "judge/calls" in log.read_text().splitlines()[0]
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    with pytest.raises(BadInput, match="oracle_options"):
        train(TrainConfig(**settings(folder, out, **length, **paid(server, temperature=1), resume=True)))


def test_a_wrong_key_is_one_line_and_the_run_can_be_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    secret = "sk-a-key-that-is-refused"
    with judge_server(quality=letters) as server:
        arguments = command(folder, out, steps=1, eval_size=2, **paid(server))
        monkeypatch.setenv("A_JUDGES_KEY", secret)
        assert main(arguments) == 2
        shown = "".join(capfd.readouterr())
        assert "Traceback" not in shown
        (said,) = (line for line in shown.splitlines() if "nlhf-zoo:" in line)
        assert f"nlhf-zoo: judge {MODEL} at {server.url}: status 401" in said
        assert "resume" in said
        for file in tmp_path.rglob("*"):
            assert file.is_dir() or secret.encode() not in file.read_bytes(), file
        monkeypatch.setenv("ANOTHER_KEY", KEY)
        changes = paid(server, key_env="ANOTHER_KEY")
        assert train(TrainConfig(**settings(folder, out, steps=1, eval_size=2, **changes, resume=True)))["steps"] == 1


def likes_a(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    return [float(a.count("a") > b.count("a")) for a, b in zip(first, second, strict=True)]


def test_labelled_pairs_and_several_judges_are_in_the_audit(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "say:", "chosen": "abc" * (i + 1), "rejected": "xyz"} for i in range(9)]
    rows.append({"prompt": [{"role": "user", "content": "say:"}], "chosen": "xx", "rejected": "ab"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    members = [
        {"oracle": "callable", "options": {"function": "tests.tiny_training:many_letters"}},
        {"oracle": "callable", "options": {"function": "tests.test_judge_training:likes_a"}, "name": "a", "weight": 2},
    ]
    changes = {"oracle": "ensemble", "oracle_options": {"members": members}, "steps": 1}
    config = settings(folder, tmp_path / "run", labelled_pairs=str(tmp_path / "pairs.jsonl"), **changes)
    result = train(TrainConfig(**config))
    found = json.loads((tmp_path / "run" / "audit.json").read_text())["training"]
    assert found["accuracy"] == 0.9
    assert found["labelled_pairs"] == 10
    assert found["inconsistency"] == 0
    assert 0 < found["disagreement"] <= 1
    assert found["split_verdicts"] is not None
    assert 0 < result["judges"]["training"]["disagreement"] <= 1
    shown = capsys.readouterr().err
    assert "accuracy on labelled pairs" in shown
    assert "its judges are split" in shown


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, "rejected"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "pair 1: chosen and rejected are the same"),
        ({"prompt": "x", "chosen": [{"role": "user", "content": "a"}], "rejected": "a"}, "must be texts"),
    ],
)
def test_labelled_pairs_are_checked(row: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    config = settings(folder, tmp_path / "run", labelled_pairs=str(tmp_path / "pairs.jsonl"))
    with pytest.raises(BadInput, match=message):
        train(TrainConfig(**config))
    assert not (tmp_path / "run").exists()
