"""`python -m benchmarks.paper STUDY [--out DIR] [--quick]`; without a study, the list."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.paper as studies_of
from nlhf_zoo.errors import BadInput


def studies() -> dict[str, str]:
    """The modules of this package that define `run`, and the first line of their docstrings; none is imported."""
    found = {}
    for module in pkgutil.iter_modules(studies_of.__path__):
        spec = importlib.util.find_spec(f"{studies_of.__name__}.{module.name}")
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        if any(isinstance(part, ast.FunctionDef) and part.name == "run" for part in tree.body):
            found[module.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    known = studies()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a reproduction study.\n\n" + "\n".join(f"  {name:<16} {what}" for name, what in known.items()),
    )
    parser.add_argument("study", nargs="?", choices=sorted(known), metavar="STUDY")
    parser.add_argument("--out", type=Path, help="where results.csv, verdict.json and figures go (runs/paper/STUDY)")
    parser.add_argument("--quick", action="store_true", help="a version of seconds, to see that it runs")
    given = parser.parse_args(arguments)
    if given.study is None:
        parser.print_help()
        return 0
    out = given.out or Path("runs") / "paper" / given.study
    out.mkdir(parents=True, exist_ok=True)
    try:
        importlib.import_module(f"{studies_of.__name__}.{given.study}").run(out, given.quick)
    except BadInput as error:
        print(f"{parser.prog} {given.study}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
