"""Asking a judge for what it has not said yet, and for nothing twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlhf_zoo.oracles.verdicts.question import Question, Verdict, judge_key
from nlhf_zoo.oracles.verdicts.store import VerdictStore

__all__ = ["Ask", "Record", "Verdicts"]

Record = Callable[[Mapping[Question, Verdict]], None]
"""Keep verdicts: they are on the disk when it returns."""
Ask = Callable[[Sequence[Question], Record], None]
"""Ask the judge all of these questions, and hand over each verdict as soon as it is there."""

_PAUSE = 0.02
"""Seconds between two looks at what another thread or process is asking for."""


class Verdicts:
    """One judge's verdicts in a store.

    Args:
        store: where they are kept.
        identity: all that changes the judge's answers, in plain values: another identity is another judge.
    """

    def __init__(self, store: VerdictStore, identity: Mapping[str, Any]) -> None:
        self.store = store
        self.judge = judge_key(identity)
        self.hits = 0
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._introduced = False

    def of(self, questions: Sequence[Question], ask: Ask) -> list[Verdict]:
        """The verdicts on these questions, each of them from the store; `ask` is called for those not there.

        What another thread or process is asking for at this moment is waited for. Whatever `ask` raises is
        raised, and what it handed over before stays.
        """
        keys = {question: question.key(self.judge) for question in dict.fromkeys(questions)}
        known = self.store.known(keys.values())
        missing = [question for question, key in keys.items() if key not in known]
        self.hits += len(questions) - len(missing)
        if missing and not self._introduced:
            self.store.introduce(self.judge, self._identity)
            self._introduced = True
        while missing:
            if not self._ask(missing, keys, ask):
                time.sleep(_PAUSE)
            known |= self.store.known([keys[question] for question in missing])
            missing = [question for question in missing if keys[question] not in known]
        return [known[keys[question]] for question in questions]

    def _ask(self, missing: Sequence[Question], keys: Mapping[Question, bytes], ask: Ask) -> bool:
        """Ask for those that nobody else is asking for; whether there were any."""
        mine = self.store.claim([keys[question] for question in missing])
        if not mine:
            return False
        handed: set[bytes] = set()

        def record(verdicts: Mapping[Question, Verdict]) -> None:
            kept = {keys[question]: verdict for question, verdict in verdicts.items()}
            self.store.record(self.judge, kept)
            handed.update(kept)

        try:
            ask([question for question in missing if keys[question] in mine], record)
        finally:
            self.store.release(mine - handed)
        assert handed >= mine, "a judge must hand over a verdict on each question"
        return True
