"""Many questions at once to one endpoint: bounded, patient, and each verdict kept the moment it is there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from nlhf_zoo.oracles.endpoint.meter import Call, Meter
from nlhf_zoo.oracles.endpoint.reply import Reply, read_reply
from nlhf_zoo.oracles.endpoint.trouble import Trouble, delay, diagnose
from nlhf_zoo.oracles.failures import JudgeFailed
from nlhf_zoo.oracles.judge_prompt import JudgePrompt, Message
from nlhf_zoo.oracles.verdicts.question import Question, Verdict
from nlhf_zoo.oracles.verdicts.verdicts import Record

__all__ = ["Manners", "Session", "Tongue"]

_LONGEST_REASON = 300
_LONGEST_WAIT = 600.0
"""Seconds; a server that asks for a longer pause ends the run, which can be resumed when it is over."""


@attrs.frozen(kw_only=True)
class Manners:
    """How an endpoint is approached.

    Attributes:
        concurrency: requests in flight at once.
        timeout: seconds for one request, from its beginning to the last byte of the answer.
        retries: further attempts after one that failed and may succeed later.
        backoff: seconds before the first of them at the most; doubled each time, up to a minute.
        tie_unread: an answer without verdict, after it was asked for once more, is a tie and not an error.
    """

    concurrency: int
    timeout: float
    retries: int
    backoff: float
    tie_unread: bool


@attrs.define
class Tongue:
    """Whether log-probabilities are asked for: given up for good by "auto" once the server refuses them."""

    wanted: str
    top: int
    refused: bool = False

    def options(self) -> dict[str, Any]:
        asks = self.wanted != "false" and not self.refused
        return {"logprobs": True, "top_logprobs": self.top} if asks else {}

    def gives_up(self, trouble: Trouble) -> bool:
        """Whether the call is to be made again without them."""
        about = trouble.status in (400, 404, 422, 501) and "logprob" in trouble.reason.lower()
        if not about or self.wanted != "auto" or self.refused:
            return False
        self.refused = True
        return True


class Session:
    """One batch of questions.

    Args:
        client: an `openai.AsyncOpenAI`, without retries of its own: they are counted and paced here.
        request: what every request has in common.
        hide: takes secrets out of a message.
    """

    def __init__(
        self,
        client: Any,
        request: Mapping[str, Any],
        prompt: JudgePrompt,
        meter: Meter,
        manners: Manners,
        tongue: Tongue,
        hide: Callable[[str], str],
    ) -> None:
        self.client, self.request, self.prompt, self.meter = client, request, prompt, meter
        self.manners, self.tongue, self.hide = manners, tongue, hide
        self._chance = random.Random()  # of the pauses alone; no answer depends on it
        self._not_before = 0.0
        self._over: Exception | None = None

    async def ask(self, questions: Sequence[Question], record: Record) -> None:
        """Ask all of them. At the first failure no further request is begun; those in flight are paid for, so
        their verdicts are waited for and kept.

        Raises:
            JudgeFailed: that failure.
        """
        room = asyncio.Semaphore(self.manners.concurrency)

        async def one(question: Question) -> None:
            async with room:
                if self._over is None:
                    try:
                        await self._judge(question, record)
                    except Exception as error:  # the first is raised below, when the others have ended
                        self._over = self._over or error

        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(one(question))
        if self._over is not None:
            raise self._over

    async def _judge(self, question: Question, record: Record) -> None:
        messages = self.prompt.messages(question)
        reply = await self._call(messages)
        probability = self._read(reply)
        if probability is None:
            again = [{"role": "assistant", "content": reply.text}, {"role": "user", "content": self.prompt.reask}]
            probability = self._read(await self._call([*messages, *again]))
        if probability is not None:
            record({question: Verdict(probability)})
        elif self.manners.tie_unread:
            record({question: Verdict(0.5, parsed=False)})
        else:
            labels = " or ".join(map(repr, self.prompt.labels))
            raise JudgeFailed(
                f"{self.meter.name}: no verdict {labels} in its answer, asked twice; mend the template,"
                " or count such answers as ties with unparsable=tie"
            )

    def _read(self, reply: Reply) -> float | None:
        if self.tongue.wanted == "true" and reply.tokens is None:
            raise JudgeFailed(f"{self.meter.name}: gives no log-probabilities; use logprobs=auto or logprobs=false")
        return self.prompt.read(reply.text, reply.tokens)

    async def _call(self, messages: Sequence[Message]) -> Reply:
        """One answer, after as many attempts as it takes and the manners allow."""
        attempt = 0
        while True:
            await self._turn()
            call = self.meter.begin()
            answer = await self._attempt(call, messages)
            if isinstance(answer, Reply):
                return answer
            if self.tongue.gives_up(answer):
                continue
            if self._over is not None:
                raise self._over
            if not answer.passes or attempt == self.manners.retries or (answer.after or 0) > _LONGEST_WAIT:
                raise JudgeFailed(self._failure(answer, attempt + 1))
            pause = delay(attempt, self.manners.backoff, answer.after, self._chance)
            attempt += 1
            if answer.after is not None:  # it goes for every request, not for this one alone
                now = asyncio.get_running_loop().time()
                self._not_before = max(self._not_before, now + answer.after)
            await asyncio.sleep(pause)

    async def _attempt(self, call: Call, messages: Sequence[Message]) -> Reply | Trouble:
        try:
            # The client's own limit is on each read: a server that sends a byte a second would never meet it.
            async with asyncio.timeout(self.manners.timeout):
                completion = await self.client.chat.completions.create(
                    messages=messages, **self.request, **self.tongue.options()
                )
            reply = read_reply(completion)
        except Exception as error:
            trouble = diagnose(error)
            if trouble is None:
                raise
            if not trouble.charged:
                self.meter.void(call)
            # Hidden before it is cut short: the beginning of a key would no longer be known for one.
            return attrs.evolve(trouble, reason=self.hide(trouble.reason)[:_LONGEST_REASON])
        self.meter.end(call, reply)
        return reply

    async def _turn(self) -> None:
        """Wait until the server is willing, and no longer than the session lasts."""
        loop = asyncio.get_running_loop()
        while (wait := self._not_before - loop.time()) > 0:
            await asyncio.sleep(wait)
        if self._over is not None:
            raise self._over

    def _failure(self, trouble: Trouble, attempts: int) -> str:
        mends = {
            401: "put the right key into the environment variable that key_env names",
            403: "the key may not use this model; give another one",
            404: "check model and base_url",
        }
        mend = mends.get(
            trouble.status or 0, "check base_url, the options and the server" if not trouble.passes else ""
        )
        if trouble.status in range(300, 400):
            mend = "it wants to be asked elsewhere; give that address as base_url"
        tries = f" after {attempts} attempts" if attempts > 1 else ""
        if (trouble.after or 0) > _LONGEST_WAIT:
            mend = f"it asks to wait {trouble.after:.0f} s"
        return f"{self.meter.name}{tries}: {trouble.reason}; {mend or 'try later'}, then resume"
