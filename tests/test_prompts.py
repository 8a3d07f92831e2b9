"""Prompts: every source, every bad row, and the chat template."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_zoo.data import read_prompts, render_prompts
from nlhf_zoo.data.prompts import Prompt
from nlhf_zoo.errors import BadInput

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
SECRET = "do not repeat me"

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(str.strip)


def write_parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def refusal(source: Path | str, content: str | bytes | None = None, **kwargs: Any) -> str:
    if content is not None:
        Path(source).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput) as caught:
        read_prompts(source, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


@given(prompts=st.lists(words, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_texts_come_back_from_every_format(prompts: list[str], tmp_path: Path):
    rows = [{"id": k, "prompt": text} for k, text in enumerate(prompts)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(text) + "\n\n" for text in prompts))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "bare.json").write_text(json.dumps(prompts))
    (tmp_path / "columns.json").write_text(json.dumps({"prompt": prompts}))
    write_parquet(tmp_path / "a.parquet", {"id": list(range(len(prompts))), "prompt": prompts})
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as handle:
        out = csv.DictWriter(handle, ["id", "prompt"], quoting=csv.QUOTE_ALL)
        out.writeheader()
        out.writerows(rows)
    for path in sorted(tmp_path.iterdir()):
        assert read_prompts(path) == prompts, path.name


def test_txt_is_one_a_line(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("\ufefffirst \r\n\r\n  zweite ü\n".encode())
    assert read_prompts(tmp_path / "a.txt") == ["first ", "  zweite ü"]


def test_chats_come_back_from_every_format_that_holds_them(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": CHAT}) + "\n" + json.dumps("plain") + "\n")
    assert read_prompts(tmp_path / "a.jsonl") == [CHAT, "plain"]
    (tmp_path / "a.json").write_text(json.dumps([CHAT]))
    assert read_prompts(str(tmp_path / "a.json")) == [CHAT]
    # One message has a name, so parquet gives the other a null.
    named = [{**CHAT[0], "name": "boss"}, CHAT[1]]
    assert read_prompts(write_parquet(tmp_path / "a.parquet", {"prompt": [named]})) == [named]


def test_another_column_and_a_limit(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", {"question": [str(k) for k in range(9)]})
    assert read_prompts(path, column="question", limit=2) == ["0", "1"]
    # Rows behind the limit are not even looked at.
    (tmp_path / "a.jsonl").write_text('"fine"\nnot json\n')
    assert read_prompts(tmp_path / "a.jsonl", limit=1) == ["fine"]


def test_a_cell_longer_than_the_csv_module_likes(tmp_path: Path):
    text = "x" * 200_000
    (tmp_path / "a.csv").write_text(f"prompt\n{text}\n")
    assert read_prompts(tmp_path / "a.csv") == [text]


class TestDatasets:
    def test_saved_to_disk_with_and_without_splits(self, tmp_path: Path):
        import datasets

        data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "other": [1, 2]})
        data.save_to_disk(tmp_path / "one")
        assert read_prompts(tmp_path / "one", limit=1) == ["a"]
        datasets.DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "two")
        assert read_prompts(tmp_path / "two", split="test") == ["b"]
        assert "no split 'dev'; it has train, test" in refusal(tmp_path / "two", split="dev")
        assert "no column 'text'" in refusal(tmp_path / "one", column="text")

    def test_a_folder_of_files(self, tmp_path: Path):
        (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": CHAT}) + "\n")
        (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": CHAT[1:]}) + "\n")
        assert read_prompts(tmp_path) == [CHAT]
        assert read_prompts(tmp_path, split="test") == [CHAT[1:]]

    def test_a_folder_of_nothing(self, tmp_path: Path):
        assert "not a readable dataset folder" in refusal(tmp_path)

    def test_a_hub_id_is_loaded_without_its_code(self, monkeypatch: pytest.MonkeyPatch):
        import datasets

        asked: list[Any] = []

        def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
            asked.append((args, kwargs))
            return datasets.Dataset.from_dict({"prompt": ["a", "b"]})

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert read_prompts("owner/name", split="test[:5]") == ["a", "b"]
        assert asked == [(("owner/name",), {"split": "test[:5]"})]

    def test_a_hub_that_fails_is_one_line(self, monkeypatch: pytest.MonkeyPatch):
        import datasets

        def load(*args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no\nroute")

        monkeypatch.setattr(datasets, "load_dataset", load)
        assert "neither a file here nor a dataset that loads (ConnectionError: no route)" in refusal("owner/name")

    @pytest.mark.parametrize("source", ["missing/a.jsonl", "a.csv.gz", "./name", "/no/where", "a/b/c"])
    def test_what_looks_like_a_path_never_reaches_the_hub(self, source: str, monkeypatch: pytest.MonkeyPatch):
        import datasets

        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
        refusal(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", "x", "cannot tell the format"),
        ("a.txt", "", "empty"),
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt.gz", b"plain", "not a sound gzip file"),
        ("a.jsonl.gz", gzip.compress(b'"x"\n' * 999, mtime=0)[:-9], "not a sound gzip file"),
        ("a.jsonl", f'"a"\n{SECRET}\n', "line 2 is not json"),
        ("a.jsonl", f'{{"text": "{SECRET}"}}\n', "line 1: has no column 'prompt'; it has 'text'"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1: a prompt is a text or a list of chat messages, not int"),
        ("a.jsonl", '{"prompt": null}\n', "not NoneType"),
        ("a.jsonl", '{"prompt": " "}\n', "line 1: the prompt is empty"),
        ("a.jsonl", "[]\n", "the chat has no messages"),
        ("a.jsonl", f'["{SECRET}"]\n', "message 1 needs a text 'role'"),
        ("a.jsonl", f'[{{"role": "user", "text": "{SECRET}"}}]\n', "message 1 needs"),
        ("a.jsonl", f'[{{"role": "", "content": "{SECRET}"}}]\n', "message 1 needs"),
        ("a.jsonl", '[{"role": "user", "content": [{"type": "image"}]}]\n', "message 1 needs"),
        ("a.jsonl", f'[{{"role": "assistant", "content": "{SECRET}"}}]\n', "ends with the assistant's answer"),
        ("a.json", "[", "is not json"),
        ("a.json", "[" * 100_000, "json|nested"),
        ("a.json", "3", "a list of prompts is needed, found int"),
        ("a.json", '{"rows": []}', "no column 'prompt'"),
        ("a.json", "[]", "holds no prompts"),
        ("a.csv", "question\nx\n", "no column 'prompt'; it has 'question'"),
        ("a.csv", "id,prompt\n1\n", "line 2: a prompt is"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.parquet", "PAR1 no more", "not a readable parquet file"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str):
    text = refusal(tmp_path / name, content)
    assert name in text
    assert any(part in text for part in message.split("|"))


def test_bad_parquet_and_limit(tmp_path: Path):
    path = write_parquet(tmp_path / "a.parquet", {"prompt": ["x", None]})
    assert "row 2: a prompt is" in refusal(path)
    assert "no column 'q'; it has 'prompt'" in refusal(path, column="q")
    assert "limit must be at least 1" in refusal(path, limit=0)
    assert "no such file" in refusal(tmp_path / "none.parquet")


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


class TestRender:
    prompts: tuple[Prompt, ...] = ("plain", CHAT)

    def test_chats_go_through_the_template_and_texts_stay(self, tokenizer: Any):
        tokenizer.chat_template = TEMPLATE
        assert render_prompts(self.prompts, tokenizer) == ["plain", "<system>be brief<user>why?<assistant>"]

    def test_texts_become_a_user_message_on_request(self, tokenizer: Any):
        tokenizer.chat_template = TEMPLATE
        assert render_prompts(["plain"], tokenizer, chat=True) == ["<user>plain<assistant>"]

    def test_no_template(self, tokenizer: Any):
        assert render_prompts(["plain"], tokenizer) == ["plain"]
        with pytest.raises(BadInput, match=r"prompt 2 is a chat, but the tokenizer .* has no chat template"):
            render_prompts(self.prompts, tokenizer)

    def test_a_template_that_refuses(self, tokenizer: Any):
        tokenizer.chat_template = TEMPLATE
        with pytest.raises(BadInput, match=r"prompt 1: the chat template refuses the roles tool \(no tools here\)"):
            render_prompts([[{"role": "tool", "content": SECRET}]], tokenizer)
