"""Finding plugins: every entry point of the group `nlhf_zoo`, first-party and third-party alike."""

from __future__ import annotations

import difflib
import functools
import os
import traceback
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import pluggy

from nlhf_zoo.errors import BadInput
from nlhf_zoo.registry import hookspecs

__all__ = ["Broken", "Entry", "Kind", "Registry", "load", "lookup", "solvers"]

Kind = Literal["solvers", "oracles", "games", "divergences", "engines"]
KINDS: tuple[Kind, ...] = ("solvers", "oracles", "games", "divergences", "engines")
ONLY = "NLHF_ZOO_PLUGINS"
"""Environment variable: load only the entry points named here, separated by commas (empty: none)."""


@attrs.frozen
class Entry:
    """One registered thing and where it came from."""

    name: str
    factory: Any
    distribution: str
    version: str


@attrs.frozen
class Broken:
    """A plugin that could not be loaded, and why."""

    plugin: str
    distribution: str
    error: str


@attrs.frozen
class Silent:
    """A plugin that loaded and registers nothing."""

    plugin: str
    distribution: str
    module: str


@attrs.frozen
class Registry:
    solvers: Mapping[str, Entry]
    oracles: Mapping[str, Entry]
    games: Mapping[str, Entry]
    divergences: Mapping[str, Entry]
    engines: Mapping[str, Entry]
    broken: tuple[Broken, ...]
    silent: tuple[Silent, ...] = ()


@functools.cache
def load() -> Registry:
    """Import every plugin once. One that fails is reported in `broken` and disturbs nothing else.

    Raises:
        BadInput: two plugins claim the same name; the message names both distributions.
    """
    manager = pluggy.PluginManager("nlhf_zoo")
    manager.add_hookspecs(hookspecs)
    broken: list[Broken] = []
    silent: list[Silent] = []
    found: dict[Kind, dict[str, Entry]] = {kind: {} for kind in KINDS}
    only = os.environ.get(ONLY)
    for point in sorted(entry_points(group="nlhf_zoo"), key=lambda p: (p.dist.name if p.dist else "", p.name)):
        if only is not None and point.name not in only.split(","):
            continue
        distribution, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "0")
        try:
            contributions = _contributions(manager, point, distribution, version)
        except (Exception, SystemExit) as error:  # a plugin is foreign code: whatever it raises is its own report
            broken.append(Broken(point.name, distribution, _words(error, point.module)))
            continue
        if not contributions:
            silent.append(Silent(point.name, distribution, point.module))
        for kind, entry in contributions:
            other = found[kind].get(entry.name)
            if other is not None:
                raise BadInput(
                    f"two plugins claim the {kind[:-1]} name {entry.name!r}: {other.distribution} and"
                    f" {entry.distribution}; uninstall one, or list the entry points to load in {ONLY}"
                )
            found[kind][entry.name] = entry
    return Registry(*(dict(sorted(found[kind].items())) for kind in KINDS), broken=tuple(broken), silent=tuple(silent))


def _words(error: BaseException, module: str) -> str:
    """What was raised, in one line, and which line of the plugin's own raised it."""
    said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == module.partition(".")[0]
    ]
    place = f" ({Path(own[-1][0]).name}, line {own[-1][1]})" if own else ""
    return said.splitlines()[0] + place


def _contributions(
    manager: pluggy.PluginManager, point: EntryPoint, distribution: str, version: str
) -> list[tuple[Kind, Entry]]:
    plugin = point.load()
    name = manager.register(plugin, name=f"{distribution}:{point.name}")
    others = [p for p in manager.get_plugins() if p is not plugin]
    result: list[tuple[Kind, Entry]] = []
    try:
        manager.check_pending()  # a hook with a misspelt name is refused, not ignored
        for kind in KINDS:
            for answer in manager.subset_hook_caller(f"nlhf_zoo_{kind}", others)():
                result.extend((kind, Entry(key, item, distribution, version)) for key, item in _items(kind, answer))
    except Exception:
        manager.unregister(name=name)
        raise
    return result


def _items(kind: Kind, answer: Any) -> Iterable[tuple[str, Any]]:
    """
    Raises:
        BadInput: what the hook gave is no mapping or list of named classes.
    """
    wanted = f"nlhf_zoo_{kind}() must return a list of classes, as in [MyClass], or a mapping from names to them"
    if isinstance(answer, Mapping):
        items = list(cast("Mapping[str, Any]", answer).items())
    elif isinstance(answer, type | str) or not isinstance(answer, Iterable):
        raise BadInput(f"{wanted}, not {_kind(answer)} alone")
    else:
        items = [(getattr(item, "name", None), item) for item in cast("Iterable[Any]", answer)]
    for name, item in items:
        if not callable(item):
            raise BadInput(f"{wanted}; {_kind(item)} is in it")
        if not isinstance(name, str) or not name:
            raise BadInput(f"{wanted}; {_kind(item)} has no name: give it a class attribute `name`")
    return cast("list[tuple[str, Any]]", items)


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an object of type {type(value).__name__}"


def lookup(kind: Kind, name: str) -> Any:
    """The factory registered as `name`, or as `name` with underscores for hyphens.

    Raises:
        BadInput: no such name; the message gives the nearest ones, or why the plugin did not load.
    """
    registry = load()
    entries: Mapping[str, Entry] = getattr(registry, kind)
    for key in (name, name.replace("-", "_")):
        if key in entries:
            return entries[key].factory
    reason = _absence(registry, kind, name)
    if reason is not None:
        raise BadInput(f"no {kind[:-1]} named {name!r}: {reason}")
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(entries) or 'none'}"
    if registry.broken:
        hint += f" (not loaded: {'; '.join(f'{b.plugin}, {b.error}' for b in registry.broken)})"
    if registry.silent:
        hint += f" (installed, but registering nothing: {', '.join(s.plugin for s in registry.silent)})"
    raise BadInput(f"no {kind[:-1]} named {name!r}{hint}")


def _absence(registry: Registry, kind: Kind, name: str) -> str | None:
    """Why a plugin of this very name brings nothing of this name; `None` where there is no such plugin."""
    asked = name.replace("-", "_")
    for broken in registry.broken:
        if asked in (broken.plugin.replace("-", "_"), broken.distribution.replace("-", "_")):
            return f"the plugin {broken.plugin} of {broken.distribution} did not load: {broken.error}"
    for silent in registry.silent:
        if asked in (silent.plugin.replace("-", "_"), silent.distribution.replace("-", "_")):
            return (
                f"the plugin {silent.plugin} of {silent.distribution} is installed but registers nothing;"
                f" is @hookimpl missing above nlhf_zoo_{kind}() in {silent.module}?"
            )
    return None


def solvers() -> dict[str, Any]:
    """Every registered solver class by name."""
    return {name: entry.factory for name, entry in load().solvers.items()}
