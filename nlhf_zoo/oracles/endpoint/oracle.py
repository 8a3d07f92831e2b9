"""A chat endpoint as a judge: any server that speaks OpenAI's protocol."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs

from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.endpoint.client import open_client
from nlhf_zoo.oracles.endpoint.meter import Budget, Meter
from nlhf_zoo.oracles.endpoint.session import Manners, Session, Tongue
from nlhf_zoo.oracles.judge_prompt import JudgePrompt, read_judge_prompt
from nlhf_zoo.oracles.verdicts.ordered import OrderedJudge
from nlhf_zoo.oracles.verdicts.question import Question
from nlhf_zoo.oracles.verdicts.store import VerdictStore
from nlhf_zoo.oracles.verdicts.verdicts import Record, Verdicts

__all__ = ["NO_KEY", "OPENAI_URL", "EndpointOracle"]

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""In place of a variable's name: the server asks for no key."""


def _one_of(*choices: str) -> Any:
    def check(_: Any, field: Any, value: Any) -> None:
        if value not in choices:
            raise BadInput(
                f"judge option {field.name} must be {', '.join(choices[:-1])} or {choices[-1]}, got {value!r}"
            )

    return check


def _at_least(least: float) -> Any:
    def check(_: Any, field: Any, value: float) -> None:
        if not least <= value < math.inf:
            raise BadInput(f"judge option {field.name} must be >= {least:g} and finite, got {value!r}")

    return check


def _web_address(_: Any, field: Any, value: str) -> None:
    no_address = f"judge option {field.name} must begin with http:// or https://; an example is {OPENAI_URL}"
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address in them, a port beyond 65535
        raise BadInput(no_address) from None
    if not usable:
        raise BadInput(no_address)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadInput(f"judge option {field.name} must hold no secret: a key belongs into an environment variable")


def _variable_name(_: Any, field: Any, value: str) -> None:
    # The value is not repeated: somebody may have put the key itself here.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or value.startswith("sk_"):
        raise BadInput(f"judge option {field.name} names an environment variable that holds the key, it is not the key")


def _json(_: Any, field: Any, value: Mapping[str, Any]) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"judge option {field.name} goes into a request, which is JSON: {error}") from None


@attrs.frozen(kw_only=True)
class EndpointOptions:
    """How to reach a judge, and what to ask of it.

    Attributes:
        model: its name at the server.
        base_url: of the server, up to and including /v1 as a rule.
        key_env: environment variable that holds the key; "none" for a server that asks for none.
        temperature: of the judge; `None` leaves it to the server.
        max_tokens: of an answer; 0 leaves it to the server.
        logprobs: "auto": soft verdicts where the server gives log-probabilities; "true": it must; "false": hard
            verdicts.
        top_logprobs: how many of the likeliest tokens are asked for, 20 at most servers' limit.
        extra: further fields of the request's body.
        concurrency, timeout, retries, backoff: as in `Manners`.
        unparsable: "error", or "tie" for an answer without verdict, counted as `unread`.
        max_calls, max_money, price_in, price_out: as in `Budget`.
    """

    model: str
    base_url: str = attrs.field(default=OPENAI_URL, validator=_web_address)
    key_env: str = attrs.field(default="OPENAI_API_KEY", validator=_variable_name)
    temperature: float | None = attrs.field(default=0.0, validator=attrs.validators.optional(_at_least(0)))
    max_tokens: int = attrs.field(default=16, validator=_at_least(0))
    logprobs: str = attrs.field(default="auto", validator=_one_of("auto", "true", "false"))
    top_logprobs: int = attrs.field(default=20, validator=_at_least(1))
    extra: Mapping[str, Any] = attrs.field(factory=dict, validator=_json)
    concurrency: int = attrs.field(default=16, validator=_at_least(1))
    timeout: float = attrs.field(default=60.0, validator=_at_least(0.001))
    retries: int = attrs.field(default=6, validator=_at_least(0))
    backoff: float = attrs.field(default=1.0, validator=_at_least(0))
    unparsable: str = attrs.field(default="error", validator=_one_of("error", "tie"))
    max_calls: int | None = None
    max_money: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0


class EndpointOracle(OrderedJudge):
    """P(a > b | x) by a chat model behind an OpenAI-compatible endpoint, asked both orders.

    Verdicts are soft where the server gives the log-probabilities of the verdict's token, Q = p(A) / (p(A) + p(B)),
    and hard otherwise. Each is committed to the store the moment its answer is there, before it is used and before
    the next question is sent in its place; the same question is never paid for twice.

    Args:
        options: how to reach the judge and what to ask of it.
        prompt: its instructions.
        store: where verdicts and spending are kept.

    Raises:
        BadInput: the `openai` client is not installed, or the environment variable of the key is not set.
    """

    waits = True

    def __init__(self, options: EndpointOptions, prompt: JudgePrompt, store: VerdictStore) -> None:
        self.options, self.prompt = options, prompt
        self.verdicts = Verdicts(store, self.identity)
        given = attrs.asdict(options)
        budget = Budget(**{field.name: given[field.name] for field in attrs.fields(Budget)})
        self.meter = Meter(f"judge {options.model} at {options.base_url}", budget, self.verdicts)
        self._manners = Manners(
            tie_unread=options.unparsable == "tie",
            **{name: given[name] for name in ("concurrency", "timeout", "retries", "backoff")},
        )
        self._tongue = Tongue(options.logprobs, options.top_logprobs)
        if importlib.util.find_spec("openai") is None:
            raise BadInput("a judge behind an endpoint needs the openai client: pip install 'nlhf-zoo[openai]'")
        self._key()

    @classmethod
    def load(cls, *, template: str | None = None, cache: str | None = None, **options: Any) -> EndpointOracle:
        """From plain options: `template` names a file of instructions, `cache` the file of verdicts (else memory)."""
        return cls(EndpointOptions(**options), read_judge_prompt(template), VerdictStore(cache))

    def __repr__(self) -> str:
        return f"EndpointOracle({self.options.model!r}, {self.options.base_url!r}, {self.verdicts.store!r})"

    @property
    def identity(self) -> dict[str, Any]:
        """All that changes the judge's answers."""
        names = ("model", "base_url", "temperature", "max_tokens", "logprobs", "top_logprobs", "extra")
        given = {name: getattr(self.options, name) for name in names}
        given["base_url"] = self.options.base_url.rstrip("/")
        return {"oracle": "openai", "template": self.prompt.fingerprint, **given}

    @property
    def samples(self) -> bool:
        return self.options.temperature != 0

    @property
    def measured(self) -> Mapping[str, float]:
        """calls, money, tokens_in, tokens_out, unread: of all runs that share the file; the rest of this process."""
        return {**super().measured, **self.meter.measured}

    def ask(self, questions: Sequence[Question], record: Record) -> None:
        _completed(self._session(questions, record))

    async def _session(self, questions: Sequence[Question], record: Record) -> None:
        key = self._key()
        request: dict[str, Any] = {"model": self.options.model}
        if self.options.temperature is not None:
            request["temperature"] = self.options.temperature
        if self.options.max_tokens:
            request["max_tokens"] = self.options.max_tokens
        if self.options.extra:
            request["extra_body"] = dict(self.options.extra)

        def hide(text: str) -> str:
            return text if self.options.key_env == NO_KEY else text.replace(key, "***")

        async with open_client(key, self.options.base_url, self.options.timeout) as client:
            session = Session(client, request, self.prompt, self.meter, self._manners, self._tongue, hide)
            await session.ask(questions, record)

    def _key(self) -> str:
        """Read anew each time, and kept nowhere."""
        name = self.options.key_env
        if name == NO_KEY:
            return NO_KEY
        key = os.environ.get(name, "").strip()
        if not key:
            # What is not spelt as variables are may be the key itself, and is not repeated.
            called = f" {name}" if name.isupper() else " that key_env names"
            raise BadInput(
                f"{self.meter.name}: the environment variable{called} holds no key; set it, or name another with"
                f" key_env ({NO_KEY} where the server asks for none)"
            )
        if not (key.isascii() and key.isprintable()):
            # The client would say so too, and quote the key.
            raise BadInput(f"{self.meter.name}: the key holds a character that no header can; set it anew, in one line")
        return key


def _completed(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, from inside a notebook's event loop too."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    failure: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
