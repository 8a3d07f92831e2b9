"""What can go wrong with one call, and what is to be done about it."""

from __future__ import annotations

import email.utils
import math
import random
import time
from collections.abc import Mapping

import attrs

__all__ = ["Garbled", "Trouble", "delay", "diagnose", "retry_after"]

_ASK_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass; those from 500 on do too."""
_LONGEST_PAUSE = 60.0


class Garbled(Exception):
    """An answer that is no chat completion: half of one, or something else altogether."""


@attrs.frozen
class Trouble:
    """Why a call brought no answer.

    Attributes:
        reason: in words, without secrets.
        passes: whether the same call may succeed later.
        charged: whether the server may have charged for it.
        status: the HTTP status, where there was one.
        after: seconds that the server asks to wait, where it does.
    """

    reason: str
    passes: bool
    charged: bool
    status: int | None = None
    after: float | None = None


def diagnose(error: Exception) -> Trouble | None:
    """The trouble behind an exception of the client; `None` for an error of another kind."""
    import openai

    match error:
        case openai.APIStatusError():
            return _of_status(error.status_code, error.message, error.code, error.response.headers)
        case TimeoutError() | openai.APITimeoutError():
            return Trouble("no answer in time", passes=True, charged=True)
        case openai.APIConnectionError():
            cause = error.__cause__ or error
            # Connection lost before there was one: nothing can have been charged.
            unreached = type(cause).__name__ in ("ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol")
            why = str(cause).strip() or type(cause).__name__
            return Trouble(
                f"cannot be reached ({why})" if unreached else f"dropped the connection ({why})",
                passes=type(cause).__name__ != "UnsupportedProtocol",
                charged=not unreached,
            )
        case UnicodeEncodeError():
            return Trouble("a text with half a surrogate pair, which cannot be sent", passes=False, charged=False)
        # Of the parsers: no JSON, no UTF-8, a number of thousands of digits, brackets thousands deep.
        case Garbled() | ValueError() | RecursionError() | openai.APIResponseValidationError():
            return Trouble(f"an answer that is no chat completion ({error})", passes=True, charged=True)
        case _:
            return None


def _of_status(status: int, message: str, code: str | None, headers: Mapping[str, str]) -> Trouble:
    passes = status >= 500 or (status in _ASK_AGAIN and code != "insufficient_quota")
    return Trouble(
        f"status {status}: {' '.join(message.split())}",
        passes,
        charged=False,
        status=status,
        after=retry_after(headers),
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds >= 0 that the server asks to wait, from `Retry-After` as a number or a date; `None` without."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if not math.isnan(seconds) else None


def delay(attempt: int, first: float, after: float | None, chance: random.Random) -> float:
    """Seconds before the next attempt: first * 2^attempt, up to a minute, less up to half of it by chance.

    What the server asks for is kept, with the jitter added on top, so that not all come back at once.
    """
    own = min(_LONGEST_PAUSE, first * 2.0 ** min(attempt, 30)) * chance.uniform(0.5, 1.0)
    return own if after is None else after + min(own, first)
