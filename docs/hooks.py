"""What mkdocs does not bring: formulas as MathML, which browsers draw themselves, and links out of `docs`."""

from __future__ import annotations

import html
import posixpath
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)
_LINK = re.compile(r"(\]\()(\.\./[^)\s]+)(\))")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Links to files of the repository that are no pages lead to its address (`extra.source` in mkdocs.yml)."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[0] if path.startswith("docs/") else f"{link[1]}{config.extra['source']}/{path}{link[3]}"

    return _LINK.sub(outside, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX, as the arithmatex extension marks it, becomes MathML."""
    return _FORMULA.sub(lambda f: convert(html.unescape(f[2]), display=_display(f[1])), content)


def _display(tag: str) -> str:
    return "block" if tag == "div" else "inline"
