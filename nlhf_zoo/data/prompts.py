"""Prompts: read from files and `datasets` sources, rendered by a tokenizer's chat template.

Prompts may be private or offensive: no message here ever repeats their text, rows are named by number.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlhf_zoo.data.files import file_format, open_text, parsing, require_file
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompt", "chat_text", "read_prompts", "render_prompts", "transcript"]

Prompt = str | list[dict[str, str]]
"""A plain text, or chat messages with `role` and `content`, the last of them not the assistant's."""

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PLAIN, _ZIPPED = ("parquet",), ("jsonl", "json", "csv", "txt")


def read_prompts(
    source: str | PathLike[str], *, column: str = "prompt", split: str = "train", limit: int | None = None
) -> list[Prompt]:
    """Prompts from a file (jsonl, json, csv, txt, each also gzipped; parquet) or a `datasets` source.

    A txt holds one prompt a line, blank lines are skipped. Rows of a jsonl or json are objects with `column`,
    or prompts themselves. A folder is read by `datasets` (saved to disk, or files that it knows), and so is
    the id of a dataset on the hub; code from there is never run.

    Args:
        source: path, or hub id.
        column: where the prompt stands in a row.
        split: of a `datasets` source.
        limit: read that many at most, >= 1.

    Returns:
        At least one prompt.

    Raises:
        BadInput: unreadable, no such column or split, a row that is neither text nor chat messages, no rows.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"limit must be at least 1, got {limit}")
    path = Path(source)
    if path.is_dir():
        rows = _folder(path, column, split)
    elif not path.exists() and _looks_like_hub_id(str(source)):
        rows = _hub(str(source), column, split)
    else:
        rows = _file(path, column)
    prompts = [_prompt(str(source), place, value) for place, value in itertools.islice(rows, limit)]
    if not prompts:
        raise BadInput(f"{source}: holds no prompts; give at least one")
    return prompts


def render_prompts(prompts: Iterable[Prompt], tokenizer: PreTrainedTokenizerBase, *, chat: bool = False) -> list[str]:
    """The texts that the model continues: chat messages through the tokenizer's chat template.

    Args:
        prompts: plain texts and chats, mixed as they come.
        tokenizer: a transformers tokenizer.
        chat: wrap plain texts as one user message; otherwise they stay as they are.

    Returns:
        One text a prompt; a rendered chat ends where the assistant's answer begins, and holds the special
        tokens already (tokenize it with `add_special_tokens=False`).

    Raises:
        BadInput: a chat meets a tokenizer without a template, or a template that refuses it.
    """
    texts: list[str] = []
    for number, prompt in enumerate(prompts, start=1):
        if isinstance(prompt, str) and not chat:
            texts.append(prompt)
            continue
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not tokenizer.chat_template:
            raise BadInput(
                f"prompt {number} is a chat, but the tokenizer {tokenizer.name_or_path!r} has no chat template;"
                " give plain text prompts, or set tokenizer.chat_template"
            )
        texts.append(_through_template(number, messages, tokenizer))
    return texts


def chat_text(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **how: Any) -> str:
    """A chat through the tokenizer's chat template, which runs in a sandbox.

    Args:
        how: further options of `apply_chat_template`.

    Raises:
        BadInput: the template does not take it, or is none.
    """
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    # A template is a program, of whoever made the tokenizer.
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        roles = ", ".join(message["role"] for message in messages)
        raise BadInput(f"the chat template refuses the roles {roles} ({reason})") from None
    assert isinstance(text, str)
    return text


def transcript(prompt: Prompt) -> str:
    """What a judge reads of a prompt: a single user message as it is, a longer chat as a transcript."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _through_template(number: int, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return chat_text(messages, tokenizer, add_generation_prompt=True)
    except BadInput as error:
        raise BadInput(f"prompt {number}: {error}") from None


def _looks_like_hub_id(source: str) -> bool:
    known = tuple(f".{suffix}" for suffix in (*_PLAIN, *_ZIPPED, "gz"))
    return bool(_HUB_ID.fullmatch(source)) and not source.lower().endswith(known) and not source.startswith(".")


def _file(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    match file_format(path, plain=_PLAIN, zipped=_ZIPPED):
        case "txt":
            return _txt(path)
        case "csv":
            return _csv(path, column)
        case "jsonl":
            return _jsonl(path, column)
        case "json":
            return _json(path, column)
        case _:
            return _parquet(path, column)


def _txt(path: Path) -> Iterator[tuple[str, Any]]:
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield f"line {number}", line.rstrip("\r\n")


def _csv(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # prompts may be longer than the module's 128 kB
    try:
        with open_text(path) as handle:
            reader = csv.DictReader(handle)
            _require_column(str(path), column, reader.fieldnames or ())
            for row in reader:
                yield f"line {reader.line_num}", row[column]
    except csv.Error as error:
        raise BadInput(f"{path}: not a csv file ({error})") from None


def _jsonl(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    with open_text(path) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield f"line {number}", _cell(path, f"line {number}", column, _decoded(path, f"line {number}", line))


def _json(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    with open_text(path) as handle:
        content = _decoded(path, "the text", handle.read())
    if isinstance(content, Mapping):
        _require_column(str(path), column, tuple(content))
        content = content[column]
    if not isinstance(content, list):
        raise BadInput(f"{path}: a list of prompts is needed, found {type(content).__name__}")
    for number, row in enumerate(content, start=1):
        yield f"row {number}", _cell(path, f"row {number}", column, row)


def _decoded(path: Path, place: str, text: str) -> Any:
    try:
        return from_json(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: {place} is not json ({error.msg} at column {error.colno})") from None
    except ValueError as error:
        raise BadInput(f"{path}: {place} cannot be read ({error}); give texts or chat messages") from None


def _cell(path: Path, place: str, column: str, row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    _require_column(f"{path}: {place}", column, tuple(row))
    return row[column]


def _parquet(path: Path, column: str) -> Iterator[tuple[str, Any]]:
    require_file(path)
    with parsing(path, "parquet file"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        _require_column(str(path), column, file.schema_arrow.names)
        batches = file.iter_batches(columns=[column])
    number = 0
    while True:
        with parsing(path, "parquet file"):
            batch = next(batches, None)
            values = [] if batch is None else batch.column(0).to_pylist()
        if batch is None:
            return
        for value in values:
            number += 1
            yield f"row {number}", value


def _folder(path: Path, column: str, split: str) -> Iterator[tuple[str, Any]]:
    with parsing(path, "dataset folder"):
        import datasets

        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            data: Any = datasets.load_from_disk(str(path))
        else:
            # Streaming reads the files where they lie, without a second copy in the cache.
            data = datasets.load_dataset(str(path), streaming=True)
    if isinstance(data, Mapping):
        if split not in data:
            raise BadInput(f"{path}: has no split {split!r}; it has {', '.join(map(str, data))}")
        data = data[split]
    return _rows(str(path), column, data)


def _hub(source: str, column: str, split: str) -> Iterator[tuple[str, Any]]:
    # Not streamed: once in the cache, the same prompts are there on the next run and without network.
    import datasets

    try:
        data = datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub, the network, the cache and the loader each raise their own
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{source}: neither a file here nor a dataset that loads ({type(error).__name__}: {reason})"
        ) from None
    return _rows(source, column, data)


def _rows(where: str, column: str, data: Any) -> Iterator[tuple[str, Any]]:
    if data.column_names is not None:
        _require_column(where, column, data.column_names)
        data = data.select_columns([column])
    for number, row in enumerate(data, start=1):
        _require_column(where, column, tuple(row))
        yield f"row {number}", row[column]


def _require_column(where: str, column: str, columns: Sequence[Any]) -> None:
    if column not in columns:
        known = ", ".join(map(repr, columns[:10])) or "none"
        raise BadInput(f"{where}: has no column {column!r}; it has {known}")


def _prompt(source: str, place: str, value: Any) -> Prompt:
    if isinstance(value, str):
        if not value.strip():
            raise BadInput(f"{source}: {place}: the prompt is empty; drop the row")
        _require_unicode(f"{source}: {place}", value)
        return value
    if not isinstance(value, list):
        raise BadInput(f"{source}: {place}: a prompt is a text or a list of chat messages, not {type(value).__name__}")
    if not value:
        raise BadInput(f"{source}: {place}: the chat has no messages; drop the row")
    return _chat(f"{source}: {place}", value)


def _require_unicode(where: str, text: str) -> None:
    # JSON can say "\ud83d", half of an emoji: no tokenizer takes it, and no file or request can hold it.
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{where}: holds half a surrogate pair, which is no Unicode; mend or drop the row") from None


def _chat(where: str, messages: list[Any]) -> list[dict[str, str]]:
    chat: list[dict[str, str]] = []
    for number, message in enumerate(messages, start=1):
        # Columnar formats fill keys that a message lacks with null.
        given = {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else {}
        if not all(isinstance(given.get(key), str) for key in ("role", "content")) or not given["role"]:
            raise BadInput(f"{where}: message {number} needs a text 'role' and a text 'content'")
        _require_unicode(f"{where}: message {number}", given["role"] + given["content"])
        chat.append(given)
    if chat[-1]["role"] == "assistant":
        raise BadInput(f"{where}: the chat ends with the assistant's answer; drop the last message")
    return chat
