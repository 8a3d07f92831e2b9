"""How a generative judge is asked, and how its verdict is read: a YAML file, or the one that comes with us."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.data.files import open_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.oracles.templates import Template
from nlhf_zoo.oracles.verdicts.question import Question
from nlhf_zoo.plain import from_yaml

__all__ = ["FIELDS", "JudgePrompt", "Message", "TokenChoice", "read_judge_prompt"]

FIELDS = ("prompt", "first", "second")
Message = dict[str, str]


@attrs.frozen
class TokenChoice:
    """One token of an answer, and what else might have stood there.

    Attributes:
        text: of the token.
        choices: (text, log-probability in nats) of the likeliest tokens at its place, itself among them.
    """

    text: str
    choices: tuple[tuple[str, float], ...]


def _text(_: Any, field: Any, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"judge template: {field.name} must be a text, got {value!r}")


@attrs.frozen(kw_only=True)
class JudgePrompt:
    """A judge's instructions.

    Attributes:
        system: the system message; empty for none.
        user: the question, with {prompt}, {first} and {second} once each.
        first, second: the verdicts that the one or the other response is better.
        reask: what is said after an answer without verdict.
        tie: a verdict that neither is better, if there is one.
        verdict: a regular expression with one group, the verdict; its last match in the answer counts. Left
            out, the answer must be a verdict and nothing else, punctuation around it apart.
    """

    system: str = attrs.field(default="", validator=attrs.validators.instance_of(str))
    user: str = attrs.field(validator=_text)
    first: str = attrs.field(default="A", validator=_text)
    second: str = attrs.field(default="B", validator=_text)
    reask: str = attrs.field(default="Answer with the verdict and nothing else.", validator=_text)
    tie: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    verdict: str | None = attrs.field(default=None, validator=attrs.validators.optional(_text))
    _question: Template = attrs.field(init=False, repr=False, eq=False)
    _pattern: re.Pattern[str] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        if len({*self.labels}) < len(self.labels):
            raise BadInput(f"judge template: the verdicts {', '.join(self.labels)} must differ")
        object.__setattr__(self, "_question", Template(self.user, FIELDS))
        try:
            pattern = re.compile(self.verdict if self.verdict is not None else self._plain_verdict())
        except re.error as error:
            raise BadInput(f"judge template: verdict {self.verdict!r} is no regular expression: {error}") from None
        if pattern.groups != 1:
            raise BadInput(f"judge template: verdict {self.verdict!r} must have one group, it has {pattern.groups}")
        object.__setattr__(self, "_pattern", pattern)

    @property
    def labels(self) -> tuple[str, ...]:
        """The verdicts: for the first response, for the second, and for neither where there is such a one."""
        return (self.first, self.second) if self.tie is None else (self.first, self.second, self.tie)

    @property
    def fingerprint(self) -> str:
        """A hash of all of it."""
        fields = attrs.asdict(self, filter=lambda field, _: field.init)
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def messages(self, question: Question) -> list[Message]:
        """The chat that asks this question."""
        text, _ = self._question.render({name: getattr(question, name) for name in FIELDS})
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return [*system, {"role": "user", "content": text}]

    def read(self, answer: str, tokens: Sequence[TokenChoice] | None = None) -> float | None:
        """Q in [0, 1]: soft where the tokens' log-probabilities are given; `None` where there is no verdict."""
        found = list(self._pattern.finditer(answer))
        if not found or found[-1][1] not in self.labels:
            return None
        soft = self._soft(tokens, found[-1].start(1)) if tokens else None
        return {self.first: 1.0, self.second: 0.0, self.tie: 0.5}[found[-1][1]] if soft is None else soft

    def value(self, masses: Sequence[float]) -> float | None:
        """Q from the probabilities of the labels, in their order and up to a factor; `None` where all are 0."""
        total = math.fsum(masses)
        return (masses[0] + 0.5 * math.fsum(masses[2:])) / total if total > 0 else None

    def _soft(self, tokens: Sequence[TokenChoice], place: int) -> float | None:
        """From the choices at the token that holds the verdict's first character."""
        end = 0
        for token in tokens:
            end += len(token.text)
            if end > place:
                masses = [self._mass(label, token.choices) for label in self.labels]
                return self.value(masses)
        return None

    def _mass(self, label: str, choices: Sequence[tuple[str, float]]) -> float:
        """The probability of tokens that begin this label and no other, white space and marks around them apart."""
        others = [other for other in self.labels if other != label]
        mass = 0.0
        for text, log_probability in choices:
            core = re.sub(r"^\W+|\W+$", "", text) or text.strip()
            if core and label.startswith(core) and not any(other.startswith(core) for other in others):
                mass += math.exp(log_probability)
        return mass

    def _plain_verdict(self) -> str:
        return rf"\A\W*?({'|'.join(map(re.escape, sorted(self.labels, key=len, reverse=True)))})\W*\Z"


def read_judge_prompt(path: str | os.PathLike[str] | None) -> JudgePrompt:
    """From a YAML file; `None` is the template that comes with the package.

    Raises:
        BadInput: no such file, not YAML, an unknown field, or instructions that cannot be used.
    """
    file = Path(path) if path is not None else Path(__file__).with_suffix(".yaml")
    with open_text(file) as handle:
        text = handle.read()
    try:
        content = from_yaml(text)
    except ValueError as error:
        raise BadInput(f"{file}: {error}") from None
    known = [field.name for field in attrs.fields(JudgePrompt) if field.init]
    if not isinstance(content, Mapping) or "user" not in content:
        raise BadInput(f"{file}: a judge template has a field user, and may have {', '.join(known)}")
    unknown = next((name for name in content if name not in known), None)
    if unknown is not None:
        raise BadInput(f"{file}: a judge template has no field {unknown!r}; it has {', '.join(known)}")
    try:
        return JudgePrompt(**content)
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    except TypeError as error:
        raise BadInput(f"{file}: {error.args[0]}") from None
