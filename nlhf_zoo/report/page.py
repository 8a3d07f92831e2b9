"""The report: one self-contained HTML page, put together from plain data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from nlhf_zoo.atomic import write_text
from nlhf_zoo.errors import BadInput
from nlhf_zoo.intervals import wilson_interval
from nlhf_zoo.report import convergence, figures, words
from nlhf_zoo.report.controls import controls, key, radios
from nlhf_zoo.report.convergence import Measured
from nlhf_zoo.report.cycles import three_cycles
from nlhf_zoo.report.markup import escape, table
from nlhf_zoo.report.palette import Palette
from nlhf_zoo.report.template import Section, Sign, fill
from nlhf_zoo.secrecy import redact

__all__ = ["Report"]

_LARGEST_MATRIX = 200
_IN_SUPPORT = 1e-3
"""Responses with less of the equilibrium than this are not counted as played: with beta > 0 every one has some."""
_AXES: Mapping[str, str] = {"queries": "queries", "seconds": "wall time", "tokens": "tokens", "steps": "steps"}


@attrs.define
class Report:
    """Collects sections in the order they are added, and writes them as one HTML file without any network.

    Every text is escaped: titles, labels, samples and table cells may hold anything. Each `add_` method
    returns the report, so that calls chain.

    Attributes:
        title: heading of the page.
        summary: what was done and what came out, in a few sentences; stands on top.
        palette: who has which colour and marker.
    """

    title: str
    summary: str = ""
    _verdicts: list[tuple[Sign, str]] = attrs.field(factory=list, init=False)
    _sections: list[Section] = attrs.field(factory=list, init=False)
    _figures: int = attrs.field(default=0, init=False)
    _parts: int = attrs.field(default=0, init=False)
    _depth: int = attrs.field(default=0, init=False)
    palette: Palette = attrs.field(factory=Palette, init=False)

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
            bounds: one a point, with solver, metric, step, bound and perhaps source.
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: no row has any of the three metrics, or a row is malformed.
        """
        bounds = list(bounds)
        measured = {}
        for metric in convergence.METRICS:
            claimed = convergence.claims(bounds, metric)
            checks = convergence.check_claims(rows, claimed, metric)
            measured[metric] = Measured(convergence.curves(rows, metric), claimed, checks)
        return self.add_measured(measured, title, note)

    def add_measured(
        self, measured: Mapping[str, Measured], title: str = "Convergence", note: str = "", ends: bool = True
    ) -> Report:
        """The same from curves that are made already.

        Args:
            measured: metric, out of `convergence.METRICS`, to its curves, claims and checks.
            title: heading of the section.
            note: a paragraph below it.
            ends: whether a table of where each solver ended belongs to it.

        Raises:
            BadInput: there is no curve at all.
        """
        measured = {metric: found for metric, found in measured.items() if found.curves}
        if not measured:
            raise BadInput(f"no row has any of {', '.join(convergence.METRICS)}; give at least one measured value")
        blocks, checks = [], []
        for metric, found in measured.items():
            checks += words.checked(metric, found.checks)
            figure = figures.convergence(self.palette, words.SHORT[metric], found.curves, found.claims)
            summary = words.convergence(metric, found.curves)
            blocks.append(self._figure(convergence.METRICS[metric], figure, summary, not blocks, headed=True))
        drawn = {metric: found.curves for metric, found in measured.items()}
        legend = words.key(drawn.values(), any(found.claims for found in measured.values()))
        every = [curve for found in drawn.values() for curve in found]
        solvers, scope = list(dict.fromkeys(curve.solver for curve in every)), f"controls-{self._figures}"
        chosen = controls(
            key(self.palette, solvers),
            radios(f"{scope}-axis", "axis", "Against", {axis: _AXES[axis] for axis in figures.spent(every)}),
            radios(f"{scope}-scale", "scale", "Scale", {"log": "log", "linear": "linear"}),
        )
        body = (
            f'<div data-controls>{chosen}<p class="legend">{escape(legend)}</p>'
            f'<div class="pair">{"".join(blocks)}</div></div>'
        )
        level = 3 + self._depth
        proofs = "".join(f"<li>{escape(check)}</li>" for check in checks)
        proofs = f'<div class="claims"><h{level}>Claimed and measured</h{level}><ul>{proofs}</ul></div>'
        tables = "".join(
            table(f"{convergence.METRICS[metric]}, {words.SAMPLED}", *words.waypoints(found))
            for metric, found in drawn.items()
        )
        numbers = f"<details><summary>The curves in numbers</summary>{tables}</details>"
        last = table("Where each solver ended", *words.convergence_table(drawn)) if ends else ""
        return self._section(title, note, body, proofs if checks else "", last, numbers)

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
        figure = figures.lines(self.palette, y_title or y, x_title or x, series, percent)
        block = self._figure(title, figure, words.curves(series, x_title or x, y_title or y, percent))
        columns, cells = words.curves_table(series, x_title or x)
        numbers = f"<details><summary>The same in numbers</summary>{table(title, columns, cells)}</details>"
        shown = controls(key(self.palette, list(series)))
        return self._section(title, note, f"<div data-controls>{shown}{block}</div>", numbers)

    def add_win_rates(
        self, rows: Sequence[Mapping[str, Any]], title: str = "Win rates against the reference", note: str = ""
    ) -> Report:
        """Points with their 95 % intervals, and a line at one half.

        Args:
            rows: one a policy (and judge): policy, comparisons, perhaps judge, and either wins in
                [0, comparisons] (a sum of probabilities may stand for a count), whose Wilson interval is
                drawn, or rate, low and high.
            title: heading of the section.
            note: a paragraph below it.

        Raises:
            BadInput: no rows, a key is missing, or wins are out of range.
        """
        if not rows:
            raise BadInput(f"no win rates were given for {title!r}; give one row a policy")
        points = [_win_rate(row, at) for at, row in enumerate(rows)]
        judged = ["Judge"] if any(point["judge"] for point in points) else []
        columns = ["Policy", *judged, "Win rate", "Lower", "Upper", "Comparisons"]
        keys = {"Policy": "policy", "Judge": "judge", "Win rate": "rate", "Lower": "low", "Upper": "high"}
        cells = [[point[keys.get(column, "comparisons")] for column in columns] for point in points]
        figure = self._figure(title, figures.win_rates(self.palette, points), words.win_rates(points))
        return self._section(title, note, figure, table("Win rates with 95 % intervals", columns, cells))

    def add_matrix(
        self,
        labels: Sequence[str],
        values: Sequence[Sequence[float]],
        equilibrium: Sequence[float] | None = None,
        title: str = "Preference matrix",
        note: str = "",
        intervals: Sequence[Sequence[tuple[float, float]]] | None = None,
        weights: str = "equilibrium",
    ) -> Report:
        """A heat map of P(row beats column), ordered by the equilibrium where one is given, its cycles marked.

        Args:
            labels: Y names.
            values: (Y, Y) in [0, 1]; NaN where unknown.
            equilibrium: (Y,) probabilities; the likeliest response comes first.
            title: heading of the section.
            note: a paragraph below it.
            intervals: (Y, Y) pairs, the 95 % interval of each value.
            weights: what `equilibrium` is called.

        Raises:
            BadInput: the lengths differ, there is nothing, or a value is outside [0, 1].
        """
        size = len(labels)
        if size == 0 or len(values) != size or any(len(row) != size for row in values):
            raise BadInput(f"{title!r} needs a square matrix, one row and one column a label ({size} labels)")
        if any(value < 0 or value > 1 for row in values for value in row):
            raise BadInput(f"{title!r} holds a value outside [0, 1]; entries are probabilities that row beats column")
        order, support = list(range(size)), 0
        if equilibrium is not None:
            if len(equilibrium) != size:
                raise BadInput(f"{title!r}: {len(equilibrium)} equilibrium probabilities for {size} labels")
            order.sort(key=lambda at: -equilibrium[at])
            support = sum(value >= _IN_SUPPORT for value in equilibrium)
        shown = order[:_LARGEST_MATRIX]
        names = [str(labels[at]) for at in shown]
        picked = [[float(values[row][column]) for column in shown] for row in shown]
        ends = [[intervals[row][column] for column in shown] for row in shown] if intervals is not None else None
        cycles = three_cycles(picked, among=range(support) if support else None)
        summary = words.matrix(
            names,
            picked,
            ordered=weights if equilibrium is not None else "",
            omitted=size - len(shown),
            cycles=cycles,
            support=support,
        )
        figure = figures.matrix(names, picked, intervals=ends, cycles=cycles.clearest, support=support)
        block = self._figure(title, figure, summary)
        if cycles.clearest:
            choices = {str(at): " › ".join(figures.clip(names[i], 28) for i in triple)
                       for at, triple in enumerate(cycles.clearest)}  # fmt: skip
            chosen = radios(f"cycle-{self._figures}", "cycle", "Outline a cycle", {**choices, "": "none"})
            block = f"<div data-controls>{controls(chosen)}{block}</div>"
        return self._section(title, note, block, _matrix_numbers(names, picked, ends))

    def add_distribution(
        self,
        labels: Sequence[str],
        probabilities: Mapping[str, Sequence[float]],
        title: str = "Equilibrium",
        note: str = "",
        most: int = 20,
        intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
        columns: Mapping[str, Sequence[float]] | None = None,
    ) -> Report:
        """Bars of the probabilities that each policy gives to its responses, likeliest first.

        Args:
            labels: Y names.
            probabilities: policy to its (Y,) probabilities; the first policy sets the order.
            title: heading of the section.
            note: a paragraph below it.
            most: how many responses to draw; the summary says what is left out.
            intervals: policy to (Y,) pairs: between what its probabilities lie, where they are uncertain.
            columns: what else is known of each response, heading to (Y,) numbers, for the table.

        Raises:
            BadInput: nothing was given, or a length is wrong.
        """
        if not probabilities or not labels:
            raise BadInput(f"{title!r} needs at least one policy and one label")
        for policy, values in {**probabilities, **(intervals or {}), **(columns or {})}.items():
            if len(values) != len(labels):
                raise BadInput(f"{title!r}: {len(values)} probabilities of {policy!r} for {len(labels)} labels")
        first = next(iter(probabilities.values()))
        shown = sorted(range(len(labels)), key=lambda at: -first[at])[:most]
        names = [str(labels[at]) for at in shown]
        picked = {policy: [float(values[at]) for at in shown] for policy, values in probabilities.items()}
        ends = {policy: [pairs[at] for at in shown] for policy, pairs in (intervals or {}).items()}
        figure = figures.distribution(self.palette, names, picked, ends)
        block = self._figure(title, figure, words.distribution(names, picked, len(labels), ends))
        cells = {**picked}
        for policy, pairs in ends.items():
            cells[f"{policy}, lower"], cells[f"{policy}, upper"] = (
                [float(pair[end]) for pair in pairs] for end in (0, 1)
            )
        cells |= {heading: [float(values[at]) for at in shown] for heading, values in (columns or {}).items()}
        rows = [[name, *(values[at] for values in cells.values())] for at, name in enumerate(names)]
        inner = table("Probabilities", ["Response", *cells], rows)
        numbers = f"<details><summary>The same in numbers</summary>{inner}</details>"
        chosen = controls(key(self.palette, list(picked))) if len(picked) > 1 else ""
        return self._section(title, note, f"<div data-controls>{chosen}{block}</div>", numbers)

    def add_table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any] | Mapping[str, Any]],
        groups: Sequence[str] | None = None,
        caption: str = "",
        note: str = "",
        keyed: bool = False,
    ) -> Report:
        """A sortable table; cells are numbers, texts or None.

        Args:
            title: heading of the section.
            columns: headings.
            rows: one value a column.
            groups: the solver of each row, with whom it is hidden.
            caption: of the table, where it says more than the title.
            note: a paragraph below the heading.
            keyed: whether there is a key above, whose entries hide solvers.

        Raises:
            BadInput: a row does not fit the columns.
        """
        made = table(caption or title, columns, rows, groups, captioned=bool(caption))
        if groups is not None and keyed:
            made = f"<div data-controls>{controls(key(self.palette, list(dict.fromkeys(groups))))}{made}</div>"
        return self._section(title, note, made)

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
        tone = self.palette[name].colour
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
        return fill(self.title, self.summary, self._verdicts, self._sections)

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

    @contextlib.contextmanager
    def chapter(self, title: str, note: str = "", folded: str = "") -> Iterator[None]:
        """Sections that are added within become parts of one section, a heading lower.

        Args:
            title: heading of the whole.
            note: a paragraph below it.
            folded: where given, the parts are hidden below this line until it is clicked.
        """
        outer, self._sections = self._sections, []
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            inner, self._sections = self._sections, outer
        parts = "".join(section.html for section in inner)
        if folded:
            parts = f'<details class="fold"><summary>{escape(folded)}</summary>{parts}</details>'
        self._section(title, note, parts)

    def _section(self, title: str, note: str, *blocks: str) -> Report:
        self._parts += 1
        name, level = f"part-{self._parts}", 2 + self._depth
        lead = f"<p>{escape(note)}</p>" if note else ""
        heading = f'<h{level} id="{name}-title">{escape(title)}</h{level}>'
        opening = f'<section id="{name}" aria-labelledby="{name}-title"{" class=part" if self._depth else ""}>'
        self._sections.append(Section(name, title, f"{opening}{heading}{lead}{''.join(blocks)}</section>"))
        return self

    def _figure(
        self, title: str, figure: Mapping[str, Any], summary: str, first: bool = True, headed: bool = False
    ) -> str:
        self._figures += 1
        level = 3 + self._depth
        heading = f"<h{level}>{escape(title)}</h{level}>" if headed else ""
        name, kind = f"figure-{self._figures}", figure["kind"]
        # Figures are drawn when they come near the window: until then their place is kept.
        room = f' style="min-height:{figures.height(figure)}px"' if kind == "rows" else ""
        return (
            f"<figure{' class=first' if first else ''}>{heading}"
            f'<div class="plot" role="img" aria-label="{escape(f"{title}. {summary}")}" data-figure="{name}"'
            f' data-kind="{kind}"{room}></div>'
            f'<script type="application/json" id="{name}">{figures.embed(figure)}</script>'
            f"<figcaption>{escape(summary)}</figcaption></figure>"
        )


def _matrix_numbers(
    names: Sequence[str], values: Sequence[Sequence[float]], ends: Sequence[Sequence[tuple[float, float]]] | None
) -> str:
    """The matrix as a table, where it is small enough to be read; with intervals, one row a pair."""
    if len(names) > 12:
        return ""
    if ends is None:
        rows = [[name, *row] for name, row in zip(names, values, strict=True)]
        inner = table("Probability that the row beats the column", ["", *names], rows)
    else:
        pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
        rows = [[names[i], names[j], values[i][j], *ends[i][j]] for i, j in pairs]
        inner = table("Win rates with 95 % intervals", ["Row", "Column", "Win rate", "Lower", "Upper"], rows)
    return f"<details><summary>The same in numbers</summary>{inner}</details>"


def _win_rate(row: Mapping[str, Any], at: int) -> dict[str, Any]:
    known = ("rate", "low", "high") if "rate" in row else ("wins",)
    for name in ("policy", "comparisons", *known):
        if name not in row:
            raise BadInput(f"win rate row {at} has no {name!r}")
    policy, judge, comparisons = str(row["policy"]), str(row.get("judge", "")), int(row["comparisons"])
    if "rate" in row:
        rate, low, high = (float(row[name]) for name in known)
    else:
        rate, (low, high) = float(row["wins"]) / comparisons, wilson_interval(float(row["wins"]), comparisons)
    label = f"{policy} · {judge}" if judge else policy
    return {
        "policy": policy,
        "judge": judge,
        "label": label,
        "rate": rate,
        "low": low,
        "high": high,
        "comparisons": comparisons,
    }
