"""What is compared, in a few lines of JSON: a comparison may grow in its folder, and nothing of it may drop out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_zoo.comparison.config import CompareConfig
from nlhf_zoo.comparison.entries import GameEntry, SolverEntry
from nlhf_zoo.errors import BadInput
from nlhf_zoo.plain import from_json, plain

__all__ = ["check_continues", "plan"]

Plan = Mapping[str, Any]

_FIXED = ("queries", "sampled_queries", "tokens", "steps", "tol", "tuning_seeds")


def plan(
    config: CompareConfig, games: Sequence[GameEntry], tuning: Sequence[GameEntry], solvers: Sequence[SolverEntry]
) -> Plan:
    """In JSON's types. A file that has changed is another game with other cells, but no other plan."""
    return plain(
        {
            **{name: getattr(config, name) for name in _FIXED},
            "seeds": [config.seed, config.seed + config.seeds],
            "games": {entry.label: _essence(entry) for entry in games},
            "tuning_games": {entry.label: _essence(entry) for entry in tuning},
            "solvers": {entry.label: {"name": entry.name, "points": entry.points} for entry in solvers},
        }
    )


def _essence(entry: GameEntry) -> Mapping[str, Any]:
    budget = {name: value for name in ("queries", "tokens") if (value := getattr(entry, name)) is not None}
    return {key: value for key, value in entry.identity.items() if key != "digest"} | budget


def check_continues(saved: Path, now: Plan) -> None:
    """Pass where no plan was saved, or `now` is that one, or the same with more seeds, games, solvers or grid values.

    Raises:
        BadInput: it is another comparison, or the file cannot be read; the line names one difference.
    """
    if not saved.exists():
        return
    folder = saved.parent
    try:
        difference = next(_differences(from_json(saved.read_text(encoding="utf-8")), now), None)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"out: {saved} cannot be understood; give a new folder") from None
    if difference is not None:
        raise BadInput(
            f"out: {folder} holds another comparison, {difference}; give a new folder"
            " (seeds, games, solvers and values of a grid may be added to an old one)"
        )


def _differences(before: Plan, now: Plan) -> Iterator[str]:
    for name in _FIXED:
        if before.get(name) != now[name]:
            yield f"with {name} {_shown(before.get(name))}, not {_shown(now[name])}"
    (first, end), (mine, last) = before["seeds"], now["seeds"]
    if not (mine <= first and end <= last):
        yield f"with the seeds {first} to {end - 1}, not {mine} to {last - 1}"
    for label, game in before["games"].items():
        if now["games"].get(label) != game:
            yield f"with {_lacking('game', label, now['games'])}"
    if before["tuning_games"] != now["tuning_games"]:
        yield f"tuned on {', '.join(before['tuning_games']) or 'its own games'}"
    for label, solver in before["solvers"].items():
        same = now["solvers"].get(label, {"name": None, "points": []})
        if same["name"] != solver["name"] or any(point not in same["points"] for point in solver["points"]):
            yield f"with {_lacking('solver', label, now['solvers'])}"


def _lacking(what: str, label: str, now: Mapping[str, Any]) -> str:
    return f"{what} {label!r} set otherwise" if label in now else f"a {what} {label!r}, which this one lacks"


def _shown(value: float | None) -> str:
    return "none" if value is None else str(value)
