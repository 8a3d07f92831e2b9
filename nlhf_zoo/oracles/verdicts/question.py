"""One question to a judge, its answer, and the names that both have in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Question", "Verdict", "judge_key"]


@attrs.frozen
class Question:
    """Is `first` better than `second`? The two orders of a pair are two questions.

    Attributes:
        order: whether the judge's word in this order alone is asked for, before any averaging of both.
        repeat: 0, or the number of the repetition, where the same is asked again on purpose.
    """

    prompt: str
    first: str
    second: str
    order: bool = True
    repeat: int = 0

    def key(self, judge: str) -> bytes:
        """32 bytes that this question to this judge alone has."""
        digest = hashlib.sha256()
        for part in (judge, self.prompt, self.first, self.second, f"{self.order:d}{self.repeat}"):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        return digest.digest()


@attrs.frozen
class Verdict:
    """P(first > second) in [0, 1]; not `parsed` where it is the tie that stands for an answer that nobody can read."""

    probability: float
    parsed: bool = True


def judge_key(identity: Mapping[str, Any]) -> str:
    """A hash of all that changes a judge's answers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
