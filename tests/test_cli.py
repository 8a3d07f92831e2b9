"""The command line: answers, exit codes, one line for every bad input, config files, and a light start."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import fields

import nlhf_zoo as nz
from nlhf_zoo import registry
from nlhf_zoo.cli import main
from nlhf_zoo.cli.config_files import as_yaml, read_config, scalar
from nlhf_zoo.cli.flags import described, read, saved
from nlhf_zoo.cli.solve import SolveOptions
from nlhf_zoo.cli.train import VERB as TRAIN
from nlhf_zoo.plain import plain
from nlhf_zoo.training.config import TrainConfig
from tests.third_party import ThirdParty

COMMAND = Path(sys.executable).with_name("nlhf-zoo")
VERBS = ("list", "solve", "train", "check")
CONTRACT_KEYS = {
    *("solver", "game", "beta", "responses", "steps", "queries", "seconds", "duality_gap"),
    *("kl_to_equilibrium", "span_to_equilibrium", "policy", "converged"),
}
MATRIX = "rock,paper,scissors\n0.5,0.2,0.9\n0.8,0.5,0.1\n0.1,0.9,0.5\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests run in a folder of their own, where `game.csv` is."""
    monkeypatch.chdir(tmp_path)
    Path("game.csv").write_text(MATRIX)
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fault(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The one line that a bad input gets; nothing is on stdout."""
    assert main(argv) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("nlhf-zoo: ")
    return line


def modules_after(argv: list[str]) -> set[str]:
    program = (
        "import contextlib, io, sys\n"
        "from nlhf_zoo.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): code = main(sys.argv[1:])\n"
        "print(code, *{m.partition('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=True)
    code, *modules = done.stdout.split()
    assert code == "0"
    return set(modules)


# --- help, version, start-up


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_no_heavy_library(argv: list[str]) -> None:
    heavy = {"torch", "numpy", "scipy", "lightning", "transformers", "datasets", "pyarrow", "hypothesis", "rich"}
    assert not heavy & modules_after(argv)


def test_list_imports_torch_alone() -> None:
    loaded = modules_after(["list"])
    assert "torch" in loaded
    assert not {"scipy", "lightning", "transformers", "datasets", "pyarrow", "hypothesis"} & loaded


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nlhf-zoo {nz.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"example:\n  nlhf-zoo {verb}" in shown
    assert "--json" in shown


@pytest.mark.parametrize("options", [TrainConfig, SolveOptions], ids=["train", "solve"])
def test_every_option_is_described_once(options: type) -> None:
    assert set(described(options)) == {field.name for field in fields(options)}
    assert all(described(options).values())


# --- list


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "list")
    assert set(found) == {"solvers", "oracles", "games", "divergences", "engines", "broken"}
    solvers = {solver["name"]: solver for solver in found["solvers"]}
    assert {"nash_mp", "nash_md", "online_dpo", "online_ipo", "exact_prox"} <= solvers.keys()
    nash_mp = solvers["nash_mp"]
    assert (nash_mp["distribution"], nash_mp["version"]) == ("nlhf-zoo", nz.__version__)
    assert nash_mp["hyperparameters"] == {"eta": None, "kappa": None}
    assert nash_mp["backends"] == ["table", "llm"]
    assert "2505.19731" in nash_mp["guarantees"][0]["source"]
    assert nash_mp["guarantees"][0]["assumptions"]
    games = {game["name"]: game for game in found["games"]}
    assert games["low_rank"]["parameters"]["rank"] == 2
    assert all(entry["summary"] for kind in ("solvers", "oracles", "games", "divergences") for entry in found[kind])


def test_list_in_a_pipe_is_whole_wrapped_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 120
    (row,) = (line for line in shown.splitlines() if line.strip().startswith("nash_mp") and "table, llm" in line)
    assert "eta=None, kappa=None" in row
    words = {word for solver in nz.solvers().values() for word in solver.summary.split()}
    assert words <= set(shown.split())


def test_list_says_why_a_backend_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class TableOnly(nz.solvers()["mmd"]):  # type: ignore[misc]  # a class found by name
        backends = ("table",)
        only = "its update inverts the matrix"

    entry = registry.Entry("mmd", TableOnly, "somewhere", "1.0")
    monkeypatch.setattr(registry, "load", lambda: registry.Registry({"mmd": entry}, {}, {}, {}, {}, broken=()))
    (described,) = document(capsys, "list")["solvers"]
    assert (described["backends"], described["only"]) == (["table"], "its update inverts the matrix")
    assert described["when"] == TableOnly.when != ""
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "its update inverts the matrix" in shown


LAZY = """
import attrs
from nlhf_zoo import Guarantee, Solver, Update, contraction, hookimpl

@attrs.frozen
class Lazy(Solver):
    name, summary, needs_beta = "lazy", "claims to halve the distance, and stays", True
    guarantees = (Guarantee(metric="kl", bound=contraction(0.5), source="nowhere"),)
    def propose(self, game, state):
        return Update(start=state.current, opponent=state.current, anchors=[(state.current, 1e12)])
    def accept(self, game, state, outcome):
        return state.next(current=outcome.policy)

@hookimpl
def nlhf_zoo_solvers():
    return [Lazy]
"""


def test_broken_plugin_is_listed_with_its_reason(third_party: ThirdParty) -> None:
    third_party.install("others", version="2.5", half_done="raise RuntimeError('no licence found')", wrong=LAZY)
    done = third_party.run("list", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (broken,) = found["broken"]
    said = "RuntimeError: no licence found (half_done.py, line 1)"
    assert broken == {"plugin": "half_done", "distribution": "others", "error": said}
    (lazy,) = (solver for solver in found["solvers"] if solver["name"] == "lazy")
    assert (lazy["distribution"], lazy["version"]) == ("others", "2.5")


def test_a_wrong_solver_fails_the_check_with_exit_code_1(third_party: ThirdParty) -> None:
    third_party.install("others", wrong=LAZY)
    argv = ["check", "lazy", "--only", "stays-normalised-and-finite,last-iterate-meets-its-bound", "--examples", "4"]
    done = third_party.run(*argv, "--json")
    assert done.code == 1, done.err
    found = json.loads(done.out)
    assert [result["status"] for result in found["results"]] == ["passed", "failed"]
    assert found["results"][1]["detail"]
    assert found["results"][1]["counterexample"]
    assert found["passed"] is False


# --- check


def test_check_prints_one_line_a_property(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["follows-its-formula", "loss-is-antisymmetric", "last-iterate-meets-its-bound"]
    assert main(["check", "nash_mp", "--examples", "4", "--only", ",".join(names)]) == 0
    *results, empty, total = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in results] == [[names[0], "passed"], [names[1], "not"], [names[2], "passed"]]
    assert empty == ""
    assert total.startswith("nash_mp: 2 passed, 0 failed, 1 not applicable, ")


def test_check_of_an_unknown_property(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no property named 'wins'" in fault(capsys, "check", "nash_mp", "--only", "wins")


# --- solve


def test_solve_keys_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "solve", "--game", "game.csv", "--beta", "0.1", "--tol", "1e-9")
    assert found.keys() >= CONTRACT_KEYS
    assert found["policy"].keys() == {"rock", "paper", "scissors"}
    assert found["game"] == "game.csv"
    assert found["queries"] == 2 * found["steps"]
    assert found["converged"] is True
    game = nz.Game(nz.MatrixOracle(nz.read_matrix("game.csv").probabilities), beta=0.1)
    policy = torch.tensor(list(found["policy"].values()), dtype=torch.float64)
    torch.testing.assert_close(policy, nz.equilibrium(game).probs, atol=1e-4, rtol=0)
    assert found["von_neumann_winner"]["size"] == 3
    assert found["condorcet_winner"] is None


def test_unlabelled_policy_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain.csv").write_text("0.5,0.9\n0.1,0.5\n")
    found = document(capsys, "solve", "--game", "plain.csv", "--steps", "5")
    assert len(found["policy"]) == 2
    assert found["condorcet_winner"] == 0
    winner = found["von_neumann_winner"]
    assert winner.pop("choice")
    assert winner == {"size": 1, "support": [0], "probabilities": [1.0], "unique": True}


def test_table_shows_labels_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Path("odd.csv").write_text("[bold]a[/bold],\x1b[31mred,:smile:\n0.5,0.2,0.9\n0.8,0.5,0.1\n0.1,0.9,0.5\n")
    assert main(["solve", "--game", "odd.csv", "--steps", "5"]) == 0
    shown = capsys.readouterr().out
    assert "[bold]a[/bold]" in shown
    assert ":smile:" in shown
    assert "\x1b" not in shown
    assert "3 of 3 responses" in shown


def test_not_converged_is_said_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--game", "game.csv", "--steps", "1", "--tol", "1e-12", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["converged"] is False
    assert captured.err.startswith("nlhf-zoo: not converged: duality gap ")


def test_set_in_one_flag_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    game = ["--game", "low_rank", "--game-set", "responses=8", "rank=4", "--steps", "3"]
    together = document(capsys, "solve", *game, "--set", "eta=1e-2", "kappa=0.5")
    apart = document(capsys, "solve", *game, "--set", "eta=0.5", "--set", "kappa=0.5", "--set", "eta=1e-2")
    assert together["hyperparameters"] == apart["hyperparameters"] == {"eta": 0.01, "kappa": 0.5}
    assert together["responses"] == 8


def test_queries_alone_are_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "solve", "--game", "rock_paper_scissors", "--queries", "10")
    assert (found["steps"], found["queries"]) == (5, 10)


def test_sampled_comparisons_are_counted_and_seeded(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["solve", "--game", "game.csv", "--steps", "4", "--comparisons", "7"]
    one, same, other = (document(capsys, *argv, "--seed", seed) for seed in ("1", "1", "2"))
    assert one["queries"] == one["queries_sampled"] == 4 * 2 * 3 * 7
    assert one["policy"] == same["policy"] != other["policy"]


def test_game_seed_apart_from_the_run_s_seed(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["solve", "--game", "random", "--game-set", "responses=5", "--steps", "2"]
    fixed = [document(capsys, *argv, "--game-set", "seed=3", "--seed", seed)["policy"] for seed in ("0", "1")]
    assert fixed[0] == fixed[1] == document(capsys, *argv, "--seed", "3")["policy"]


def test_reference_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("reference.csv").write_text("scissors,0.7\nrock,0.2\npaper,0.1\n")
    found = document(capsys, "solve", "--game", "game.csv", "--reference", "reference.csv", "--steps", "0")
    assert found["policy"] == pytest.approx({"rock": 0.2, "paper": 0.1, "scissors": 0.7})


def test_registered_name_goes_before_a_file_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("random").write_text(MATRIX)
    assert document(capsys, "solve", "--game", "random", "--steps", "1")["responses"] == 100
    assert "random: cannot tell the format" in fault(capsys, "solve", "--game", "./random")


def test_winner_is_left_out_of_large_games(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["solve", "--game", "game.csv", "--steps", "1", "--winner-limit", "2"]
    assert document(capsys, *argv)["von_neumann_winner"] is None
    assert main(argv) == 0
    assert "--winner-limit 3" in capsys.readouterr().out


# --- the folder of a run


def test_out_holds_result_history_and_config(capsys: pytest.CaptureFixture[str]) -> None:
    printed = document(capsys, "solve", "--game", "game.csv", "--steps", "6", "--every", "2", "--out", "runs/one")
    assert sorted(path.name for path in Path("runs/one").iterdir()) == ["config.yaml", "history.csv", "result.json"]
    assert json.loads(Path("runs/one/result.json").read_text()) == printed
    rows = list(csv.DictReader(Path("runs/one/history.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "2", "4", "6"]
    assert float(rows[-1]["duality_gap"]) == printed["duality_gap"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--game", "{folder}/game.csv", "--set", "eta=1e-2", "--tol", "1e-7", "--steps", "50", "--comparisons", "3"],
        [
            "--game",
            "low_rank",
            "--game-set",
            "responses=6",
            "rank=4",
            "--seed",
            "5",
            "--queries",
            "12",
            "--beta",
            "1e-3",
        ],
    ],
    ids=["file", "name"],
)
def test_saved_config_gives_the_same_result(
    argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["solve", *(text.format(folder=folder) for text in argv), "--out", "first"]) == 0
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["solve", "--config", str(folder / "first/config.yaml"), "--out", "second"]) == 0
    one, two = (json.loads((path / "result.json").read_text()) for path in (folder / "first", elsewhere / "second"))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    configs = [(path / "config.yaml").read_text() for path in (folder / "first", elsewhere / "second")]
    assert configs[0] == configs[1]


def test_full_folder_is_refused_unless_told(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["solve", "--game", "game.csv", "--steps", "1", "--out", "run"]
    Path("run").mkdir()
    Path("run/mine.txt").write_text("keep")
    assert "not empty" in fault(capsys, *argv)
    assert [path.name for path in Path("run").iterdir()] == ["mine.txt"]
    assert main([*argv, "--overwrite"]) == 0
    assert Path("run/mine.txt").read_text() == "keep"
    assert json.loads(Path("run/result.json").read_text())["steps"] == 1


def test_a_bad_run_leaves_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    fault(capsys, "solve", "--game", "game.csv", "--beta", "0", "--out", "run")
    assert not Path("run").exists()


def test_out_that_cannot_be_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in fault(capsys, "solve", "--game", "game.csv", "--out", "game.csv")
    assert "cannot be written" in fault(capsys, "solve", "--game", "game.csv", "--out", "game.csv/run")


# --- config files


def test_flags_go_before_the_config_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text("game: game.csv\nbeta: 1e-2\nsteps: 9\nset: {eta: 1e-2}\nwinner-limit: 0\n")
    found = document(capsys, "solve", "--steps", "2", "--config", "run.yaml", "--set", "kappa=0.5")
    assert (found["steps"], found["beta"]) == (2, 0.01)
    assert found["hyperparameters"] == {"eta": 0.01, "kappa": 0.5}
    assert found["von_neumann_winner"] is None


def test_later_config_goes_before_earlier(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("game: game.csv\nsteps: 1\n")
    Path("two.yaml").write_text("steps: 2\n")
    assert document(capsys, "solve", "--config", "one.yaml", "--config", "two.yaml")["steps"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("stepz: 3\n", "unknown key 'stepz'; did you mean steps?"),
        ("steps: many\n", "steps must be a whole number, got 'many'"),
        ("beta: null\n", "beta must be a number, got null"),
        ("beta: .nan\n", "beta must be a finite number"),
        ("overwrite: maybe\n", "overwrite must be true or false"),
        ("set: 3\n", "solver_options must be a mapping"),
        ("set: {eta: 1}\nsolver_options: {eta: 2}\n", "is there twice"),
        ("game: 3\n", "game must be a text, got '3'"),
        ("- a\n- b\n", "holds list, not options"),
        ("steps: [1\n", "not YAML at line"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML at line 1"),
        ("", "the file is empty"),
    ],
)
def test_bad_config(content: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(content)
    line = fault(capsys, "solve", "--game", "game.csv", "--config", "run.yaml")
    assert line.startswith("nlhf-zoo: run.yaml: ")
    assert words in line


def test_missing_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: no such file" in fault(capsys, "solve", "--config", "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("a b", "a b"),
        ("1e", "1e"),
        ("[1, 2e-1]", [1, 0.2]),
    ],
)
def test_scalar(text: str, value: Any) -> None:
    read = scalar(text)
    assert read == value
    assert type(read) is type(value)


def test_yaml_comes_back_equal(folder: Path) -> None:
    options = {"a": 1e-5, "b": "1e-5", "c": None, "d": {"e": [1, True]}, "f": "2024-01-01", "g": "naïve", "h": ""}
    Path("options.yaml").write_text(as_yaml(options))
    assert read_config("options.yaml") == options


# --- bad input


NUMBERS = {
    "not_square.csv": "0.5,0.9,1\n0.1,0.5,0\n",
    "nan.csv": "0.5,nan\n0.1,0.5\n",
    "outside.csv": "0.5,1.2\n-0.2,0.5\n",
    "unequal.csv": "0.5,0.9\n0.3,0.5\n",
    "empty.csv": "",
    "labels.csv": "a,b,c\n0.5,0.9\n0.1,0.5\n",
    "twice.csv": "a,a\n0.5,0.9\n0.1,0.5\n",
    "words.csv": "0.5,x\n0.1,0.5\n",
    "zip.csv.gz": "not gzip",
    "suffix.txt": "0.5\n",
}


@pytest.mark.parametrize("name", NUMBERS)
def test_bad_matrix(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text(NUMBERS[name])
    assert name in fault(capsys, "solve", "--game", name, "--out", "run")
    assert not Path("run").exists()


def test_binary_rubbish_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("rubbish.csv", "rubbish.npz", "rubbish.parquet", "rubbish.json"):
        Path(name).write_bytes(b"\x93\x00\xff\x1b[31m\n\nPK\x03\x04" * 40)
        assert name in fault(capsys, "solve", "--game", name)
    Path("rubbish.csv.gz").write_bytes(gzip.compress(b"0.5,0.5\n" * 100)[:20])
    assert "rubbish.csv.gz" in fault(capsys, "solve", "--game", "rubbish.csv.gz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0.5\n0.5\n0\n", "probability 0"),
        ("0.5\n0.5\n", "2 probabilities"),
        ("rock,0.5\npaper,0.3\nlizard,0.2\n", "'lizard'"),
        ("0.5\n0.4\n0.4\n", "add up to 1.3"),
    ],
)
def test_bad_reference(content: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("reference.txt").write_text(content)
    line = fault(capsys, "solve", "--game", "game.csv", "--reference", "reference.txt")
    assert "reference.txt" in line
    assert words in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("sovle", "unknown verb 'sovle'; did you mean solve?"),
        ("--verison", "did you mean --version?"),
        ("solve", "solve needs --game"),
        ("solve --game nowhere.csv", "nowhere.csv: no such file"),
        ("solve --game low_rnk", "no game named 'low_rnk', nor a file of that name; did you mean low_rank"),
        ("solve --game game.csv --solver nash_pm", "no solver named 'nash_pm'; did you mean nash_mp"),
        ("solve --game game.csv --beta 0", "nash_mp needs beta > 0"),
        ("solve --game game.csv --beta -1e-3", "beta must be a finite number >= 0, got -0.001"),
        ("solve --game game.csv --beta nan", "--beta must be a number, got 'nan'"),
        ("solve --game game.csv --beta .inf", "--beta must be a finite number"),
        ("solve --game game.csv --beta", "--beta needs a value"),
        ("solve --game game.csv --betta 1", "unknown flag --betta; did you mean --beta?"),
        ("solve --game game.csv --steps=1.5", "--steps must be a whole number, got '1.5'"),
        ("solve --game game.csv --steps -1", "--steps must be >= 0"),
        ("solve --game game.csv --tol -1", "--tol must be >= 0"),
        ("solve --game game.csv --every 0", "--every must be >= 1"),
        ("solve --game game.csv --seed -1", "--seed must be"),
        ("solve --game game.csv --smoothing -1", "--smoothing must be >= 0"),
        ("solve --game game.csv --comparisons 0", "at least 1 comparison"),
        ("solve --game game.csv --kind ratios", "--kind must be one of auto, probabilities, counts"),
        ("solve --game game.csv --set etta=1", "nash_mp has no hyperparameter 'etta'; it has eta, kappa"),
        ("solve --game game.csv --set eta=fast", "eta must be a number, got 'fast'"),
        ("solve --game game.csv --set eta=-1", "'eta' must be > 0"),
        ("solve --game game.csv --set eta=.nan", "'eta' must be > 0"),
        ("solve --game game.csv --set eta", "--set takes KEY=VALUE, got 'eta'"),
        ("solve --game game.csv --set eta=[1", "is not a YAML value"),
        ("solve --game game.csv --game-set rank=2", "parameters are for games by name"),
        ("solve --game low_rank --game-set rnk=2", "low_rank has no parameter 'rnk'"),
        ("solve --game low_rank --game-set rank=x", "low_rank: rank must be a whole number"),
        ("solve --game low_rank --game-set games=2", "give one"),
        ("solve game.csv", "unexpected argument 'game.csv'"),
        ("solve --game game.csv --json=yes", "--json takes no value"),
        ("check", "check needs SOLVER"),
        ("check nash_pm", "did you mean nash_mp"),
        ("check nash_mp --examples 0", "at least 1 example"),
        ("list everything", "unexpected argument 'everything'"),
        ("train --model lm", "train needs --prompts, --oracle, --out"),
        ("train --model a --prompts b --oracle c --out d --steps 0", "steps must be >= 1"),
        ("train --model a --prompts b --oracle c --out d --logger loud", "'logger' must be in"),
        ("train --model a --prompts b --oracle c --out d --solver nash_pm", "no solver named 'nash_pm'"),
        ("train --model a --prompts b --oracle c --out d --set etta=1", "no hyperparameter 'etta'"),
        ("train --model a --prompts b --oracle c --out d --batch_size 2", "did you mean --batch-size?"),
    ],
)
def test_bad_arguments(argv: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in fault(capsys, *argv.split())


def test_console_script_gives_exit_code_and_one_line() -> None:
    """Of what is found before anything heavy is imported; the rest is the same `main`."""
    done = subprocess.run([COMMAND, "solve", "--steps", "many", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "nlhf-zoo: --steps must be a whole number, got 'many'\n"


# --- what may happen on the way


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "nlhf-zoo: interrupted"),
        (nz.BadInput("two\nlines"), 2, "nlhf-zoo: two lines"),
        (ArithmeticError("gap 1e-3 reached"), 1, "nlhf-zoo: gap 1e-3 reached"),
        (OSError(28, "No space left on device"), 2, "nlhf-zoo: [Errno 28] No space left on device"),
    ],
)
def test_every_end_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("nlhf_zoo.drive.solve", ends)
    assert fault(capsys, "solve", "--game", "game.csv", "--out", "run", code=code) == line
    assert not Path("run").exists()


def test_stdout_belongs_to_the_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from nlhf_zoo import drive

    solve = drive.solve

    def talkative(*args: Any, **kwargs: Any) -> Any:
        print("a library's remark")
        return solve(*args, **kwargs)

    monkeypatch.setattr(drive, "solve", talkative)
    assert main(["solve", "--game", "game.csv", "--steps", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 1
    assert "a library's remark" in captured.err


def test_reader_that_leaves_early_is_no_traceback() -> None:
    process = subprocess.Popen([COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141


def test_json_has_no_number_that_json_lacks() -> None:
    value = {
        "a": float("nan"),
        "b": [float("inf"), 1.5, None, True],
        "c": torch.tensor([1.0, -torch.inf]),
        3: Path("x"),
    }
    assert plain(value) == {"a": None, "b": [None, 1.5, None, True], "c": [1.0, None], "3": "x"}


# --- train: from flags and files to the one configuration


def test_train_flags_make_the_configuration() -> None:
    asked = read(
        TRAIN,
        [
            *("--model", "lm", "--prompts", "p.jsonl", "--out", "run", "--chat", "--set", "eta=0.1"),
            *("--oracle", "matrix", "--oracle-set", "path=m.csv", "smoothing=1e-1"),
            *("--devices", "auto", "--max-new-tokens", "7", "--learning-rate", "1e-4", "--json"),
        ],
    )
    assert asked is not None
    assert asked.json
    assert asked.options == TrainConfig(
        model="lm",
        prompts="p.jsonl",
        oracle="matrix",
        oracle_options={"path": "m.csv", "smoothing": 0.1},
        out=Path("run"),
        chat=True,
        solver_options={"eta": 0.1},
        devices="auto",
        max_new_tokens=7,
        learning_rate=1e-4,
    )


def test_train_config_comes_back_equal_and_flags_override_it() -> None:
    config = TrainConfig(model="lm", prompts="p", oracle="o", out=Path("run"), chat=True, devices=2, beta=1e-5)
    Path("config.yaml").write_text(as_yaml({**saved(config), "out": str(config.out)}))
    asked = read(TRAIN, ["--config", "config.yaml"])
    assert asked is not None
    assert asked.options == config
    changed = read(TRAIN, ["--no-chat", "--out", "other", "--config", "config.yaml"])
    assert changed is not None
    assert (changed.options.chat, changed.options.out, changed.options.beta) == (False, Path("other"), 1e-5)


def test_options_go_with_the_solver_or_judge_that_they_belong_to() -> None:
    Path("config.yaml").write_text(
        "{model: lm, prompts: p, out: run, solver: nash_mp, solver_options: {kappa: 0.1}, oracle: callable,"
        " oracle_options: {function: 'm:f'}}"
    )
    same = read(TRAIN, ["--config", "config.yaml", "--solver", "nash_mp", "--set", "eta=0.2"])
    other = read(TRAIN, ["--config", "config.yaml", "--solver", "online_dpo", "--oracle-set", "symmetrise=false"])
    judged = read(TRAIN, ["--config", "config.yaml", "--oracle", "openai", "--oracle-set", "model=m"])
    assert same is not None
    assert other is not None
    assert judged is not None
    assert same.options.solver_options == {"kappa": 0.1, "eta": 0.2}
    assert other.options.solver_options == {}
    assert other.options.oracle_options == {"function": "m:f", "symmetrise": False}
    assert judged.options.oracle_options == {"model": "m"}
    assert judged.options.solver_options == {"kappa": 0.1}


def test_a_run_s_own_config_is_about_the_folder_that_it_lies_in() -> None:
    Path("moved").mkdir()
    for name in ("moved/config.yaml", "moved/other.yaml"):
        Path(name).write_text("{model: lm, prompts: p, oracle: o, out: /where/it/was}")
    config, elsewhere = ["--config", "moved/config.yaml"], Path("/where/it/was")
    assert read(TRAIN, config).options.out == elsewhere  # type: ignore[union-attr]  # a bad one would raise
    Path("moved/inputs.json").write_text("{}")
    assert read(TRAIN, config).options.out == Path("moved")  # type: ignore[union-attr]
    assert read(TRAIN, [*config, "--out", "new"]).options.out == Path("new")  # type: ignore[union-attr]
    assert read(TRAIN, ["--config", "moved/other.yaml"]).options.out == elsewhere  # type: ignore[union-attr]
