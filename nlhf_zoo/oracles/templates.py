"""How a judge reads: a text with named gaps, and how what is too long for the model is shortened."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from nlhf_zoo.data.prompts import chat_text
from nlhf_zoo.errors import BadInput

__all__ = ["Template", "chat_template", "encode"]

Row = Mapping[str, str]
Span = tuple[int, int]


@attrs.frozen
class Template:
    """A text with each of its fields in braces exactly once, as in "{prompt} A: {first} B: {second}".

    Raises:
        BadInput: a field is missing, repeated, unknown or carries a format.
    """

    text: str
    fields: tuple[str, ...]
    _pieces: tuple[tuple[str, str | None], ...] = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        wanted = ", ".join(f"{{{name}}}" for name in self.fields)
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise BadInput(f"template {self.text!r}: {error}; write a literal brace twice") from error
        found = [field for _, field, _, _ in parsed if field is not None]
        if sorted(found) != sorted(self.fields) or any(form or change for _, _, form, change in parsed):
            raise BadInput(f"template {self.text!r} must hold {wanted} once each and nothing else in braces")
        object.__setattr__(self, "_pieces", tuple((literal, field) for literal, field, _, _ in parsed))

    def render(self, row: Row) -> tuple[str, dict[str, Span]]:
        """The text, and where in it each field stands (start and end, in characters)."""
        parts: list[str] = []
        spans: dict[str, Span] = {}
        at = 0
        for literal, field in self._pieces:
            value = row[field] if field is not None else ""
            parts += [literal, value]
            if field is not None:
                spans[field] = (at + len(literal), at + len(literal) + len(value))
            at += len(literal) + len(value)
        return "".join(parts), spans


def chat_template(tokenizer: Any) -> str:
    """The tokenizer's chat template around one user turn {prompt} and one assistant turn {response}.

    Raises:
        BadInput: the tokenizer has no chat template, or it does not pass the turns through.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("template='chat' needs a tokenizer with a chat template; give the template itself")
    marks = {"prompt": "NLHFPROMPTMARK", "response": "NLHFRESPONSEMARK"}
    turns = [{"role": "user", "content": marks["prompt"]}, {"role": "assistant", "content": marks["response"]}]
    text = chat_text(turns, tokenizer).replace("{", "{{").replace("}", "}}")
    for field, mark in marks.items():
        text = text.replace(mark, f"{{{field}}}")
    return Template(text, ("prompt", "response")).text


def encode(tokenizer: Any, template: Template, rows: Sequence[Row], max_length: int) -> list[list[int]]:
    """Token ids of the rendered rows, each at most `max_length` long.

    A row that is too long loses its prompt from the left, then the ends of its responses, the longest one
    first, so that equal responses stay equal; the template's own words always stay. Special tokens are
    added unless the text begins with the tokenizer's own first one (a chat template has written it). The name of
    one in a response is mere text: a policy that spells the end of its turn does not speak for the judge.

    Raises:
        BadInput: the template alone is longer than `max_length`, or a tokenizer without offsets would have
            to shorten.
    """
    names = _special_names(tokenizer)
    rendered = [template.render(_spelt_apart(row, names)) for row in rows]
    start = getattr(tokenizer, "bos_token", None)
    begun = [bool(start) and text.startswith(start) for text, _ in rendered]
    encoded: list[list[int]] = [[] for _ in rendered]
    for group in {*begun}:
        members = [i for i, flag in enumerate(begun) if flag is group]
        answer = tokenizer(
            [rendered[i][0] for i in members],
            add_special_tokens=not group,
            return_offsets_mapping=tokenizer.is_fast,
            verbose=False,
        )
        for place, i in enumerate(members):
            ids = answer["input_ids"][place]
            if len(ids) > max_length:
                if not tokenizer.is_fast:
                    raise BadInput(f"{type(tokenizer).__name__} cannot shorten texts; use its fast version")
                ids = _shortened(ids, answer["offset_mapping"][place], rendered[i][1], len(ids) - max_length)
            encoded[i] = ids
    return encoded


def _special_names(tokenizer: Any) -> re.Pattern[str] | None:
    """What the tokenizer would take for one of its special tokens, wherever it stands."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _spelt_apart(row: Row, names: re.Pattern[str] | None) -> Row:
    """The row with a space in each special token's name, but in the prompt, which nobody trains."""
    if names is None:
        return row
    return {
        field: text if field == "prompt" else names.sub(lambda name: f"{name[0][0]} {name[0][1:]}", text)
        for field, text in row.items()
    }


def _shortened(ids: list[int], offsets: Sequence[Span], spans: Mapping[str, Span], excess: int) -> list[int]:
    inside = {
        field: [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end] for field, (start, end) in spans.items()
    }
    prompt = inside.pop("prompt")
    dropped = set(prompt[:excess])
    excess -= len(dropped)
    while excess > 0:
        longest = max(inside.values(), key=len)
        if not longest:
            raise BadInput("max_length leaves no room for the responses beside the template; raise it")
        # Equally long responses lose a token each, even where one would do: neither may gain from its place.
        for tokens in [t for t in inside.values() if len(t) == len(longest)]:
            dropped.add(tokens.pop())
            excess -= 1
    return [token for i, token in enumerate(ids) if i not in dropped]
