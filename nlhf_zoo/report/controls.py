"""The page's few controls: the key of the colours, whose entries show and hide, and radio buttons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nlhf_zoo.report.markup import escape
from nlhf_zoo.report.palette import Palette

__all__ = ["controls", "key", "radios"]

_GLYPHS: Mapping[str, str] = {
    "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "x": "✖", "pentagon": "⬟",
    "star": "★", "hexagon": "⬢",
}  # fmt: skip
"""plotly's symbols as characters."""


def controls(*fieldsets: str) -> str:
    return f'<div class="controls">{"".join(fieldsets)}</div>'


def key(ink: Palette, groups: Sequence[str], legend: str = "Show") -> str:
    """A check box for each group, with its line and marker; the page hides the group wherever it stands."""
    boxes = "".join(
        f'<label class="choice key"><input type="checkbox" data-control="group" value="{escape(group)}" checked>'
        f'<span class="swatch" style="color:{ink[group].colour}" aria-hidden="true">{_GLYPHS[ink[group].marker]}</span>'
        f"<span>{escape(group)}</span></label>"
        for group in groups
    )
    return f"<fieldset><legend>{legend}</legend>{boxes}</fieldset>"


def radios(name: str, control: str, legend: str, choices: Mapping[str, str]) -> str:
    """Radio buttons, the first of them chosen; `choices` is value to label."""
    buttons = "".join(
        f'<label class="choice"><input type="radio" name="{name}" data-control="{control}" value="{escape(value)}"'
        f"{' checked' if at == 0 else ''}>{escape(label)}</label>"
        for at, (value, label) in enumerate(choices.items())
    )
    return f"<fieldset><legend>{legend}</legend>{buttons}</fieldset>"
