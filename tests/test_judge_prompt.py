"""Templates of generative judges, and the verdicts that are read with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.judge_prompt import JudgePrompt, TokenChoice, read_judge_prompt
from nlhf_zoo.oracles.verdicts.question import Question

DEFAULT = read_judge_prompt(None)


def test_the_default_asks_with_both_parts() -> None:
    system, user = DEFAULT.messages(Question("What {is} it?", "{first}", "b"))
    assert (system["role"], user["role"]) == ("system", "user")
    assert "impartial" in system["content"]
    assert "[Request]\nWhat {is} it?\n" in user["content"]
    assert "[Response A]\n{first}\n" in user["content"]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("A", 1.0),
        ("B", 0.0),
        (" **B**.\n", 0.0),
        ("[[A]]", 1.0),
        ("a", None),
        ("", None),
        ("A or B", None),
        ("Answer: A", None),
        ("C", None),
        ("AB", None),
        ("As good", None),
    ],
)
def test_verdicts_are_read_strictly(answer: str, value: float | None) -> None:
    assert DEFAULT.read(answer) == value


def test_a_pattern_reads_the_last_verdict_and_a_tie_is_a_half() -> None:
    prompt = JudgePrompt(user="{prompt}{first}{second}", tie="C", verdict=r"\[\[(\w)\]\]")
    assert prompt.read("I lean to [[A]] at first, but [[B]]") == 0.0
    assert prompt.read("so [[C]]") == 0.5
    assert prompt.read("[[A]] no, [[D]]") is None
    assert prompt.read("A") is None


def test_log_probabilities_make_it_soft() -> None:
    def choice(text: str, **mass: float) -> TokenChoice:
        return TokenChoice(text, tuple((t.replace("_", " "), math.log(p)) for t, p in mass.items()))

    tokens = [choice("A", A=0.5, _A=0.1, B=0.2, a=0.1, Ab=0.1)]
    assert DEFAULT.read("A", tokens) == pytest.approx(0.6 / 0.8)
    assert DEFAULT.read(" A", [choice(" ", _=1.0), *tokens]) == pytest.approx(0.75)
    assert DEFAULT.read("A", [choice("A", x=1.0)]) == 1.0, "nothing to go by but the verdict itself"
    reasoned = JudgePrompt(user="{prompt}{first}{second}", tie="tie", first="first", second="second", verdict=r"=(\w+)")
    spelt = [choice("so"), choice("="), choice("fir", fir=0.4, second=0.2, t=0.4), choice("st", st=1.0)]
    assert reasoned.read("so=first", spelt) == pytest.approx(0.4 + 0.2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("system: x", "has a field user"),
        ("[1, 2]", "has a field user"),
        ("user: '{prompt} {first}'", r"must hold \{prompt\}, \{first\}, \{second\}"),
        ("user: '{prompt}{first}{second}'\nsytem: x", "no field 'sytem'"),
        ("user: '{prompt}{first}{second}'\nfirst: B", "must differ"),
        ("user: '{prompt}{first}{second}'\nfirst: 1", "first must be a text"),
        ("user: '{prompt}{first}{second}'\nverdict: '(a)(b)'", "one group, it has 2"),
        ("user: '{prompt}{first}{second}'\nverdict: '('", "no regular expression"),
        ("user: [", "not YAML"),
        ("", "is empty"),
    ],
)
def test_bad_files_are_named_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_judge_prompt(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_change_changes_the_fingerprint() -> None:
    changed = [
        JudgePrompt(user="{prompt}{first}{second}", **change) for change in ({}, {"tie": "C"}, {"reask": "Well?"})
    ]
    assert len({prompt.fingerprint for prompt in [*changed, DEFAULT]}) == 4
