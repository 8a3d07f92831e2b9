"""The demo as a program, and the figures it takes from answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nlhf_zoo.demo import language
from nlhf_zoo.demo.__main__ import main
from nlhf_zoo.demo.models import RESPONSE_TOKENS, Scale, write_prompts
from nlhf_zoo.demo.tournament import expectation, kind_shares, pairwise, pure_answers, wins
from nlhf_zoo.errors import BadInput

PROMPTS = language.all_prompts()[:12]


def answers(kind_by_share: dict[str, int]) -> list[list[str]]:
    """Pure answers, so many of each kind to every prompt."""
    by_kind = [pure_answers(PROMPTS, kind, count, seed=0) for kind, count in kind_by_share.items()]
    return [[text for texts in of_prompt for text in texts] for of_prompt in zip(*by_kind, strict=True)]


def test_pure_answers_are_pure_and_decided_by_their_seed():
    for kind in language.KINDS:
        assert kind_shares(pure_answers(PROMPTS, kind, 3, seed=1))[kind] == 1
    assert pure_answers(PROMPTS, "light", 3, seed=1) == pure_answers(PROMPTS, "light", 3, seed=1)
    assert pure_answers(PROMPTS, "light", 3, seed=1) != pure_answers(PROMPTS, "light", 3, seed=2)


def test_wins_average_over_all_pairs_but_count_independent_ones():
    light, sound = (pure_answers(PROMPTS, kind, 4, seed=0) for kind in ("light", "sound"))
    won, comparisons = wins(language.judge, PROMPTS, light, sound)
    assert comparisons == 4 * len(PROMPTS)
    assert won / comparisons == pytest.approx(0.85, abs=1e-12)


def test_pairwise_win_rates_are_antisymmetric():
    players = {"all": answers({"light": 1, "sound": 1, "movement": 1}), **{k: answers({k: 3}) for k in language.KINDS}}
    rates = np.array(pairwise(language.judge, PROMPTS, players))
    np.testing.assert_allclose(rates + rates.T, 1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(rates[1:, 1:], language.kind_matrix(), rtol=0, atol=1e-12)


def test_kind_shares_add_up():
    mixed = kind_shares(
        [["The sea is bright and loud.", "The sea is bright and golden."], ["xq", "A slow, rolling lake."]]
    )
    assert mixed == pytest.approx({"light": 0.375, "sound": 0.125, "movement": 0.25, "other": 0.25})


def test_expected_kinds_without_regularisation_are_the_cycle_s_equilibrium():
    # Of a circle with margins a > b by p, b > c by q, c > a by r, the equilibrium is (q, r, p) / (p + q + r).
    reference = answers({"light": 3, "sound": 2, "movement": 1})
    assert expectation(PROMPTS, reference, beta=1e-4).kinds == pytest.approx(
        {"light": 0.15 / 0.75, "sound": 0.25 / 0.75, "movement": 0.35 / 0.75, "other": 0}, abs=1e-3
    )


def test_expected_kinds_under_strong_regularisation_are_the_reference_s():
    reference = answers({"light": 3, "sound": 2, "movement": 1})
    assert expectation(PROMPTS, reference, beta=1e4).kinds == pytest.approx(kind_shares(reference), abs=1e-3)


def test_expected_win_rate_is_what_pure_kinds_give():
    # Nothing beats the equilibrium of the unregularised game, and it is even with all that it mixes.
    assert expectation(PROMPTS, answers({"light": 3, "sound": 2, "movement": 1}), beta=1e-4).win_rate == pytest.approx(
        0.5, abs=1e-3
    )
    skewed = answers({"light": 20, "sound": 1, "movement": 1})
    assert expectation(PROMPTS, skewed, beta=1e-4).worst == pytest.approx(0.5, abs=1e-3)
    # Held by a skewed reference, it beats that reference and can itself be beaten.
    assert expectation(PROMPTS, skewed, beta=1).worst > 0.6
    assert expectation(PROMPTS, skewed, beta=0.1).win_rate > 0.52


def test_queries_to_a_gap_are_the_median_over_seeds():
    from nlhf_zoo.demo.games import Play
    from nlhf_zoo.report.reading import PlayedGame

    gaps = ([1, 0.1, 0.01], [1, 1, 0.1], [1, 1, 1])
    runs = [np.array([[at, 10 * at, 0, 0, gap, np.nan] for at, gap in enumerate(found)]) for found in gaps]
    play = Play(PlayedGame("a game", {"duality_gap": {"a": runs}}), {}, {})
    assert play.queries_to("a", 0.1) == 20
    assert play.queries_to("a", 0.01) == float("inf")
    assert sorted(play.final("a", "duality_gap")) == [0.01, 0.1, 1]


def test_games_are_a_comparison_that_is_not_played_again(tmp_path: Path):
    from nlhf_zoo.demo.games import BETA, SOLVERS, play

    told: list[tuple[int, int]] = []
    settings = {"queries": 40, "seeds": 2, "seed": 3, "tuned": False}
    play(tmp_path, **settings)
    found = play(tmp_path, **settings, progress=lambda *count: told.append(count))
    assert set(told) <= {(0, 10), (10, 10)}, "the second time all cells were there"
    assert set(found.finals) == set(found.game.runs["duality_gap"]) == set(SOLVERS)
    assert found.game.summary["beta"] == BETA
    assert max(run[-1, 1] for runs in found.game.runs["duality_gap"].values() for run in runs) <= 40
    assert {name for of in found.measured().values() for name in (c.solver for c in of.claims)} >= {"nash_mp"}
    assert found.etas == {}


def test_answers_fit_into_the_models_responses():
    assert max(len(response.encode()) for _, response in language.examples(3000, 0)) < RESPONSE_TOKENS


def test_prompts_are_written_as_the_readers_want_them(tmp_path: Path):
    from nlhf_zoo.data.prompts import read_prompts

    path = write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    assert list(read_prompts(str(path), column="prompt", split="train")) == PROMPTS


def test_help_needs_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['demo', '--help']\n"
        "try: runpy.run_module('nlhf_zoo.demo', run_name='__main__')\n"
        "except SystemExit as stop: sys.exit(stop.code or ('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m nlhf_zoo.demo --out demo" in done.stdout


def test_folder_that_cannot_be_made_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "demo")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: cannot make the folder")
    assert captured.err.count("\n") == 1


def test_negative_seed_is_refused(tmp_path: Path):
    assert main(["--out", str(tmp_path / "demo"), "--seed", "-1"]) == 2
    assert not (tmp_path / "demo").exists()


def test_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nlhf_zoo.demo import __main__ as program
    from nlhf_zoo.demo import language_play

    def fail(*_: object) -> None:
        raise BadInput("the fit failed")

    monkeypatch.setattr(program, "_games", lambda *_: None)
    monkeypatch.setattr(language_play, "fit_reference", fail)
    assert main(["--out", str(tmp_path), "--quick"]) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_demo_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from nlhf_zoo.demo import models

    tiny = Scale(hidden=32, fit_steps=4, fit_batch=8, steps=4, batch=4, samples=2, held_out=4, answers=2)
    monkeypatch.setattr(models, "QUICK", tiny)
    threads = torch.get_num_threads()
    assert main(["--out", str(tmp_path), "--quick"]) == 0
    assert torch.get_num_threads() == threads
    page = tmp_path / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text("utf-8")
    for part in ("obey the bound", "Everyone against everyone", "Samples to read", "--quick"):
        assert part in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["games", "models", "report.html"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["nash_mp", "online_dpo", "reference"]

    from nlhf_zoo.llm.policy import CausalLMPolicy

    assert CausalLMPolicy.from_pretrained(str(tmp_path / "models" / "nash_mp")).network is not None
