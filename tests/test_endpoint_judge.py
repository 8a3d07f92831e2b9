"""A judge behind an HTTP endpoint that behaves, misbehaves, and is killed in the middle."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from nlhf_zoo.errors import BadInput
from nlhf_zoo.interfaces import PreferenceOracle, QueryCount
from nlhf_zoo.oracles.build import build_oracle
from nlhf_zoo.oracles.failures import BudgetSpent, JudgeFailed
from tests.judge_server import KEY, MODEL, JudgeServer, judge_server, preference, truth, well

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", KEY)


def judge(server: JudgeServer, **options: Any) -> PreferenceOracle:
    given = {"model": MODEL, "base_url": server.url, "key_env": "A_JUDGES_KEY", "backoff": 0.01, **options}
    return build_oracle("openai", given)


def pairs(count: int) -> tuple[list[str], list[str], list[str]]:
    return [f"q{i}" for i in range(count)], [str(i) for i in range(count)], [str(2 * i + 1) for i in range(count)]


def expected(columns: tuple[list[str], list[str], list[str]], soft: bool) -> torch.Tensor:
    hard = [(float(truth(a, b) > 0.5) + 1 - float(truth(b, a) > 0.5)) / 2 for a, b in zip(*columns[1:], strict=True)]
    smooth = [preference(a, b) for a, b in zip(*columns[1:], strict=True)]
    return torch.tensor(smooth if soft else hard, dtype=torch.float64)


# --- one that behaves


@pytest.mark.parametrize("soft", [False, True])
def test_both_orders_are_asked_and_averaged(soft: bool) -> None:
    columns = pairs(6)
    with judge_server(soft=soft) as server:
        oracle = judge(server)
        answer = oracle.probability(*columns)
        torch.testing.assert_close(answer, expected(columns, soft), rtol=0, atol=1e-12)
        assert oracle.queries == QueryCount(sampled=6)
        assert len(server.delivered) == 12
        backward = oracle.probability(columns[0], columns[2], columns[1])
        torch.testing.assert_close(answer + backward, torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
        assert len(server.delivered) == 12, "the same questions, the other way round"
        assert oracle.queries == QueryCount(sampled=12)
        assert oracle.measured["calls"] == 12
        assert oracle.measured["cache_hits"] == 12
        assert oracle.measured["tokens_in"] == 1200


def test_a_response_against_itself_is_not_asked_and_duplicates_once() -> None:
    with judge_server() as server:
        oracle = judge(server)
        assert oracle.probability(["x"] * 3, ["1", "1", "2"], ["1", "2", "1"]).tolist() == [0.5, 0.5, 0.5]
        assert server.given == {("x", "1", "2"): 1, ("x", "2", "1"): 1}
        assert oracle.probability([], [], []).shape == (0,)


def test_requests_in_flight_are_bounded() -> None:
    with judge_server(plan=lambda number, asked: "slow") as server:
        judge(server, concurrency=3).probability(*pairs(8))
        assert server.most_at_once == 3


def test_an_open_event_loop_is_no_obstacle() -> None:
    import asyncio

    with judge_server() as server:

        async def notebook() -> torch.Tensor:
            return judge(server).probability(*pairs(2))

        # In a thread: the browser of other tests keeps an event loop of its own in this one.
        with ThreadPoolExecutor(1) as notebooks:
            answer = notebooks.submit(lambda: asyncio.run(notebook())).result()
        torch.testing.assert_close(answer, expected(pairs(2), soft=False))


def test_log_probabilities_that_are_refused_are_given_up_once() -> None:
    with judge_server(plan=lambda number, asked: "no logprobs") as server:
        oracle = judge(server, concurrency=1)
        torch.testing.assert_close(oracle.probability(*pairs(4)), expected(pairs(4), soft=False))
        assert sum("logprobs" in body for body in server.bodies) == 1
        assert oracle.measured["calls"] == 8
        with pytest.raises(JudgeFailed, match="logprobs are not supported"):
            judge(server, logprobs="true").probability(*pairs(1))
    with judge_server(soft=False) as server, pytest.raises(JudgeFailed, match="no log-probabilities"):
        judge(server, logprobs="true").probability(*pairs(1))


# --- one that misbehaves


def first_time(what: str):
    return lambda number, asked: what if number == 1 else "ok"


@pytest.mark.parametrize("what", ["429", "429 after", "500", "503", "drop", "half", "text", "empty", "wrong"])
def test_what_passes_is_asked_again(what: str) -> None:
    with judge_server(plan=first_time(what)) as server:
        oracle = judge(server)
        torch.testing.assert_close(oracle.probability(*pairs(3)), expected(pairs(3), soft=False))
        assert set(server.given.values()) == {1}
        assert set(server.requests.values()) == {2}
        charged = what not in ("429", "429 after", "500", "503")
        assert oracle.measured["calls"] == (12 if charged else 6)
        assert oracle.measured["refused_calls"] == (0 if charged else 6)


def test_a_server_that_hangs_is_left_after_the_timeout() -> None:
    with judge_server(plan=first_time("hang")) as server:
        oracle = judge(server, timeout=1)
        torch.testing.assert_close(oracle.probability(*pairs(2)), expected(pairs(2), soft=False))
        assert set(server.given.values()) == {1}


def test_retry_after_is_honoured() -> None:
    with judge_server(plan=first_time("429 after")) as server:
        judge(server, concurrency=1, backoff=0).one_order(["x"], ["1"], ["2"])
        assert server.times[1] - server.times[0] >= 0.2


def test_a_server_that_never_recovers_is_given_up_in_one_line() -> None:
    with judge_server(plan=lambda number, asked: "500") as server:
        with pytest.raises(JudgeFailed, match=r"after 3 attempts: status 500: .*sorry.*resume") as caught:
            judge(server, retries=2).probability(*pairs(3))
        assert "\n" not in str(caught.value)
        assert server.given == {}
    with judge_server(plan=lambda number, asked: "429 quota") as server:
        with pytest.raises(JudgeFailed, match="no credit left"):
            judge(server, concurrency=1).probability(*pairs(3))
        assert server.requests.total() == 1


def test_unreadable_answers_end_the_run_or_are_counted_as_ties() -> None:
    def sometimes(number: int, asked: tuple[str, str, str]) -> str:
        return "wrong" if asked[0] == "q1" else "ok"

    with judge_server(plan=sometimes) as server:
        with pytest.raises(JudgeFailed, match="no verdict 'A' or 'B' in its answer, asked twice"):
            judge(server).probability(*pairs(3))
        oracle = judge(server, unparsable="tie")
        answer = oracle.probability(*pairs(3))
        assert answer[1] == 0.5
        assert answer[2] == expected(pairs(3), soft=False)[2]
        assert oracle.measured["unread"] == 2
        reasked = [body for body in server.bodies if len(body["messages"]) == 4]
        assert reasked[0]["messages"][2] == {"role": "assistant", "content": "Both are fine."}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "judge-2"}, r"status 404: .*judge-2 does not exist.*check model and base_url"),
        ({"key_env": "WRONG_KEY"}, r"status 401: .*provided: \*\*\*; put the right key"),
        ({"base_url": "http://127.0.0.1:9/v1", "retries": 1}, "after 2 attempts: cannot be reached"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRONG_KEY", "sk-secret-of-somebody")
    with judge_server() as server:
        with pytest.raises(JudgeFailed, match=message) as caught:
            judge(server, concurrency=1, **changes).probability(*pairs(2))
        assert "\n" not in str(caught.value)
        assert "sk-secret" not in str(caught.value)
        assert server.requests.total() <= 1, "what cannot work is not tried again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE holds no key"),
        ({"key_env": "sk-secret-1234"}, "names an environment variable"),
        ({"api_key": "sk-secret-1234"}, "unexpected keyword argument 'api_key'"),
        ({"base_url": "https://user:secret@host/v1"}, "must hold no secret"),
        ({"base_url": "host/v1"}, "must begin with http"),
        ({"max_money": 1}, "needs prices"),
        ({"max_calls": -1}, "max_calls"),
        ({"logprobs": "perhaps"}, "auto, true or false"),
        ({"unparsable": "skip"}, "error or tie"),
        ({"concurrency": 0}, "concurrency must be >= 1"),
        ({"timeout": "long"}, "oracle option timeout: 'long'"),
        ({"extra": "[1]"}, "extra must be a mapping"),
        ({"template": "no/such/file.yaml"}, "no such file"),
    ],
)
def test_options_are_checked_and_secrets_not_repeated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        build_oracle("openai", {"model": MODEL, "key_env": "A_JUDGES_KEY", **options})
    assert "secret-" not in str(caught.value)


@pytest.mark.parametrize("seed", [0, 1])
def test_torture(seed: int) -> None:
    """Everything at once: each verdict is right in the end, and none was given out twice."""
    chance = random.Random(seed)
    ways = ["429", "429 after", "500", "drop", "half", "text", "empty", "wrong", "slow"]
    plans: dict[tuple[str, str, str], list[str]] = {}
    lock = threading.Lock()

    def plan(number: int, asked: tuple[str, str, str]) -> str:
        with lock:
            mine = plans.setdefault(asked, chance.choices(ways, k=chance.randint(0, 5)))
            # Two unreadable answers in a row would rightly end the run, and a timeout is waited for.
            mine = [w for i, w in enumerate(mine) if w != "wrong" or i == 0]
            if int(asked[1]) % 17 == seed and number == 2:
                return "hang"
        return mine[number - 1] if number <= len(mine) else "ok"

    columns = pairs(40)
    with judge_server(plan=plan, soft=True) as server:
        oracle = judge(server, timeout=3, retries=12, concurrency=8, backoff=0.005)
        answers = [torch.empty(0)] * 3

        def ask(worker: int) -> None:
            answers[worker] = oracle.probability(*columns)

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for answer in answers:
            torch.testing.assert_close(answer, expected(columns, soft=True), rtol=0, atol=1e-12)
        assert len(server.given) == 80
        assert set(server.given.values()) == {1}
        assert server.requests.total() > 150, "the server was to misbehave"


# --- budget


def test_a_budget_in_calls_is_never_exceeded_and_can_be_raised(tmp_path: Path) -> None:
    cache = str(tmp_path / "verdicts.sqlite")
    with judge_server() as server:
        with pytest.raises(BudgetSpent, match=r"the budget is spent \(7 calls.*max_calls=7\); raise it"):
            judge(server, max_calls=7, cache=cache).probability(*pairs(10))
        assert len(server.delivered) == 7
        with pytest.raises(BudgetSpent):
            judge(server, max_calls=7, cache=cache).probability(*pairs(10))
        assert len(server.delivered) == 7, "the budget is the file's, not the process's"
        answer = judge(server, max_calls=20, cache=cache).probability(*pairs(10))
        torch.testing.assert_close(answer, expected(pairs(10), soft=False))
        assert len(server.delivered) == 20
        assert set(server.given.values()) == {1}


def test_a_budget_in_money_stops_in_time() -> None:
    with judge_server(tokens=(1_000_000, 100_000)) as server:
        oracle = judge(server, max_money=10, price_in=2, price_out=10, concurrency=2)
        with pytest.raises(BudgetSpent, match="9 in money; max_money=10"):
            oracle.probability(*pairs(10))
        assert oracle.measured["money"] == pytest.approx(9)
        assert len(server.delivered) == 3


def test_calls_that_the_server_refuses_cost_nothing() -> None:
    with judge_server(plan=first_time("429")) as server:
        oracle = judge(server, max_calls=2)
        oracle.probability(*pairs(1))
        assert server.requests.total() == 4


# --- the file of verdicts


def test_another_judge_does_not_take_these_verdicts(tmp_path: Path) -> None:
    template = tmp_path / "template.yaml"
    default = (ROOT / "nlhf_zoo" / "oracles" / "judge_prompt.yaml").read_text(encoding="utf-8")
    template.write_text(default.replace("impartial", "partial"))
    cache = str(tmp_path / "verdicts.sqlite")
    with judge_server() as server:
        for changes, asked in [
            ({}, 2),
            ({"concurrency": 2, "timeout": 5, "max_calls": 99}, 2),
            ({"template": str(template)}, 4),
            ({"temperature": 1}, 6),
            ({"max_tokens": 3}, 8),
            ({"extra": '{"seed": 1}'}, 10),
        ]:
            judge(server, cache=cache, **changes).probability(*pairs(1))
            assert len(server.delivered) == asked, changes
        assert server.bodies[-1]["seed"] == 1


def test_three_processes_ask_the_same_once(nursery: Nursery, tmp_path: Path) -> None:
    with judge_server(plan=lambda number, asked: "slow") as server:
        begun = [nursery.begin(server, tmp_path / "v.sqlite", tmp_path / f"used{i}", 12) for i in range(3)]
        assert sorted(nursery.wait() for _ in begun) == [(pid, 0) for pid in sorted(begun)]
        assert len(server.given) == 24
        assert set(server.given.values()) == {1}
        for i in range(3):
            assert len((tmp_path / f"used{i}").read_text().splitlines()) == 12


NURSERY = """
import json, os, sys, openai
from nlhf_zoo.oracles.build import build_oracle
from nlhf_zoo.oracles.endpoint import oracle as _

def judge(url, cache, log, count, concurrency):
    options = {"model": "judge-1", "base_url": url, "key_env": "A_JUDGES_KEY", "cache": cache, "backoff": 0.02}
    oracle = build_oracle("openai", {**options, "concurrency": concurrency})
    with open(log, "a") as used:
        for i in range(0, count, 4):
            rows = range(i, min(i + 4, count))
            columns = [f"q{j}" for j in rows], [f"{j}" for j in rows], [f"{2 * j + 1}" for j in rows]
            for j, p in zip(rows, oracle.probability(*columns).tolist()):
                used.write(f"{j} {p}\\n")
            used.flush()

for line in sys.stdin:
    if line.strip() == "wait":
        pid, status = os.wait()
        print(pid, os.waitstatus_to_exitcode(status), flush=True)
    elif (pid := os.fork()):
        print(pid, flush=True)
    else:
        judge(*json.loads(line))
        os._exit(0)
"""


@attrs.define
class Nursery:
    """Makes processes that judge, and have nothing to load first: what takes seconds was done once, before the fork."""

    process: subprocess.Popen[str]

    def begin(self, server: JudgeServer, cache: Path, log: Path, count: int, concurrency: int = 4) -> int:
        return int(self._told(json.dumps([server.url, str(cache), str(log), count, concurrency])))

    def wait(self) -> tuple[int, int]:
        """The id and the exit code of the next that ends."""
        pid, code = self._told("wait").split()
        return int(pid), int(code)

    def _told(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "A_JUDGES_KEY": KEY}
    arguments = [sys.executable, "-c", NURSERY]
    with subprocess.Popen(arguments, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def killed(nursery: Nursery, folder: Path, kills: int, count: int, concurrency: int, seed: int) -> int:
    """SIGKILL a judging process at random moments; how many verdicts were given out more than once."""
    chance = random.Random(seed)
    lives: list[int] = []
    # One in ten: seven 500s in a row, after which a judge gives up, are then no matter of a few hundred questions.
    with judge_server(plan=lambda *_: chance.choices(["ok", "slow", "500"], [5, 4, 1])[0]) as server:
        for _ in range(kills):
            before = len(server.delivered)
            pid = nursery.begin(server, folder / "v.sqlite", folder / "used", count, concurrency)
            # Once it has begun, so that the kill falls among questions and not into the start-up.
            aim = before + chance.randint(1, count // kills)
            deadline = time.monotonic() + 60
            while len(server.delivered) < aim and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert nursery.wait() == (pid, -signal.SIGKILL), "it was over before it could be killed"
            server.settle()
            lives.append(len(server.delivered))
        pid = nursery.begin(server, folder / "v.sqlite", folder / "used", count, concurrency)
        assert nursery.wait() == (pid, 0)
        handed = list(server.delivered)
        used = [line.split() for line in (folder / "used").read_text().splitlines()]
        answers = {int(row): float(p) for row, p in (line for line in used if len(line) == 2)}
        assert len(answers) == count
        columns = pairs(count)
        torch.testing.assert_close(
            torch.tensor([answers[j] for j in range(count)]), expected(columns, soft=False).float()
        )
        # Whatever a process has sent a further question after, it has committed: with so many at once, only the
        # last replies before a kill can have been on their way.
        for begin, end in itertools.pairwise([0, *lives]):
            safe = handed[begin : max(begin, end - concurrency)]
            assert not set(safe) & set(handed[end:]), "a verdict that was committed is asked for again"
        assert set(server.given) == {*zip(*columns, strict=True), *zip(columns[0], columns[2], columns[1], strict=True)}
        return sum(server.given.values()) - len(server.given)


def test_killed_thrice_it_pays_for_nothing_twice(nursery: Nursery, tmp_path: Path) -> None:
    assert killed(nursery, tmp_path, kills=3, count=24, concurrency=1, seed=3) <= 3


@pytest.mark.slow
def test_killed_ten_times(nursery: Nursery, tmp_path: Path, record_property: Any) -> None:
    # Not zero by construction: a reply may have been on its way at the moment of the kill.
    twice = killed(nursery, tmp_path, kills=10, count=200, concurrency=4, seed=11)
    record_property("given_out_twice", twice)
    print(f"given out twice: {twice} of 400, in 10 kills")
    assert twice <= 10 * 4


def test_a_verdict_is_on_disk_before_the_next_question_is_sent(tmp_path: Path) -> None:
    cache = tmp_path / "verdicts.sqlite"
    seen: list[int] = []

    def plan(number: int, asked: tuple[str, str, str]) -> str:
        rows = 0
        if cache.exists():
            with sqlite3.connect(cache) as connection:
                rows = connection.execute("SELECT COUNT(*) FROM verdicts").fetchone()[0]
            connection.close()
        seen.append(rows)
        return well(number, asked)

    with judge_server(plan=plan) as server:
        judge(server, cache=str(cache), concurrency=1).probability(*pairs(5))
    assert seen == list(range(10))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "verdicts.sqlite").write_text("these are my notes, and they are no database at all" * 9)
    with judge_server() as server, pytest.raises(BadInput, match=r"verdict cache .*not a database"):
        judge(server, cache=str(tmp_path / "verdicts.sqlite")).probability(*pairs(1))


def test_the_key_is_written_nowhere(tmp_path: Path) -> None:
    with judge_server() as server:
        oracle = judge(server, cache=str(tmp_path / "verdicts.sqlite"))
        oracle.probability(*pairs(3))
        assert KEY not in repr(oracle) + json.dumps(dict(oracle.measured)) + json.dumps(oracle.identity)
    for file in tmp_path.rglob("*"):
        assert KEY.encode() not in file.read_bytes(), file
