"""Finished cells are kept through kills, full disks and several writers at once."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlhf_zoo as nz
from nlhf_zoo.comparison.journal import Journal
from tests.test_full_disk import room_for


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    content = {"rows": {"step": [0, 1], "metrics": {"duality_gap": [math.inf, 0.1]}}}
    journal.append("a", content, {"labels": ["é", "x\n"], "probabilities": [0.1, 0.9]})
    journal.append("b", {"error": "no", "lasting": True})
    journal.close()
    for read in (journal, Journal(tmp_path)):
        assert read.cells == {"a": content, "b": {"error": "no", "lasting": True}}
        assert read.policy("a") == {"labels": ["é", "x\n"], "probabilities": [0.1, 0.9]}
        with pytest.raises(KeyError):
            read.policy("c")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(st.floats()) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(content=st.dictionaries(st.sampled_from(["rows", "error", "task"]), ANYTHING), policy=ANYTHING)
def test_every_value_is_read_with_its_type_and_bits(content: dict[str, Any], policy: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.append("a", content, policy)
        journal.close()
        read = Journal(Path(folder))
        # As text, since NaN is no NaN, 1 is True and -0.0 is 0.0.
        assert repr(read.cells["a"]) == repr(content)
        assert repr(read.policy("a")) == repr(policy)


def test_lists_of_digits_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    line = '{"key":"a","rows":{"seconds":[0.0,0.25],"metrics":{"duality_gap":[Infinity,1e-3]}},"policy":[0.5,0.5]}'
    (tmp_path / "20261126-000000-00000000.jsonl").write_text(f"{line}\n")
    journal = Journal(tmp_path)
    assert journal.cells == {"a": {"rows": {"seconds": [0.0, 0.25], "metrics": {"duality_gap": [math.inf, 1e-3]}}}}
    assert journal.policy("a") == [0.5, 0.5]


def test_a_session_that_ends_nothing_leaves_no_file(tmp_path: Path) -> None:
    Journal(tmp_path).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
def test_half_a_line_is_no_cell(kept: float, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("a", {"rows": {"step": [0]}}, {"probabilities": [1.0]})
    journal.append("b", {"rows": {"step": [1]}}, {"probabilities": [0.5, 0.5]})
    journal.close()
    (file,) = tmp_path.iterdir()
    first, second = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first + second[: int(len(second) * kept)])
    again = Journal(tmp_path)
    assert set(again.cells) == {"a"}
    again.append("b", {"rows": {"step": [1]}}, {"probabilities": [0.5, 0.5]})
    again.close()
    assert set(Journal(tmp_path).cells) == {"a", "b"}
    assert Journal(tmp_path).policy("b") == {"probabilities": [0.5, 0.5]}


def test_two_sessions_write_at_the_same_time(tmp_path: Path) -> None:
    one, other = Journal(tmp_path), Journal(tmp_path)
    for at in range(20):
        one.append(f"one {at}", {"rows": {"step": [at] * at}}, at)
        other.append(f"other {at}", {"rows": {"step": [at]}}, -at)
    both = Journal(tmp_path)
    assert len(both.cells) == 40
    assert both.policy("one 7") == 7
    assert both.policy("other 19") == -19
    one.close()
    other.close()


def test_what_is_to_be_tried_again_gives_way_to_what_came_of_it(tmp_path: Path) -> None:
    before, after = Journal(tmp_path), Journal(tmp_path)
    after.append("a", {"rows": {"step": [0]}})
    before.append("a", {"error": "a judge was down", "lasting": False})
    before.append("b", {"error": "a judge was down", "lasting": False})
    assert Journal(tmp_path).cells == {"a": {"rows": {"step": [0]}}}
    before.close()
    after.close()


def test_a_full_disk_loses_one_cell(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("a", {"rows": {"step": [0]}})
    with room_for(2_000), pytest.raises(OSError, match=r"\.jsonl"):
        journal.append("b", {"rows": {"step": list(range(5_000))}})
    journal.close()
    assert "b" not in journal.cells
    again = Journal(tmp_path)
    assert set(again.cells) == {"a"}
    again.append("b", {"rows": {"step": [1]}})
    again.close()
    assert set(Journal(tmp_path).cells) == {"a", "b"}


def test_a_file_a_cell_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out" / "cells").mkdir(parents=True)
    (tmp_path / "out" / "cells" / "0a1b.json").write_text("{}")
    with pytest.raises(nz.BadInput, match="written by an earlier version of nlhf-zoo compare; give a new folder"):
        nz.compare(["rock_paper_scissors"], ["mmd"], queries=20, out=tmp_path / "out")
    assert not (tmp_path / "out" / "config.yaml").exists()
