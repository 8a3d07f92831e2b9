"""The reference policy read from a file."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlhf_zoo.data import read_reference
from nlhf_zoo.errors import BadInput

LABELS = ["rock", "pa,per", "3"]

positive = st.lists(st.floats(1e-6, 1), min_size=1, max_size=8).map(lambda xs: [x / math.fsum(xs) for x in xs])


def refusal(path: Path, content: str | bytes | None, labels: list[str] | None = LABELS, size: int = 3) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput) as caught:
        read_reference(path, labels, size)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@given(p=positive, header=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_one_probability_a_line(p: list[float], header: bool, tmp_path: Path):
    path = tmp_path / "ref.txt"
    path.write_text("\n".join([*(["probability"] if header else []), *map(repr, p)]) + "\n\n")
    log_probs = read_reference(path, None, len(p))
    assert log_probs.dtype == torch.float64
    torch.testing.assert_close(log_probs.exp(), torch.tensor(p, dtype=torch.float64), rtol=1e-14, atol=0)
    assert abs(log_probs.exp().sum().item() - 1) < 1e-14


@given(p=positive, header=st.booleans(), order=st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
def test_labels_in_any_order(p: list[float], header: bool, order: random.Random, tmp_path: Path):
    labels = [f"response {k}" for k in range(len(p))]
    lines = [f"{label}, {value!r}" for label, value in zip(labels, p, strict=True)]
    order.shuffle(lines)
    path = tmp_path / "ref.csv.gz"
    path.write_bytes(gzip.compress("\n".join([*(["label,probability"] if header else []), *lines]).encode()))
    expected = torch.tensor(p, dtype=torch.float64)
    torch.testing.assert_close(read_reference(path, labels, len(p)).exp(), expected, rtol=1e-14, atol=0)


def test_quoted_labels_and_labels_that_look_like_numbers(tmp_path: Path):
    path = tmp_path / "ref.csv"
    path.write_text('3,0.2\n"pa,per",0.3\nrock,0.5\n')
    torch.testing.assert_close(read_reference(path, LABELS, 3).exp(), torch.tensor([0.5, 0.3, 0.2]).double())


def test_a_labelled_game_takes_plain_lines_in_its_order(tmp_path: Path):
    path = tmp_path / "ref.txt"
    path.write_text("0.5\n0.3\n0.2\n")
    torch.testing.assert_close(read_reference(path, LABELS, 3).exp(), torch.tensor([0.5, 0.3, 0.2]).double())


def test_a_sum_within_rounding_is_renormalised(tmp_path: Path):
    path = tmp_path / "ref.txt"
    path.write_text("0.3333333\n0.3333333\n0.3333333\n")
    assert abs(read_reference(path, None, 3).exp().sum().item() - 1) < 1e-15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "empty"),
        ("\n\n", "holds no probabilities"),
        ("probability\n", "holds no probabilities"),
        (b"\xff\xfe\x00\x01", "not UTF-8"),
        ("0.5\n0.5\n0\n", "line 3 gives probability 0"),
        ("0.5\n-0.0\n0.5\n", "line 2 gives probability 0"),
        ("0.6\n-0.1\n0.5\n", "line 2 gives -0.1"),
        ("0.5\nnan\n0.5\n", "line 2 gives nan"),
        ("0.5\ninf\n0.5\n", "line 2 gives inf"),
        ("0.5\nx\n0.5\n", "line 2 holds 'x'"),
        ("0.5\n0.5\n", "2 probabilities for 3 responses"),
        ("x\n0.5\n0.5\n", "2 probabilities after the header 'x' for 3 responses"),
        ("0.5\n0.2\n0.2\n0.1\n", "4 probabilities for 3 responses"),
        ("0.5\n0.2\n0.2\n", "add up to 0.9, not 1"),
        ("0.5\n0.3\n0.20001\n", "add up to 1.00001, not 1"),
        ("0.5 0.3 0.2\n", "line 1 holds"),
        ("0.5,0.3,0.2\n", "line 1 has 3 cells"),
        ("rock,0.5\n0.5\n", "line 2 has 1 cells"),
        ("rock,0.5\nrock,0.3\n3,0.2\n", "line 2 gives the label 'rock' again"),
        ("rock,0.5\npaper,0.3\n3,0.2\n", "line 2 names 'paper'"),
        ("rock,0.5\n3,0.5\n", "the label 'pa,per' has no probability"),
        ("rock,1\n", "the label 'pa,per' (and 1 more) has no probability"),
        ("rock,0.5\n3,zero\n", "line 2 holds 'zero'"),
    ],
)
def test_bad_references(tmp_path: Path, content: str | bytes | None, message: str):
    assert message in refusal(tmp_path / "ref.txt", content)


def test_labels_for_a_game_without(tmp_path: Path):
    assert "the game has no labels" in refusal(tmp_path / "ref.txt", "a,0.5\nb,0.5\n", labels=None, size=2)


def test_not_gzip(tmp_path: Path):
    assert "not a sound gzip file" in refusal(tmp_path / "ref.csv.gz", "0.5\n0.5\n")
