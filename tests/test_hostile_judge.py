"""A judge behind an endpoint that means harm, and keys and options that are not what they ought to be."""

from __future__ import annotations

import gzip
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle
from nlhf_zoo.oracles.build import build_oracle
from nlhf_zoo.oracles.endpoint import client
from nlhf_zoo.oracles.endpoint.reply import read_reply
from nlhf_zoo.oracles.endpoint.trouble import Garbled
from nlhf_zoo.oracles.failures import JudgeFailed
from tests.judge_server import KEY, MODEL, JudgeServer, judge_server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", KEY)


def judge(server: JudgeServer, **options: Any) -> PreferenceOracle:
    given = {"model": MODEL, "base_url": server.url, "key_env": "A_JUDGES_KEY", "backoff": 0.001, "retries": 0}
    return build_oracle("openai", {**given, **options})


def asked(oracle: PreferenceOracle) -> float:
    return float(oracle.probability(["q"], ["1"], ["2"])[0])


def completion(content: str = "A", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, **more}
    return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="nested too deeply"),
        pytest.param(b'{"choices": [], "usage": {"prompt_tokens": ' + b"1" * 5000 + b"}}", id="5000 digits"),
        pytest.param(b'{"choices": [{"message": {"content": "\xff"}}]}', id="not UTF-8"),
        pytest.param(b"[1, 2]", id="a list"),
    ],
)
def test_what_no_parser_takes_is_one_line(body: bytes) -> None:
    with judge_server(plan=lambda *_: body) as server, pytest.raises(JudgeFailed, match="no chat completion"):
        asked(judge(server))


def test_an_answer_that_unpacks_to_no_end_is_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LONGEST_ANSWER", 100_000)
    bomb = gzip.compress(b" " * 1_000_000)
    with judge_server(plan=lambda *_: bomb) as server, pytest.raises(JudgeFailed, match="longer than 100,000 bytes"):
        asked(judge(server))


def test_a_packed_answer_is_read() -> None:
    with judge_server(plan=lambda *_: gzip.compress(completion())) as server:
        assert asked(judge(server)) == 0.5


def test_texts_and_key_go_nowhere_but_to_the_host_that_was_named() -> None:
    with judge_server() as thief, judge_server(plan=lambda *_: "elsewhere", elsewhere=thief.url) as server:
        with pytest.raises(JudgeFailed, match=r"status 307: .*elsewhere; give that address as base_url"):
            asked(judge(server))
        assert not thief.requests


def test_half_a_surrogate_pair_in_an_answer_can_be_sent_back() -> None:
    with judge_server(plan=lambda *_: completion("\ud800")) as server:
        assert asked(judge(server, unparsable="tie")) == 0.5


def test_half_a_surrogate_pair_in_a_prompt_is_one_line_and_costs_nothing() -> None:
    with judge_server() as server:
        oracle = judge(server)
        with pytest.raises(JudgeFailed, match="half a surrogate pair, which cannot be sent"):
            oracle.probability(["\ud800"], ["1"], ["2"])
        assert oracle.measured["calls"] == 0


PLAIN = st.sampled_from([None, True, -1, 0, 10**400, -(10**400), 0.5, -0.5, math.nan, math.inf, "", "A", "\ud800"])
JSON = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.sampled_from(["token", "logprob"]), PLAIN)


@given(token=JSON, number=JSON, likeliest=JSON, content=JSON, usage=JSON)
def test_whatever_an_answer_holds_it_is_read_or_garbled(
    token: Any, number: Any, likeliest: Any, content: Any, usage: Any
) -> None:
    entry = SimpleNamespace(token=token, logprob=number, top_logprobs=likeliest)
    choice = SimpleNamespace(message=SimpleNamespace(content=content), logprobs=SimpleNamespace(content=[entry]))
    counts = SimpleNamespace(prompt_tokens=usage, completion_tokens=usage)
    try:
        reply = read_reply(SimpleNamespace(choices=[choice], usage=counts))
    except Garbled:
        return
    assert reply.text.encode() is not None
    assert reply.tokens is not None
    assert all(-math.inf <= value <= 0 for _, value in reply.tokens[0].choices)
    assert reply.tokens_in is None or 0 <= reply.tokens_in <= 10**9


def test_no_piece_of_a_key_survives_where_a_long_message_is_cut() -> None:
    with judge_server(plan=lambda *_: "echo") as server, pytest.raises(JudgeFailed) as caught:
        asked(judge(server))
    assert KEY[:4] not in str(caught.value)


@pytest.mark.parametrize("secret", ["sk-hidden\nkey", "sk-hiddené", "sk-hidden\x7f"])
def test_a_key_that_no_header_can_hold_is_not_quoted(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", secret)
    with judge_server() as server, pytest.raises(BadInput, match="no header can") as caught:
        judge(server)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("name", ["gsk_hidden123", "hidden0123456789abcdef"])
def test_a_key_in_place_of_a_variables_name_is_not_repeated(name: str) -> None:
    with pytest.raises(BadInput, match="that key_env names holds no key") as caught:
        build_oracle("openai", {"model": MODEL, "key_env": name})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": math.inf}, "temperature must be >= 0 and finite"),
        ({"timeout": math.inf}, "timeout must be >= 0.001 and finite"),
        ({"retries": math.inf}, "retries: inf does not fit"),
        ({"extra": {"seed": math.nan}}, "extra goes into a request, which is JSON"),
        ({"extra": "{since: 2020-01-01}"}, "extra goes into a request, which is JSON"),
        ({"base_url": "http://[::1"}, "must begin with http"),
        ({"base_url": "http://host:99999/v1"}, "must begin with http"),
        ({"base_url": "http://host/v1#key=hidden"}, "must hold no secret"),
    ],
)
def test_options_that_no_request_can_carry_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_oracle("openai", {"model": MODEL, "key_env": "A_JUDGES_KEY", **options})
