"""The report: one self-contained HTML page, put together from plain data."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import attrs

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.report import convergence, figures, words
from nlhf_zoo.report.markup import escape, redact, table
from nlhf_zoo.report.palette import Palette, stylesheet

__all__ = ["Report"]

Sign = Literal["good", "bad", "note"]
_SIGNS: Mapping[str, tuple[str, str]] = {"good": ("✓", "Holds: "), "bad": ("✗", "Fails: "), "note": ("•", "")}
_LARGEST_MATRIX = 200


@attrs.define
class Report:
    """Collects sections in the order they are added, and writes them as one HTML file without any network.

    Every text is escaped: titles, labels, samples and table cells may hold anything. Each `add_` method
    returns the report, so that calls chain.

    Attributes:
        title: heading of the page.
        summary: what was done and what came out, in a few sentences; stands on top.
    """

    title: str
    summary: str = ""
    _verdicts: list[tuple[Sign, str]] = attrs.field(factory=list, init=False)
    _sections: list[tuple[str, str]] = attrs.field(factory=list, init=False)
    _figures: int = attrs.field(default=0, init=False)
    _palette: Palette = attrs.field(factory=Palette, init=False)

    def add_verdict(self, text: str, sign: Sign = "note") -> Report:
        """One finding in words, on top of the page, above every section: it holds, it fails, or it is a note."""
        self._verdicts.append((sign, text))
        return self

    def add_text(self, title: str, *paragraphs: str) -> Report:
        """A section of plain paragraphs."""
        return self._section(title, "", *(f"<p>{escape(text)}</p>" for text in paragraphs))

    def add_convergence(
        self,
        rows: Sequence[Mapping[str, Any]],
        bounds: Iterable[Mapping[str, Any]] = (),
        title: str = "Convergence",
        note: str = "",
    ) -> Report:
        """Duality gap, KL and span of each solver, with its claimed bounds dashed over what was measured.

        Args:
            rows: one a measurement, with solver, step, queries and, where known, seed, seconds,
                duality_gap, kl_to_equilibrium, span_to_equilibrium.
            bounds: one a point, with solver, metric, step, bound and perhaps source (`claimed_bounds`
                makes them).
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: no row has any of the three metrics, or a row is malformed.
        """
        bounds = list(bounds)
        measured = {metric: convergence.curves(rows, metric) for metric in convergence.METRICS}
        measured = {metric: found for metric, found in measured.items() if found}
        if not measured:
            raise BadInput(f"no row has any of {', '.join(convergence.METRICS)}; give at least one measured value")
        blocks, checks = [], []
        for metric, found in measured.items():
            claimed = convergence.claims(bounds, metric)
            checks += words.checked(metric, convergence.check_claims(rows, claimed, metric))
            figure = figures.convergence(self._palette, words.SHORT[metric], found, claimed)
            summary = words.convergence(metric, found)
            blocks.append(self._figure(convergence.METRICS[metric], figure, summary, not blocks, headed=True))
        key = words.key(measured.values(), any(convergence.claims(bounds, metric) for metric in measured))
        solvers = list(dict.fromkeys(curve.solver for found in measured.values() for curve in found))
        body = (
            f'<div data-controls>{self._controls(solvers, axes=True)}<p class="legend">{escape(key)}</p>'
            f'<div class="pair">{"".join(blocks)}</div></div>'
        )
        proofs = "".join(f"<li>{escape(check)}</li>" for check in checks)
        proofs = f'<div class="claims"><h3>Claimed and measured</h3><ul>{proofs}</ul></div>'
        columns, cells = words.convergence_table(measured)
        ends = table("Where each solver ended", columns, cells)
        return self._section(title, note, body, proofs if checks else "", ends)

    def add_curves(
        self,
        title: str,
        rows: Sequence[Mapping[str, Any]],
        x: str,
        y: str,
        group: str = "solver",
        note: str = "",
        x_title: str = "",
        y_title: str = "",
        percent: bool = False,
    ) -> Report:
        """Plain curves on linear axes, one a group: rows hold the columns `x`, `y` and `group`.

        With `percent`, y is a share in [0, 1] and is written as a percentage.

        Raises:
            BadInput: no row has both numbers.
        """
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row.get(x) is not None and row.get(y) is not None:
                series.setdefault(str(row[group]), []).append((float(row[x]), float(row[y])))
        if not series:
            raise BadInput(f"no row has both {x!r} and {y!r}; nothing to draw in {title!r}")
        series = {name: sorted(points) for name, points in series.items()}
        figure = figures.lines(self._palette, y_title or y, x_title or x, series, percent)
        block = self._figure(title, figure, words.curves(series, x_title or x, y_title or y, percent))
        return self._section(title, note, f"<div data-controls>{self._controls(list(series), axes=False)}{block}</div>")

    def add_win_rates(
        self, rows: Sequence[Mapping[str, Any]], title: str = "Win rates against the reference", note: str = ""
    ) -> Report:
        """Points with their 95 % Wilson intervals, and a line at one half.

        Args:
            rows: one a policy (and judge): policy, wins in [0, comparisons] (a sum of probabilities may
                stand for a count), comparisons, and perhaps judge.
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: no rows, a key is missing, or wins are out of range.
        """
        if not rows:
            raise BadInput(f"no win rates were given for {title!r}; give one row a policy")
        points = []
        for at, row in enumerate(rows):
            for key in ("policy", "wins", "comparisons"):
                if key not in row:
                    raise BadInput(f"win rate row {at} has no {key!r}")
            low, high = wilson_interval(float(row["wins"]), int(row["comparisons"]))
            judge = str(row.get("judge", ""))
            points.append(
                {
                    "policy": str(row["policy"]),
                    "judge": judge,
                    "label": f"{row['policy']} · {judge}" if judge else str(row["policy"]),
                    "rate": float(row["wins"]) / int(row["comparisons"]),
                    "low": low,
                    "high": high,
                    "comparisons": int(row["comparisons"]),
                }
            )
        judged = ["Judge"] if any(point["judge"] for point in points) else []
        columns = ["Policy", *judged, "Win rate", "Lower", "Upper", "Comparisons"]
        keys = {"Policy": "policy", "Judge": "judge", "Win rate": "rate", "Lower": "low", "Upper": "high"}
        cells = [[point[keys.get(column, "comparisons")] for column in columns] for point in points]
        figure = self._figure(title, figures.win_rates(self._palette, points), words.win_rates(points))
        return self._section(title, note, figure, table("Win rates with 95 % Wilson intervals", columns, cells))

    def add_matrix(
        self,
        labels: Sequence[str],
        values: Sequence[Sequence[float]],
        equilibrium: Sequence[float] | None = None,
        title: str = "Preference matrix",
        note: str = "",
    ) -> Report:
        """A heat map of P(row beats column), ordered by the equilibrium where one is given.

        Args:
            labels: Y names.
            values: (Y, Y) in [0, 1]; NaN where unknown.
            equilibrium: (Y,) probabilities; the likeliest response comes first.
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: the lengths differ, there is nothing, or a value is outside [0, 1].
        """
        size = len(labels)
        if size == 0 or len(values) != size or any(len(row) != size for row in values):
            raise BadInput(f"{title!r} needs a square matrix, one row and one column a label ({size} labels)")
        if any(value < 0 or value > 1 for row in values for value in row):
            raise BadInput(f"{title!r} holds a value outside [0, 1]; entries are probabilities that row beats column")
        order = list(range(size))
        if equilibrium is not None:
            if len(equilibrium) != size:
                raise BadInput(f"{title!r}: {len(equilibrium)} equilibrium probabilities for {size} labels")
            order.sort(key=lambda at: -equilibrium[at])
        shown = order[:_LARGEST_MATRIX]
        names = [str(labels[at]) for at in shown]
        picked = [[float(values[row][column]) for column in shown] for row in shown]
        summary = words.matrix(names, picked, ordered=equilibrium is not None, omitted=size - len(shown))
        block = self._figure(title, figures.matrix(names, picked), summary)
        numbers = ""
        if len(names) <= 12:
            known = [[None if math.isnan(value) else value for value in row] for row in picked]
            rows = [[name, *row] for name, row in zip(names, known, strict=True)]
            inner = table("Probability that the row beats the column", ["", *names], rows)
            numbers = f"<details><summary>The same in numbers</summary>{inner}</details>"
        return self._section(title, note, block, numbers)

    def add_distribution(
        self,
        labels: Sequence[str],
        probabilities: Mapping[str, Sequence[float]],
        title: str = "Equilibrium",
        note: str = "",
        most: int = 20,
    ) -> Report:
        """Bars of the probabilities that each policy gives to its responses, likeliest first.

        Args:
            labels: Y names.
            probabilities: policy to its (Y,) probabilities; the first policy sets the order.
            title: heading of the section.
            note: a paragraph below it.
            most: how many responses to draw; the summary says what is left out.

        Raises:
            BadInput: nothing was given, or a length is wrong.
        """
        if not probabilities or not labels:
            raise BadInput(f"{title!r} needs at least one policy and one label")
        for policy, values in probabilities.items():
            if len(values) != len(labels):
                raise BadInput(f"{title!r}: {len(values)} probabilities of {policy!r} for {len(labels)} labels")
        first = next(iter(probabilities.values()))
        shown = sorted(range(len(labels)), key=lambda at: -first[at])[:most]
        names = [str(labels[at]) for at in shown]
        picked = {policy: [float(values[at]) for at in shown] for policy, values in probabilities.items()}
        figure = figures.distribution(self._palette, names, picked)
        block = self._figure(title, figure, words.distribution(names, picked, len(labels)))
        rows = [[name, *(values[at] for values in picked.values())] for at, name in enumerate(names)]
        inner = table("Probabilities", ["Response", *picked], rows)
        controls = self._controls(list(picked), axes=False)
        numbers = f"<details><summary>The same in numbers</summary>{inner}</details>"
        return self._section(title, note, f"<div data-controls>{controls}{block}</div>", numbers)

    def add_table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any] | Mapping[str, Any]],
        caption: str = "",
        note: str = "",
    ) -> Report:
        """A sortable table; cells are numbers, texts or None.

        Raises:
            BadInput: a row does not fit the columns.
        """
        return self._section(title, note, table(caption or title, columns, rows))

    def add_samples(
        self, samples: Sequence[Mapping[str, Any]], title: str = "Samples to read", note: str = ""
    ) -> Report:
        """Answers side by side.

        Args:
            samples: one a prompt: `prompt`, `answers` (policy to text, in the order to show; put the
                reference first), and perhaps `remarks` (policy to a few words below its answer).
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: a sample lacks its prompt or its answers.
        """
        blocks = []
        for at, sample in enumerate(samples):
            if "prompt" not in sample or not isinstance(sample.get("answers"), Mapping):
                raise BadInput(f"sample {at} needs a 'prompt' and 'answers', a mapping of policy to text")
            remarks: Mapping[str, str] = sample.get("remarks") or {}
            answers = "".join(self._answer(name, text, remarks.get(name)) for name, text in sample["answers"].items())
            blocks.append(
                f'<article class="sample"><h3>Prompt {at + 1}</h3><p class="prompt">{escape(sample["prompt"])}</p>'
                f'<div class="answers">{answers}</div></article>'
            )
        return self._section(title, note, *(blocks or ["<p>No samples.</p>"]))

    def _answer(self, name: str, text: str, remark: str | None) -> str:
        small = f"<small>{escape(remark)}</small>" if remark else ""
        tone = self._palette[name].colour
        shown = escape(text) if text.strip() else "<em>(empty)</em>"
        return f'<div class="answer" style="--tone:{tone}"><h4>{escape(name)}</h4><p>{shown}</p>{small}</div>'

    def add_command(self, command: str, title: str = "How to make this page again", note: str = "") -> Report:
        """The command that made the page; what looks like a secret is blotted out."""
        code = escape(redact(command))
        button = '<button type="button" class="copy">Copy</button>'
        block = f'<div class="command"><pre><code>{code}</code></pre>{button}</div>'
        return self._section(title, note, block)

    def html(self) -> str:
        """The page as text."""
        from plotly.offline import get_plotlyjs

        assets = resources.files("nlhf_zoo.report") / "assets"
        light, dark = stylesheet()
        css = (assets / "report.css").read_text("utf-8").replace("/*LIGHT*/", light).replace("/*DARK*/", dark)
        verdicts = "".join(
            f'<li class="{sign}"><span class="sign" aria-hidden="true">{_SIGNS[sign][0]}</span>'
            f'<span><span class="unseen">{_SIGNS[sign][1]}</span>{escape(text)}</span></li>'
            for sign, text in self._verdicts
        )
        contents = "".join(f'<li><a href="#part-{at}">{escape(t)}</a></li>' for at, (t, _) in enumerate(self._sections))
        parts = {
            "title": escape(self.title),
            "summary": f'<p class="lead">{escape(self.summary)}</p>' if self.summary else "",
            "verdicts": f'<ul class="verdicts" aria-label="Findings">{verdicts}</ul>' if verdicts else "",
            "contents": f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if len(self._sections) > 1 else "",
            "sections": "".join(html for _, html in self._sections),
            "css": css,
            "plotly": get_plotlyjs(),
            "script": (assets / "report.js").read_text("utf-8"),
        }
        # One pass over the template: what is filled in is never searched for marks itself.
        return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (assets / "page.html").read_text("utf-8"))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page: a whole file or none, also when interrupted.

        Raises:
            BadInput: the folder does not exist or may not be written to.
        """
        target, page = Path(path), self.html()
        try:
            write_text(target, page)
        except OSError as error:
            if os.access(target.parent, os.W_OK):
                raise
            raise BadInput(f"cannot write the report to {target}: {error.strerror}; choose another folder") from None
        return target

    def _section(self, title: str, note: str, *blocks: str) -> Report:
        at = len(self._sections)
        lead = f"<p>{escape(note)}</p>" if note else ""
        heading = f'<h2 id="part-{at}-title">{escape(title)}</h2>'
        opening = f'<section id="part-{at}" aria-labelledby="part-{at}-title">'
        self._sections.append((title, f"{opening}{heading}{lead}{''.join(blocks)}</section>"))
        return self

    def _figure(
        self, title: str, figure: Mapping[str, Any], summary: str, first: bool = True, headed: bool = False
    ) -> str:
        self._figures += 1
        heading = f"<h3>{escape(title)}</h3>" if headed else ""
        name = f"figure-{self._figures}"
        return (
            f"<figure{' class=first' if first else ''}>{heading}"
            f'<div class="plot" role="img" aria-label="{escape(f"{title}. {summary}")}" data-figure="{name}"></div>'
            f'<script type="application/json" id="{name}">{figures.embed(figure)}</script>'
            f"<figcaption>{escape(summary)}</figcaption></figure>"
        )

    def _controls(self, groups: Sequence[str], axes: bool) -> str:
        """The key of the colours, whose entries hide and show curves, and the choice of the horizontal axis."""
        key = "".join(
            f'<label class="choice key"><input type="checkbox" data-control="group" value="{escape(group)}" checked>'
            f'<span class="swatch" style="border-color:{self._palette[group].colour}"></span>{escape(group)}</label>'
            for group in groups
        )
        parts = [f"<fieldset><legend>Show</legend>{key}</fieldset>"]
        if axes:
            scope = f"controls-{self._figures}"
            parts.append(_radios(f"{scope}-axis", "axis", "Against", ("queries", "seconds", "steps")))
            parts.append(_radios(f"{scope}-scale", "scale", "Scale", ("log", "linear")))
        return f'<div class="controls">{"".join(parts)}</div>'


def _radios(name: str, control: str, legend: str, values: Sequence[str]) -> str:
    choices = "".join(
        f'<label class="choice"><input type="radio" name="{name}" data-control="{control}" value="{value}"'
        f"{' checked' if at == 0 else ''}>{value}</label>"
        for at, value in enumerate(values)
    )
    return f"<fieldset><legend>{legend}</legend>{choices}</fieldset>"
