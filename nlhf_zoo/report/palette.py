"""One fixed colour and marker for each solver, in a light and a dark shade, told apart by colour-blind readers."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping

import attrs

__all__ = ["SHADES", "Ink", "Palette", "stylesheet"]


@attrs.frozen
class Ink:
    """What a name is drawn with: `colour` and `band` are CSS variables, `marker` is a plotly symbol.

    `light` is the colour itself, on a light page or on paper.
    """

    colour: str
    band: str
    marker: str
    light: str


# (light page, dark page, marker). Okabe and Ito's hues, shifted until each has a contrast of 3:1 on both pages.
SHADES: tuple[tuple[str, str, str], ...] = (
    ("#0067a6", "#58b2f2", "circle"),
    ("#b98300", "#f2c14e", "square"),
    ("#c2410c", "#ff8f5a", "diamond"),
    ("#00805e", "#3ccf9f", "triangle-up"),
    ("#a8508a", "#ec9ccb", "cross"),
    ("#5d50c6", "#a99dff", "x"),
    ("#7a4b1e", "#cfa274", "pentagon"),
    ("#2d8fae", "#8fdcf5", "star"),
    ("#66707a", "#a9b3bd", "hexagon"),
)
_DARK = (
    "--page:#14181c;--card:#1b2026;--ink:#e4e8eb;--muted:#9da8b2;--rule:#333b43;--grid:#272e35;--accent:#58b2f2;"
    "--good:#3ccf9f;--bad:#ff8f5a;--soft:#1b2026;--low:#f0a05a;--low-mid:#8a5730;--middle:#22282e;--high-mid:#2c6496;"
    "--high:#6ebcff;color-scheme:dark;"
)
"""The dark page's colours but those of the curves; the light page's are in report.css."""
_FIXED = {"nash_mp": 0, "nash_md": 1, "online_dpo": 2, "online_ipo": 3, "exact_prox": 4, "reference": 8}
_FREE = (5, 6, 7, 1, 4, 3, 2, 0)


@attrs.frozen
class Palette:
    """The inks of one report: a name keeps its ink once it has one, and known solvers have theirs in every report."""

    _taken: dict[str, int] = attrs.field(factory=dict, init=False)

    def __getitem__(self, name: str) -> Ink:
        if name not in self._taken:
            own = _FIXED.get(name)
            self._taken[name] = own if own is not None and own not in self._taken.values() else self._free(name)
        # Beyond the ninth name a colour comes again, with another marker.
        again, shade = divmod(self._taken[name], len(SHADES))
        marker = SHADES[(shade + 4 * again) % len(SHADES)][2]
        return Ink(f"var(--ink-{shade})", f"var(--band-{shade})", marker, SHADES[shade][0])

    def introduce(self, labels: Mapping[str, str]) -> None:
        """Give each label an ink, the known one of the registered name behind it where that is free.

        Args:
            labels: label to registered name, as in "nash_mp, eta 0.2" to "nash_mp".
        """
        for label, name in sorted(labels.items(), key=lambda pair: pair[0] != pair[1]):
            if name in _FIXED and _FIXED[name] not in self._taken.values():
                self._taken.setdefault(label, _FIXED[name])
        for label in labels:
            _ = self[label]

    def share(self, name: str, other: str) -> None:
        """Let `name` be drawn as `other` is."""
        _ = self[other]
        self._taken.setdefault(name, self._taken[other])

    def _free(self, name: str) -> int:
        # Chosen by name first, so that a third-party solver tends to look the same in different reports.
        start = zlib.crc32(name.encode("utf-8", "replace")) % 3
        order = [*_FREE[start:3], *_FREE[:start], *_FREE[3:]]
        used = set(self._taken.values())
        slots = (index + len(SHADES) * again for again in itertools.count() for index in order)
        return next(slot for slot in slots if slot not in used)


def stylesheet() -> tuple[str, str]:
    """CSS declarations: `--ink-i` and `--band-i` for the light page, every variable for the dark one."""

    def declarations(shade: int, opacity: float) -> str:
        parts = []
        for index, entry in enumerate(SHADES):
            red, green, blue = (int(entry[shade][at : at + 2], 16) for at in (1, 3, 5))
            parts.append(f"--ink-{index}:{entry[shade]};--band-{index}:rgba({red},{green},{blue},{opacity})")
        return ";".join(parts) + ";"

    return declarations(0, 0.16), _DARK + declarations(1, 0.2)
