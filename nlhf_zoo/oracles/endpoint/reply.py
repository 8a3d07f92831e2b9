"""What an endpoint has answered, out of whatever it has sent."""

from __future__ import annotations

import math
from typing import Any

import attrs

from nlhf_zoo.oracles.endpoint.trouble import Garbled
from nlhf_zoo.oracles.judge_prompt import TokenChoice

__all__ = ["Reply", "read_reply"]

_MOST_TOKENS = 10**9
"""Of one call; what is beyond is no count, and a million such calls still add up in 64 bits."""


@attrs.frozen
class Reply:
    """One answer.

    Attributes:
        text: what the judge said; empty for a refusal.
        tokens: with the log-probabilities at each, `None` where the server gave none.
        tokens_in, tokens_out: as the server counted them, `None` where it did not.
    """

    text: str
    tokens: tuple[TokenChoice, ...] | None
    tokens_in: int | None
    tokens_out: int | None


def read_reply(completion: Any) -> Reply:
    """The first choice of a chat completion.

    Raises:
        Garbled: it is none. The client builds its objects without checking, so nothing is taken for granted.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise Garbled("no choices in it")
    message = getattr(choices[0], "message", None)
    content = getattr(message, "content", None)
    if message is None or not isinstance(content, str | None):
        raise Garbled("no message in it")
    usage = getattr(completion, "usage", None)
    return Reply(
        # Half a surrogate pair, which JSON may hold, could not be sent back when the judge is asked once more.
        (content or "").encode("utf-8", "replace").decode("utf-8"),
        _tokens(getattr(choices[0], "logprobs", None)),
        _count(getattr(usage, "prompt_tokens", None)),
        _count(getattr(usage, "completion_tokens", None)),
    )


def _tokens(log_probabilities: Any) -> tuple[TokenChoice, ...] | None:
    content = getattr(log_probabilities, "content", None)
    if not isinstance(content, list) or not content:
        return None
    return tuple(_token(entry) for entry in content)


def _token(entry: Any) -> TokenChoice:
    # The token itself may be missing among the likeliest, where it was drawn at a temperature.
    likeliest = getattr(entry, "top_logprobs", None)
    choices: dict[str, float] = {}
    for one in [entry, *(likeliest if isinstance(likeliest, list) else ())]:
        text, value = getattr(one, "token", None), getattr(one, "logprob", None)
        if not isinstance(text, str) or not isinstance(value, int | float) or value != value:
            raise Garbled("log-probabilities without token or number")
        choices[text] = float(min(max(value, -math.inf), 0.0))
    return TokenChoice(entry.token, tuple(choices.items()))


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None
