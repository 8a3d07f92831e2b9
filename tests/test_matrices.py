"""Preference matrices: every file format, counts, the check, and real data."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nlhf_zoo.data import check_probabilities, counts_to_probabilities, read_matrix
from nlhf_zoo.errors import BadInput

DATA = Path(os.environ.get("NLHF_ZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))

# file -> responses, comparisons, pairs never compared in percent, Condorcet winner, strict 3-cycles
# (the table of that folder's README)
REAL = {
    "llmfao_human": (59, 8_931, 45.8, False, 510),
    "llmfao_gpt4": (70, 3_236, 46.6, False, 347),
    "preflib_glasgow_govan_2007": (11, 525_800, 0, False, 1),
    "preflib_ers_68": (11, 22_973, 0, False, 3),
    "preflib_ers_16": (29, 4_231, 0, False, 183),
    "preflib_countries_2013": (115, 98_325, 0, False, 6_204),
    "preflib_sushi10": (10, 225_000, 0, True, 0),
}

FIGHT = [[0.5, 0.7, 0.2], [0.3, 0.5, 0.9], [0.8, 0.1, 0.5]]
WINS = [[0, 7, 2], [3, 0, 9], [8, 1, 0]]
NAMES = ["A", "B, C", "Ünder"]


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    y = draw(st.integers(1, 6))
    p = np.full((y, y), 0.5)
    for i in range(y):
        for j in range(i + 1, y):
            p[i, j] = draw(st.floats(0, 1))
            p[j, i] = 1 - p[i, j]
    return p


@st.composite
def tallies(draw: st.DrawFn) -> np.ndarray:
    """Half counts with a zero diagonal and some count above 1, so that they cannot be probabilities."""
    y = draw(st.integers(2, 6))
    wins = np.array(draw(st.lists(st.integers(0, 40), min_size=y * y, max_size=y * y)), dtype=float).reshape(y, y) / 2
    np.fill_diagonal(wins, 0)
    wins[0, 1] = 7
    return wins


def names(y: int) -> list[str]:
    return [*NAMES, "0.5", "nan", "G"][:y]


def write_csv(path: Path, matrix: np.ndarray, labels: list[str] | None, *, aside: bool = False) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as handle:
        out = csv.writer(handle)  # type: ignore[arg-type]  # "wt" makes a text handle of both openers
        if labels is not None:
            out.writerow(["", *labels] if aside else labels)
        for k, row in enumerate(matrix.tolist()):
            out.writerow([labels[k], *row] if labels is not None and aside else row)
    return path


def write_long(path: Path, wins: np.ndarray, labels: list[str] | None) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        out = csv.writer(handle)
        out.writerow(["i", "j", *(["name_i", "name_j"] if labels else []), "wins_i", "wins_j", "ties"])
        for i in range(len(wins)):
            for j in range(i + 1, len(wins)):
                ties = min(wins[i, j], wins[j, i])  # half of twice the smaller
                told = [labels[i], labels[j]] if labels else []
                out.writerow([i, j, *told, wins[i, j] - ties, wins[j, i] - ties, 2 * ties])
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


def write_all(folder: Path, matrix: np.ndarray, key: str, labels: list[str] | None) -> list[Path]:
    y = len(matrix)
    named = {} if labels is None else {"labels": labels}
    document = {key: matrix.tolist(), **named}
    (folder / "m.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "m.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    arrays: dict[str, Any] = {key: matrix, **{k: np.array(v) for k, v in named.items()}}
    np.savez(folder / "m.npz", **arrays)
    columns = labels or [str(k) for k in range(y)]
    written = [
        write_csv(folder / "plain.csv", matrix, labels),
        write_csv(folder / "m.v1.csv.gz", matrix, labels),
        folder / "m.json",
        folder / "m.json.gz",
        folder / "m.npz",
        write_parquet(folder / "m.parquet", {name: matrix[:, k] for k, name in enumerate(columns)}),
    ]
    if labels is not None:
        aside = {"response": labels, **{name: matrix[:, k] for k, name in enumerate(columns)}}
        written += [
            write_csv(folder / "aside.csv", matrix, labels, aside=True),
            write_parquet(folder / "aside.parquet", aside),
        ]
    else:
        np.save(folder / "m.npy", matrix)
        (folder / "nested.json").write_text(json.dumps(matrix.tolist()))
        written += [folder / "m.npy", folder / "nested.json"]
    return written


def refusal(path: Path, content: str | bytes | None = None, **kwargs: Any) -> str:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadInput) as caught:
        read_matrix(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


folder_is_shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)


@given(p=matrices(), labelled=st.booleans())
@folder_is_shared
def test_probabilities_come_back_to_the_last_bit_from_every_format(p: np.ndarray, labelled: bool, tmp_path: Path):
    labels = names(len(p)) if labelled else None
    for path in write_all(tmp_path, p, "probabilities", labels):
        read = read_matrix(path)
        assert torch.equal(read.probabilities, torch.from_numpy(p)), path.name
        assert read.labels == (None if labels is None else tuple(labels)), path.name
        assert read.wins is None


@given(wins=tallies(), key=st.sampled_from(["wins", "counts"]), labelled=st.booleans())
@folder_is_shared
def test_counts_come_back_from_every_format(wins: np.ndarray, key: str, labelled: bool, tmp_path: Path):
    labels = names(len(wins)) if labelled else None
    long = write_long(tmp_path / "long.csv", wins, labels)
    expected = (wins + 0.5) / (wins + wins.T + 1)
    for path in [*write_all(tmp_path, wins, key, labels), long]:
        read = read_matrix(path)
        assert read.wins is not None, path.name
        assert torch.equal(read.wins, torch.from_numpy(wins)), path.name
        assert read.labels == (None if labels is None else tuple(labels)), path.name
        torch.testing.assert_close(read.probabilities, torch.from_numpy(expected), rtol=0, atol=1e-15)


def test_long_form_in_parquet_equals_the_csv(tmp_path: Path):
    rows = {"j": [0, 2], "i": [1, 0], "wins_i": [3, 1], "wins_j": [5, 0], "name_i": ["b", "a"], "name_j": ["a", "c"]}
    read = read_matrix(write_parquet(tmp_path / "long.parquet", rows))
    assert read.labels == ("a", "b", "c")
    assert read.wins is not None
    assert read.wins.tolist() == [[0, 5, 1], [3, 0, 0], [0, 0, 0]]
    assert read.probabilities[1, 2] == 0.5


def test_a_tie_counts_half_to_each(tmp_path: Path):
    path = tmp_path / "long.csv"
    path.write_text("i,j,wins_i,wins_j,ties\n0,1,2,1,3\n")
    wins = read_matrix(path).wins
    assert wins is not None
    assert wins.tolist() == [[0, 3.5], [2.5, 0]]


def test_a_header_without_the_corner_cell_labels_both_sides(tmp_path: Path):
    (tmp_path / "r.csv").write_text("\ufeffa,b\na,0.5,0.9\nb,0.1,0.5\n", encoding="utf-8")
    read = read_matrix(tmp_path / "r.csv")
    assert read.labels == ("a", "b")
    assert read.probabilities[0, 1] == 0.9


def test_labels_may_look_like_numbers(tmp_path: Path):
    (tmp_path / "n.csv").write_text("1,2\n0.5,0.9\n0.1,0.5\n")
    assert read_matrix(tmp_path / "n.csv").labels == ("1", "2")


def test_a_lone_array_of_any_name_is_the_matrix(tmp_path: Path):
    np.savez(tmp_path / "a.npz", np.array(FIGHT))
    assert read_matrix(tmp_path / "a.npz").wins is None
    np.savez(tmp_path / "b.npz", matrix=np.array(WINS))
    assert read_matrix(tmp_path / "b.npz").wins is not None


class TestKind:
    def test_small_counts_are_read_as_probabilities_unless_told(self, tmp_path: Path):
        path = tmp_path / "small.csv"
        assert "diagonal" in refusal(path, "0,1\n0,0\n")
        assert read_matrix(path, kind="counts").probabilities.tolist() == [[0.5, 0.75], [0.25, 0.5]]

    @pytest.mark.parametrize("text", ["0.5,1.5\n0.3,0.5\n", "0.5,2\n3,0.5\n"])
    def test_a_mistyped_probability_is_not_taken_for_counts(self, tmp_path: Path, text: str):
        assert "kind=counts" in refusal(tmp_path / "typo.csv", text)

    def test_percentages_are_refused(self, tmp_path: Path):
        message = refusal(tmp_path / "percent.csv", "50,60\n40,50\n")
        assert "percentages" in message
        assert "divide by 100" in message

    def test_kind_against_the_file_is_refused(self, tmp_path: Path):
        assert "counts" in refusal(tmp_path / "w.json", json.dumps({"wins": WINS}), kind="probabilities")

    def test_unknown_kind(self, tmp_path: Path):
        with pytest.raises(BadInput, match="auto, probabilities or counts"):
            read_matrix(tmp_path / "w.csv", kind="percent")  # type: ignore[arg-type]  # the mistake under test


class TestCounts:
    @given(wins=tallies(), smoothing=st.sampled_from([0.0, 0.5, 3.0]))
    def test_probabilities_are_a_preference_matrix(self, wins: np.ndarray, smoothing: float):
        p = counts_to_probabilities(torch.from_numpy(wins), smoothing)
        torch.testing.assert_close(p + p.T, torch.ones_like(p), rtol=0, atol=1e-15)
        assert p.diagonal().eq(0.5).all()
        assert p[torch.from_numpy(wins + wins.T == 0)].eq(0.5).all()

    def test_without_smoothing_it_is_the_share_of_wins(self, tmp_path: Path):
        path = tmp_path / "w.csv"
        path.write_text("0,3,0\n1,0,5\n0,0,0\n")
        assert read_matrix(path, smoothing=0).probabilities.tolist() == [
            [0.5, 0.75, 0.5],
            [0.25, 0.5, 1],
            [0.5, 0, 0.5],
        ]

    def test_comparisons_with_itself_are_left_out(self, tmp_path: Path):
        path = tmp_path / "w.csv"
        path.write_text("9,3\n1,4\n")
        read = read_matrix(path)
        assert read.wins is not None
        assert read.wins.tolist() == [[0, 3], [1, 0]]
        assert read.probabilities.tolist() == [[0.5, 0.7], [0.3, 0.5]]

    def test_more_smoothing_moves_towards_a_half(self):
        wins = torch.tensor([[0.0, 9.0], [1.0, 0.0]])
        shares = [counts_to_probabilities(wins, s)[0, 1].item() for s in (0, 0.5, 2, 100)]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] > 0.5

    @pytest.mark.parametrize("smoothing", [-0.1, float("nan"), float("inf")])
    def test_bad_smoothing(self, smoothing: float):
        with pytest.raises(BadInput, match="smoothing must be"):
            counts_to_probabilities(torch.zeros(2, 2), smoothing)

    def test_bad_cells_are_named(self, tmp_path: Path):
        assert "'a' > 'b' is negative" in refusal(tmp_path / "n.csv", "a,b\n0,-1\n2,0\n", kind="counts")
        assert "row 1, column 2" in refusal(tmp_path / "inf.csv", "0,inf\n2,0\n", kind="counts")


class TestCheck:
    @given(p=matrices())
    def test_exact_input_stays_as_it_is(self, p: np.ndarray):
        checked = check_probabilities(p)
        assert checked.dtype == torch.float64
        assert torch.equal(checked, torch.from_numpy(p))

    @given(p=matrices(), noise=st.floats(-4e-7, 4e-7))
    def test_rounding_is_mended_exactly(self, p: np.ndarray, noise: float):
        checked = check_probabilities(p + noise)
        assert (checked + checked.T).eq(1).all()
        assert checked.diagonal().eq(0.5).all()
        assert checked.ge(0).all()
        assert checked.le(1).all()
        torch.testing.assert_close(checked, torch.from_numpy(p), rtol=0, atol=1e-6)
        assert torch.equal(check_probabilities(checked), checked)

    def test_the_input_is_not_written_to(self):
        given_ = torch.tensor(FIGHT, dtype=torch.float64) + 1e-7
        before = given_.clone()
        check_probabilities(given_)
        assert torch.equal(given_, before)

    @pytest.mark.parametrize("value", [FIGHT, np.array(FIGHT, dtype=np.float32), torch.tensor(FIGHT)])
    def test_lists_arrays_and_tensors(self, value: Any):
        torch.testing.assert_close(
            check_probabilities(value), torch.tensor(FIGHT, dtype=torch.float64), atol=1e-7, rtol=0
        )

    def test_a_batch_names_the_game(self):
        batch = torch.tensor(FIGHT, dtype=torch.float64).expand(2, 4, 3, 3).clone()
        assert check_probabilities(batch).shape == (2, 4, 3, 3)
        batch[1, 2, 0, 1] = 0.6
        with pytest.raises(BadInput, match=r"entry 0.6 at game \(1, 2\), row 1, column 2 and its mirror .* 0.3"):
            check_probabilities(batch)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({(0, 1): float("nan")}, "entry nan at 'A' > 'B, C' is not a finite number"),
            ({(2, 1): float("inf")}, "entry inf at 'Ünder' > 'B, C' is not a finite number"),
            ({(1, 0): -0.25}, "entry -0.25 at 'B, C' > 'A' is outside"),
            ({(0, 1): 1.25}, "entry 1.25 at 'A' > 'B, C' is outside"),
            ({(1, 1): 0.4}, "entry 0.4 at 'B, C' > 'B, C' on the diagonal must be 0.5"),
            ({(0, 2): 0.25}, "entry 0.25 at 'A' > 'Ünder' and its mirror must add up to 1, but the mirror is 0.8"),
        ],
    )
    def test_the_first_bad_cell_is_named_by_label(self, change: dict[tuple[int, int], float], message: str):
        p = np.array(FIGHT)
        for cell, value in change.items():
            p[cell] = value
        with pytest.raises(BadInput, match="ring: ") as caught:
            check_probabilities(p, where="ring", labels=NAMES)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([], "dimension"),
            (0.5, "dimension"),
            (np.empty((0, 0)), "empty"),
            (np.empty((3, 0, 0)), "empty"),
            ([[0.5, 0.5]], "not square"),
            ([[0.5, 0.5], [0.5]], "not a matrix of numbers"),
            ([["a", "b"], ["c", "d"]], "not a matrix of numbers"),
            (np.array([[0.5 + 1j]]), "not a matrix of numbers"),
            (None, "not a matrix of numbers"),
        ],
    )
    def test_what_is_no_square_of_numbers(self, value: Any, message: str):
        with pytest.raises(BadInput, match=message) as caught:
            check_probabilities(value)
        assert "\n" not in str(caught.value)

    def test_labels_must_fit(self):
        with pytest.raises(BadInput, match="2 labels for 3 responses"):
            check_probabilities(FIGHT, labels=["a", "b"])
        with pytest.raises(BadInput, match="label 'a' stands twice, at 1 and 3"):
            check_probabilities(FIGHT, labels=["a", "b", "a"])

    def test_a_single_response_is_a_game(self):
        assert check_probabilities([[0.5]]).tolist() == [[0.5]]


@pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.json", "m.json.gz", "m.npz", "m.npy", "m.parquet"])
class TestUnreadable:
    def test_missing(self, tmp_path: Path, name: str):
        assert "no such file" in refusal(tmp_path / name)

    def test_a_folder(self, tmp_path: Path, name: str):
        (tmp_path / name).mkdir()
        assert "is a folder" in refusal(tmp_path / name)

    def test_empty(self, tmp_path: Path, name: str):
        assert "empty" in refusal(tmp_path / name, b"")

    @pytest.mark.parametrize(
        "content", [bytes(range(256)), b"\x00" * 64, b"\x93NUMPY\x01\x00", b"PK\x03\x04 and no more"]
    )
    def test_garbage(self, tmp_path: Path, name: str, content: bytes):
        refusal(tmp_path / name, content)

    @given(content=st.binary(min_size=1, max_size=200))
    @folder_is_shared
    def test_any_bytes_are_refused_in_one_line(self, tmp_path: Path, name: str, content: bytes):
        # A first byte that begins no number, no json, no archive and no UTF-8 character.
        refusal(tmp_path / name, b"\xff" + content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.txt", "0.5", "cannot tell the format"),
        ("m.npz.gz", "0.5", "cannot tell the format"),
        ("matrix", "0.5", "cannot tell the format"),
        ("m.csv", "\n \n", "blank lines"),
        ("m.csv", "0.5,0.5\n", "not square (1 x 2)"),
        ("m.csv", "0.5,x\n0.4,0.5\n", "row 1, column 2 holds 'x'"),
        ("m.csv", "0.5,0.6\n0.4,\n", "row 2, column 2 is empty"),
        ("m.csv", "0.5,0.6\n0.4\n", "row 2 has 1 cells"),
        ("m.csv", "a,b\n", "empty"),
        ("m.csv", "a,b,c\n0.5,0.6,0.1\n0.4,0.5,0.1\n", "not square (2 x 3)"),
        ("m.csv", "a,b\n0.5,0.6\n0.4,0.5\n0.1,0.1\n", "not square (3 x 2)"),
        ("m.csv", ",a,b\na,0.5,0.6\nc,0.4,0.5\n", "column 2 is labelled 'b' but row 2 'c'"),
        ("m.csv", "a,a\n0.5,0.6\n0.4,0.5\n", "label 'a' stands twice"),
        ("m.csv", "a,\n0.5,0.6\n0.4,0.5\n", "label of column 2 is empty"),
        ("m.csv", "a,b\n0.5,nan\n0.4,0.5\n", "'a' > 'b' is not a finite number"),
        ("m.csv", "a,b\n0.5,0.6\n0.5,0.5\n", "entry 0.6 at 'a' > 'b' and its mirror must add up to 1"),
        ("m.csv", "i,wins_i,wins_j\n0,1,2\n", "lacks the column j"),
        ("m.csv", "i,j,wins_i,wins_j\n", "a header and no pairs"),
        ("m.csv", "i,j,wins_i,wins_j\n0,1,2\n", "row 2 has 3 cells"),
        ("m.csv", "i,j,wins_i,wins_j\n0,0,1,2\n", "with itself"),
        ("m.csv", "i,j,wins_i,wins_j\n0,1,1,2\n1,0,1,2\n", "pair 2 gives responses 1 and 0 again"),
        ("m.csv", "i,j,wins_i,wins_j\n1,2,1,2\n", "no pair has the response 0"),
        ("m.csv", "i,j,wins_i,wins_j\n0,1e300,1,2\n", "no pair has the response 1"),
        ("m.csv", "i,j,wins_i,wins_j\n0,0.5,1,2\n", "has the index '0.5'"),
        ("m.csv", "i,j,wins_i,wins_j\n0,-1,1,2\n", "has the index '-1'"),
        ("m.csv", "i,j,wins_i,wins_j\n0,1,-1,2\n", "wins_i = '-1'"),
        ("m.csv", "i,j,wins_i,wins_j\n0,1,1,inf\n", "wins_j = 'inf'"),
        ("m.csv", "i,j,wins_i,wins_j,ties\n0,1,1,2,x\n", "ties = 'x'"),
        ("m.csv", "i,j,name_i,name_j,wins_i,wins_j\n0,1,a,b,1,2\n0,2,b,c,1,2\n", "calls response 0 'b'"),
        ("m.csv", "i,j,name_i,name_j,wins_i,wins_j\n0,1,a,,1,2\n", "has no name_j"),
        ("m.csv", "i,j,name_i,name_j,wins_i,wins_j\n0,1,a,a,1,2\n", "label 'a' stands twice"),
        ("m.json", "{", "not json"),
        ("m.json", "3", "list of rows"),
        ("m.json", "[]", "empty"),
        ("m.json", "[0.5]", "list of rows"),
        ("m.json", "[[0.5, 0.5], [0.5]]", "row 2 has 1 cells"),
        ("m.json", '[[0.5, "x"], [0.5, 0.5]]', "row 1, column 2 holds"),
        ("m.json", "[[true]]", "row 1, column 1 holds true"),
        ("m.json", f"[[1{'0' * 400}]]", "a number is needed"),
        ("m.json", "[[0.5, NaN], [0.5, 0.5]]", "row 1, column 2 is not a finite number"),
        ("m.json", '{"labels": ["a"]}', "found none"),
        ("m.json", '{"wins": [[0]], "probabilities": [[0.5]]}', "exactly one array"),
        ("m.json", '{"labels": ["a", "b"], "probabilities": [[0.5]]}', "2 labels for 1 responses"),
        ("m.json", '{"labels": "a", "probabilities": [[0.5]]}', "labels must be a list"),
        ("m.json", "[" * 100_000, "not json"),
    ],
)
def test_bad_text_files(tmp_path: Path, name: str, content: str, message: str):
    assert message in refusal(tmp_path / name, content)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 3), 0.5), "not square"),
        (np.full((1, 2, 2), 0.5), "3 dimension(s)"),
        (np.float64(0.5), "0 dimension(s)"),
        (np.array([["a"]]), "not real numbers"),
        (np.array([[0.5j]]), "not real numbers"),
        (np.array([[0.5, None]], dtype=object), "pickles are not read. Save numbers as numpy.save"),
    ],
)
def test_bad_arrays(tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "m.npy", array, allow_pickle=True)
    assert message in refusal(tmp_path / "m.npy")


def test_bad_archives_and_tables(tmp_path: Path):
    np.savez(tmp_path / "two.npz", a=np.array(FIGHT), b=np.array(FIGHT))
    assert "exactly one array" in refusal(tmp_path / "two.npz")
    np.savez(tmp_path / "labels.npz", probabilities=np.array(FIGHT), labels=np.array(["a"]))
    assert "1 labels for 3 responses" in refusal(tmp_path / "labels.npz")
    write_parquet(tmp_path / "null.parquet", {"a": [0.5, 0.2], "b": [None, 0.5]})
    assert "'a' > 'b' is not a finite number" in refusal(tmp_path / "null.parquet")
    write_parquet(tmp_path / "texts.parquet", {"a": ["x"], "b": ["y"]})
    assert "hold text" in refusal(tmp_path / "texts.parquet")
    write_parquet(tmp_path / "order.parquet", {"who": ["b", "a"], "a": [0.5, 0.2], "b": [0.8, 0.5]})
    assert "same order" in refusal(tmp_path / "order.parquet")


def test_nothing_is_unpickled(tmp_path: Path):
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "sprung").touch, ())

    np.savez(tmp_path / "trap.npz", probabilities=np.array([[Trap()]], dtype=object))
    said = refusal(tmp_path / "trap.npz")
    assert "pickles are not read" in said
    assert "allow_pickle" not in said
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("text", ["0.5;0.9\n0.1;0.5\n", "0,5;0,9\n0,1;0,5\n", "a;b\n0.5;0.9\n0.1;0.5\n"])
@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_other_separators_are_said_and_mended(text: str, separator: str, name: str, tmp_path: Path):
    import subprocess

    (tmp_path / "m.csv").write_text(text.replace(";", separator))
    said = refusal(tmp_path / "m.csv")
    assert f"separated by {name}" in said
    subprocess.run(["sh", "-c", said.rpartition("decimals: ")[2]], cwd=tmp_path, check=True)
    assert read_matrix(tmp_path / "commas.csv").probabilities.tolist() == [[0.5, 0.9], [0.1, 0.5]]


def test_a_label_may_hold_a_semicolon(tmp_path: Path):
    (tmp_path / "m.csv").write_text("a;b,c\n0.5,0.9\n0.1,0.5\n")
    assert read_matrix(tmp_path / "m.csv").labels == ("a;b", "c")


def test_pairs_of_a_winner_that_never_met_are_counted():
    from nlhf_zoo.data.coverage import unmet

    wins = torch.tensor([[0.0, 3.0, 0.0, 9.0], [1.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    found = unmet(wins, torch.tensor([True, True, True, False]))
    assert (found.responses, found.pairs, found.never) == (3, 3, 2)
    assert found.warning is not None
    assert "2 of their 3 pairs were never compared" in found.warning
    assert unmet(wins, torch.tensor([True, False, False, True])).warning is None


def strict_three_cycles(p: Tensor) -> int:
    beats = (p > 0.5).to(torch.float64)
    return round((beats @ beats @ beats).trace().item() / 3)


@pytest.mark.parametrize("name", REAL)
def test_real_matrices_are_what_their_readme_says(name: str):
    path = DATA / f"pref_{name}.csv.gz"
    if not path.exists():
        pytest.skip(f"needs {path.name} in the folder that NLHF_ZOO_DATA names")
    responses, comparisons, never, condorcet, cycles = REAL[name]
    read = read_matrix(path)
    assert read.labels is not None
    assert read.wins is not None
    assert len(set(read.labels)) == len(read.probabilities) == responses
    assert read.wins.sum().item() == comparisons
    i, j = torch.triu_indices(responses, responses, 1)
    share = (read.wins + read.wins.T)[i, j].eq(0).double().mean().item()
    assert round(100 * share, 1) == never
    others_beaten = (read.probabilities > 0.5).sum(1)
    assert bool((others_beaten == responses - 1).any()) is condorcet
    assert strict_three_cycles(read.probabilities) == cycles


def test_nested_lists_keep_double_precision() -> None:
    assert float(check_probabilities([[0.5, 0.9], [0.1, 0.5]])[0, 1]) == 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(scores=st.lists(st.floats(0, 1), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_numbers_of_sixteen_bits_may_be_off_by_their_rounding(dtype: torch.dtype, scores: list[float]) -> None:
    a, b, c = scores
    p = torch.tensor([[0.5, a, b], [1 - a, 0.5, c], [1 - b, 1 - c, 0.5]], dtype=torch.float64)
    checked = check_probabilities(p.to(dtype))
    assert torch.equal(checked + checked.mT, torch.ones_like(checked))
    assert float((checked - p).abs().max()) <= torch.finfo(dtype).eps
    p[0, 1] = (a + 0.1) % 1
    with pytest.raises(BadInput, match="must add up to 1"):
        check_probabilities(p.to(dtype))


class Frame:
    """As much of a data frame as matters."""

    def to_numpy(self) -> np.ndarray:
        return np.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (Frame(), r"a Frame; give its .to_numpy\(\), and labels="),
        (torch.full((2, 2), 0.5).to_sparse(), "to_dense"),
        ([[0, 7], [3, 0]], "counts_to_probabilities makes of counts"),
    ],
)
def test_other_kinds_of_matrices_are_told_the_way(matrix: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_probabilities(matrix)
