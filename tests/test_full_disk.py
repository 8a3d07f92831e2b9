"""A disk that is full ends in one line that names the file, and leaves no half of one."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nlhf_zoo.atomic import write_text
from nlhf_zoo.cli import main
from nlhf_zoo.llm.folders import save_folder
from nlhf_zoo.llm.small_models import byte_tokenizer, small_llama
from nlhf_zoo.training.checkpoints import WholeCheckpoints


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes; the writer is told so as it is of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def written_text(path: Path) -> None:
    write_text(path, "x" * 100_000)


def saved_checkpoint(path: Path) -> None:
    WholeCheckpoints().save_checkpoint({"weights": torch.zeros(100_000)}, path)


def saved_model(path: Path) -> None:
    tokenizer = byte_tokenizer()
    save_folder(path, small_llama(tokenizer, hidden=64, layers=1, heads=2, seed=0), tokenizer, {})


@pytest.mark.parametrize("write", [written_text, saved_checkpoint, saved_model])
def test_the_file_is_named_and_nothing_is_left(write: Callable[[Path], None], tmp_path: Path) -> None:
    with room_for(20_000), pytest.raises(OSError, match="thing"):
        write(tmp_path / "thing")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    write(tmp_path / "thing")
    assert (tmp_path / "thing").exists()


def test_a_comparison_goes_on_when_there_is_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["compare", "--game", "low_rank", "--game-set", "responses=60", "--solver", "mmd", "--queries", "40"]
    asked += ["--seeds", "2", "--no-report", "--out", str(tmp_path / "out")]
    with room_for(8_000):
        assert main(asked) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nlhf-zoo: {tmp_path / 'out'}")
    assert error.count("\n") == 1
    assert main(asked) == 0
