"""The store of verdicts, claims and spending, and the wrapper that gives any judge a cache."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import QueryCount
from nlhf_zoo.oracles import CachedOracle, CallableOracle, MatrixOracle
from nlhf_zoo.oracles.audit import audit
from nlhf_zoo.oracles.build import build_oracle, essential_options
from nlhf_zoo.oracles.verdicts.owner import alive, me
from nlhf_zoo.oracles.verdicts.question import Question, Verdict
from nlhf_zoo.oracles.verdicts.store import VerdictStore
from nlhf_zoo.oracles.verdicts.verdicts import Verdicts

QUESTIONS = [Question("x", str(i), str(i + 1)) for i in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> VerdictStore:
    return VerdictStore(tmp_path / "deep" / "verdicts.sqlite")


@settings(deadline=None)
@given(one=st.tuples(st.text(), st.text(), st.text()), other=st.tuples(st.text(), st.text(), st.text()))
def test_keys_are_equal_only_for_equal_questions(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (Question(*one).key("j") == Question(*other).key("j")) == (one == other)
    assert Question(*one).key("j") != Question(*one).key("k")
    assert len({Question(*one, order=order, repeat=repeat).key("j") for order in (0, 1) for repeat in (0, 1)}) == 4


def test_a_verdict_stays_as_it_was_first_given(store: VerdictStore) -> None:
    store.record("j", {b"1": Verdict(0.3), b"2": Verdict(0.5, parsed=False)})
    store.record("j", {b"1": Verdict(0.9)})
    again = VerdictStore(store.path)
    assert again.known([b"1", b"2", b"3"]) == {b"1": Verdict(0.3), b"2": Verdict(0.5, parsed=False)}
    assert (again.unread("j"), again.unread("k")) == (1, 0)
    assert again.known([bytes([i, j]) for i in range(200) for j in range(10)]) == {}


def test_claims_are_exclusive_until_released_or_answered(store: VerdictStore) -> None:
    other = VerdictStore(store.path)
    assert store.claim([b"1", b"2", b"3"]) == {b"1", b"2", b"3"}
    assert other.claim([b"1", b"4"]) == {b"4"}
    store.release([b"1"])
    store.record("j", {b"2": Verdict(1.0)})
    assert other.claim([b"1", b"2", b"3"]) == {b"1"}


def test_a_dead_processs_claims_are_void(store: VerdictStore) -> None:
    code = (
        "import sys; from nlhf_zoo.oracles.verdicts.store import VerdictStore as S; print(S(sys.argv[1]).claim([b'1']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{b'1'}"
    assert store.claim([b"1"]) == {b"1"}
    assert alive(me())
    assert not alive((os.getpid(), me()[1] - 1)), "the same id, another process"


def test_the_same_question_in_two_threads_is_asked_once(store: VerdictStore) -> None:
    asked: list[Question] = []
    begun = threading.Event()

    def ask(questions, record):
        asked.extend(questions)
        begun.set()
        time.sleep(0.1)
        record({question: Verdict(0.25) for question in questions})

    first = threading.Thread(target=lambda: Verdicts(store, {"a": 1}).of(QUESTIONS[:3], ask))
    first.start()
    begun.wait()
    found = Verdicts(VerdictStore(store.path), {"a": 1}).of(QUESTIONS, ask)
    first.join()
    assert found == [Verdict(0.25)] * 5
    assert sorted(asked, key=str) == sorted(QUESTIONS, key=str)


def test_what_came_before_a_failure_is_kept_and_the_rest_is_free_again(store: VerdictStore) -> None:
    verdicts = Verdicts(store, {"a": 1})

    def fail(questions, record):
        record({questions[0]: Verdict(1.0)})
        raise BadInput("no more")

    with pytest.raises(BadInput, match="no more"):
        verdicts.of(QUESTIONS, fail)
    left: list[Question] = []

    def ask(questions, record):
        left.extend(questions)
        record(dict.fromkeys(questions, Verdict(0.0)))

    assert [v.probability for v in verdicts.of([*QUESTIONS, QUESTIONS[0]], ask)] == [1, 0, 0, 0, 0, 1]
    assert left == QUESTIONS[1:]


def test_calls_and_money_are_counted_before_they_are_spent(store: VerdictStore) -> None:
    store.introduce("j", "{}")
    assert store.begin_call("j", max_calls=3, max_money=None) == 0
    store.end_call("j", 0, money=2.0, tokens_in=5, tokens_out=1)
    assert store.begin_call("j", max_calls=3, max_money=3.9) is None, "at the dearest price so far"
    assert store.begin_call("j", max_calls=3, max_money=4) == 2
    assert store.begin_call("j", max_calls=3, max_money=4) is None
    store.void_call("j", 2.0)
    assert store.begin_call("j", max_calls=2, max_money=None) == 2
    assert store.begin_call("j", max_calls=2, max_money=None) is None
    spent = VerdictStore(store.path).spending("j")
    assert (spent.calls, spent.money, spent.tokens_in, spent.tokens_out) == (2, 4.0, 5, 1)


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"verdict cache .*unable to open") as caught:
        VerdictStore(tmp_path).known([b"1"])
    assert "\n" not in str(caught.value)


# --- any judge with a cache

CALLS: list[int] = []


def counted(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
    CALLS.append(len(first))
    return [1 / (1 + 2 ** (len(b) - len(a))) * 0.9 + 0.1 for a, b in zip(first, second, strict=True)]


def test_any_judge_takes_a_cache(tmp_path: Path) -> None:
    options = {"function": "tests.test_verdicts:counted"}
    columns = (["x", "y", "x"], ["a", "bb", "a"], ["ccc", "d", "ccc"])
    plain = build_oracle("callable", options).probability(*columns)
    CALLS.clear()
    cached = build_oracle("callable", {**options, "cache": str(tmp_path / "v.sqlite")})
    assert isinstance(cached, CachedOracle)
    assert torch.equal(cached.probability(*columns), plain)
    assert CALLS == [4], "two different pairs, in both orders"
    again = build_oracle("callable", {**options, "cache": str(tmp_path / "v.sqlite")})
    assert torch.equal(again.probability(*columns), plain)
    assert CALLS == [4]
    assert again.queries == QueryCount(sampled=3)
    assert again.measured["cache_hits"] == 3
    other = build_oracle("callable", {**options, "symmetrise": False, "cache": str(tmp_path / "v.sqlite")})
    other.probability(*columns)
    assert CALLS == [4, 2], "another judge"
    found = audit(again, *columns)
    assert found.position_bias == pytest.approx(0.05)
    assert found.inconsistency == 0


def test_a_retrained_judge_is_another_judge(tmp_path: Path) -> None:
    from nlhf_zoo.llm.small_models import byte_tokenizer, small_judge
    from nlhf_zoo.oracles import PairwiseModelOracle

    options = {"path": str(tmp_path / "judge"), "device": "cpu", "cache": str(tmp_path / "v.sqlite")}
    answers = []
    for seed in (1, 1, 2):
        model = small_judge(byte_tokenizer(), hidden=16, layers=1, heads=2, seed=seed)
        if len(answers) != 1:
            PairwiseModelOracle(model, byte_tokenizer(), max_length=64).save(tmp_path / "judge")
        oracle = build_oracle("pairwise_model", options)
        answers.append((oracle.probability(["x"], ["a"], ["b"]).item(), oracle.measured["cache_hits"]))
    assert answers[0][0] == answers[1][0] != answers[2][0]
    assert [hits for _, hits in answers] == [0, 1, 0]


def test_listed_responses_need_no_cache(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs no cache"):
        CachedOracle(MatrixOracle([[0.5, 0.9], [0.1, 0.5]]), VerdictStore(None), {})


def test_options_that_change_no_answer_may_differ_at_a_resume() -> None:
    given = {"model": "m", "max_calls": 3, "key_env": "K", "cache": "c", "template": "t"}
    assert essential_options("openai", given) == {"model": "m", "template": "t"}
    assert essential_options("callable", {"function": "f", "cache": "c"}) == {"function": "f"}
    members = [{"oracle": "openai", "options": given}, {"oracle": "openai", "options": {"model": "n"}}]
    essential = essential_options("ensemble", {"members": members, "vote": True})
    assert [m["options"] for m in essential["members"]] == [{"model": "m", "template": "t"}, {"model": "n"}]
    assert [m["name"] for m in essential["members"]] == ["openai", "openai_2"]


def test_a_store_survives_a_fork(store: VerdictStore) -> None:
    store.record("j", {b"1": Verdict(0.3)})
    code = (
        "import os, sys\nfrom nlhf_zoo.oracles.verdicts.store import VerdictStore as S, Verdict\n"
        "s = S(sys.argv[1]); s.known([b'1'])\n"
        "pid = os.fork()\n"
        "s.record('j', {b'child' if pid == 0 else b'parent': Verdict(1.0)})\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(store.path)], check=True)
    assert len(store.known([b"1", b"child", b"parent"])) == 3


def test_callable_says_what_it_is() -> None:
    assert CallableOracle(counted).identity["function"] == "counted"
    assert CallableOracle(counted).identity != CallableOracle(counted, symmetrise=False).identity
