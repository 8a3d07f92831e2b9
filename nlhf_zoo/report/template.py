"""The page around the sections: one HTML text that holds its styles, its script and plotly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Literal

import attrs

from nlhf_zoo.report.markup import escape
from nlhf_zoo.report.palette import stylesheet

__all__ = ["Section", "Sign", "fill"]

Sign = Literal["good", "bad", "note"]
_SIGNS: Mapping[str, tuple[str, str]] = {"good": ("✓", "Holds: "), "bad": ("✗", "Fails: "), "note": ("•", "")}


@attrs.frozen
class Section:
    """What the table of contents leads to: `html` is a whole element whose id is `id`."""

    id: str
    title: str
    html: str


def fill(title: str, summary: str, verdicts: Sequence[tuple[Sign, str]], sections: Sequence[Section]) -> str:
    """The whole page; title, summary and verdicts are plain text, the sections' bodies HTML."""
    assets = resources.files("nlhf_zoo.report") / "assets"
    light, dark = stylesheet()
    css = (assets / "report.css").read_text("utf-8").replace("/*LIGHT*/", light).replace("/*DARK*/", dark)
    items = "".join(
        f'<li class="{sign}"><span class="sign" aria-hidden="true">{_SIGNS[sign][0]}</span>'
        f'<span><span class="unseen">{_SIGNS[sign][1]}</span>{escape(text)}</span></li>'
        for sign, text in verdicts
    )
    contents = "".join(f'<li><a href="#{section.id}">{escape(section.title)}</a></li>' for section in sections)
    parts = {
        "title": escape(title),
        "summary": f'<p class="lead">{escape(summary)}</p>' if summary else "",
        "verdicts": f'<ul class="verdicts" aria-label="Findings">{items}</ul>' if items else "",
        "contents": f'<nav aria-label="Contents"><ol>{contents}</ol></nav>' if len(sections) > 1 else "",
        "sections": "".join(section.html for section in sections),
        "css": css,
        # The cartesian part of plotly.js, 4.1.1: a third of the whole, and so of the time that it takes to load.
        "plotly": (assets / "plotly-cartesian.min.js").read_text("utf-8"),
        "script": (assets / "report.js").read_text("utf-8"),
    }
    # One pass over the template: what is filled in is never searched for marks itself.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (assets / "page.html").read_text("utf-8"))
