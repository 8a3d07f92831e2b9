"""`python -m nlhf_zoo.demo --out DIR`: five solvers on a table, two of them on a language model, one page."""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nlhf_zoo.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from nlhf_zoo.report import Report

EXAMPLE = "example:\n  python -m nlhf_zoo.demo --out demo\n  python -m nlhf_zoo.demo --out demo --quick"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m nlhf_zoo.demo",
        description="Play the first experiment of the Nash-MP paper, train a small language model against a judge"
        " that goes in a circle, and write what came of it as one HTML page. No network is used.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for report.html, games and models; made if missing",
    )
    found.add_argument("--quick", action="store_true", help="a minute or two instead of several; rougher figures")
    found.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    found.add_argument("--games-only", action="store_true", help="leave the language model out")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 2 bad input; progress and errors go to stderr, the report's path to stdout."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        if options.seed < 0:
            raise BadInput(f"--seed must be >= 0, got {options.seed}")
        _folder(options.out)
        command = shlex.join(["python", "-m", "nlhf_zoo.demo", *given])
        path = _run(options.out, options.quick, options.seed, options.games_only, command)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no report was written", file=sys.stderr)
        return 130
    print(path)
    return 0


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"cannot make the folder {out}: {error.strerror}; choose another with --out") from None


def _run(out: Path, quick: bool, seed: int, games_only: bool, command: str) -> Path:
    # Read when torch is loaded. Threads that spin while they wait take the cores from each other: on two busy
    # cores a step of this small model was measured three to ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Imported here, so that --help and a wrong option need no torch.
    from rich.console import Console

    from nlhf_zoo.report import Report

    began, console = time.perf_counter(), Console(stderr=True)
    report = Report(
        "Nash learning from human feedback, demonstrated",
        "Preferences need not have a best answer: light may beat sound, sound beat movement, and movement beat light."
        " Five solvers look for the equilibrium of such games with the same number of oracle queries; then two of"
        " them train a small language model against a judge that goes in a circle.",
    )
    _games(report, out / "games", console, quick, seed)
    if not games_only:
        _language(report, out, console, quick, seed)
    if quick:
        report.add_verdict("Made with --quick: fewer games and far less training than the full demo, rougher figures.")
    report.add_command(command, note=f"This page took {(time.perf_counter() - began) / 60:.1f} minutes to make.")
    return report.write(out / "report.html")


def _games(report: Report, out: Path, console: Console, quick: bool, seed: int) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nlhf_zoo.demo.findings import add_games
    from nlhf_zoo.demo.games import play

    queries, seeds = (500, 2) if quick else (2000, 5)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    plays = {}
    with Progress(*columns, console=console) as progress:
        for name, tuned in {"as_proved": False, "tuned": True}.items():
            task = progress.add_task(f"games, step sizes {name.replace('_', ' ')}")
            plays[name] = play(
                out / name,
                queries=queries,
                seeds=seeds,
                seed=seed,
                tuned=tuned,
                progress=functools.partial(_shown, progress, task),
            )
    add_games(report, plays["as_proved"], plays["tuned"], queries, seeds)


def _shown(progress: Progress, task: TaskID, done: int, planned: int) -> None:
    progress.update(task, completed=done, total=planned)


def _language(report: Report, out: Path, console: Console, quick: bool, seed: int) -> None:
    from nlhf_zoo.demo.findings import add_language
    from nlhf_zoo.demo.language_play import play_language
    from nlhf_zoo.demo.models import QUICK, Scale

    began = time.perf_counter()

    def notify(what: str) -> None:
        console.print(f"[{time.perf_counter() - began:5.0f} s] {what}", markup=False, highlight=False)

    add_language(report, play_language(out, QUICK if quick else Scale(), seed, notify))


if __name__ == "__main__":
    sys.exit(main())
