"""The figures of a comparison for a paper: PNG files by matplotlib, without a browser."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlhf_zoo.atomic import write_bytes
from nlhf_zoo.errors import BadInput
from nlhf_zoo.report import convergence
from nlhf_zoo.report.comparison import measured
from nlhf_zoo.report.convergence import FLOOR, Curve, Measured
from nlhf_zoo.report.figures import clip
from nlhf_zoo.report.palette import Palette
from nlhf_zoo.report.reading import Comparison, PlayedGame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_figures"]

_DPI = 300
_BARS = 15
_MATRIX = 60
_Y: Mapping[str, str] = {
    "duality_gap": "duality gap",
    "kl_to_equilibrium": "KL(equilibrium ‖ policy)",
    "span_to_equilibrium": "span of log ratio",
}
_STYLE: Mapping[str, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "lines.linewidth": 1.4, "legend.frameon": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the convergence, the matrix and the equilibrium of each game as `<game>-<figure>.png` at 300 dpi.

    Args:
        comparison: what to draw.
        folder: where to; made if missing.

    Returns:
        The files, in the order of the games.

    Raises:
        BadInput: matplotlib is not installed, or the folder cannot be written to.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInput("figures for a paper need matplotlib; pip install 'nlhf-zoo[figures]'") from None
    ink, written = Palette(), []
    ink.introduce(comparison.names)
    with matplotlib.rc_context(dict(_STYLE)):  # type: ignore[arg-type]  # its keys are a closed list of names
        for at, game in enumerate(comparison.games):
            stem = _file(game.label)
            # Two labels may be alike but for what no file name holds.
            taken = sum(_file(other.label) == stem for other in comparison.games[:at])
            for name, figure in _figures(game, ink, Figure):
                path = folder / f"{stem}{f'-{taken + 1}' if taken else ''}-{name}.png"
                written.append(_write(figure, path))
    return written


def _figures(game: PlayedGame, ink: Palette, make: type[Figure]) -> list[tuple[str, Figure]]:
    found = {metric: measured(game, metric) for metric in convergence.METRICS}
    found = {metric: one for metric, one in found.items() if one.curves}
    drawn = [("convergence", _convergence(found, ink, make))] if found else []
    if game.matrix is not None and len(game.matrix):
        drawn.append(("matrix", _matrix(game, make)))
    if game.equilibrium is not None and len(game.equilibrium):
        drawn.append(("equilibrium", _equilibrium(game, ink, make)))
    return drawn


def _convergence(found: Mapping[str, Measured], ink: Palette, make: type[Figure]) -> Figure:
    figure = make(figsize=(2.5 * len(found) + 0.3, 2.7))
    for axes, (metric, one) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for curve in one.curves:
            _curve(axes, curve, ink)
        for claim in one.claims:
            curve = next(curve for curve in one.curves if curve.solver == claim.solver)
            queries = [curve.queries[curve.steps.index(step)] if step in curve.steps else None for step in claim.steps]
            points = [(x, y) for x, y in zip(queries, claim.values, strict=True) if x]
            axes.plot(*zip(*points, strict=True), linestyle="--", linewidth=0.9, color=ink[claim.solver].light)
        axes.set(xscale="log", yscale="log", xlabel="oracle queries", ylabel=_Y[metric])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5))
    return figure


def _curve(axes: Axes, curve: Curve, ink: Palette) -> None:
    kept = [at for at, queries in enumerate(curve.queries) if queries > 0]
    x = [curve.queries[at] for at in kept]
    low, middle, high = ([max(row[at], FLOOR) for at in kept] for row in (curve.low, curve.median, curve.high))
    colour, markers = ink[curve.solver].light, max(1, len(kept) // 6)
    axes.plot(x, middle, label=curve.solver, color=colour, marker=_MARKERS[ink[curve.solver].marker],
              markersize=3.5, markevery=markers)  # fmt: skip
    if curve.seeds > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


_MARKERS: Mapping[str, str] = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X", "pentagon": "p",
    "star": "*", "hexagon": "h",
}  # fmt: skip
"""plotly's symbols in matplotlib."""


def _matrix(game: PlayedGame, make: type[Figure]) -> Figure:
    order = _order(game, len(game.labels))[:_MATRIX]
    assert game.matrix is not None
    values = game.matrix[order][:, order]
    side = min(6.5, 1.8 + 0.16 * len(order))
    figure = make(figsize=(side + 0.6, side))
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="PuOr", interpolation="nearest")
    axes.grid(False)
    if len(order) <= 30:
        names = [clip(game.labels[at], 24) for at in order]
        axes.set_xticks(range(len(order)), names, rotation=60, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(order)), names)
        axes.xaxis.tick_top()
    else:
        axes.set(xticks=[], yticks=[], xlabel=f"{len(order)} responses by equilibrium mass")
    figure.colorbar(image, label="P(row beats column)", shrink=0.8)
    return figure


def _equilibrium(game: PlayedGame, ink: Palette, make: type[Figure]) -> Figure:
    assert game.equilibrium is not None
    order = _order(game, len(game.equilibrium))[:_BARS]
    mass = [float(game.equilibrium[at]) for at in order]
    figure = make(figsize=(3.4, 0.6 + 0.2 * len(order)))
    axes = figure.subplots()
    axes.barh(range(len(order)), mass, color=ink["equilibrium"].light)
    unsure = (game.summary.get("equilibrium") or {}).get("uncertainty")
    if unsure and set(game.labels) <= set(unsure["labels"]):
        at = [unsure["labels"].index(game.labels[response]) for response in order]
        below = [max(value - unsure["low"][i], 0) for value, i in zip(mass, at, strict=True)]
        above = [max(unsure["high"][i] - value, 0) for value, i in zip(mass, at, strict=True)]
        axes.errorbar(
            mass, range(len(order)), xerr=[below, above], fmt="none", ecolor="black", elinewidth=0.8, capsize=2
        )
    names = ["\n".join(textwrap.wrap(clip(game.labels[at], 28), 28)) for at in order]
    axes.set_yticks(range(len(order)), names)
    axes.invert_yaxis()
    axes.set(xlabel="equilibrium probability")
    axes.grid(axis="y", visible=False)
    return figure


def _order(game: PlayedGame, size: int) -> Sequence[int]:
    mass = game.equilibrium
    return range(size) if mass is None else sorted(range(size), key=lambda at: -float(mass[at]))


def _file(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", label).strip("_.")[:80] or "game"


def _write(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}; choose a folder that may be written to") from None
    return path
