"""Does the conformance kit fail a solver that is right? Many runs with different seeds, at a large effort.

Hours of processor time: `--out` keeps a line a run, and a run that is there is not repeated. Several processes may
share one file if each is given its own solvers.

python -m benchmarks false_alarms --solvers nash_mp exact_prox --first 100 --runs 20 --out alarms.csv
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

from nlhf_zoo.registry import solvers
from nlhf_zoo.testing import check_solver

FIRST_FIVE = ("nash_mp", "nash_md", "online_ipo", "online_dpo", "exact_prox")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", nargs="+", choices=sorted(solvers()), default=list(FIRST_FIVE), metavar="NAME")
    parser.add_argument("--first", type=int, default=100, help="the first seed")
    parser.add_argument("--runs", type=int, default=20, help="seeds for each solver")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--out", type=Path, help="file of lines solver,seed,examples,version,failed properties")
    given = parser.parse_args()
    done: set[tuple[str, ...]] = set()
    if given.out and given.out.exists():
        done = {tuple(line.split(",")[:4]) for line in given.out.read_text(encoding="utf-8").splitlines()}
    for seed in range(given.first, given.first + given.runs):
        for name in given.solvers:
            key = (name, str(seed), str(given.examples), version("nlhf-zoo"))
            if key in done:
                continue
            report = check_solver(name, examples=given.examples, seed=seed)
            failed = [result.name for result in report.results if result.status == "failed"]
            line = ",".join([*key, " ".join(failed) or "none"])
            print(f"{line}   {report.seconds:.0f} s", flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
