"""`nlhf-zoo report`: the page of a comparison, written again; figures and a table for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from nlhf_zoo.cli.verb import Answer, Verb

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["VERB"]


@attrs.frozen(kw_only=True)
class ReportOptions:
    """What to write.

    Attributes:
        folder: what nlhf-zoo compare --out wrote, an interrupted comparison's too.
        png: write the figures for a paper as well, into DIR/figures, with a LaTeX table.
    """

    folder: Path = attrs.field(converter=Path)
    png: bool = False


def run(options: ReportOptions) -> Answer:
    """Write the page, and with `png` the figures and the table."""
    from nlhf_zoo.report.comparison import compose
    from nlhf_zoo.report.reading import read_comparison

    comparison = read_comparison(options.folder)
    document: dict[str, Any] = {
        "report": str(compose(comparison).write(options.folder / "report.html")),
        "games": [game.label for game in comparison.games],
        "solvers": list(comparison.names),
        "partial": not comparison.summary or bool(comparison.summary.get("partial")),
        "figures": [],
        "table": None,
    }
    if options.png:
        from nlhf_zoo.cli.answers import write_files
        from nlhf_zoo.report.latex import latex_table
        from nlhf_zoo.report.paper import write_figures

        figures = options.folder / "figures"
        document["figures"] = [str(path) for path in write_figures(comparison, figures)]
        write_files(figures, {"table.tex": latex_table(comparison)})
        document["table"] = str(figures / "table.tex")
    return Answer(document, lambda console: _show(document, console))


def _show(document: dict[str, Any], console: Console) -> None:
    for path in (document["report"], *document["figures"], document["table"]):
        if path is not None:
            console.print(path, soft_wrap=True, highlight=False, markup=False)
    if document["partial"]:
        console.print("the comparison is unfinished; the page says so")


VERB = Verb(
    name="report",
    summary="write the page of a comparison again; with --png figures and a LaTeX table for a paper",
    example="""\
  nlhf-zoo report runs/first
  nlhf-zoo report runs/first --png
  nlhf-zoo report runs/first --json
""",
    options=ReportOptions,
    run=run,
    positional="folder",
    configurable=False,
)
