"""Text into HTML: escaping, numbers as people read them, tables."""

from __future__ import annotations

import html
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import attrs

from nlhf_zoo.errors import BadInput

__all__ = ["Span", "escape", "number", "power", "table"]

_CONTROL = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "\u2421"}
_CONTROL |= dict.fromkeys(range(128, 160), "\ufffd")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power(value: float) -> str:
    """A power of ten as people write it: 10⁻⁴ for 1e-4; any other number as `number` does."""
    mantissa, exponent = f"{value:.12e}".split("e")
    return f"10{str(int(exponent)).translate(_SUPERSCRIPT)}" if float(mantissa) == 1 else number(value)


@attrs.frozen
class Span:
    """A table's cell: a number, by which the column sorts, and between what it lies.

    Where `most` is given, an infinite one is known to be above that only.
    """

    value: float
    low: float | None
    high: float | None
    most: float | None = None


def escape(text: object) -> str:
    """HTML text, also safe inside a quoted attribute; control characters become visible pictures."""
    # A lone surrogate cannot be written as UTF-8, and bytes that a model makes up may hold one.
    clean = str(text).encode("utf-8", "replace").decode("utf-8")
    return html.escape(clean.replace("\r\n", "\n").translate(_CONTROL), quote=True)


def number(value: float | int | None, digits: int = 3) -> str:
    """A number for reading: 12,000, 0.0312, 4.7 × 10⁻⁹; an en dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:#,.{digits}g}".replace("-", "−") if abs(value) < 100 else f"{value:,.1f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa.replace('-', '−')} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any] | Mapping[str, Any]],
    groups: Sequence[str] | None = None,
    captioned: bool = True,
) -> str:
    """A table with a caption, whose columns sort by a button in each heading; numbers keep their full value.

    `groups` names the group of each row, with which the page hides it. A caption that only repeats the heading
    above it need not be seen: with `captioned` false it is there for screen readers.

    Raises:
        BadInput: a row has another length than the heading, or misses a column.
    """
    if not columns:
        raise BadInput(f"table {caption!r} has no columns; name at least one")
    cells = [_values(caption, columns, row, at) for at, row in enumerate(rows)]
    head = "".join(_heading(column, [row[at] for row in cells], at) for at, column in enumerate(columns))
    marks = [f' data-group="{escape(group)}"' for group in groups] if groups is not None else [""] * len(cells)
    body = "".join(
        f"<tr{mark}>{''.join(_cell(value, at) for at, value in enumerate(row))}</tr>"
        for mark, row in zip(marks, cells, strict=True)
    )
    text = escape(caption) if captioned else f'<span class="unseen">{escape(caption)}</span>'
    empty = "" if cells else f'<tr><td colspan="{len(columns)}">No rows.</td></tr>'
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{text}</caption><thead><tr>{head}</tr></thead><tbody>{body}{empty}</tbody></table></div>"
    )


def _values(caption: str, columns: Sequence[str], row: Sequence[Any] | Mapping[str, Any], at: int) -> list[Any]:
    if isinstance(row, Mapping):
        missing = [column for column in columns if column not in row]
        if missing:
            raise BadInput(f"table {caption!r}, row {at}: no {missing[0]!r}; use None for an empty cell")
        return [row[column] for column in columns]
    if len(row) != len(columns):
        raise BadInput(f"table {caption!r}, row {at}: {len(row)} values for {len(columns)} columns")
    return list(row)


def _heading(column: str, values: Sequence[Any], at: int) -> str:
    side = ' class="right"' if at > 0 and any(_is_number(value) or isinstance(value, Span) for value in values) else ""
    arrow = '<span class="arrow" aria-hidden="true"></span>'
    button = f'<button type="button" class="sort">{escape(column)}{arrow}</button>'
    return f'<th scope="col" aria-sort="none"{side}>{button}</th>'


def _cell(value: Any, at: int) -> str:
    tag, scope = ("th", ' scope="row"') if at == 0 else ("td", "")
    if isinstance(value, Span):
        cell = _cell(value.value, at)
        if value.most is not None and math.isinf(value.value):
            cell = cell.replace(f">{number(value.value)}<", f">{_above(value.value, value.most)}<")
        if value.low == value.high:
            return cell
        ends = f"<small>{_above(value.low, value.most)} to {_above(value.high, value.most)}</small>"
        return cell.replace(f"</{tag}>", f"{ends}</{tag}>")
    if value is None or (_is_number(value) and math.isnan(value)):
        return f'<{tag}{scope} class="none">–</{tag}>'
    if not _is_number(value):
        return f"<{tag}{scope}>{escape(value)}</{tag}>"
    # numpy's own repr names the type, and JavaScript spells infinity out.
    exact = repr(int(value) if isinstance(value, numbers.Integral) else float(value)).replace("inf", "Infinity")
    return f'<{tag}{scope} class="number" data-value="{exact}">{number(value)}</{tag}>'


def _above(value: float | None, most: float | None) -> str:
    return number(value) if most is None or value is None or math.isfinite(value) else f"&gt; {number(most)}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
